"""The train step of one model, stated without an array: compiled here, on a mesh, or for chips that are not here."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flexjax.causal_lm import CausalLM, Recomputing, parameters
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import TRAINING, Finding, abstract, check, refuse_idle_axes, sharding
from flexjax.train.bfloat16_projections import with_bfloat16_projections
from flexjax.train.optimizer import OptimizerConfig, make_optimizer, schedule

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    steps: int = 1_000
    precision: Precision = "bfloat16"  # Of projections' operands; everything else is float32.
    recompute_layers: bool = False  # Keep one activation a layer for the backward pass, and compute the others again.
    log_every: int = 10  # Steps averaged in one row of loss.csv.
    checkpoint_every: int = 100  # Steps; the last step is always kept.

    def __post_init__(self):
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


def cross_entropy(model: CausalLM, inputs: Int[Array, "B T"], targets: Int[Array, "B T"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the targets, nats a token, float32."""
    hidden, _ = model.dense(inputs)
    return optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), targets).mean()


class TrainProgram:
    """One model's train step on a mesh.

    `model` may be abstract (`nnx.eval_shape(lambda: family.build(config, dtype=jnp.float32))`), in rows or
    `stacked()`, and the mesh of described devices (`flexjax.hardware.topology.devices`):

        TrainProgram(model, OptimizerConfig(), LoopConfig(precision="bfloat16"), mesh).lower(batch_size, length)

    is then the program for those chips. `params` and `optimizer` are the abstract arguments of every step, float32
    and split by the TRAINING rules; both are donated.
    """

    def __init__(self, model: CausalLM, optimizer: OptimizerConfig, loop: LoopConfig, mesh: Mesh | None = None):
        """`mesh` None is one device. ValueError where a size of the model does not divide by it, or an axis of it
        splits nothing."""
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
        self.loop = loop
        self.learning_rate = schedule(optimizer, loop.steps)
        if loop.recompute_layers:
            model = recomputing(model)
        self._arrays = parameters(model)
        self.graph, params = nnx.split(model)
        self.update = make_optimizer(optimizer, loop.steps, params)
        self.params = self._abstract(params)
        self.optimizer = self._abstract(jax.eval_shape(self.update.init, params))
        out = (shardings_of(self.params), shardings_of(self.optimizer), self.whole)
        self._jitted = jax.jit(self._step(), donate_argnums=(0, 1), out_shardings=out)

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def tokens(self, batch_size: int, length: int) -> jax.ShapeDtypeStruct:
        """The inputs of a step, and its targets. ValueError where they cannot be shared out evenly."""
        for name, size, axis in (("batch_size", batch_size, "batch"), ("length", length, "length")):
            split = {m: self.mesh.shape[m] for m in TRAINING[axis].mesh_axes if self.mesh.shape[m] > 1}
            ways = math.prod(split.values())
            if size % ways:
                by = " × ".join(f"{m}={n}" for m, n in split.items())
                raise ValueError(
                    f"The {name} of a step must divide by the mesh axes that split it; {size} does not by {by}. "
                    f"Take {name}={-(-size // ways) * ways}, or give devices to other axes of the mesh."
                )
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

    def fresh(self, build: Callable[[], CausalLM]) -> Any:
        """The parameters that `build` makes, each made where it stays: no device holds the whole."""
        return self._made(lambda: nnx.split(build())[1], self.params)()

    def fresh_optimizer(self, params: Any) -> Any:
        """The optimiser's state before the first step."""
        return self._made(self.update.init, self.optimizer)(params)

    def inspect(self, batch_size: int, length: int) -> list[Finding]:
        """The arrays that take more memory than their rules intend; ValueError for a mesh axis that splits nothing."""
        tokens = ("tokens", ("batch", "length"), self.tokens(batch_size, length))
        refuse_idle_axes([*self._arrays, tokens], self.mesh, TRAINING)
        return check(self._arrays, self.mesh, TRAINING)

    def _made(self, function: Callable[..., Any], like: Any) -> Callable[..., Any]:
        made = jax.jit(function, out_shardings=shardings_of(like))

        def run(*args: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return made(*args)

        return run

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

        if self.loop.precision == "bfloat16":
            loss_of = with_bfloat16_projections(loss_of)

        def step(params: Any, optimizer: Any, inputs: Array, targets: Array):
            loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets)
            updates, optimizer = self.update.update(grads, optimizer, params)
            return optax.apply_updates(params, updates), optimizer, loss

        return step


def recomputing(model: CausalLM) -> CausalLM:
    if not isinstance(model, Recomputing):
        raise ValueError(
            f"recompute_layers needs a model whose family can compute layers again (flexjax.causal_lm.Recomputing); "
            f"{model.config.architecture} cannot. Set loop.recompute_layers=False."
        )
    return model.recomputing()


def shardings_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)
