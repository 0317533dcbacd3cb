"""Which adapter each row of a step has, arranged once for all the projections of a model."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdapterRows:
    """The adapters of T rows, and each adapter that any of them has once.

    Invariants: `used[:count]` are distinct, in rising order, and what follows repeats the last of them (fetching it
    again is free). `used[slot[t]]` is row t's adapter; `slot[t]` is -1 for a row without one.
    """

    slot: Int[Array, "T"]
    used: Int[Array, "U"]
    count: Int[Array, "1"]

    @classmethod
    def of(cls, adapter: Int[Array, "T"], num_adapters: int) -> "AdapterRows":
        """`adapter` of each row, below `num_adapters`, or negative for none."""
        every = jnp.arange(num_adapters, dtype=jnp.int32)[None]
        present = jnp.any(adapter[:, None] == every, axis=0)
        place = jnp.cumsum(present, dtype=jnp.int32) - 1
        slot = jnp.where(adapter < 0, -1, place[jnp.maximum(adapter, 0)])
        wanted = jnp.minimum(
            jnp.arange(min(num_adapters, adapter.shape[0]), dtype=jnp.int32), jnp.maximum(place[-1], 0)
        )
        used = jnp.sum(jnp.where(present[None] & (place[None] == wanted[:, None]), every, 0), axis=1, dtype=jnp.int32)
        return cls(slot, used, place[-1:] + 1)

    def in_layer(self, layer: Int[Array, ""] | int, num_adapters: int) -> "AdapterRows":
        """The same rows where the adapters of all layers lie in one array, layer after layer."""
        return dataclasses.replace(self, used=self.used + layer * num_adapters)

    @property
    def adapter(self) -> Int[Array, "T"]:
        return jnp.where(self.slot < 0, -1, self.used[jnp.maximum(self.slot, 0)])
