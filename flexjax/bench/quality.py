"""Text quality: bits per byte on held-out text, and agreement with a reference's answers."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from flexjax.bench.result import Better, Quality
from flexjax.engine.request import CompletionOutput
from flexjax.refusal import Refusal

Score = Callable[[Sequence[int]], Float[np.ndarray, "T V"]]

# MLPerf's two bars: a result counts when its quality is at least so much of the reference's.
MLPERF_BARS = (0.999, 0.99)


def bits_per_byte(score: Score, tokenizer: Tokenizer, documents: Sequence[str], max_tokens: int) -> float:
    """Bits that the model needs for a byte of the documents' beginnings, at most `max_tokens` tokens each.

    - log2 p(token | tokens before), summed over the scored tokens, over their bytes in UTF-8; it does
    not depend on the tokenizer's vocabulary. A document's first token has nothing before it and is
    not scored, nor are its bytes counted, unless it is a special one (BOS) that stands for no text.

    `score(ids)` gives float32 logits, row t being the prediction of token t + 1.
    """
    if max_tokens < 2:
        raise Refusal(f"max_tokens must be at least 2, for one token to be predicted; got {max_tokens}.")
    nats, size = 0.0, 0
    for document in documents:
        encoding = tokenizer.encode(document)
        ids, spans = encoding.ids[:max_tokens], encoding.offsets[:max_tokens]
        if len(ids) < 2:
            continue
        logits = np.asarray(score(ids), np.float64)[: len(ids) - 1]
        nats -= _log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]].sum()
        size += len(document[spans[0][1] : spans[-1][1]].encode())
    if not size:
        raise Refusal(f"None of the {len(documents)} documents has two tokens to score; give longer text.")
    return float(nats / size / np.log(2))


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure, in percent as MLPerf gives it. Two empty texts agree fully."""
    from rouge_score import rouge_scorer  # Loads nltk, which takes seconds.

    _check_pairs(texts, references)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)  # The stemmer would want nltk's data.
    pairs = zip(texts, references, strict=True)
    # Text without a single word has no score of its own: it agrees with its equal and nothing else.
    scores = [
        1.0 if text == reference else scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs
    ]
    return 100 * float(np.mean(scores))


def matching_tokens(answers: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Percent of the tokens that stand at the same place in both, over all answers.

    One early difference counts for all that follows it, so greedy answers of two precisions may
    agree in little and still be equally good: ROUGE-L and bits per byte judge that.
    """
    _check_pairs(answers, references)
    pairs = list(zip(answers, references, strict=True))
    same = sum(a == b for answer, reference in pairs for a, b in zip(answer, reference, strict=False))
    longest = sum(max(len(answer), len(reference)) for answer, reference in pairs)
    return 100 * same / longest if longest else 100.0


def against_reference(
    side: str, outputs: Sequence[CompletionOutput], reference: Sequence[CompletionOutput]
) -> tuple[Quality, ...]:
    """ROUGE-L and matching tokens of one side's answers to the prompts that `reference` answered."""
    rouge = rouge_l([output.text for output in outputs], [output.text for output in reference])
    match = matching_tokens([output.token_ids for output in outputs], [output.token_ids for output in reference])
    return (
        Quality(side, "rouge_l", "%", "higher", rouge),
        Quality(side, "matching_tokens", "%", "higher", match),
    )


def of_reference(value: float, reference: float, better: Better) -> float:
    """How much of the reference's quality a value keeps: 1 is all of it, more is better than it."""
    return value / reference if better == "higher" else reference / value


def mlperf_grade(kept: float) -> Literal["≥ 99.9 %", "≥ 99 %", "< 99 %"]:
    """Which of MLPerf's bars a fraction of the reference's quality passes."""
    high, low = MLPERF_BARS
    return "≥ 99.9 %" if kept >= high else "≥ 99 %" if kept >= low else "< 99 %"


def _log_softmax(logits_TxV: np.ndarray) -> np.ndarray:
    shifted_TxV = logits_TxV - logits_TxV.max(axis=-1, keepdims=True)
    return shifted_TxV - np.log(np.exp(shifted_TxV).sum(axis=-1, keepdims=True))


def _check_pairs(answers: Sequence, references: Sequence) -> None:
    if len(answers) != len(references) or not answers:
        raise Refusal(
            f"Each answer needs the reference's answer to the same prompt, and there must be one; got {len(answers)} "
            f"answers and {len(references)} references."
        )
