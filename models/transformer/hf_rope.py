"""The rotary embedding in config.json ↔ `Rope`."""

import math
from typing import Any

from flexjax.refusal import Refusal
from models.transformer.rope import Rope

# config.json name → Rope field, for each value of `rope_type`; all of them change the result.
READ: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_position",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_position",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    },
}


def rope_from_hf(parameters: dict[str, Any] | None, theta: float, max_position: int) -> Rope:
    """The rope of a `rope_scaling` or `rope_parameters` dictionary; `theta` where it names none."""
    given = {key: value for key, value in (parameters or {}).items() if value is not None}
    theta = float(given.pop("rope_theta", theta))
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    if kind not in READ:
        raise Refusal(f"Rope scaling is one of {', '.join(READ)}; config.json has rope_type {kind!r}.")
    harmless = {"partial_rotary_factor": 1.0, "truncate": True}
    for name, value in given.items():
        if name not in READ[kind] and harmless.get(name) != value:
            raise Refusal(
                f"The field {name!r} = {value!r} of a {kind!r} rope scaling in config.json is not understood."
            )
    fields = {field: given[name] for name, field in READ[kind].items() if name in given}
    if kind == "default":
        return Rope(theta)
    if "factor" not in fields:
        raise Refusal(f"A {kind!r} rope scaling in config.json needs a 'factor'; it has {sorted(given)}.")
    fields["factor"] = float(fields["factor"])
    if kind in ("llama3", "yarn"):
        fields.setdefault("original_max_position", max_position)
    if kind == "yarn":
        fields.setdefault("attention_factor", 0.1 * math.log(max(fields["factor"], 1.0)) + 1.0)
    return Rope(theta, kind, **fields)


def scaling_to_hf(rope: Rope) -> dict[str, Any] | None:
    """The `rope_scaling` dictionary of a rope; its theta is a field of its own."""
    if rope.scaling == "none":
        return None
    return {"rope_type": rope.scaling} | {name: getattr(rope, field) for name, field in READ[rope.scaling].items()}
