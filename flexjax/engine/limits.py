"""How long a context, how many pages and how many open sequences an engine has."""

import math

import jax.numpy as jnp

from flexjax.engine.config import EngineConfig
from flexjax.engine.device.placement import Placement
from flexjax.engine.request import QueueFull
from flexjax.model import CausalLM
from flexjax.refusal import Refusal


def context_limit(config: EngineConfig, model: CausalLM) -> int:
    limit = model.config.max_position
    if config.max_model_len is not None and config.max_model_len > limit:
        raise Refusal(f"max_model_len must be within the model's own context of {limit}; got {config.max_model_len}.")
    return config.max_model_len or limit


def num_pages(config: EngineConfig, model: CausalLM, max_model_len: int, placement: Placement) -> int:
    """As asked for; else one full-length context for every sequence, as far as each device's cache_gib goes."""
    if config.num_pages is not None:
        return config.num_pages
    wanted = config.max_num_seqs * -(-max_model_len // config.page_size) + 1
    dtype = jnp.dtype(config.cache_dtype or config.dtype)
    one, two = (placement.device_bytes(placement.cache_spec(model, n, config.page_size, 1, dtype)) for n in (1, 2))
    page_bytes = max(two - one, 1)
    affordable = int(config.cache_gib * 2**30) // page_bytes
    if affordable < 2:
        raise Refusal(f"One page takes {page_bytes} bytes a device; cache_gib={config.cache_gib} has no room for it.")
    return min(wanted, affordable)


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
