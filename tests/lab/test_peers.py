import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.kernels.case import can_serve
from flexjax.kernels.matmul import matmul
from flexjax.kernels.matmul.arg_specs import INT4, INT8
from flexjax.kernels.ragged_paged_attention.arg_specs import ArgSpec, decode
from flexjax.lab import peers

DECODE = ArgSpec(N=4, K=2, H=16, page_size=16, sequences=decode(3, 64), dtype="bfloat16")
PREFILL = dataclasses.replace(DECODE, sequences=((32, 32),))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, peers.ALL),
        (dict(page_dtype="bfloat16"), peers.ALL),
        (dict(page_dtype="int8"), ()),
        (dict(dtype="float32"), ()),
        (dict(window=8), ()),
        (dict(sequences=((1, 9), (4, 9))), ()),
        (dict(sequences=((4, 9), (4, 9))), ()),
    ],
)
def test_dense_attention_stands_beside_equal_sequences_in_bfloat16(change, names):
    assert peers.peers("ragged_paged_attention", dataclasses.replace(DECODE, **change)) == names


def test_products_stand_beside_weights_in_fewer_bits():
    assert peers.peers("matmul", INT8(8, 64, 32)) == peers.TOKAMAX
    assert peers.peers("matmul", INT8(8, 64, 32, activation_dtype="int8")) == ()
    assert peers.peers("ssd", None) == ()


def test_what_is_not_here_says_so():
    attention = peers.case("ragged_paged_attention", "s", DECODE, "cudnn", 2)
    assert can_serve(attention.step, attention.make()) == "cuDNN serves NVIDIA GPUs, and this process runs on cpu"


@pytest.mark.parametrize("op", ["ragged_paged_attention", "matmul"])
def test_a_package_that_is_not_installed_is_named(op, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    spec = DECODE if op == "ragged_paged_attention" else INT8(8, 64, 32)
    case = peers.case(op, "s", spec, "tokamax_triton", 2)
    assert can_serve(case.step, case.make()) == "tokamax is not installed"


@pytest.fixture
def tokamax(monkeypatch):
    """Its two functions, in plain JAX; keeps which kernel was asked for."""
    asked = []

    def dot_product_attention(q, k, v, *, implementation, **options):
        asked.append(implementation)
        with jax.numpy_dtype_promotion("standard"):  # JAX's own needs it.
            return jax.nn.dot_product_attention(q, k, v, **options)

    def ragged_dot(x, weight, rows, *, preferred_element_type, implementation):
        asked.append(implementation)
        groups = weight.scale.shape[1]
        wide = weight.qvalue.reshape(groups, -1, weight.qvalue.shape[-1]).astype(jnp.float32)
        wide = (wide * weight.scale[0][:, None].astype(jnp.float32)).reshape(weight.qvalue.shape)
        return jax.lax.ragged_dot(x.astype(jnp.float32), wide, rows, preferred_element_type=preferred_element_type)

    QArray = dataclasses.make_dataclass("QArray", ["qvalue", "scale"])
    modules = {
        "tokamax": types.SimpleNamespace(dot_product_attention=dot_product_attention, ragged_dot=ragged_dot),
        "qwix": types.SimpleNamespace(QArray=QArray),
    }
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: modules.get(name))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.mark.parametrize("spec", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_attention_counts_its_own_bytes_and_gives_back_its_state(spec, tokamax):
    case = peers.case("ragged_paged_attention", "s", spec, "tokamax_mosaic", 2)
    state, layers = case.make()
    assert len(layers) == 2 and layers[0][0].shape == (len(spec.sequences), max(spec.sequences)[1], spec.K, spec.H)
    after = jax.jit(case.step)(state, layers)
    assert (after.shape, after.dtype) == (state.shape, state.dtype) and bool(jnp.isfinite(after).all())
    assert case.moved_bytes == layers[0][0].nbytes + layers[0][1].nbytes
    assert case.operations > 0 and tokamax == ["mosaic"] * 2


@pytest.mark.parametrize("spec", [INT8(6, 64, 32), INT4(6, 64, 32)], ids=["int8", "int4"])
def test_products_are_given_the_weight_that_ours_reads(spec, tokamax):
    case = peers.case("matmul", "s", spec, "tokamax_triton", 2)
    x, weights, rows = case.make()
    after = jax.jit(case.step)(jnp.copy(x), weights, rows)
    np.testing.assert_array_equal(after, x)
    assert tokamax == ["triton"] * 2
    values, scale = weights[0]
    got = peers._tokamax_product("tokamax_triton", x, values, scale, rows)
    want = functools.partial(matmul, body="base")(*spec.arguments())
    np.testing.assert_allclose(got, want, atol=2e-2 * np.abs(want).max())  # Scales in bfloat16.
