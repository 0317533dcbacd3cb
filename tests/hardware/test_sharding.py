"""The rules, what they do where a size does not divide, and the checker with faults planted."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flexjax.hardware.mesh import AXES, MeshConfig
from flexjax.hardware.sharding import SERVING, TABLE, TRAINING, check, refuse_idle_axes, spec, split

QUERY, KEY = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
CACHE = ("pages", "page", "kv_heads", None, "head_dim")


def mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(MeshConfig(**sizes).sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def array(shape, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


@pytest.mark.parametrize(
    ("axes", "shape", "serving", "training"),
    [
        (("vocab", "embed"), (160, 32), P("tensor"), P("tensor", "fsdp")),
        (QUERY, (32, 4, 8), P(None, "tensor"), P("fsdp", "tensor")),
        (("heads", "head_dim", "embed"), (4, 8, 32), P("tensor"), P("tensor", None, "fsdp")),
        (("embed", "mlp"), (32, 72), P(None, "tensor"), P("fsdp", "tensor")),
        (("layers", "mlp", "embed"), (4, 72, 32), P(None, "tensor"), P(None, "tensor", "fsdp")),
        (("embed",), (32,), P(), P("fsdp")),
        (CACHE, (9, 4, 2, 2, 8), P(None, None, "tensor"), P(None, None, "tensor")),
        # fsdp splits the batch, so it leaves the width of activations whole.
        (("batch", "length", "embed"), (4, 16, 32), P(), P("fsdp")),
    ],
)
def test_rules(axes, shape, serving, training):
    assert spec(axes, shape, mesh(tensor=2), SERVING) == serving
    assert spec(axes, shape, mesh(tensor=2, fsdp=2), TRAINING) == training


def test_every_rule_names_axes_of_the_mesh_and_dimensions_of_the_table():
    for rules in TABLE.values():
        for rule in rules:
            assert set(rule.mesh_axes) <= set(AXES)
            assert rule.instead is None or rule.instead in TABLE


@pytest.mark.parametrize(
    ("axes", "shape", "expected", "compromise"),
    [
        (KEY, (32, 2, 8), P("tensor"), "kv_heads=2 does not divide by tensor=4; embed is split instead"),
        (("vocab", "embed"), (161, 32), P(None, "tensor"), "vocab=161 does not divide by tensor=4; embed is split"),
        (CACHE, (9, 4, 2, 2, 8), P(), "kv_heads=2 does not divide by tensor=4; it is replicated"),
        (KEY, (33, 2, 8), P(), "it is replicated"),
    ],
)
def test_where_a_size_does_not_divide_the_rule_says_what_happens(axes, shape, expected, compromise):
    got = split(axes, shape, mesh(tensor=4), SERVING)
    assert got.spec == expected
    assert len(got.compromises) == 1 and compromise in got.compromises[0]


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (
            ("embed", "mlp"),
            (32, 74),
            r"in up \(32, 74\), mlp=74 does not divide by tensor=4. Choose tensor among 1, 2, 37",
        ),
        (("embed", "mlps"), (32, 74), "No rule is called 'mlps', an axis of up; nearest known: mlp"),
        (("embed",), (32, 74), r"one axis a dimension; up of shape \(32, 74\) has the axes \('embed',\)"),
    ],
)
def test_an_error_states_rule_values_and_ways_out(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        split(axes, shape, mesh(tensor=4), SERVING, "up")


def test_fsdp_and_tensor_share_a_dimension_only_where_it_divides_by_both():
    assert spec(KEY, (32, 1, 8), mesh(fsdp=4, tensor=2), TRAINING) == P(("fsdp", "tensor"))
    assert spec(KEY, (4, 1, 8), mesh(fsdp=4, tensor=2), TRAINING) == P("fsdp")
    got = split(KEY, (6, 2, 8), mesh(fsdp=4, tensor=2), TRAINING)
    assert got.spec == P(None, "tensor") and "embed=6 does not divide by fsdp=4" in got.compromises[0]


class TestCheck:
    mesh = mesh(tensor=4)
    up, down = ("embed", "mlp"), ("mlp", "embed")

    def found(self, *arrays, min_bytes=1024):
        return check(arrays, self.mesh, SERVING, min_bytes=min_bytes)

    def test_arrays_split_as_the_rules_say_are_not_named(self):
        where = NamedSharding(self.mesh, P(None, "tensor"))
        assert not self.found(("up", self.up, array((32, 64), where)), ("down", self.down, array((64, 32))))
        assert not self.found(("key", KEY, array((32, 2, 8)))), "embed carries the split, nothing is wasted"

    def test_an_array_left_whole_is_named_with_its_waste(self):
        whole = NamedSharding(self.mesh, P())
        (found,) = self.found(("blocks.0.mlp.up", self.up, array((32, 64), whole)), ("norm", ("embed",), array((32,))))
        assert (found.name, found.shape) == ("blocks.0.mlp.up", (32, 64))
        assert found.wasted_bytes == 3 * 32 * 64 * 4
        assert "held as P(), but its rules say P(None, 'tensor')" in str(found)

    def test_an_axis_that_does_not_divide_is_named(self):
        (found,) = self.found(("cache[0]", CACHE, array((9, 4, 2, 2, 8))))
        assert "kv_heads=2 does not divide by tensor=4; it is replicated" in found.reason
        assert found.wasted_bytes == 3 * 9 * 4 * 2 * 2 * 8 * 4

    def test_a_large_array_that_no_rule_splits_is_named(self):
        (found,) = self.found(("positions", ("position", "embed"), array((1024, 8))))
        assert "no rule splits any of its axes ('position', 'embed')" in found.reason
        assert not self.found(("positions", ("position", "embed"), array((8, 8)))), "small ones are left in peace"

    def test_the_worst_comes_first(self):
        names = [
            f.name for f in self.found(("a", CACHE, array((9, 4, 2, 2, 8))), ("b", CACHE, array((90, 4, 2, 2, 8))))
        ]
        assert names == ["b", "a"]


def test_a_mesh_axis_that_splits_nothing_is_refused():
    arrays = [("up", ("embed", "mlp"), array((32, 64)))]
    refuse_idle_axes(arrays, mesh(data=2, tensor=2), SERVING)
    with pytest.raises(ValueError, match="none has a dimension for expert=2. Give those devices to tensor or data"):
        refuse_idle_axes(arrays, mesh(expert=2, tensor=2), SERVING)
