"""Layers in a loop: the weights of a repeating pattern of layers stacked, the cache of all layers carried.

On a mesh with stages the loop is cut into a part for each, and a training batch runs through as a pipeline.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flexjax.hardware.pipeline import pipeline, stages
from flexjax.nn.cache import Layout
from flexjax.nn.quantised import QuantizedWeight
from flexjax.refusal import Refusal

# XLA for TPU fuses the slice of a layer out of stacked weights into the product; for GPU and CPU it copies the layer
# first (Llama-3-8B on H200: three times the bytes a step).
STACKED_BACKENDS = frozenset({"tpu"})


def period(layers: Sequence[Hashable]) -> int:
    """Length of the pattern that repeats from the first layer on, with the fewest layers left to trace."""
    count = len(layers)
    repeats = [p for p in range(1, count + 1) if all(layers[i] == layers[i % p] for i in range(count))]
    return min(repeats, key=lambda p: p + count % p)


def in_a_row(
    layers: Sequence[Hashable],
    blocks: Sequence[nnx.Module],
    x: Float[Array, "*T D"],
    at: Any,
    cache: Sequence[Any] | None,
    apply: Callable[..., tuple[Array, Any]],
    layout: Layout,
) -> tuple[Float[Array, "*T D"], list[Any] | None]:
    """The blocks one after the other, each with its own leaves of a cache in rows; `apply` is as `Scan` has it, with
    None for indices, and `at` is what its `prepare` gives."""
    new_cache = []
    for i, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
        none = (None,) * len(layout.kept[i])
        x, leaves = apply(layer, block, at, none if cache is None else cache[i], none, x)
        new_cache.append(tuple(leaves))
    return x, None if cache is None else new_cache


class Scan(nnx.Module):
    """The blocks of a model as a loop over groups of its repeating layer pattern, the rest after it.

    Each parameter of the pattern is one array with a leading axis, "layers", of the groups; the program
    holds one group whatever the depth. The cache rides in the carry and every layer reads and writes it by
    its own index: as inputs and outputs of the loop it would be held twice.
    """

    def __init__(
        self,
        layers: Sequence[Hashable],
        blocks: Sequence[nnx.Module],
        release: bool = False,
        stages: int = 1,
        microbatches: int = 1,
    ):
        """`release` frees the blocks' own arrays as they are stacked. As many groups are looped over as divide by
        `stages`; `microbatches` pass through these where the mesh in use has an axis `stage`."""
        size = period(layers)
        if len(layers) // size < stages:
            raise Refusal(
                f"Every stage has a group of layers at least; {len(layers)} layers are {len(layers) // size} groups of "
                f"{size}, for stages={stages}. Give those devices to fsdp or tensor."
            )
        self.pattern = tuple(layers[:size])
        self.groups = len(layers) // size // stages * stages
        self.microbatches = microbatches
        looped = size * self.groups
        self.rest_pattern = tuple(layers[looped:])
        self.group = nnx.List([_stacked(blocks[i:looped:size], release) for i in range(size)])
        self.rest = nnx.List(blocks[looped:])

    def __call__(
        self,
        x: Float[Array, "*T D"],
        positions: Int[Array, "*T"],
        prepare: Callable[[Array], Any],
        cache: Any,
        apply: Callable[..., tuple[Array, Any]],
        layout: Layout,
    ) -> tuple[Float[Array, "*T D"], Any]:
        """`apply(layer, block, prepare(positions), leaves, indices, x)` is one block's work, its row and the leaves
        after it: `layer` says of what kind the block is, and of each thing that it keeps there is a leaf, of several
        layers, and which of these it is. Without a cache the leaves are None."""
        graph, state = nnx.split(self.group)
        quantized = {path for path, module in nnx.iter_modules(self.group) if isinstance(module, QuantizedWeight)}
        flat = nnx.to_flat_state(state)
        sliced = [(path, parameter) for path, parameter in flat if path[:-1] not in quantized]
        # Each weight enters the loop as the matrix that it is multiplied as: XLA fuses the slice of a layer's
        # weights into their product only where nothing, not even a reshape, stands between the two. A kernel's
        # operand it would copy, so quantised ones enter whole and the product slices.
        matrices = [_matrix(parameter) for _, parameter in sliced]
        whole = [(path, parameter) for path, parameter in flat if path[:-1] in quantized]

        def loop(weights, x, positions, cache):
            numbers, matrices, stacks = weights
            at = prepare(positions)

            def step(carry, xs):
                number, place, matrices = xs
                own = [(path, p.replace(m.reshape(p.shape[1:]))) for (path, p), m in zip(sliced, matrices, strict=True)]
                own += [(path, p.replace(stack)) for (path, p), stack in zip(whole, stacks, strict=True)]
                blocks = nnx.merge(graph, nnx.from_flat_state(own))
                for _, module in nnx.iter_modules(blocks):
                    if isinstance(module, QuantizedWeight):
                        module.layer = nnx.data(place)
                return run(blocks, self.pattern, 0, number, at, *carry), None

            places = jnp.arange(len(numbers), dtype=jnp.int32)  # In the stacks, of which a stage has a part.
            return jax.lax.scan(step, (x, cache), (numbers, places, matrices))[0]

        size = len(self.pattern)
        # By so much each pool's index is further in the next turn of the loop, in which the pattern comes once.
        steps = [sum(layer < size for layer in pool.layers) for pool in layout.pools]

        cache = None if cache is None else list(cache)

        def run(blocks, pattern, first, turn, at, x, cache):
            cache = None if cache is None else list(cache)
            for i, (layer, block) in enumerate(zip(pattern, blocks, strict=True), start=first):
                places = layout.places(i)
                leaves = tuple(None if cache is None else cache[pool] for pool, _ in places)
                indices = tuple(jnp.int32(index + turn * steps[pool]) for pool, index in places)
                x, leaves = apply(layer, block, at, leaves, indices, x)
                if cache is not None:
                    for (pool, _), leaf in zip(places, leaves, strict=True):
                        cache[pool] = leaf
            return x, cache

        def stage(weights, batch):
            x, positions = batch
            return loop(weights, x, positions, None)[0], positions

        weights = (jnp.arange(self.groups, dtype=jnp.int32), matrices, [parameter[...] for _, parameter in whole])
        if cache is None and stages() > 1:
            self.check(stages(), self.microbatches)
            x, _ = pipeline(stage, weights, (x, positions), microbatches=self.microbatches)
        else:
            x, cache = loop(weights, x, positions, cache)
        return run(self.rest, self.rest_pattern, self.groups * size, 0, prepare(positions), x, cache)

    def check(self, stages: int, microbatches: int) -> None:
        """Refusal unless the groups can run in so many stages, and `microbatches` is what passes through them."""
        if stages > 1 and (self.groups % stages or self.microbatches != microbatches):
            raise Refusal(
                f"Every stage has as many groups of layers; this model is stacked in {self.groups} of "
                f"{len(self.pattern)} for microbatches={self.microbatches}, and asked to run over stage={stages} with "
                f"microbatches={microbatches}. Stack it so: model.unstacked().stacked(stages={stages}, microbatches=…)."
            )

    def layers(self) -> list[nnx.Module]:
        """The blocks one by one, in their order."""
        return [_sliced(block, i) for i in range(self.groups) for block in self.group] + list(self.rest)


def _matrix(parameter: nnx.Param) -> Array:
    """A stacked parameter, with the axes that its product sums over flattened into one."""
    shape, summed = list(parameter.shape), dict(parameter.get_metadata("layer")).get("summed", 1)
    shape[1 : 1 + summed] = [math.prod(shape[1 : 1 + summed])]
    return parameter[...].reshape(shape)


def _sliced(block: nnx.Module, index: int) -> nnx.Module:
    """One of the blocks that `_stacked` put together."""
    graph, state = nnx.split(block)
    own = [(path, nnx.Param(p[index], **dict(p.get_metadata("layer")))) for path, p in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(own))


def _stacked(blocks: Sequence[nnx.Module], release: bool) -> nnx.Module:
    """One block whose parameters are those of `blocks`, stacked."""
    graph, _ = nnx.split(blocks[0])
    states = [dict(nnx.to_flat_state(nnx.state(block))) for block in blocks]
    stacked = {}
    for path, parameter in states[0].items():
        layers = [state[path].get_value() for state in states]
        together = jnp.stack(layers)
        axes, layer = ("layers", *parameter.get_metadata("axes")), tuple(parameter.get_metadata().items())
        stacked[path] = nnx.Param(together, axes=axes, layer=layer)  # `layer` is for `_sliced`.
        if release:
            together.block_until_ready()
            for layer in layers:
                layer.delete()
    return nnx.merge(graph, nnx.from_flat_state(stacked))
