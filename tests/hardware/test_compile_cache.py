import jax
import jax.numpy as jnp
import pytest

from flexjax.hardware import compile_cache
from flexjax.hardware.compile_cache import CompileCounter


@pytest.fixture
def cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    yield compile_cache.enable(tmp_path / "xla")
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compile_cache.compilation_cache.reset_cache()


def program():
    return jax.jit(lambda x: jnp.tanh(x) @ x)


def test_a_program_compiles_once_then_loads_from_disk(cache):
    x = jnp.ones((3, 3))
    with CompileCounter() as first:
        program()(x)
    jax.clear_caches()  # As a new process would see it.
    with CompileCounter() as second:
        program()(x)
    assert (first.backend_compiles, first.cache_hits) == (1, 0)
    assert (second.backend_compiles, second.cache_hits) == (0, 1)
    assert first.programs == second.programs == 1
    assert first.seconds > 0 and len(first.names) == 1
    assert any(cache.iterdir())


def test_a_warm_program_counts_nothing_and_the_count_stops_at_the_end(cache):
    f, x = program(), jnp.ones((3, 3))
    f(x)
    with CompileCounter() as counter:
        f(x)
    program()(jnp.ones((5, 5)))
    assert counter.programs == 0 and counter.seconds == 0


def test_nested_counters_both_count(cache):
    x = jnp.ones((4, 4))
    with CompileCounter() as outer:
        with CompileCounter() as inner:
            program()(x)
        program()(jnp.ones((2, 2)))
    assert inner.programs == 1 and outer.programs > 1


def test_the_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache.default_directory() == tmp_path / "flexjax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compile_cache.default_directory().is_absolute()


def test_the_directory_is_private(cache):
    assert cache.stat().st_mode & 0o077 == 0
