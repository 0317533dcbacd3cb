"""Ops on a mesh beside the same without one: run by test_over_axis.py in a process with eight devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.hardware.sharding import SERVING, sharding
from flexjax.kernels import over_axis
from flexjax.kernels.lora_matmul import arg_specs as adapters
from flexjax.kernels.lora_matmul import lora_matmul
from flexjax.kernels.recurrent import Batch
from flexjax.kernels.selective_scan import arg_specs as scans
from flexjax.kernels.selective_scan import selective_scan
from flexjax.kernels.short_convolution import arg_specs as convolutions
from flexjax.kernels.short_convolution import short_convolution
from flexjax.kernels.ssd import arg_specs as ssds
from flexjax.kernels.ssd import ssd

MIXED = Batch((1, 6, 2, 1), goes_on=(True, True, False, False), padding_rows=2, padding_sequences=1)
DECODE = Batch((1, 1, 1), goes_on=(True, False, True), padding_rows=1, padding_sequences=1)
RECURRENT: dict[str, tuple[Callable[..., Any], Any]] = {
    "scan": (selective_scan, scans.ArgSpec(D=32, N=8, batch=MIXED)),
    "scan_decode_ungated": (selective_scan, scans.ArgSpec(D=32, N=8, batch=DECODE, gated=False)),
    "scan_whole": (selective_scan, scans.ArgSpec(D=27, N=8, batch=DECODE)),
    "convolution": (short_convolution, convolutions.ArgSpec(D=32, batch=MIXED)),
    "convolution_without_bias": (short_convolution, convolutions.ArgSpec(D=32, batch=DECODE, bias=False)),
    "ssd": (ssd, ssds.ArgSpec(H=8, P=4, N=8, batch=MIXED)),
    "ssd_groups": (ssd, ssds.ArgSpec(H=16, P=4, G=8, N=8, batch=MIXED)),
    "ssd_groups_shared": (ssd, ssds.ArgSpec(H=24, P=4, G=6, N=8, batch=DECODE)),
    "ssd_heads_shared": (ssd, ssds.ArgSpec(H=6, P=4, G=2, N=8, batch=MIXED)),
    "ssd_whole": (ssd, ssds.ArgSpec(H=3, P=5, N=8, batch=DECODE)),
}


def on_mesh(call: Callable[..., Any], *arguments: Any, tensor: int = 8) -> Any:
    with jax.set_mesh(make_mesh(MeshConfig(data=8 // tensor, tensor=tensor), jax.devices())):
        return jax.jit(call)(*arguments)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrences_over_channels(name: str):
    """To float32 rounding: the code for four channels may round a product and sum apart that that for more rounds
    together."""
    call, spec = RECURRENT[name]
    run = functools.partial(call, **spec.options, body="xla")
    got, want = on_mesh(run, *spec.arguments()), jax.jit(run)(*spec.arguments())
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tensor", [4, 8])
@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed"), ("inner", "mlp"), (None, None)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_adapters_over_outputs_or_inputs(dtype: str, tolerance: float, axes: Any, tensor: int):
    """Within rounding of sums; of bfloat16, of each device's part of what stands between the two matrices."""
    spec = adapters.ArgSpec(D=64, F=32, R=4, A=5, rows=((1, 2), (adapters.NONE, 1), (4, 3)), dtype=dtype)
    run = functools.partial(lora_matmul, axes=axes, body="xla")
    got, want = on_mesh(run, *spec.arguments(), tensor=tensor), jax.jit(run)(*spec.arguments())
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=0)


def test_every_device_is_given_its_part_and_no_more():
    seen: list[tuple[int, ...]] = []

    def double(x, whole):
        seen.append((*x.shape, *whole.shape))
        return 2 * x + whole[:, :1]

    x, whole = jnp.ones((3, 16)), jnp.ones((3, 2))
    run = lambda x, whole: over_axis.over_axis(double, "mlp", 16, (x, whole), (1, None), 1)
    assert on_mesh(run, x, whole, tensor=4).sharding.spec[1] == "tensor"
    run(x, whole)
    assert seen == [(3, 4, 3, 2), (3, 16, 3, 2)]


def test_copies_are_counted_by_the_parts_that_the_rules_make():
    mesh = make_mesh(MeshConfig(data=2, tensor=4), jax.devices())
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(6.0).reshape(2, 3), sharding(("rows", None), (2, 3), mesh, SERVING))
        np.testing.assert_array_equal(jax.jit(lambda x: over_axis.copied(x, 1, 2))(x)[0], [0, 0, 1, 1, 2, 2])
        assert over_axis.parts("inner", 8) == 4
        assert over_axis.parts("inner", 6) == over_axis.parts(None, 8) == 1
    assert over_axis.parts("inner", 8) == 1
