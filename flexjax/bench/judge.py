"""Judges what each side says: in quiet, and under the load that is measured.

- Bits per byte of held-out text. A local side decodes the text by force, in its own serving steps and largest batches;
  a server behind a URL echoes it.
- ROUGE-L and equal tokens, against the greedy answers of a float32 reference: of answers given one at a time, and of
  all answers given under load. How much an answer loses from the first to the second is what the load does to it.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from tokenizers import Tokenizer

from flexjax.bench import ask, interval, quality
from flexjax.bench.interval import Interval
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.quality import Window, windows
from flexjax.bench.result import LoadedAnswer, Quality, SideRun
from flexjax.bench.stock import StockTarget
from flexjax.bench.target import Target
from flexjax.bench.workload import Item, text_start
from flexjax.data import held_out_documents
from flexjax.engine import CompletionOutput
from flexjax.refusal import Refusal, Unsupported

LARGEST_DROP = 1.0  # Percentage points of ROUGE-L that answers may lose under load.
_FEWEST_DROPS = 5  # Fewer answers may by chance lose nearly the same, and Student's t then be sure of it.
_NOT_COMPARED = (None, None)


@runtime_checkable
class Echoes(Protocol):
    """A target that tells the log-probabilities of a text, in place of decoding it by force."""

    def continuation_logprobs(self, windows: Sequence[Window]) -> list[list[float]]:
        """Natural log-probabilities, one a token of each window's continuation; Unsupported where it cannot tell."""
        ...


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    text_bytes: int = 50_000  # Bytes of held-out text for bits per byte, at least; 0 leaves it out.
    context_tokens: int = 96  # Tokens before each piece of it; fewer where a side can take no more.
    continuation_tokens: int = 48  # Tokens a piece that are scored; fewer where a side can make no more.
    prompts: int = 1024  # First prompts of the workload, at most, that the reference answers; 0 judges no answers.
    alone: int = 64  # First prompts, of those, that each side also answers one at a time; 0 is none.

    def __post_init__(self):
        counts = (self.text_bytes, self.prompts, self.alone)
        if min(counts) < 0 or self.context_tokens < 1 or self.continuation_tokens < 1:
            raise Refusal(f"Quality needs counts of at least 0, and pieces of at least one token; got {self}.")


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the sides say in quiet, and what their answers under load are compared with.

    `reference[i]` answers the workload's item i, greedily and in float32; `alone[side][i]` does so too, given when no
    other request was in flight. Either may stop before the last item.
    """

    sides: tuple[str, ...]  # The baseline first.
    quality: tuple[Quality, ...]
    reference: tuple[CompletionOutput, ...]
    alone: Mapping[str, tuple[CompletionOutput, ...]]
    greedy: bool  # The workload asks for greedy answers, which alone can be compared with the reference's.
    notes: tuple[str, ...] = ()  # What was left out, and why.


def judge_sides(
    targets: Sequence[Target],
    items: Sequence[Item],
    tokenizer: Tokenizer,
    config: QualityConfig,
    reference: Callable[[], StockTarget],
    *,
    max_context: int,
    max_prompt: int,
    max_output: int,
) -> Judgement:
    """The quality of started sides, the baseline first, while nothing else asks them.

    `max_context`, `max_prompt` and `max_output` are tokens that every side can take. The reference is the float32 stock
    side where there is one; else `reference()`, which is started and stopped here. RuntimeError where a side cannot
    answer, or decodes other tokens than those forced on it.
    """
    notes: list[str] = []
    sides = tuple(target.name for target in targets)
    found: list[Quality] = []
    if config.text_bytes:
        # A server that echoes makes one token more.
        context = min(config.context_tokens, max_prompt, max_context - 2)
        cut = windows(
            tokenizer,
            (document.text for document in held_out_documents()),
            context=context,
            continuation=min(config.continuation_tokens, max_output, max_context - context - 1),
            min_bytes=config.text_bytes,
            start=text_start(tokenizer),
        )
        if cut:
            found += _bits_per_byte(sides, _log_probs(targets, cut, notes), cut)
        else:
            notes.append(f"Bits per byte are left out: no held-out document has more than {context} tokens.")
    asked = items[: config.prompts]
    expected = _reference_answers(targets, asked, reference) if asked else ()
    alone = {target.name: ask.answers_alone(target, asked[: config.alone]) for target in targets}
    found += _against_reference(
        sides, {side: _by_item(enumerate(outputs)) for side, outputs in alone.items()}, expected
    )
    greedy = all(item.params.temperature == 0 for item in items)
    return Judgement(sides, tuple(found), expected, alone, greedy, tuple(notes))


def under_load(judgement: Judgement, runs: Sequence[SideRun]) -> tuple[tuple[Quality, ...], tuple[str, ...]]:
    """The quality of all answers of the runs, and reasons why the result cannot be trusted.

    An item that was answered several times counts once, with the mean over its answers: they are not independent. A
    side corrupts answers under load, which is a reason, where those of one scenario agree less with the reference
    than the side's own answers to the same items, given one at a time: where the 95 % interval of the mean loss of
    ROUGE-L lies wholly above LARGEST_DROP. Each scenario is judged by itself, because a fault may need a large batch.
    Bits that depend on the batch change some greedy answers for the better and some for the worse, so that they lose
    nothing on average.

    Both are empty without a reference, and for a workload that samples.
    """
    if not judgement.reference or not judgement.greedy:
        return (), ()
    reference = judgement.reference
    loaded: dict[str, Answers] = {
        side: _of_runs([run for run in runs if run.side == side], reference) for side in judgement.sides
    }
    reasons = []
    for side, scenario in dict.fromkeys((run.side, run.scenario) for run in runs):
        here = _of_runs([run for run in runs if (run.side, run.scenario) == (side, scenario)], reference)
        reason = _corruption(_by_item(enumerate(judgement.alone[side])), here, reference)
        reasons += [f"{side}, {scenario}: {reason}"] if reason else []
    return tuple(_against_reference(judgement.sides, loaded, reference, "_under_load")), tuple(reasons)


def _log_probs(targets: Sequence[Target], cut: Sequence[Window], notes: list[str]) -> dict[str, list[list[float]]]:
    """By side; a side that cannot tell is left out, with a note."""
    found = {}
    for target in targets:
        try:
            told = target.continuation_logprobs(cut) if isinstance(target, Echoes) else ask.log_probs(target, cut)
        except Unsupported as error:
            notes.append(f"{target.name}: bits per byte are left out: {error}")
            continue
        if fault := quality.fault(told, cut):
            raise RuntimeError(f"{target.name}: {fault}.")
        found[target.name] = told
    return found


def _bits_per_byte(
    sides: Sequence[str], log_probs: Mapping[str, list[list[float]]], cut: Sequence[Window]
) -> list[Quality]:
    basis = f"{sum(window.n_bytes for window in cut):,} bytes"
    found = []
    for side in sides:
        if side in log_probs:
            value, spread = quality.bits_per_byte(log_probs[side], cut)
            ratio = _NOT_COMPARED
            if side != sides[0] and sides[0] in log_probs:
                ratio = quality.kept(quality.bits(log_probs[side]), quality.bits(log_probs[sides[0]]), "lower")
            found.append(Quality(side, "bits_per_byte", "bits/byte", "lower", value, spread, *ratio, basis))
    return found


def _reference_answers(
    targets: Sequence[Target], items: Sequence[Item], reference: Callable[[], StockTarget]
) -> tuple[CompletionOutput, ...]:
    stock = next((t for t in targets if isinstance(t, StockTarget) and t.config.dtype == "float32"), None)
    if stock is not None:
        return ask.answers(stock, items)
    extra = reference()
    extra.start()
    try:
        return ask.answers(extra, items)
    finally:
        extra.stop()


Answers = Mapping[int, Sequence[CompletionOutput | LoadedAnswer]]  # Item → its answers.


def _by_item(answers: Iterable[tuple[int, CompletionOutput | LoadedAnswer]]) -> Answers:
    found: dict[int, list[CompletionOutput | LoadedAnswer]] = {}
    for item, answer in answers:
        found.setdefault(item, []).append(answer)
    return found


def _of_runs(runs: Sequence[SideRun], reference: Sequence[CompletionOutput]) -> Answers:
    """The answers that have a reference."""
    return _by_item((a.item, a) for run in runs for a in run.answers if a.item < len(reference))


def _against_reference(
    sides: Sequence[str], given: Mapping[str, Answers], reference: Sequence[CompletionOutput], suffix: str = ""
) -> list[Quality]:
    """ROUGE-L and equal tokens of each side; `suffix` ends the measures' names."""
    rouge = {side: _rouge_l(answers, reference) for side, answers in given.items()}
    found = []
    for side in sides:
        answers, scores, baseline = given[side], rouge[side], rouge[sides[0]]
        if not answers:
            continue
        count = sum(map(len, answers.values()))
        basis = f"{count:,} answers" + (f" to {len(answers):,} prompts" if count > len(answers) else "")
        values = list(scores.values())
        ratio = _NOT_COMPARED
        if side != sides[0] and (both := [item for item in scores if item in baseline]):
            ratio = quality.kept([scores[i] for i in both], [baseline[i] for i in both], "higher")
        mean, spread = statistics.fmean(values), interval.of_mean(values)
        found.append(Quality(side, f"rouge_l{suffix}", "%", "higher", mean, spread, *ratio, basis))
        # A server behind a URL gives text and no token ids: those cannot be compared.
        if not any(UNKNOWN_TOKEN in answer.token_ids for several in answers.values() for answer in several):
            equal, spread = _matching_tokens(answers, reference)
            found.append(Quality(side, f"matching_tokens{suffix}", "%", "higher", equal, spread, basis=basis))
    return found


