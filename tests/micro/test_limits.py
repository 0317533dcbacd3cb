import pytest

from flexjax.micro import Limits, limits

MACHINE = Limits(read={1: 4e9, 16: 50e9, 256: 30e9}, products={"float32": 400e9})


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
    other = Limits(read={1: 5e9, 16: 40e9, 256: 30e9}, products={"float32": 500e9})
    assert MACHINE | other == Limits(read={1: 5e9, 16: 50e9, 256: 30e9}, products={"float32": 500e9})


def test_they_are_measured():
    found = limits(["float32", "bfloat16"], rounds=1, round_s=0.001, sizes_mib=(1, 2))
    assert set(found.read) == {1, 2} and set(found.products) == {"float32", "bfloat16"}
    assert all(rate > 1e8 for rate in (*found.read.values(), *found.products.values()))
