"""AdamW with a warm-up, a plateau and a decay to nothing."""

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx

from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019) on a warmup-stable-decay schedule (Hu et al., 2024, MiniCPM).

    The plateau does not depend on the number of steps, so a run can be continued to more steps from any
    checkpoint before its decay.
    """

    learning_rate: float = 2e-3  # On the plateau.
    warmup_steps: int = 100
    decay_fraction: float = 0.3  # Of all steps, at the end.
    weight_decay: float = 0.1  # Not on norms and biases.
    b1: float = 0.9
    b2: float = 0.95
    clip_norm: float = 1.0  # Of the whole gradient.

    def __post_init__(self):
        rules = [
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("decay_fraction", 0 <= self.decay_fraction <= 1, "in [0, 1]"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("clip_norm", self.clip_norm > 0, "positive"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise Refusal(f"{name} must be {rule}; got {getattr(self, name)!r}.")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear up, flat, linear down to 0 at `steps`."""
    decay_steps = round(steps * config.decay_fraction)
    plateau_end = steps - decay_steps
    if config.warmup_steps > plateau_end:
        raise Refusal(
            f"The warm-up must end before the decay begins: {config.warmup_steps} warm-up steps do not fit before "
            f"step {plateau_end}. Use fewer warmup_steps, a smaller decay_fraction or more steps than {steps}."
        )
    peak = config.learning_rate
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    decay = optax.linear_schedule(peak, 0.0, max(decay_steps, 1))
    return optax.join_schedules([warmup, decay], [plateau_end])


def make_optimizer(config: OptimizerConfig, steps: int, params: Any) -> optax.GradientTransformation:
    """The optimiser for `params`, of which norms and biases do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=jax.tree.map(_decays, params, is_leaf=_is_variable),
        ),
    )


def _decays(parameter: Any) -> Any:
    if not _is_variable(parameter):
        return parameter.ndim >= 2
    stacked = parameter.get_metadata("axes")[:1] == ("layers",)
    own = dict(parameter.get_metadata("layer")) if stacked else parameter.get_metadata()
    return parameter.replace(parameter.get_value().ndim - stacked >= 2 and not own.get("bias", False))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
