"""Bytes on each device as a function of batch and context, without compiling."""

import dataclasses
import math

from flexjax.engine import EngineConfig
from flexjax.hardware import aot
from flexjax.model import CausalLM
from flexjax.virtual.target import Target, program_for

RESERVE = 64 * 2**20  # Bytes for code and temporaries before a compile has told them.


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a device holds. `reserve` is for what only a compile tells: code and temporaries."""

    weights: int
    page: int  # One page of every layer.
    page_size: int  # tokens
    slot: int  # The sampling memory of one sequence.
    available: int
    longest: int  # The model's own limit, tokens.
    reserve: int = RESERVE

    @classmethod
    def of(cls, model: CausalLM, engine: EngineConfig, target: Target) -> "Budget":
        one, two = (program_for(model, engine, target, batch, engine.page_size) for batch in (1, 2))
        return cls(
            weights=aot.device_bytes(one.weights),
            page=aot.device_bytes(two.cache) - aot.device_bytes(one.cache),
            page_size=engine.page_size,
            slot=aot.device_bytes(two.memory) - aot.device_bytes(one.memory),
            available=target.limits.hbm_bytes,
            longest=model.config.max_position,
        )

    def cache(self, batch: int, context: int) -> int:
        return (batch * -(-context // self.page_size) + 1) * self.page

    def needed(self, batch: int, context: int) -> int:
        return self.weights + self.cache(batch, context) + (batch + 1) * self.slot + self.reserve

    def missing(self, batch: int, context: int) -> int:
        """Bytes that a device lacks; zero or less where it fits."""
        return self.needed(batch, context) - self.available

    def largest_batch(self, context: int, most: int = 2**16) -> int:
        """Sequences of `context` tokens that fit at once; 0 where not one does."""
        return _last(most, lambda batch: self.missing(batch, context) <= 0)

    def longest_context(self, batch: int) -> int:
        """Tokens that each of `batch` sequences can have, up to the model's limit; 0 where there is no room."""
        return _last(self.longest, lambda context: self.missing(batch, context) <= 0)

    def scaled(self, weight_bits: float, cache_bits: float) -> "Budget":
        """With weights and cache at that share of their present size."""
        return dataclasses.replace(
            self, weights=math.ceil(self.weights * weight_bits), page=math.ceil(self.page * cache_bits)
        )


def _last(most: int, holds) -> int:
    """The largest n ≤ most with `holds(n)`, which holds up to some n and not beyond; 0 where it never does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
