"""The table of chips: peak rates, memory, link, power and price, each with its source (chips.toml)."""

import dataclasses
import difflib
import functools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flexjax.refusal import Refusal

_TABLE = Path(__file__).with_name("chips.toml")

Platform = Literal["tpu", "gpu", "cpu"]


@dataclasses.dataclass(frozen=True)
class Price:
    usd_per_hour: float  # On demand, for one unit.
    date: str  # ISO 8601.
    source: str


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip. None, or an absent dtype in `peak`, means that no source gives the figure.

    Watts and price are per unit: a chip, or a core of a CPU.
    """

    name: str
    full_name: str
    vendor: str
    platform: Platform
    device_kinds: tuple[str, ...]  # What `jax.Device.device_kind` calls it.
    source: str
    unit: Literal["chip", "core"] = "chip"
    peak: Mapping[str, float] = dataclasses.field(default_factory=dict)  # dtype → dense TFLOP/s or TOP/s.
    memory_gib: float | None = None
    memory_gb_per_s: float | None = None
    link_gb_per_s: float | None = None  # Both directions together.
    idle_watts: float | None = None
    load_watts: float | None = None
    price: Price | None = None
    clock_ghz: float | None = None  # Of the cores, as the compiler counts cycles.
    compiler: Mapping[str, Any] | None = None  # What its compiler is told where there is no such chip (`topology`).


@dataclasses.dataclass(frozen=True)
class Running:
    """What this process computes on: how many units of which chip."""

    device_kind: str  # As JAX names it.
    units: int  # Chips, or the CPU cores that this process may use.
    chip: Chip | None  # None for a device that the table does not have.


@functools.cache
def table() -> Mapping[str, Chip]:
    """Every chip by its short name: v5e, h100, cpu, …"""
    return {name: _chip(name, fields) for name, fields in tomllib.loads(_TABLE.read_text()).items()}


def _chip(name: str, fields: dict[str, Any]) -> Chip:
    price = Price(**fields.pop("price")) if "price" in fields else None
    return Chip(name=name, device_kinds=tuple(fields.pop("device_kinds")), price=price, **fields)


def find(name: str) -> Chip:
    """The chip of that short name; Refusal names the nearest ones."""
    chips = table()
    if name not in chips:
        near = difflib.get_close_matches(name, chips, n=3) or sorted(chips)
        raise Refusal(f"No chip is called {name!r}; nearest known: {', '.join(near)}. {_TABLE.name} lists them all.")
    return chips[name]


def of_device_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for one that the table does not have."""
    return next((chip for chip in table().values() if device_kind in chip.device_kinds), None)


def detect() -> Running:
    """What JAX runs on here. Starts JAX's backend."""
    import jax  # Not above: the table is also read to set XLA flags, before JAX is imported.

    devices = jax.devices()
    kind = devices[0].device_kind
    chip = of_device_kind(kind)
    units = cores() if chip and chip.unit == "core" else len(devices)
    return Running(device_kind=kind, units=units, chip=chip)


def cores() -> int:
    """CPU cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only.
    return len(affinity(0)) if affinity else os.cpu_count() or 1
