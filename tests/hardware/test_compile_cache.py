import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flexjax.hardware import compile_cache
from flexjax.hardware.compile_cache import CompileCounter
from flexjax.refusal import Refusal


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


@pytest.fixture
def given(cache):
    """Sets the directory that JAX was given; `cache` puts it back."""
    return lambda directory: jax.config.update("jax_compilation_cache_dir", directory)


@pytest.mark.parametrize("bucket", ["gs://my-bucket/jax-cache", "s3://my-bucket/a"])
def test_a_bucket_stays_what_jax_was_given(given, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given(bucket)
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir == bucket
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("url", ["http://host/a", "hdfs://host/a", "file:///a"])
def test_another_url_is_refused_by_name(given, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given(url)
    with pytest.raises(Refusal, match=rf"a bucket that JAX opens \(gs://, .*; got {url}"):
        compile_cache.enable()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bucket_as_a_path_is_refused(cache):
    with pytest.raises(Refusal, match="got gs:/bucket"):
        compile_cache.enable(Path("gs://bucket"))


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("fault", ["a file in the way", "no space", "read-only", "no home"])
def test_a_directory_that_cannot_be_used_is_a_warning(given, fault, tmp_path, monkeypatch, caplog):
    directory = tmp_path / "here"
    given(str(directory))
    if fault == "a file in the way":
        directory.touch()
    elif fault == "no space":
        monkeypatch.setattr(compile_cache.tempfile, "TemporaryFile", no_space)
    elif fault == "read-only":
        monkeypatch.setattr(Path, "mkdir", no_space)
    else:
        given(None)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert "Compiled programs are not kept" in caplog.text
    with CompileCounter() as counter:
        program()(jnp.ones((6, 6)))
    assert counter.backend_compiles > 0 and counter.cache_hits == 0
