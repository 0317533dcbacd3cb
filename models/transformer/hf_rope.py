"""The rotary embedding in config.json ↔ `Rope`.

Reference: `modeling_rope_utils.py` of transformers 4.57.1 and 5.24.0.
"""

import math
from collections.abc import Mapping
from typing import Any

from flexjax.nn import Rope
from flexjax.refusal import Refusal

# config.json name → Rope field, for each value of `rope_type`.
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
        "truncate": "truncate",
    },
}
# Fields from which yarn's `attention_factor` is computed where it is not given.
ATTENTION_FACTORS = ("attn_factor", "mscale", "mscale_all_dim")
# Fields that change no frequency, at any value (...) or at one.
UNREAD: Mapping[str, Any] = {
    "original_max_position_embeddings": ...,
    "finetuned": ...,
    "partial_rotary_factor": 1.0,
    "truncate": True,
    "attn_factor": 1.0,
    "extrapolation_factor": 1.0,
}
WHY_NOT = {  # A rope_type or a field → what it would need.
    "dynamic": "its frequencies change with the length of each sequence, which a cache of turned keys cannot follow",
    "longrope": "it has two sets of frequencies, chosen by the length of each sequence",
    "su": "it has two sets of frequencies, chosen by the length of each sequence",
    "mrope": "its positions have three parts, of time, height and width",
    "mrope_section": "its positions have three parts, of time, height and width",
    "llama_4_scaling_beta": "its queries grow with their position",
}


def rope_from_hf(parameters: Mapping[str, Any] | None, theta: float, max_position: int) -> Rope:
    """The rope of a `rope_scaling` or `rope_parameters` dictionary; `theta` where it names none."""
    given = {key: value for key, value in (parameters or {}).items() if value is not None}
    theta = _positive("rope_theta", given.pop("rope_theta", theta))
    older = given.pop("type", None)
    named = given.pop("rope_type", None) or older or "default"
    kind: Any = str(named)
    if kind not in READ:
        why = f": {WHY_NOT[kind]}" if kind in WHY_NOT else ""
        raise Refusal(f"Rope scaling is one of {', '.join(READ)}; config.json has rope_type {named!r}{why}.")
    known = {*READ[kind], *(ATTENTION_FACTORS if kind == "yarn" else ())}
    for name, value in given.items():
        if name not in known and UNREAD.get(name, False) not in (value, ...):
            why = f": {WHY_NOT[name]}" if name in WHY_NOT else ""
            raise Refusal(
                f"The field {name!r} = {value!r} of a {kind!r} rope scaling in config.json is not served{why}."
            )
        if name in READ[kind] and name != "truncate":
            _positive(name, value)
    if kind == "default":
        return Rope(theta)
    fields = {field: given[name] for name, field in READ[kind].items() if name in given}
    if kind in ("llama3", "yarn"):
        fields.setdefault("original_max_position", max_position)
    if kind == "yarn":
        fields.setdefault("factor", max_position / fields["original_max_position"])
        fields["attention_factor"] = _attention_factor(given, float(fields["factor"]))
    if "factor" not in fields:
        raise Refusal(f"A {kind!r} rope scaling in config.json needs a 'factor'; it has {sorted(given)}.")
    fields["factor"] = float(fields["factor"])
    return Rope(theta, kind, **fields)


def _positive(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise Refusal(f"{name!r} of a rope in config.json must be a number above 0; it is {value!r}.")
    return float(value)


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """What multiplies yarn's cosines and sines.

    `attention_factor` where it is given; else 0.1 mscale ln(factor) + 1 with mscale 1, or the ratio of two such where
    `mscale` and `mscale_all_dim` are given. `attn_factor` multiplies that, as in YaRN's own code, vLLM and SGLang;
    transformers leaves it unread.
    """
    if "attention_factor" in given:
        if given.get("attn_factor", 1.0) != 1.0:
            raise Refusal(
                f"A yarn rope scaling has 'attention_factor' = {given['attention_factor']!r}, the whole factor, or "
                f"'attn_factor' = {given['attn_factor']!r}, which multiplies the usual one. Remove one of them."
            )
        return float(given["attention_factor"])

    def usual(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    above, below = given.get("mscale"), given.get("mscale_all_dim")
    whole = usual(above) / usual(below) if above and below else usual(1.0)
    return whole * float(given.get("attn_factor", 1.0))


def scaling_to_hf(rope: Rope) -> dict[str, Any] | None:
    """The `rope_scaling` dictionary of a rope; its theta is a field of its own."""
    if rope.scaling == "none":
        return None
    fields = {name: getattr(rope, field) for name, field in READ[rope.scaling].items()}
    if fields.get("truncate"):  # What is left out where it is true, older readers understand.
        del fields["truncate"]
    return {"rope_type": rope.scaling} | fields
