import pytest

from flexjax.hardware import chips, roofline
from flexjax.hardware.program import Op, Program

LIMITS = roofline.Limits(hbm_bytes=10**9, bytes_per_s=100.0, flops_per_s=1000.0, link_bytes_per_s=50.0, clock_hz=10.0)


def op(**figures) -> Op:
    return Op(
        **{
            "name": "op",
            "opcode": "fusion",
            "label": "",
            "turns": 1,
            "hbm_bytes": 0,
            "flops": 0,
            "cycles": None,
            **figures,
        }
    )


@pytest.mark.parametrize(
    ("figures", "seconds"),
    [
        ({"hbm_bytes": 200, "flops": 1000}, 2.0),
        ({"hbm_bytes": 200, "flops": 5000}, 5.0),
        ({"hbm_bytes": 200, "cycles": 70}, 7.0),  # The compiler knows better.
        ({"opcode": "all-reduce", "sent_bytes": 100, "group": 4, "cycles": 70}, 3.0),  # 2 · 3/4 · 100 / 50
        ({"opcode": "all-gather", "sent_bytes": 100, "group": 4}, 6.0),
        ({"opcode": "reduce-scatter", "sent_bytes": 100, "group": 4}, 1.5),
        ({"opcode": "collective-permute", "sent_bytes": 100, "group": 2}, 2.0),
    ],
)
def test_seconds_of_an_op(figures, seconds):
    assert roofline.op_seconds(op(**figures), LIMITS) == pytest.approx(seconds)


def test_static_time_adds_turns_and_least_time_takes_the_slower_limit():
    program = Program((op(turns=3, cycles=10, hbm_bytes=100), op(turns=2, hbm_bytes=100, flops=100)))
    assert roofline.static_seconds(program, LIMITS) == pytest.approx(3 * 1 + 2 * 1)
    assert program.hbm_bytes == 500
    assert roofline.least_seconds(program, LIMITS, needed_bytes=400) == pytest.approx(4.0)
    assert roofline.least_seconds(program, LIMITS, needed_bytes=10**6) == pytest.approx(5.0)  # All that it reads.


def test_the_slowest_are_added_up_by_where_they_come_from():
    program = Program(
        (
            op(label="a", turns=3, cycles=10, hbm_bytes=100),
            op(label="b", cycles=40),
            op(label="a", cycles=20, hbm_bytes=7),
        )
    )
    first, second = roofline.slowest(program, LIMITS, 5)
    assert (first.name, first.turns, first.moved_bytes, first.cycles) == ("fusion a", 4, 307, 50)
    assert (first.seconds, second.seconds) == (pytest.approx(5.0), pytest.approx(4.0))
    assert roofline.slowest(program, LIMITS, 1) == [first]


def test_limits_are_those_of_one_device():
    v5e, ironwood = (roofline.Limits.of(chips.find(name), "bfloat16") for name in ("v5e", "7x"))
    assert v5e.bytes_per_s == 819e9
    assert v5e.hbm_bytes == 15.75 * 2**30
    assert ironwood.bytes_per_s == chips.find("7x").memory_gb_per_s * 1e9 / 2  # Two devices a chip.


def test_a_dtype_that_the_chip_has_no_unit_for_is_refused():
    with pytest.raises(ValueError, match="TPU v5e has no unit for float8.*bfloat16"):
        roofline.Limits.of(chips.find("v5e"), "float8")


def test_a_chip_without_the_figures_is_refused():
    with pytest.raises(ValueError, match=r"cpu need its memory.*chips\.toml"):
        roofline.Limits.of(chips.find("cpu"), "float32")
