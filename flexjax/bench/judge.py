"""Asks both sides the same questions and judges the answers against float32's."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from flexjax.bench import quality
from flexjax.bench.openai_chunks import UNKNOWN_TOKEN
from flexjax.bench.result import Quality
from flexjax.bench.stock import StockTarget
from flexjax.bench.target import Target
from flexjax.bench.workload import Item
from flexjax.engine.request import CompletionOutput, Request, TokenEvent
from flexjax.refusal import Refusal
from flexjax.train.corpus import held_out_documents


@runtime_checkable
class Scores(Protocol):
    """A target whose logits can be had, for bits per byte."""

    def score(self, token_ids: Sequence[int]) -> np.ndarray:
        """Float32 logits `[T, V]`; row t predicts token t + 1."""
        ...


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    prompts: int = 16  # Answered greedily by both sides, for ROUGE-L; 0 judges nothing.
    documents: int = 8  # Held-out documents for bits per byte; 0 leaves it out.
    document_tokens: int = 256  # Of each document's beginning.

    def __post_init__(self):
        if self.prompts < 0 or self.documents < 0 or self.document_tokens < 2:
            raise Refusal(f"Quality needs counts of at least 0 and documents of 2 tokens or more; got {self}.")


def judge_sides(
    targets: Sequence[Target],
    items: Sequence[Item],
    tokenizer: Tokenizer,
    config: QualityConfig,
    reference: Callable[[], StockTarget],
    max_context: int,
) -> tuple[Quality, ...]:
    """Bits per byte of each side that can score; ROUGE-L and equal tokens against a float32 reference.

    The reference is the float32 stock side where there is one, else `reference()` is started for it.
    RuntimeError where a side cannot answer.
    """
    found: list[Quality] = []
    if config.documents:
        documents = [d.text for d in held_out_documents()[: config.documents]]
        tokens = min(config.document_tokens, max_context)
        for target in targets:
            if isinstance(target, Scores):
                bits = quality.bits_per_byte(target.score, tokenizer, documents, tokens)
                found.append(Quality(target.name, "bits_per_byte", "bits/byte", "lower", bits))
    if config.prompts:
        asked = items[: config.prompts]
        answers = {target.name: answer(target, asked) for target in targets}
        stock = next((t for t in targets if isinstance(t, StockTarget) and t.config.dtype == "float32"), None)
        if stock is not None:
            expected = answers[stock.name]
        else:
            extra = reference()
            extra.start()
            try:
                expected = answer(extra, asked)
            finally:
                extra.stop()
        for target in targets:
            compared = quality.against_reference(target.name, answers[target.name], expected)
            # A server behind a URL gives text and no token ids: those cannot be compared.
            told = all(UNKNOWN_TOKEN not in output.token_ids for output in answers[target.name])
            found += [q for q in compared if told or q.measure != "matching_tokens"]
    return tuple(found)


def answer(target: Target, items: Sequence[Item]) -> list[CompletionOutput]:
    """Each item's greedy answer. RuntimeError where one fails."""
    collectors = [_Collector() for _ in items]
    for number, (item, collector) in enumerate(zip(items, collectors, strict=True)):
        params = dataclasses.replace(item.params, temperature=0.0)
        target.submit(Request(f"quality{number:03d}", item.prompt_token_ids, params, listener=collector))
    return [collector.wait(target.name) for collector in collectors]


class _Collector:
    def __init__(self):
        self._token_ids: list[int] = []
        self._text = ""
        self._end: TokenEvent | None = None
        self._ended = threading.Event()

    def __call__(self, event: TokenEvent) -> None:
        self._token_ids.extend(event.token_ids)
        self._text += event.text
        if event.kind == "done":
            self._end = event
            self._ended.set()

    def wait(self, name: str) -> CompletionOutput:
        if not self._ended.wait(300) or self._end is None:
            raise RuntimeError(f"{name} gave no answer within 300 s.")
        if self._end.finish_reason in ("error", "cancelled"):
            raise RuntimeError(f"{name} could not answer: {self._end.error or self._end.finish_reason}")
        return CompletionOutput(0, self._text, tuple(self._token_ids), self._end.finish_reason)
