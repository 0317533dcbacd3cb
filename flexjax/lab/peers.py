"""What other libraries offer for the same work, as cases to be timed beside ours: cuDNN through JAX, and tokamax.

They take dense keys and values of sequences of equal length, and weights as a ragged product of one group: each is
counted by its own bytes and operations. Where a package is missing its case refuses with the reason; none is needed.
"""

import dataclasses
import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from flexjax.kernels import Case
from flexjax.kernels.matmul import ArgSpec as Product
from flexjax.kernels.ragged_paged_attention import ArgSpec as Attention
from flexjax.refusal import Unsupported

TOKAMAX = ("tokamax_mosaic", "tokamax_triton")  # Its kernels by name; it would else fall back to XLA, timed already.
ALL = ("cudnn", *TOKAMAX)


def peers(op: str, spec: Any) -> tuple[str, ...]:
    """Names of what can be held beside the op on that shape."""
    if op == "ragged_paged_attention":
        return ALL if _is_dense(spec) else ()
    if op == "matmul":
        return TOKAMAX if spec.weight_dtype in ("int8", "int4") and spec.activation_dtype is None else ()
    return ()


def case(op: str, shape: str, spec: Any, peer: str, calls: int) -> Case:
    """A step of so many calls, each with keys and values or a weight of its own; its result is its next argument."""
    make = {"ragged_paged_attention": _attention, "matmul": _product}[op]
    return make(shape, spec, peer, calls)


def _is_dense(spec: Attention) -> bool:
    """Whether equal sequences can stand for these, and plain bfloat16 arrays for their pages."""
    bfloat16 = (spec.dtype, spec.page_dtype or spec.dtype) == ("bfloat16", "bfloat16")
    alike = len({new for new, _ in spec.sequences}) == 1 and all(new in (1, total) for new, total in spec.sequences)
    return bfloat16 and alike and spec.window is None and spec.softcap is None


def _attention(shape: str, spec: Attention, peer: str, calls: int) -> Case:
    B, T, S = len(spec.sequences), spec.sequences[0][0], max(total for _, total in spec.sequences)
    dense = dataclasses.replace(spec, sequences=((T, S),) * B)
    attend = _cudnn_attention if peer == "cudnn" else functools.partial(_tokamax_attention, peer)

    def make():
        keys_and_values = lambda seed: tuple(_normal(seed + i, B, S, spec.K, spec.H) for i in (1, 2))
        return _normal(0, B, T, spec.N, spec.H), [keys_and_values(2 * layer) for layer in range(calls)]

    def step(q, layers):
        for k, v in layers:
            q = attend(q, k, v, scale=spec.H**-0.5, is_causal=T > 1)
        return q

    return Case("ragged_paged_attention", shape, peer, make, step, dense.read_bytes, 2 * dense.products, spec.dtype,
                calls)  # fmt: skip


def _product(shape: str, spec: Product, peer: str, calls: int) -> Case:
    def make():
        x, values, scale = spec.arguments()
        assert scale is not None
        # In bfloat16, as its kernels widen weights to the scale's dtype.
        values, scale = values[None], scale.reshape(1, -1, spec.F).astype(jnp.bfloat16)
        weights = [(jnp.copy(values), jnp.copy(scale)) for _ in range(calls)]
        return x, weights, jnp.asarray([spec.T], jnp.int32)

    def step(x, weights, rows):
        for values, scale in weights:
            y = _tokamax_product(peer, x, values, scale, rows)
            x = x.at[0, 0].add((0 * y[0, 0]).astype(x.dtype))  # No call before the last one is done.
        return x

    return Case("matmul", shape, peer, make, step, spec.weight_bytes, spec.operations, spec.dtype, calls)


def _cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    if jax.default_backend() != "gpu":
        raise Unsupported(f"cuDNN serves NVIDIA GPUs, and this process runs on {jax.default_backend()}")
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **options)


def _tokamax_attention(peer: str, q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    return _installed("tokamax").dot_product_attention(q, k, v, implementation=_kernel(peer), **options)


def _tokamax_product(peer: str, x: jax.Array, values: jax.Array, scale: jax.Array, rows: jax.Array) -> jax.Array:
    tokamax, qwix = _installed("tokamax"), _installed("qwix")
    weight = qwix.QArray(qvalue=values, scale=scale)
    return tokamax.ragged_dot(x, weight, rows, preferred_element_type=jnp.float32, implementation=_kernel(peer))


def _kernel(peer: str) -> str:
    return peer.removeprefix("tokamax_")


def _installed(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise Unsupported(f"{package} is not installed")
    return importlib.import_module(package)


def _normal(seed: int, *shape: int) -> jax.Array:
    """Made on the device: a host would take seconds for as much."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
