"""What a model's weights are really held in."""

from typing import Any

from flax import nnx

from flexjax.nn.pack import PackedLinear
from flexjax.nn.quantised import QuantizedTable, QuantizedWeight


def weight_dtypes(model: Any) -> set[str]:
    """The dtypes of a model's weights, read from its arrays. What stands in float32 beside the elements of a rounded or
    packed weight is not counted: scales, and the biases and norms that a packed product folds in."""
    found, counted = set(), set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, PackedLinear):
            found.add(module.packed.dtype.name)
        elif isinstance(module, QuantizedWeight | QuantizedTable):
            found.add(module.values.dtype.name)
        else:
            continue
        counted.add(path)
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        if path[:-1] not in counted:
            found.add(parameter.dtype.name)
    return found