def _rouge_l(answers: Answers, reference: Sequence[CompletionOutput]) -> dict[int, float]:
    """Item → mean over its answers, in percent."""
    return {
        item: statistics.fmean(quality.rouge_l(answer.text, reference[item].text) for answer in several)
        for item, several in answers.items()
    }


def _matching_tokens(answers: Answers, reference: Sequence[CompletionOutput]) -> tuple[float, Interval | None]:
    """Percent of all tokens, each item with the mean over its answers."""
    equal, longest = [], []
    for item, several in answers.items():
        counts = [quality.matching_tokens(answer.token_ids, reference[item].token_ids) for answer in several]
        equal.append(100 * statistics.fmean(n for n, _ in counts))
        longest.append(statistics.fmean(n for _, n in counts))
    return quality.ratio_of_sums(equal, longest)


def _corruption(alone: Answers, loaded: Answers, reference: Sequence[CompletionOutput]) -> str | None:
    """Why one side's answers under one load cannot be trusted, if so."""
    quiet, busy = _rouge_l(alone, reference), _rouge_l(loaded, reference)
    drops = [quiet[item] - busy[item] for item in quiet if item in busy]
    lost = interval.of_mean(drops)
    if len(drops) < _FEWEST_DROPS or lost is None or lost.low <= LARGEST_DROP:
        return None
    return (
        f"answers are corrupted under load: to {len(drops)} prompts they lose {statistics.fmean(drops):.1f} percentage "
        f"points of ROUGE-L (95 % interval {lost.low:.1f} to {lost.high:.1f}) against the side's own answers given one "
        f"at a time; up to {LARGEST_DROP:g} is allowed"
    )
