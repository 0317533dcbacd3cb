import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flexjax.hardware import aot, chips, topology
from flexjax.hardware.mesh import MeshConfig, make_mesh


def doubled():
    return jax.jit(lambda x: 2 * x, donate_argnums=0).lower(jax.ShapeDtypeStruct((1024,), jnp.float32))


def test_footprint_counts_a_donated_argument_once():
    made = aot.compile(doubled(), available_bytes=10**6)
    assert isinstance(made, aot.Compiled)
    assert (made.footprint.arguments, made.footprint.results) == (4096, 0)
    assert made.footprint.total >= 4096
    assert made.seconds > 0


def test_a_program_past_the_memory_tells_by_how_much():
    made, compiled = aot.compile_keeping(doubled(), available_bytes=4000)
    assert isinstance(made, aot.TooLarge) and compiled is not None
    assert made.missing_bytes == made.needed_bytes - 4000 > 0


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (41.50G) "
            "exceeds available HBM (15.75G). HLO module: jit_step.",
            41.5,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.25G "
            "of 15.75G hbm. Exceeded hbm capacity by 2.50G.",
            18.25,
            15.75,
        ),
    ],
)
def test_what_libtpu_says_of_a_program_that_does_not_fit(message, needed, available):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(message)

    made, compiled = aot.compile_keeping(Lowered(), available_bytes=1)
    assert compiled is None
    assert (made.needed_bytes, made.available_bytes) == (needed * 2**30, available * 2**30)


def test_two_int4_share_a_byte():
    assert aot.device_bytes(jax.ShapeDtypeStruct((3, 5), jnp.int4)) == 8


def test_another_failure_of_the_compiler_is_raised():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        aot.compile(Lowered(), available_bytes=1)


def test_device_bytes_follow_the_shardings():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    whole = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    assert aot.device_bytes({"a": whole, "b": [jax.ShapeDtypeStruct((3,), jnp.int32)]}) == 64 + 12


@pytest.mark.tpu
@pytest.mark.skipif(topology.missing(chips.find("v5e")) is not None, reason=str(topology.missing(chips.find("v5e"))))
def test_the_real_compiler_refuses_what_a_v5e_cannot_hold():
    chip = chips.find("v5e")
    mesh = make_mesh(MeshConfig(tensor=4), topology.devices(chip, "2x2"))
    by_rows = NamedSharding(mesh, PartitionSpec("tensor"))
    lowered = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((32, 2**30), jnp.float32, sharding=by_rows))
    made = aot.compile(lowered, available_bytes=2**34)
    assert isinstance(made, aot.TooLarge)
    assert made.needed_bytes == 2 * 32 * 2**30  # Argument and result, a quarter of each.
    assert made.available_bytes == 15.75 * 2**30
