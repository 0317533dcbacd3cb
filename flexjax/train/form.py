"""A state in the form in which it is kept, whatever mesh trains it: one array a layer."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from flexjax.model import CausalLM


def reformed(state: Any, graph: Any, change: Callable[[CausalLM], CausalLM]) -> Any:
    """`state` with `change` made to each model's parameters in it: the weights, and moments that are shaped as they."""

    def one(part: Any) -> Any:
        return nnx.split(change(nnx.merge(graph, part)))[1] if isinstance(part, nnx.State) else part

    return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, nnx.State))
