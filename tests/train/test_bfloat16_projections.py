"""Rounded projections: equal to rounding the operands by hand, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexjax.train.bfloat16_projections import with_bfloat16_projections

SPECS = {"BTD,DO->BTO": (16, 24), "BTD,OD->BTO": (24, 16)}


def operands(shape: tuple[int, int]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, [(2, 8, 16), shape, (2, 8, 24)], strict=True))


def rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("spec", SPECS)
def test_value_and_gradients(spec):
    x, w, g = operands(SPECS[spec])

    @with_bfloat16_projections
    def product(x, w):
        return jnp.einsum(spec, x, w)

    y, pull = jax.vjp(product, x, w)
    dx, dw = pull(g)
    names, out = spec.split("->")
    names = names.split(",")
    # Products of rounded operands are exact in float32; only the order of the sums differs.
    np.testing.assert_allclose(y, np.einsum(spec, rounded(x), rounded(w)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        dx, np.einsum(f"{out},{names[1]}->{names[0]}", rounded(g), rounded(w)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        dw, np.einsum(f"{out},{names[0]}->{names[1]}", rounded(g), rounded(x)), rtol=1e-5, atol=1e-5
    )
    assert y.dtype == dx.dtype == dw.dtype == jnp.float32


def test_everything_else_is_untouched():
    q, k = (jax.random.normal(jax.random.key(i), (2, 4, 8)) for i in range(2))

    def attention(q, k):
        weights = jax.nn.softmax(jax.nn.silu(jnp.einsum("BTH,BSH->BTS", q, k)))
        return jax.nn.relu(jnp.einsum("BTS,BSH->BTH", weights, k)), {"sum": weights.sum()}

    plain, same = attention(q, k), with_bfloat16_projections(attention)(q, k)
    jax.tree.map(np.testing.assert_array_equal, plain, same)


def test_bfloat16_is_what_the_compiled_products_read():
    x, w, _ = operands(SPECS["BTD,DO->BTO"])

    def loss(x, w):
        return jnp.einsum("BTD,DO->BTO", x, w).sum()

    def dots(function) -> list:
        return [line for line in str(jax.make_jaxpr(jax.grad(function, (0, 1)))(x, w)).splitlines() if "bf16" in line]

    assert dots(with_bfloat16_projections(loss))
    assert not dots(loss)


def in_a_row(x, weights):
    for i in range(weights.shape[0]):
        x = jax.nn.silu(jnp.einsum("TD,DO->TO", x, weights[i]))
    return x


def in_a_loop(x, weights):
    return jax.lax.scan(lambda x, w: (in_a_row(x, w[None]), None), x, weights)[0]


def computed_again(x, weights):
    return jax.checkpoint(in_a_loop)(x, weights)


def in_a_shard_map(x, weights):
    mesh = jax.make_mesh((1,), ("stage",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(in_a_loop, mesh=mesh, in_specs=whole, out_specs=whole)(x, weights)


@pytest.mark.parametrize("form", [in_a_loop, computed_again, in_a_shard_map])
def test_projections_are_found_inside(form):
    """The same products are rounded as in layers in a row, and so the same bits come out but for fused sums."""
    x, weights = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(4, 8), (3, 8, 8)]))

    def gradients(function):
        return jax.jit(jax.grad(lambda *args: jnp.square(with_bfloat16_projections(function)(*args)).sum(), (0, 1)))

    for got, want in zip(gradients(form)(x, weights), gradients(in_a_row)(x, weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    plain = jax.grad(lambda *args: jnp.square(form(*args)).sum(), (0, 1))(x, weights)
    assert np.abs(plain[1] - gradients(form)(x, weights)[1]).max() > 1e-3, "else nothing was rounded"
