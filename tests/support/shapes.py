"""The shape types of the product's functions, enforced while the tests run.

A type checker for jaxtyping's import hook that looks at arrays alone (`Float[Array, "B T D"]`, also
inside unions and tuples): a wrong rank, dtype, or size that disagrees with another argument's fails
at the door of the function that was given it. NumPy arrays pass for JAX's, as they do in JAX.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, AnnotationError


def check(function: Callable) -> Callable:
    if function.__name__ == "__init__":
        return function  # A pytree may hold arrays stacked by scan, shapes or specs in its fields' place.
    signature = inspect.signature(function)
    hints = {name: p.annotation for name, p in signature.parameters.items() if _has_array(p.annotation)}
    if not hints and not _has_array(signature.return_annotation):
        return function
    # A size that is computed from others ("B+1") is checked once those are known.
    order = sorted(hints, key=lambda name: "+" in str(hints[name]) or "-" in str(hints[name]))

    @functools.wraps(function)
    def checked(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        for name in order:
            if name in given and not _fits(given[name], hints[name]):
                raise TypeError(f"{function.__qualname__}: {name} must be {hints[name]}; got {_seen(given[name])}.")
        result = function(*args, **kwargs)
        if not _fits(result, signature.return_annotation):
            raise TypeError(f"{function.__qualname__} must return {signature.return_annotation}; got {_seen(result)}.")
        return result

    return checked


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _has_array(hint: Any) -> bool:
    return _is_array(hint) or any(map(_has_array, typing.get_args(hint)))


def _fits(value: Any, hint: Any) -> bool:
    if not _has_array(hint):
        return True
    if _is_array(hint):
        try:
            return isinstance(jnp.asarray(value) if isinstance(value, np.ndarray) else value, hint)
        except AnnotationError:
            return True  # A size in terms of what this function's arguments do not fix.
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, a) if _has_array(a) else isinstance(value, a) for a in args)
    if typing.get_origin(hint) is tuple and Ellipsis not in args:
        return len(value) == len(args) and all(map(_fits, value, args))
    return True


def _seen(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)[:80]
