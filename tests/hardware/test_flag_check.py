"""The compilers refuse what they do not know, by name. Some of these start a compiler: about a second each."""

import re

import pytest

from flexjax.hardware import flag_check, xla_flags


def flag_set(*flags: str, chip: str = "cpu") -> xla_flags.FlagSet:
    text = "\n".join(f"# why\n--{flag}" for flag in flags)
    name = f"{chip}/made_up"
    return xla_flags.FlagSet(name, xla_flags.variable_of(name), xla_flags.parse(text, name))


def test_every_flag_that_xla_refuses_is_named_with_why():
    flags = flag_set("xla_cpu_nonsense=1", "xla_cpu_prefer_vector_width=512", "xla_cpu_enable_fast_math=maybe")
    says = (
        r"refuses 2 of the 3 flags of 'cpu/made_up': --xla_cpu_nonsense: the compiler does not know it; "
        r"--xla_cpu_enable_fast_math: the compiler knows it but does not take this value\."
    )
    with pytest.raises(ValueError, match=says):
        flag_check.check(flags)


def test_gpu_flags_are_known_where_there_is_no_gpu():
    assert set(flag_check.refused(flag_set("xla_gpu_triton_gemm_any=true", "xla_gpu_nonsense=1", chip="gpu"))) == {
        "xla_gpu_nonsense"
    }


@pytest.mark.parametrize("name", [n for n in xla_flags.available() if xla_flags.variable_of(n) == "XLA_FLAGS"])
def test_the_compiler_takes_the_sets_for_cpus_and_gpus(name):
    flag_check.check(xla_flags.load(name))


@pytest.mark.tpu
@pytest.mark.skipif(not flag_check.has_libtpu(), reason="libtpu is not installed (extra 'virtual')")
def test_libtpu_takes_the_sets_for_tpus_and_names_what_it_refuses():
    names = [n for n in xla_flags.available() if xla_flags.variable_of(n) == "LIBTPU_INIT_ARGS"]
    # One process for all: it takes seconds to start. The sets share flags, and a name stands once in a set.
    flags = {flag.name: str(flag)[2:] for name in names for flag in xla_flags.load(name).flags}
    made_up = ["xla_tpu_nonsense=true", "xla_tpu_host_transfer_overlap_limit=lots"]
    refused = flag_check.refused(flag_set(*flags.values(), *made_up, chip="v5e"))
    assert set(refused) == {"xla_tpu_nonsense", "xla_tpu_host_transfer_overlap_limit"}
    assert re.search("does not know", refused["xla_tpu_nonsense"])
    assert re.search("this value", refused["xla_tpu_host_transfer_overlap_limit"])


def test_flags_that_nothing_would_read_are_refused(monkeypatch):
    monkeypatch.setattr(flag_check, "has_libtpu", lambda: False)
    with pytest.raises(ValueError, match="libtpu, which is not installed, so nothing would read them"):
        flag_check.check(xla_flags.load("v5e/collective_overlap"))
