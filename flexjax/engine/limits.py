"""How long a context, how many pages and how many open sequences an engine has."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from flexjax.engine.config import EngineConfig
from flexjax.engine.device.placement import Placement
from flexjax.engine.pages import PagePool, PagePools
from flexjax.engine.request import QueueFull
from flexjax.model import CausalLM
from flexjax.nn import layout_of
from flexjax.refusal import Refusal


def context_limit(config: EngineConfig, model: CausalLM) -> int:
    limit = model.config.max_position
    if config.max_model_len is not None and config.max_model_len > limit:
        raise Refusal(f"max_model_len must be within the model's own context of {limit}; got {config.max_model_len}.")
    return config.max_model_len or limit


def page_pools(config: EngineConfig, model: CausalLM, max_model_len: int, placement: Placement) -> PagePools:
    """A pool for each size of window of the model's layers, one for all where they have none.

    `num_pages` each as asked for, but no more than full sequences hold; else one full-length context for every
    sequence, as far as each device's cache_gib goes beside the states of recurrent layers, each pool an equal share of
    what it would hold.
    """
    windows = layout_of(model).windows
    most = [most_pages(window, config) for window in windows]
    wanted = [config.max_num_seqs * pages + 1 for pages in pages_of(windows, config, max_model_len)]
    if config.num_pages is not None:
        sizes = [
            config.num_pages if bound is None else min(config.num_pages, full)
            for full, bound in zip(wanted, most, strict=True)
        ]
    else:
        sizes = _affordable(config, model, placement, wanted)
    return PagePools([PagePool(n, config.page_size, bound) for n, bound in zip(sizes, most, strict=True)])


def most_pages(window: int | None, config: EngineConfig) -> int | None:
    """Pages that a sequence holds at most for layers with that window: those of the tokens that the rows of a dispatch
    write and see, wherever in a page these begin."""
    if window is None:
        return None
    rows = max(config.max_num_batched_tokens, config.decode_steps)
    return -(-(window + rows - 2) // config.page_size) + 1


def pages_of(windows: Sequence[int | None], config: EngineConfig, num_tokens: int) -> tuple[int, ...]:
    """Pages that a sequence of so many tokens holds in each of the pools."""
    pages = -(-num_tokens // config.page_size)
    bounds = (most_pages(window, config) for window in windows)
    return tuple(pages if bound is None else min(pages, bound) for bound in bounds)


def _affordable(config: EngineConfig, model: CausalLM, placement: Placement, wanted: list[int]) -> list[int]:
    """As many pages of each pool as are wanted, or as fit `cache_gib` on each device with all slots."""
    dtype = jnp.dtype(config.cache_dtype or config.dtype)
    slots = config.max_num_seqs + 1  # As `StepProgram` has them.

    def needed(sizes: Sequence[int]) -> int:
        return placement.device_bytes(placement.cache_spec(model, sizes, config.page_size, slots, dtype))

    budget = int(config.cache_gib * 2**30)
    if needed(wanted) <= budget:
        return wanted
    share = lambda least: [1 + math.ceil((n - 1) * least) for n in wanted]
    least = [min(2, n) for n in wanted]
    if needed(least) > budget:
        states = needed([0] * len(wanted))
        raise Refusal(
            f"One page of each layer, and the states of {slots} sequences, take {needed(least):,} bytes a device "
            f"({states:,} of them for what is not in pages); cache_gib={config.cache_gib} has no room for it."
        )
    # Linear in each size: a thousandth nearer than any step could matter.
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(share(middle)) <= budget else (low, middle)
    return [max(n, k) for n, k in zip(share(low), least, strict=True)]


def most_open(config: EngineConfig) -> float:
    """Sequences that may be open at a time."""
    return math.inf if config.max_waiting is None else config.max_num_seqs + config.max_waiting


def check_room(config: EngineConfig, open_: int, n: int) -> None:
    """QueueFull where a request of `n` sequences is too much beside the `open_` ones."""
    if open_ + n > most_open(config):
        raise QueueFull(
            f"At most max_num_seqs + max_waiting = {most_open(config)} sequences may be open in an engine; {open_} "
            f"are, and this request has {n} more. Submit it again when others have ended, or load the model with a "
            "larger max_waiting."
        )
