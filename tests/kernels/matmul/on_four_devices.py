"""The quantised matmul over a mesh: run by test_over_mesh.py in a process with four devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.engine.device.placement import Placement
from flexjax.engine.device.score import Scorer
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import SERVING, sharding
from flexjax.kernels import bodies_used, forget
from flexjax.kernels.matmul import matmul
from flexjax.kernels.matmul.arg_specs import INT4, INT8, ArgSpec
from flexjax.nn import quantize_weights
from models.transformer import Layer, Rope, TransformerConfig, build

COLUMNS, SUMS = ("embed", "mlp"), ("mlp", "embed")


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(tensor=4), jax.devices())


def split(mesh, spec: ArgSpec, axes: tuple[str, str], layers: int = 0) -> tuple[jax.Array, ...]:
    """The arguments of a call with the weight split by the rules; of stacked layers the last is that of `spec`."""
    x, values, scale = spec.arguments()
    assert scale is not None
    lead = ("layers",) if layers else ()
    if layers:
        values, scale = (jnp.stack([jnp.zeros_like(part)] * (layers - 1) + [part]) for part in (values, scale))
    scales = (*lead, *(axes if scale.ndim == values.ndim else axes[1:]))
    put = lambda array, axes: jax.device_put(array, sharding(axes, array.shape, mesh, SERVING))
    return x, put(values, (*lead, *axes)), put(scale, scales)


@pytest.mark.parametrize("layers", [0, 3])
@pytest.mark.parametrize("spec", [INT8(5, 256, 96, dtype="float32"), INT4(5, 256, 96)], ids=["int8", "int4"])
@pytest.mark.parametrize("axes", [COLUMNS, SUMS], ids=["columns", "sums"])
def test_four_devices_equal_one_and_move_no_weight(mesh, axes, spec: ArgSpec, layers: int):
    x, values, scale = split(mesh, spec, axes, layers)
    assert values.sharding.shard_shape(values.shape) != values.shape
    layer = jnp.int32(layers - 1) if layers else None
    with jax.set_mesh(mesh):
        call = jax.jit(functools.partial(matmul, axes=axes)).lower(x, values, scale, layer=layer).compile()
    want = matmul(*spec.arguments())
    np.testing.assert_allclose(call(x, values, scale, layer=layer), want, atol=3e-6)
    text = call.as_text()
    assert text is not None
    moved = re.findall(r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(", text)
    assert [(shape.split("{")[0], kind) for shape, kind in moved] == (
        [] if axes == COLUMNS else [(f"f32[{spec.T},{spec.F}]", "all-reduce")]
    )


def test_groups_that_would_be_cut_stay_whole(mesh):
    spec = INT4(5, 192, 96)  # Six groups for four devices.
    x, values, scale = split(mesh, spec, COLUMNS)
    with jax.set_mesh(mesh):
        got = jax.jit(functools.partial(matmul, axes=SUMS))(x, values, scale)
    np.testing.assert_allclose(got, matmul(*spec.arguments()), atol=3e-6)


CONFIG = TransformerConfig(
    "LlamaForCausalLM", vocab_size=96, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=256,
    max_position=64, layers=(Layer(rope=Rope()),) * 2,
)  # fmt: skip


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_model_scores_alike(mesh, name: str, stacked: bool):
    """In float32, also its two kv heads, of which four devices have the columns in halves."""
    model = quantize_weights(build(CONFIG, dtype=jnp.float32), name)
    model = model.stacked() if stacked else model
    sizes = dict(max_model_len=32, page_size=8, cache_dtype=jnp.float32, rows_per_step=8)
    tokens = np.arange(13) * 7 % 96
    forget()
    want, got = (Scorer(model, **sizes, placement=Placement(where))(tokens) for where in (None, mesh))
    assert [choice.body for choice in bodies_used()["matmul"]] == ["xla"]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
