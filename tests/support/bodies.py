"""An op run by one of its bodies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from flexjax import kernels


@functools.cache
def jitted(op: Callable[..., Any], body: str, **options: Any) -> Callable[..., Any]:
    """The op under jit; asserts that `body` is what was traced."""

    def traced(*arguments):
        kernels.forget()
        result = op(*arguments, body=body, **options)
        assert [choice.body for choice in kernels.bodies_used()[op.__name__]] == [body]
        return result

    return jax.jit(traced)


def call(op: Callable[..., Any], spec: Any, body: str, arguments: tuple[Any, ...] | None = None) -> Any:
    """The results on the spec's arguments, or on those given."""
    return jitted(op, body, **spec.options)(*(spec.arguments() if arguments is None else arguments))


def untouched(spec: Any, states: Any) -> np.ndarray:
    """Of a recurrent op: which slots of the pool no sequence of the spec owns."""
    owned = np.asarray(spec.arguments()[-2])[: len(spec.batch.rows)]
    return np.isin(np.arange(len(states)), owned, invert=True)


def on_a_gpu(test: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a test of kernels that run on a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")(test))


def beside_the_formula(op: Callable[..., Any], spec: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each result of the GPU body, and what the formula gives."""
    options = getattr(spec, "options", {})
    got, want = (
        jax.tree.leaves(jax.jit(functools.partial(op, body=body, **options))(*spec.arguments()))
        for body in ("triton_gpu", "base")
    )
    return [(np.asarray(g, np.float32), np.asarray(w, np.float32)) for g, w in zip(got, want, strict=True)]
