"""Packs documents end to end into token batches, each a pure function of (seed, step)."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from flexjax.data.corpus import Document
from flexjax.data.tokenizer import END_OF_TEXT
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Batches of `batch_size` windows of `sequence_length` tokens; the model predicts each next one.

    Short windows first are cheap, long ones last teach long contexts: at each step of `lengthen_at` windows
    become twice as long and half as many.
    """

    batch_size: int = 8  # Sequences a step. Must be divisible by 2 as often as windows are lengthened.
    sequence_length: int = 256  # Tokens that the model sees at once.
    lengthen_at: tuple[int, ...] = ()  # Steps, rising.
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or self.sequence_length < 1:
            raise Refusal(
                f"batch_size and sequence_length must be at least 1; got {self.batch_size} and {self.sequence_length}."
            )
        if any(a >= b for a, b in itertools.pairwise((0, *self.lengthen_at))):
            raise Refusal(f"lengthen_at must rise from at least 1; got {self.lengthen_at}.")
        if self.batch_size % 2 ** len(self.lengthen_at):
            raise Refusal(
                f"batch_size must be divisible by {2 ** len(self.lengthen_at)} to be halved {len(self.lengthen_at)} "
                f"times; got {self.batch_size}."
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def shape(self, step: int) -> tuple[int, int]:
        """(B, T) of a step."""
        factor = 2 ** sum(step >= first for first in self.lengthen_at)
        return self.batch_size // factor, self.sequence_length * factor


def tokenize(tokenizer: Tokenizer, documents: Iterable[Document]) -> list[np.ndarray]:
    """Each document's tokens, int32, with `END_OF_TEXT` before them."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encodings = tokenizer.encode_batch([d.text for d in documents])
    return [np.array([end, *e.ids], np.int32) for e in encodings]


class PackedBatches:
    """`batches[step]` → (inputs, targets), both int32 `[B, T]`; the same for the same seed and step, always.

    Every epoch shuffles the documents, lays them end to end, and cuts the stream into windows at an offset of
    its own, so that no two epochs show the same windows. A window may span documents.
    """

    def __init__(self, documents: Sequence[np.ndarray], config: DataConfig):
        self.documents, self.config = list(documents), config
        self.tokens = sum(len(d) for d in self.documents)
        self._epoch = functools.lru_cache(maxsize=1)(self._make_epoch)
        for step in (0, *config.lengthen_at):
            size, length = config.shape(step)
            if self._windows(length) < size:
                raise Refusal(
                    f"One batch needs {size + 1} windows of {length} tokens and one more token; the corpus has "
                    f"{self.tokens} tokens. Use a smaller batch_size or sequence_length."
                )

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        size, length = self.config.shape(step)
        epoch, index = divmod(step, self.steps_per_epoch(step))
        stream, starts = self._epoch(epoch, length)
        rows = starts[index * size : (index + 1) * size, None] + np.arange(length + 1)
        window = stream[rows]
        return window[:, :-1], window[:, 1:]

    def since(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`self[step]`, `self[step + 1]`, … for ever."""
        return map(self.__getitem__, itertools.count(step))

    def steps_per_epoch(self, step: int = 0) -> int:
        """Steps of an epoch that has the shape of `step` throughout."""
        size, length = self.config.shape(step)
        return self._windows(length) // size

    def _windows(self, length: int) -> int:
        # One window's worth is given to the epoch's random offset, one token to the last target.
        return (self.tokens - 1) // length - 1

    def _make_epoch(self, epoch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.config.seed, epoch))
        stream = np.concatenate([self.documents[i] for i in rng.permutation(len(self.documents))])
        starts = rng.integers(length) + length * rng.permutation(self._windows(length))
        return stream, starts
