from importlib import import_module

import pytest

from flexjax.kernels.matmul import packs
from flexjax.lab import Limits, Probe, limits, peaks

MACHINE = Limits(read={1: 4e9, 16: 50e9, 256: 30e9}, copy={16: 60e9}, products={"float32": 400e9})


@pytest.mark.parametrize(
    ("moved_bytes", "operations", "seconds", "bound"),
    [
        (256 * 2**20, 0, 256 * 2**20 / 30e9, "bytes"),
        (20 * 2**20, 0, 20 * 2**20 / 50e9, "bytes"),  # The nearest size by ratio.
        (2**20, 0, 2**20 / 50e9, "bytes"),  # A small read is not slower than a larger one.
        (2**20, 1e9, 1e9 / 400e9, "products"),
        (0, 0, 0.0, "bytes"),
    ],
)
def test_the_slower_of_bytes_and_products_bounds(moved_bytes, operations, seconds, bound):
    assert MACHINE.seconds(moved_bytes, operations, "float32") == (pytest.approx(seconds), bound)


def test_the_higher_of_two_measurements_is_the_limit():
    other = Limits(read={1: 5e9, 16: 40e9, 256: 30e9}, copy={16: 50e9}, products={"float32": 500e9})
    higher = Limits(read={1: 5e9, 16: 50e9, 256: 30e9}, copy={16: 60e9}, products={"float32": 500e9})
    assert MACHINE | other == higher


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(import_module("flexjax.lab.limits").MATRIX, "cpu", (32, 64))


def test_they_are_measured(small):
    found = limits(["float32", "bfloat16"], rounds=1, round_s=0.001, sizes_mib=(1, 2))
    assert set(found.read) == set(found.copy) == {1, 2} and set(found.products) == {"float32", "bfloat16"}
    assert all(rate > 1e8 for rate in (*found.read.values(), *found.copy.values(), *found.products.values()))


def test_the_quickest_way_of_a_kind_is_the_limit(monkeypatch):
    seconds = {"read": 2.0, "bare read": 1.0, "copy": 4.0, "float32 8": 0.5, "packed float32 8": 0.25}
    probe = lambda name, kind: Probe(name, kind, 100.0, lambda calls: calls * seconds[name])
    module = import_module("flexjax.lab.limits")
    monkeypatch.setattr(
        module, "memory", lambda sizes: [probe(n, k) for n, k in (("read",) * 2, ("bare read", "read"), ("copy",) * 2)]
    )
    monkeypatch.setattr(
        module, "matmuls", lambda dtypes, sizes, rows: [probe(n, "float32") for n in seconds if "float32" in n]
    )
    found = limits(["float32"], rounds=2, round_s=1.0, sizes_mib=(16,))
    assert found == Limits(read={16: 100.0}, copy={16: 25.0}, products={"float32": 400.0})


def test_the_peak_is_sought_by_xla_and_on_a_cpu_by_the_packed_product(small):
    names = ["bfloat16 64", *(["packed bfloat16 64"] if packs("bfloat16") else [])]
    assert [(p.name, p.work) for p in peaks(["bfloat16"])] == [(name, 2 * 32 * 64**2) for name in names]
