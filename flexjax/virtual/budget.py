"""Bytes on each device as a function of batch and context, without compiling."""

import dataclasses
import math
from collections.abc import Sequence

from flexjax.engine import EngineConfig, most_pages
from flexjax.hardware import aot
from flexjax.model import CausalLM
from flexjax.nn import layout_of
from flexjax.virtual.target import Target, program_for

RESERVE = 64 * 2**20  # Bytes for code and temporaries before a compile has told them.


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a device holds. `reserve` is for what only a compile tells: code and temporaries."""

    weights: int
    page: int  # One page of every layer without a window.
    page_size: int  # tokens
    slot: int  # The sampling memory of one sequence, and its states.
    available: int
    longest: int  # The model's own limit, tokens.
    reserve: int = RESERVE
    # Of the layers of each window: the bytes of one page of all of them, and how many a sequence holds at most.
    windowed: tuple[tuple[int, int], ...] = ()
    fixed: int = 0  # Of the cache: scales and counts.

    @classmethod
    def of(cls, model: CausalLM, engine: EngineConfig, target: Target) -> "Budget":
        one, two = (program_for(model, engine, target, batch, engine.page_size) for batch in (1, 2))
        windows, placement = layout_of(model).windows, one.placement

        def held(pages: Sequence[int], slots: int) -> int:
            spec = placement.cache_spec(model, pages, engine.page_size, slots, one.cache_dtype)
            return placement.device_bytes(spec)

        none = [0] * len(windows)
        fixed = held(none, 0)
        one_of = [held([int(i == j) for j in range(len(windows))], 0) - fixed for i in range(len(windows))]
        most = [most_pages(window, engine) for window in windows]
        return cls(
            weights=aot.device_bytes(one.weights),
            page=sum(page for page, bound in zip(one_of, most, strict=True) if bound is None),
            page_size=engine.page_size,
            slot=aot.device_bytes(two.memory) - aot.device_bytes(one.memory) + held(none, 1) - fixed,
            available=target.limits.hbm_bytes,
            longest=model.config.max_position,
            windowed=tuple((page, bound) for page, bound in zip(one_of, most, strict=True) if bound is not None),
            fixed=fixed,
        )

    def cache(self, batch: int, context: int) -> int:
        """Of pages, each table's first being nobody's."""
        pages = -(-context // self.page_size)
        windowed = sum((batch * min(pages, most) + 1) * page for page, most in self.windowed)
        return (batch * pages + 1) * self.page + windowed + self.fixed

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
            self,
            weights=math.ceil(self.weights * weight_bits),
            page=math.ceil(self.page * cache_bits),
            windowed=tuple((math.ceil(page * cache_bits), most) for page, most in self.windowed),
        )


def _last(most: int, holds) -> int:
    """The largest n ≤ most with `holds(n)`, which holds up to some n and not beyond; 0 where it never does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
