"""What to do about a model that does not fit: more chips, fewer bits, less context, each with its figures."""

from flexjax.engine import EngineConfig
from flexjax.hardware.mesh import MeshConfig
from flexjax.model import CausalLM
from flexjax.refusal import Refusal
from flexjax.virtual.budget import Budget
from flexjax.virtual.target import MOST_DEVICES, Target

GIB = 2**30
# Name, and the size of weights and of cache against 16 bits; a group of 32 int4 weights has a scale of 16 bits.
NARROWER = (("int8 weights and cache", 8 / 16, 8 / 16), ("int4 weights, int8 cache", 4.5 / 16, 8 / 16))


def ways_to_fit(
    model: CausalLM, engine: EngineConfig, target: Target, budget: Budget, batch: int, context: int
) -> list[str]:
    """Three ways: more chips, fewer bits, less context."""
    return [
        _more_chips(model, engine, target, batch, context),
        _fewer_bits(budget, batch, context),
        _less_context(budget, batch, context),
    ]


def _more_chips(model: CausalLM, engine: EngineConfig, target: Target, batch: int, context: int) -> str:
    for topology, num_devices in target.larger():
        try:
            larger = Target.of(target.chip.name, topology, MeshConfig(tensor=num_devices), engine.dtype)
            budget = Budget.of(model, engine, larger)
        except Refusal:  # The model's dimensions do not divide by so many, or there is no such grid.
            continue
        if budget.missing(batch, context) <= 0:
            return (
                f"more chips: {target.chip.name} {topology} with tensor={num_devices} holds it, "
                f"{budget.needed(batch, context) / GIB:.1f} of {budget.available / GIB:.1f} GiB a device"
            )
    return f"more chips: none of the grids up to {MOST_DEVICES} devices holds it; choose a chip with more memory"


def _fewer_bits(budget: Budget, batch: int, context: int) -> str:
    found = []
    for name, weights, cache in NARROWER:
        narrower = budget.scaled(weights, cache)
        missing = narrower.missing(batch, context)
        needed = narrower.needed(batch, context) / GIB
        found.append(f"{name} need {needed:.1f} GiB a device" + (", which fits" if missing <= 0 else ""))
        if missing <= 0:
            break
    return f"fewer bits: {'; '.join(found)}"


def _less_context(budget: Budget, batch: int, context: int) -> str:
    if not budget.longest_context(1):
        return "less context: the weights alone leave no room for one sequence at any length"
    longest, largest = budget.longest_context(batch), budget.largest_batch(context)
    parts = [f"{batch} sequences of up to {longest} tokens fit"] if longest else []
    parts += [f"{largest} sequences of {context} tokens fit"] if largest else []
    return f"less context: {', or '.join(parts) or f'one sequence of up to {budget.longest_context(1)} tokens fits'}"
