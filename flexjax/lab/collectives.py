"""Collectives over all devices, by size."""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flexjax.hardware.roofline import SENT
from flexjax.lab.timing import Loop, Probe, waiting

AXIS = "all"


def _all_reduce(x: Float[Array, "n"], devices: int) -> Float[Array, "n"]:
    return jax.lax.psum(x, AXIS) / devices


def _all_gather(x: Float[Array, "n"], devices: int) -> Float[Array, "n"]:
    # Without the barrier XLA would fetch the one part that goes on, and gather nothing.
    whole = jax.lax.optimization_barrier(jax.lax.all_gather(x, AXIS))
    return whole[(jax.lax.axis_index(AXIS) + 1) % devices]


def _reduce_scatter(x: Float[Array, "n"], devices: int) -> Float[Array, "n"]:
    part = jax.lax.psum_scatter(x, AXIS, tiled=True) / devices
    return jnp.tile(part, devices)


def _all_to_all(x: Float[Array, "n"], devices: int) -> Float[Array, "n"]:
    return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)


def _permute(x: Float[Array, "n"], devices: int) -> Float[Array, "n"]:
    return jax.lax.ppermute(x, AXIS, [(i, (i + 1) % devices) for i in range(devices)])


COLLECTIVES: dict[str, Callable[[Float[Array, "n"], int], Float[Array, "n"]]] = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-to-all": _all_to_all,
    "collective-permute": _permute,
}


def collectives(kibibytes: Sequence[int]) -> Iterator[Probe]:
    """Probes of each collective for each size, which is what every device puts in. Its work is what a device must
    send over its links (`SENT`; the "bus bandwidth" of nccl-tests). None are made where there is one device.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    split = PartitionSpec(AXIS)
    for name, collective in COLLECTIVES.items():
        for size in kibibytes:
            n = -(-size * 1024 // 4 // len(devices)) * len(devices)
            x = jax.device_put(jnp.ones(n * len(devices)), NamedSharding(mesh, split))
            step = jax.shard_map(
                lambda x, run=collective: run(x, len(devices)), mesh=mesh, in_specs=split, out_specs=split
            )
            loop = Loop(step, x)
            # Devices that XLA makes of one CPU share its threads: calls enqueued behind each other may take them all
            # and wait for one another for ever.
            run = waiting(loop) if devices[0].platform == "cpu" else loop
            yield Probe(f"{name} {size} KiB", name, 4 * n * SENT[name](len(devices)), run)
