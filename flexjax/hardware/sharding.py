"""Which mesh axes split which dimension of an array: one table of rules, and what follows from it.

Every parameter, cache leaf and batch names its dimensions (`axes`); nothing else in the project names a
mesh axis for an array.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from flexjax.refusal import Refusal

Axes = Sequence[str | None]  # One logical name a dimension; None is never split.


@dataclasses.dataclass(frozen=True)
class Rule:
    """The mesh axes that split a dimension, and what happens where its size does not divide by them.

    `instead` names the dimension of the same array that is split in its place. Where that is absent or
    does not divide either, the array is replicated if `may_replicate`, which `check` reports; else an error.
    """

    mesh_axes: tuple[str, ...] = ()
    instead: str | None = None
    may_replicate: bool = False


def _over(*mesh_axes: str, instead: str | None = None, may_replicate: bool = False) -> Rule:
    return Rule(mesh_axes, instead, may_replicate)


WHOLE = Rule()
# A product split over `embed`, which it sums over or gives, costs a sum or a gather of activations, never of weights.
_HEADS = _over("tensor", instead="embed", may_replicate=True)
_VOCAB = _over("tensor", instead="embed", may_replicate=True)
_TENSOR, _EXPERT = _over("tensor"), _over("expert")

# Logical axis → rule when serving, rule when training. A mesh axis splits at most one dimension of an array: the
# first that asks for it. So activations of [batch, length, embed] keep `embed` whole in training, where `batch`
# has taken fsdp.
TABLE: Mapping[str, tuple[Rule, Rule]] = {
    # Parameters.
    "vocab": (_VOCAB, _VOCAB),
    # Of stacked layers stage splits "layers", which come first; of all that stands outside a pipeline, this.
    "embed": (WHOLE, _over("stage", "fsdp", "sequence", may_replicate=True)),
    "heads": (_HEADS, _HEADS),
    "kv_heads": (_HEADS, _HEADS),
    "head_dim": (WHOLE, WHOLE),
    "mlp": (_TENSOR, _TENSOR),
    "inner": (_HEADS, _HEADS),  # Channels of a recurrent layer, head after head where it has heads.
    "position": (WHOLE, WHOLE),
    "expert": (_EXPERT, _EXPERT),
    "layers": (WHOLE, _over("stage")),  # Of stacked layers.
    "stage": (WHOLE, _over("stage")),
    # The cache. A replica's pages live on its own devices, so `data` splits none of them.
    "pages": (WHOLE, WHOLE),
    "page": (WHOLE, WHOLE),
    "slots": (WHOLE, WHOLE),
    # Batches.
    "batch": (WHOLE, _over("stage", "data", "fsdp")),  # Outermost stage: microbatches form in place, see pipeline.py.
    "group_batch": (WHOLE, _over("data")),  # Examples while the axes of `embed` split their width.
    "length": (WHOLE, _over("sequence")),
    "rows": (WHOLE, WHOLE),  # Of a ragged step.
}

Rules = Mapping[str, Rule]
SERVING: Rules = {axis: serving for axis, (serving, _) in TABLE.items()}
TRAINING: Rules = {axis: training for axis, (_, training) in TABLE.items()}


@dataclasses.dataclass(frozen=True)
class Split:
    """How one array is split: its spec, and each rule that could not be kept, in words."""

    spec: PartitionSpec
    compromises: tuple[str, ...]  # "kv_heads=2 does not divide by tensor=4; embed is split instead", …


def split(axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: Rules, name: str = "array") -> Split:
    """The split of an array of that shape; Refusal where a size does not divide and its rule has no way out."""
    if len(axes) != len(shape):
        raise Refusal(
            f"An array names one axis a dimension; {name} of shape {tuple(shape)} has the axes {tuple(axes)}."
        )
    taken: list[list[str]] = [[] for _ in axes]
    compromises = []

    def take(i: int, mesh_axes: Sequence[str]) -> bool:
        fits = shape[i] % math.prod(mesh.shape[m] for m in (*taken[i], *mesh_axes)) == 0
        if fits:
            taken[i].extend(mesh_axes)
        return fits

    for i, axis in enumerate(axes):
        rule = _rule(axis, rules, name) if axis is not None else WHOLE
        wanted = [m for m in rule.mesh_axes if mesh.shape.get(m, 1) > 1 and not any(m in t for t in taken)]
        if not wanted or take(i, wanted):
            continue
        sizes = " × ".join(f"{m}={mesh.shape[m]}" for m in wanted)
        problem = f"{axis}={shape[i]} does not divide by {sizes}"
        if rule.instead in axes and take(list(axes).index(rule.instead), wanted):
            compromises.append(f"{problem}; {rule.instead} is split instead")
        elif rule.may_replicate:
            compromises.append(f"{problem}; it is replicated")
        else:
            divisors = [str(d) for d in range(1, min(shape[i], 256) + 1) if shape[i] % d == 0]
            raise Refusal(
                f"A dimension must divide by the mesh axes that split it: in {name} {tuple(shape)}, {problem}. Choose "
                f"{' × '.join(wanted)} among {', '.join(divisors)}, and give the other devices to data or fsdp."
            )
    parts = [tuple(t) if len(t) > 1 else (t[0] if t else None) for t in taken]
    while parts and parts[-1] is None:
        parts.pop()
    return Split(PartitionSpec(*parts), tuple(compromises))


def spec(axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array of that shape."""
    return split(axes, shape, mesh, rules).spec


def sharding(axes: Axes, shape: Sequence[int], mesh: Mesh, rules: Rules) -> NamedSharding:
    """The sharding of an array of that shape."""
    return NamedSharding(mesh, spec(axes, shape, mesh, rules))


