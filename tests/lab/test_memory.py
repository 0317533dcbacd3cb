import pytest

from flexjax.kernels.matmul import cpu
from flexjax.lab import bare_read, memory


def test_bytes_are_those_that_a_call_moves():
    read, *bare, copy = memory([1])
    assert read.work == 2**20
    assert copy.work == 2 * 2**20
    assert {p.kind for p in (read, *bare)} == {"read"} and len(bare) == cpu.LIBRARY.is_file()
    assert all(p.run(1) > 0 for p in (read, *bare, copy))


@pytest.mark.skipif(not cpu.LIBRARY.is_file(), reason="built without a C++ compiler")
def test_a_bare_read_goes_through_all_of_its_bytes_in_a_call():
    probe = bare_read(100_000_000, "it")
    assert probe.work == 8 * 100_000_000
    small, large = bare_read(2**20, "small"), bare_read(2**22, "large")
    assert abs(small.work - large.work) < 2**22
    assert probe.best(1) < 1e13  # No reading of 100 MB ends in 10 µs.


def test_a_machine_without_the_loop_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    with pytest.raises(NotImplementedError, match="is not built"):
        bare_read(2**20, "it")
    assert [p.kind for p in memory([1])] == ["read", "copy"]
