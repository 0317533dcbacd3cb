"""What process 0 of a job loads over several processes, told to the others so that they load it too.

A job runs in process 0 alone, and only there is it known which models are loaded, when and how. So the order comes
from `load_engine` itself: what the others do cannot differ from what process 0 does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from flexjax.engine.config import EngineConfig


@dataclasses.dataclass(frozen=True)
class Load:
    """Asks for the same call of `load_engine`."""

    directory: str
    config: EngineConfig
    devices: tuple[int, ...] | None  # Their ids; None is all.
    cached: bool  # Whether compiled programs are kept on disk.

    @property
    def here(self) -> list[Any] | None:
        """The devices as this process knows them."""
        if self.devices is None:
            return None
        known = {device.id: device for device in jax.devices()}
        return [known[i] for i in self.devices]


_order: Callable[[Load], None] | None = None


def on_load(order: Callable[[Load], None] | None) -> None:
    """From now on `order` is told of each model over several processes, just before process 0 loads it. None ends
    that: then every process calls `load_engine` by itself."""
    global _order
    _order = order


def summon(directory: str | Path, config: EngineConfig, devices: Sequence[Any] | None) -> None:
    """Has the other processes load the same model, where they wait for that."""
    if _order is not None:
        ids = None if devices is None else tuple(device.id for device in devices)
        _order(Load(str(directory), config, ids, cached=jax.config.jax_compilation_cache_dir is not None))