def abstract(value: Any, axes: Axes, mesh: Mesh, rules: Rules) -> jax.ShapeDtypeStruct:
    """The shape and dtype of `value` with its sharding: an argument for `jit(…).lower`."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding(axes, value.shape, mesh, rules))


def constrain(x: jax.Array, axes: Axes, rules: Rules) -> jax.Array:
    """While tracing: `x` split by the rules on the mesh in use; as it is without one. Inside a shard_map the axes
    that it has taken split nothing more."""
    mesh = _mesh_in_use()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, rules))


def constrain_factor(x: jax.Array, weight: Any, weight_axes: Axes, axis: int, rules: Rules) -> jax.Array:
    """While tracing: `x`, whose last dimension is multiplied with `axis` of a weight, split there as the weight is.

    The product is then a sum over devices. Left whole, `x` may make XLA gather the weight instead.
    """
    mesh = _mesh_in_use()
    if mesh is None:
        return x
    parts = [*spec(weight_axes, weight.shape, mesh, rules), *[None] * weight.ndim]
    factor = PartitionSpec(*[None] * (x.ndim - 1), parts[axis])
    return jax.lax.with_sharding_constraint(x, factor)


def split_ways(axis: str, rules: Rules) -> int:
    """While tracing: over how many devices of the mesh in use a dimension with that axis is split."""
    mesh = _mesh_in_use()
    return 1 if mesh is None else math.prod(mesh.shape.get(m, 1) for m in _rule(axis, rules, "array").mesh_axes)


def _mesh_in_use() -> AbstractMesh | None:
    """The axes that are left to XLA, of the mesh in use; None where there is nothing to split."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}
    return None if math.prod(sizes.values()) == 1 else AbstractMesh(tuple(sizes.values()), tuple(sizes))


def place(mesh: Mesh, rules: Rules) -> Callable[[np.ndarray, Axes], jax.Array]:
    """Puts a host array onto the mesh, every process its own part; no device ever holds the whole.

    The `place` of a model family's `load`.
    """

    def put(value: np.ndarray, axes: Axes) -> jax.Array:
        where = sharding(axes, value.shape, mesh, rules)
        # A copy even on CPU: an array that aliased a mapped file would change or die with it.
        return jax.make_array_from_callback(value.shape, where, lambda index: np.array(value[index]))

    return put


@dataclasses.dataclass(frozen=True)
class Finding:
    """An array that takes more memory on the mesh than its rules intend."""

    name: str
    shape: tuple[int, ...]
    reason: str
    wasted_bytes: int  # Over all devices, against the split that the rules ask for.

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}: {self.reason}; {self.wasted_bytes / 2**20:.1f} MiB wasted"


def check(
    arrays: Iterable[tuple[str, Axes, Any]], mesh: Mesh, rules: Rules, *, min_bytes: int = 2**20
) -> list[Finding]:
    """The arrays, given as (name, axes, array or ShapeDtypeStruct), that waste at least `min_bytes`: worst first.

    Found are: one whose sharding differs from its rules; one whose dimension does not divide, so that it is
    replicated; and one that no rule splits at all though it has `min_bytes` and the mesh could.
    """
    could = math.prod(
        mesh.shape.get(m, 1) for m in {m for rule in rules.values() for m in rule.mesh_axes} - {"data", "sequence"}
    )
    findings = []
    for name, axes, value in arrays:
        asked = split(axes, value.shape, mesh, rules, name)
        actual: jax.sharding.Sharding | None = getattr(value, "sharding", None)
        by_rule = math.prod(NamedSharding(mesh, asked.spec).shard_shape(value.shape))
        held = by_rule if actual is None else math.prod(actual.shard_shape(value.shape))
        intended = {m for axis in axes if axis is not None for m in _rule(axis, rules, name).mesh_axes}
        ways = math.prod(mesh.shape.get(m, 1) for m in intended) if intended else could
        if actual is not None and held > by_rule:
            reason = f"held as {_spec_of(actual)}, but its rules say {asked.spec}"
        elif asked.compromises:
            reason = "; ".join(asked.compromises)
        else:
            reason = f"no rule splits any of its axes {tuple(axes)}"
        total = math.prod(value.shape)
        wasted = (held - -(-total // ways)) * mesh.size * jnp.dtype(value.dtype).itemsize
        if wasted >= min_bytes:
            findings.append(Finding(name, tuple(value.shape), reason, wasted))
    return sorted(findings, key=lambda f: -f.wasted_bytes)


def refuse_idle_axes(arrays: Iterable[tuple[str, Axes, Any]], mesh: Mesh, rules: Rules) -> None:
    """Refusal for a mesh axis, `data` aside, over which none of the arrays is split: its devices would all do
    the same work."""
    used = {m for _, axes, value in arrays for part in spec(axes, value.shape, mesh, rules) for m in _names(part)}
    idle = [f"{m}={size}" for m, size in mesh.shape.items() if size > 1 and m not in used | {"data"}]
    if idle:
        raise Refusal(
            f"Every mesh axis must split some array of the model; none has a dimension for {', '.join(idle)}. Give "
            "those devices to tensor or data. (expert needs a mixture of experts; fsdp, sequence and stage train.)"
        )


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part or ()


def _spec_of(actual: jax.sharding.Sharding) -> str:
    return str(actual.spec) if isinstance(actual, NamedSharding) else f"{len(actual.device_set)} whole copies"


def _rule(axis: str, rules: Rules, name: str) -> Rule:
    if axis not in rules:
        near = difflib.get_close_matches(axis, rules, n=3) or sorted(rules)
        raise Refusal(f"No rule is called {axis!r}, an axis of {name}; nearest known: {', '.join(near)}.")
    return rules[axis]
