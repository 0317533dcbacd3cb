"""The train step of one model, stated without an array: compiled here, on a mesh, or for chips that are not here."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import TRAINING, Finding, abstract, check, refuse_idle_axes, sharding
from flexjax.model import CausalLM, parameters
from flexjax.nn import STACKED_BACKENDS, Precision, with_precision
from flexjax.refusal import Refusal
from flexjax.train.form import reformed
from flexjax.train.optimizer import OptimizerConfig, make_optimizer, schedule


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    steps: int = 1_000
    precision: Precision = "bfloat16"  # Of projections' operands; everything else is float32.
    recompute_layers: bool = False  # Keep one activation a layer for the backward pass, and compute the others again.
    microbatches: int = 1  # Parts of a batch that follow each other through the stages of a mesh; a multiple of stage.
    log_every: int = 10  # Steps averaged in one row of loss.csv.
    checkpoint_every: int = 100  # Steps; the last step is always kept.

    def __post_init__(self):
        for name in ("steps", "microbatches", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise Refusal(f"{name} must be at least 1; got {getattr(self, name)}.")


def cross_entropy(model: CausalLM, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the targets, nats a token, float32."""
    hidden, _ = model.dense(inputs)
    return optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), targets).mean()


class TrainProgram:
    """One model's train step on a mesh.

    `build` makes the model (`functools.partial(family.build, config, dtype=jnp.float32)`) and is only traced; the mesh
    may be of described devices (`flexjax.hardware.topology.devices`):

        TrainProgram(build, OptimizerConfig(), LoopConfig(precision="bfloat16"), mesh).lower(batch_size, length)

    is then the program for those chips. `params` and `optimizer` are the abstract arguments of every step, float32
    and split by the TRAINING rules; both are donated. Layers run in a loop where the chip's compiler wants it so, and
    in stages where the mesh has them.
    """

    def __init__(
        self,
        build: Callable[[], CausalLM],
        optimizer: OptimizerConfig,
        loop: LoopConfig,
        mesh: Mesh | None = None,
    ):
        """`mesh` None is one device. Refusal where a size of the model does not divide by it."""
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
        self.loop = loop
        self.learning_rate = schedule(optimizer, loop.steps)
        self._build = build
        self._arranged = lambda model: arranged(model, self.mesh, loop)
        model = nnx.eval_shape(lambda: self._arranged(build()))
        self.arrays = parameters(model)
        self.graph, params = nnx.split(model)
        self.update = make_optimizer(optimizer, loop.steps, params)
        self.params = self._abstract(params)
        self.optimizer = self._abstract(jax.eval_shape(self.update.init, params))
        self._loops = model.loops
        self.kept_as = (self.params, self.optimizer)
        if self._loops:
            self.kept_as = self._abstract(jax.eval_shape(self._unstack, self.kept_as))
        self._unstacked = self._made(self._unstack, self.kept_as)
        out = (shardings_of(self.params), shardings_of(self.optimizer), self.whole)
        self._jitted = jax.jit(self._step(), donate_argnums=(0, 1), out_shardings=out)

    @property
    def where(self) -> str:
        """Where and how the step runs, in words: "on 8 × cpu (fsdp=4, tensor=2)", …"""
        axes = ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items() if size > 1)
        device = self.mesh.devices.flat[0]
        form = ", layers in a loop" if self._loops else ""
        return f"on {self.mesh.size} × {device.device_kind}{f' ({axes})' if axes else ''}{form}"

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def tokens(self, batch_size: int, length: int) -> jax.ShapeDtypeStruct:
        """The inputs of a step, and its targets. Refusal where they cannot be shared out evenly."""
        self._check_shares(batch_size, length)
        where = sharding(("batch", "length"), (batch_size, length), self.mesh, TRAINING)
        return jax.ShapeDtypeStruct((batch_size, length), jnp.int32, sharding=where)

    def lower(self, batch_size: int, length: int) -> jax.stages.Lowered:
        """The step over `[batch_size, length]` tokens: (params, optimizer, inputs, targets) → (params, optimizer,
        loss)."""
        tokens = self.tokens(batch_size, length)
        with jax.set_mesh(self.mesh):
            return self._jitted.lower(self.params, self.optimizer, tokens, tokens)

    def run(self, params: Any, optimizer: Any, inputs: Any, targets: Any) -> tuple[Any, Any, Float[Array, ""]]:
        """One step; inputs and targets are host arrays `[B, T]`, the same in every process."""
        where = self.tokens(*inputs.shape).sharding
        inputs, targets = (jax.make_array_from_callback(x.shape, where, x.__getitem__) for x in (inputs, targets))
        with jax.set_mesh(self.mesh):
            return self._jitted(params, optimizer, inputs, targets)

    def fresh(self) -> Any:
        """The parameters that `build` makes, each made where it stays: no device holds the whole."""
        return self._made(lambda: nnx.split(self._arranged(self._build()))[1], self.params)()

    def fresh_optimizer(self, params: Any) -> Any:
        """The optimiser's state before the first step."""
        return self._made(self.update.init, self.optimizer)(params)

    def kept(self, params: Any, optimizer: Any) -> Any:
        """Both as they are kept (`kept_as`): an array a layer, split over the mesh."""
        if not self._loops:
            return params, optimizer
        return self._unstacked((params, optimizer))

    def regained(self, kept: Any) -> Any:
        """`params` and `optimizer` of what was kept."""
        if not self._loops:
            return kept
        graph = nnx.split(nnx.eval_shape(self._build))[0]
        stack = lambda kept: reformed(kept, graph, self._arranged)
        return self._made(stack, (self.params, self.optimizer))(kept)

    def inspect(self, batch_size: int, length: int) -> list[Finding]:
        """The arrays that take more memory than their rules intend; Refusal for a mesh axis that splits nothing."""
        tokens = ("tokens", ("batch", "length"), self.tokens(batch_size, length))
        refuse_idle_axes([*self.arrays, tokens], self.mesh, TRAINING)
        return check(self.arrays, self.mesh, TRAINING)

    def _unstack(self, state: Any) -> Any:
        return reformed(state, self.graph, lambda model: model.unstacked())

    def _made(self, function: Callable[..., Any], like: Any) -> Callable[..., Any]:
        """`function` compiled for results placed, and put together, as `like`."""
        made = jax.jit(
            lambda *args: jax.tree.leaves(function(*args)),
            out_shardings=[x.sharding for x in jax.tree.leaves(like)],
        )

        def run(*args: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return jax.tree.unflatten(jax.tree.structure(like), made(*args))

        return run

    def _check_shares(self, batch_size: int, length: int) -> None:
        shape = self.mesh.shape
        groups = {"data": shape["data"], "fsdp": shape["fsdp"]}
        if shape["stage"] > 1:
            groups["microbatches"] = self.loop.microbatches
        for name, size, split in (
            ("batch_size", batch_size, groups),
            ("length", length, {"sequence": shape["sequence"]}),
        ):
            ways = math.prod(split.values())
            if size % ways:
                by = " × ".join(f"{axis}={n}" for axis, n in split.items() if n > 1)
                raise Refusal(
                    f"Every device has an equal share of a step: its {name} must divide by {by}; got {size}. Take "
                    f"{-(-size // ways) * ways}, or give devices to other axes of the mesh."
                )

    def _abstract(self, tree: Any) -> Any:
        """Shapes, dtypes and shardings; what is no parameter, nor shaped as one, is whole on every device."""

        def one(leaf: Any) -> Any:
            if isinstance(leaf, nnx.Variable):
                return leaf.replace(abstract(leaf.get_value(), leaf.get_metadata("axes"), self.mesh, TRAINING))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.whole)

        return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))

    def _step(self) -> Callable[..., Any]:
        def loss_of(params: Any, inputs: Array, targets: Array) -> Array:
            return cross_entropy(nnx.merge(self.graph, params), inputs, targets)

        def step(params: Any, optimizer: Any, inputs: Array, targets: Array):
            loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets)
            updates, optimizer = self.update.update(grads, optimizer, params)
            return optax.apply_updates(params, updates), optimizer, loss

        return step


def arranged(model: CausalLM, mesh: Mesh, loop: LoopConfig) -> CausalLM:
    """The model in the form in which that mesh trains it: in loops where the compiler wants it, or in stages."""
    stages = mesh.shape["stage"]
    if loop.microbatches % stages:
        raise Refusal(
            f"loop.microbatches must be a multiple of mesh.stage={stages}; got {loop.microbatches}. Take "
            f"{4 * stages}, with which a device idles for {(stages - 1) / (5 * stages - 1):.0%} of a step, or more."
        )
    if stages > 1 or mesh.devices.flat[0].platform in STACKED_BACKENDS:
        model = model.stacked(stages=stages, microbatches=loop.microbatches)
    if loop.recompute_layers:
        model = model.recomputing()
    return with_precision(model, loop.precision)


def shardings_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)
