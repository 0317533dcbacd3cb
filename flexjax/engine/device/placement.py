"""Where an engine's arrays live: on the default device, or by the serving rules on a mesh."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flexjax.hardware.sharding import SERVING, check, refuse_idle_axes, sharding
from flexjax.kernels.ragged_paged_attention import numbers_per_token, rescaled
from flexjax.model import Axes, CacheLeaf, CausalLM, parameters, zeros
from flexjax.nn import layout_of
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Placement:
    """One replica's devices; `mesh` None is the default device."""

    mesh: Mesh | None = None

    def __post_init__(self):
        if self.mesh is not None and self.mesh.shape["data"] > 1:
            raise Refusal(
                f"An engine is one replica; this mesh has data={self.mesh.shape['data']}. LLM.load and "
                "flexjax.engine.load_engine put one engine on each part of it."
            )

    @property
    def spans_processes(self) -> bool:
        """Whether other processes hold a part, so that all must make the same dispatches in the same order."""
        return self.mesh is not None and len({d.process_index for d in self.mesh.devices.flat}) > 1

    @property
    def whole(self) -> NamedSharding | None:
        """Of what comes from the host and goes back to it: a copy on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def in_use(self) -> AbstractContextManager[Any]:
        """Within it, what is traced is traced for these devices."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def abstract(self, value: Any, axes: Axes) -> jax.ShapeDtypeStruct:
        """The shape and dtype of a value, and its sharding."""
        where = None if self.mesh is None else sharding(axes, value.shape, self.mesh, SERVING)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where)

    def cache_spec(
        self, model: CausalLM, num_pages: int | Sequence[int], page_size: int, num_slots: int, dtype: Any
    ) -> Any:
        """The model's cache, each kv head as often in it as devices share it (where their query heads divide)."""

        def shared(leaf: CacheLeaf) -> CacheLeaf:
            if self.mesh is None or "kv_heads" not in leaf.axes:
                return leaf
            i = leaf.axes.index("kv_heads")
            ways = math.prod(self.mesh.shape[m] for m in SERVING["kv_heads"].mesh_axes)
            copies = ways // math.gcd(ways, leaf.shape[i] // (2 if leaf.paired else 1))
            if leaf.copies % copies:
                axes = (*leaf.axes[:i], None, *leaf.axes[i + 1 :])  # A key must not be split from its value.
                return dataclasses.replace(leaf, axes=axes) if leaf.paired else leaf
            return dataclasses.replace(leaf, shape=(*leaf.shape[:i], copies * leaf.shape[i], *leaf.shape[i + 1 :]))

        return _map(shared, layout_of(model).paged(num_pages, page_size, num_slots, dtype))

    def abstract_cache(self, spec: Any) -> Any:
        return _map(lambda leaf: self.abstract(leaf, leaf.axes), spec)

    def jit(self, function: Callable[..., Any], out_shardings: Any, **options: Any) -> Any:
        """`jax.jit`; on a mesh with the results where `out_shardings` says."""
        if self.mesh is not None:
            options["out_shardings"] = out_shardings
        return jax.jit(function, **options)

    def made(self, make: Callable[[], Any], like: Any) -> Any:
        """What `make` returns, made where `like`, its abstract value, says that it stays."""
        return make() if self.mesh is None else self.jit(make, shardings_of(like))()

    def empty_cache(self, spec: Any, scales: Sequence[np.ndarray] | None = None) -> Any:
        """The cache of that spec, of zeros; pages that have scales need them (`cache_scales`)."""

        def make() -> Any:
            cache = zeros(spec)
            return cache if scales is None else rescaled(cache, [jnp.asarray(scale) for scale in scales])

        abstract = self.abstract_cache(spec)
        assert scales is not None or not numbers_per_token(abstract), "an int8 or float8 cache needs its scales"
        return self.made(make, abstract)

    def device_bytes(self, spec: Any) -> int:
        """What the cache takes on each device."""
        leaves = jax.tree.leaves(self.abstract_cache(spec))
        shapes = [leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
        return sum(math.prod(s) * leaf.dtype.itemsize for s, leaf in zip(shapes, leaves, strict=True))

    def inspect(self, model: CausalLM, cache_spec: Any) -> None:
        """Warns of every array that takes more memory than its rules intend; Refusal for a mesh axis that
        splits nothing."""
        if self.mesh is None:
            return
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.abstract_cache(cache_spec))
        axes = [leaf.axes for leaf in jax.tree.leaves(cache_spec, is_leaf=_is_leaf)]
        arrays = parameters(model)
        arrays += [(f"cache{jax.tree_util.keystr(p)}", a, leaf) for (p, leaf), a in zip(leaves, axes, strict=True)]
        refuse_idle_axes(arrays, self.mesh, SERVING)
        for finding in check(arrays, self.mesh, SERVING):
            logging.warning("Sharding: %s", finding)


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, CacheLeaf)


def _map(function: Any, spec: Any) -> Any:
    return jax.tree.map(function, spec, is_leaf=_is_leaf)
