"""Text quality: bits per byte of held-out text, and agreement with a reference's answers, each with its interval."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from flexjax.bench import interval
from flexjax.bench.interval import Interval
from flexjax.bench.result import Better
from flexjax.refusal import Refusal

# MLPerf's two bars: a result counts when its quality is at least so much of the reference's.
MLPERF_BARS = (0.999, 0.99)


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a document to be scored, and what the model reads before it.

    `continuation` has at least one token, and so has `context`.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    n_bytes: int  # Of the continuation's text in UTF-8.


def windows(
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    context: int,
    continuation: int,
    min_bytes: int = 50_000,
    start: Sequence[int] = (),
) -> tuple[Window, ...]:
    """The documents cut for strided perplexity, one window of each in turn, until they hold `min_bytes` of text.

    A document's first `context` tokens are read and not scored; every token after them is scored exactly once, in
    pieces of at most `continuation` tokens, each with the `context` tokens before it. A document that is not longer
    than that gives no window, and fewer bytes than asked for come back where the documents end.

    `start` (BOS) begins every context, also in the middle of a document, and counts in its tokens: there are models
    that predict nothing sensible without it, and llama.cpp's `perplexity` puts it first in each chunk too.

    `n_bytes` adds up to the UTF-8 bytes of the text scored. A token counts for the characters up to its own end that
    no token before it has reached: of a character cut into several tokens all bytes are the first one's, and text
    that the tokenizer drops is the next one's, or at a document's end the last one's.

    Refusal for a context without room for a token and for `start`, and for an empty continuation.
    """
    if context < max(1, len(start)) or continuation < 1:
        raise Refusal(
            f"A window needs a context of at least one token that has room for the {len(start)} with which the "
            f"tokenizer begins a text, and a continuation of at least one; got {context} and {continuation}."
        )
    cut = [_of_document(tokenizer, text, context - len(start), continuation, tuple(start)) for text in documents]
    found: list[Window] = []
    n_bytes = 0
    for window in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*cut))):
        if n_bytes >= min_bytes:
            break
        found.append(window)
        n_bytes += window.n_bytes
    return tuple(found)


def _of_document(
    tokenizer: Tokenizer, document: str, before: int, continuation: int, start: tuple[int, ...]
) -> Iterable[Window]:
    """`before` is how many of a context's tokens are the document's own."""
    encoding = tokenizer.encode(document, add_special_tokens=False)
    ids = tuple(encoding.ids)
    # Offsets may overlap, and a tokenizer that trims them may step back: what was reached stays reached.
    reached = np.maximum.accumulate([0, *(end for _, end in encoding.offsets)])
    reached[-1] = len(document)
    for first in range(before, len(ids), continuation):
        last = min(first + continuation, len(ids))
        text = document[reached[first] : reached[last]]
        yield Window((*start, *ids[first - before : first]), ids[first:last], len(text.encode()))


def fault(log_probs: Sequence[Sequence[float]], windows: Sequence[Window]) -> str:
    """Why natural log-probabilities, one a token of each window's continuation, cannot be; empty where they can."""
    if len(log_probs) != len(windows):
        return f"log-probabilities of {len(log_probs)} windows came back, of {len(windows)}"
    uneven = sum(len(found) != len(window.continuation) for found, window in zip(log_probs, windows, strict=True))
    if uneven:
        return f"{uneven} of {len(windows)} windows came back with too few or too many log-probabilities"
    # A probability of 1 that was added up in few bits may end above it.
    wrong = [x for found in log_probs for x in found if not -math.inf < x <= 0.01]
    return f"{len(wrong)} log-probabilities are not finite or above 0, such as {wrong[0]}" if wrong else ""


def bits(log_probs: Sequence[Sequence[float]]) -> list[float]:
    """What each window's continuation took: -Σ log2 p, from natural logarithms."""
    return [-math.fsum(found) / math.log(2) for found in log_probs]


def bits_per_byte(log_probs: Sequence[Sequence[float]], windows: Sequence[Window]) -> tuple[float, Interval | None]:
    """Bits that the model needs for a byte of text, and the 95 % interval over windows (None with a single one).

    It does not depend on the tokenizer's vocabulary. `log_probs[w][t]` is the natural log-probability of token t of
    window w's continuation.
    """
    return ratio_of_sums(bits(log_probs), [window.n_bytes for window in windows])


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure, in percent as MLPerf gives it. Two empty texts agree fully."""
    # Text without a single word has no score of its own: it agrees with its equal and nothing else.
    return 100.0 if text == reference else _rouge_l(text, reference)


@functools.lru_cache(maxsize=65_536)  # Under load the same answer comes again and again.
def _rouge_l(text: str, reference: str) -> float:
    return 100 * float(_scorer().score(reference, text)["rougeL"].fmeasure)


@functools.cache
def _scorer():
    from rouge_score import rouge_scorer  # Loads nltk, which takes seconds.

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)  # The stemmer would want nltk's data.


def matching_tokens(answer: Sequence[int], reference: Sequence[int]) -> tuple[int, int]:
    """How many tokens stand at the same place in both, and how many the longer of them has.

    One early difference counts for all that follows it, so greedy answers of two precisions may agree in little and
    still be equally good: ROUGE-L and bits per byte judge that.
    """
    return sum(a == b for a, b in zip(answer, reference, strict=False)), max(len(answer), len(reference))


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, Interval | None]:
    """Σ numerators / Σ denominators and its 95 % interval over the pairs, None for a single pair."""
    return math.fsum(numerators) / math.fsum(denominators), interval.of_ratio_of_sums(numerators, denominators)


def kept(
    values: Sequence[float], baseline: Sequence[float], better: Better
) -> tuple[float, Interval | None] | tuple[None, None]:
    """How much of the baseline's quality a side keeps, from both sides' values of the same texts: above 1 it is better.

    Its 95 % interval is over the texts, linearised. A text that is hard is hard for both sides, so it is far narrower
    than the intervals of the two values. Neither is known where the sum to divide by is 0.
    """
    above, below = (values, baseline) if better == "higher" else (baseline, values)
    return ratio_of_sums(above, below) if math.fsum(below) else (None, None)


def of_reference(value: float, reference: float, better: Better) -> float:
    """How much of the reference's quality a value keeps: 1 is all of it, more is better than it."""
    return value / reference if better == "higher" else reference / value


def mlperf_grade(kept: float) -> Literal["≥ 99.9 %", "≥ 99 %", "< 99 %"]:
    """Which of MLPerf's bars a fraction of the reference's quality passes."""
    high, low = MLPERF_BARS
    return "≥ 99.9 %" if kept >= high else "≥ 99 %" if kept >= low else "< 99 %"
