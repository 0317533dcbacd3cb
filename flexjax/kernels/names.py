"""What a body is, in words for tables."""

import importlib

WORDS = {
    "base": "plain JAX",
    "xla": "XLA",
    "cpu": "C++",
    "pallas_tpu": "Pallas",
    "pallas_tpu_int4": "Pallas",
    "triton_gpu": "Triton",
}
INSTRUCTION_SETS = {
    "baseline": "baseline",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx": "AMX",
}


def in_words(op: str, body: str) -> str:
    """Of a body that ran on this machine: "C++, AVX-512 bf16". The body's own name where there is no word for it."""
    words = WORDS.get(body, body)
    if body == "cpu":
        told = getattr(importlib.import_module(f"flexjax.kernels.{op}.cpu"), "instruction_set", None)
        return f"{words}, {INSTRUCTION_SETS[told()]}" if told else words
    return words
