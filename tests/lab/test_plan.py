import itertools

import pytest

from flexjax.lab import BODY, PARTS, Goal, gpu_ops, plan
from flexjax.lab.plan import specs


def test_the_most_wanted_come_first():
    items = plan(gpu_ops())
    assert [(item.op, item.shape, item.what) for item in items[:4]] == [
        ("matmul", "llama3_8b_int4_decode_64", "times"),
        ("ragged_paged_attention", "llama3_8b_decode_64_bfloat16", "times"),
        ("matmul", "llama3_8b_int4_decode_64", "value"),
        ("ragged_paged_attention", "llama3_8b_decode_64_bfloat16", "value"),
    ]
    assert items[4].shape == "llama3_8b_int8_decode_64" and items[5].shape == "llama3_8b_prefill_4096"
    with_goal = [item.goal is not None for item in items]
    assert with_goal == sorted(with_goal, reverse=True)


def test_every_shape_is_there_once():
    items = plan(gpu_ops())
    assert len(set(items)) == len(items) == len({(item.op, item.shape, item.what) for item in items})
    for op in gpu_ops():
        values = {item.shape for item in items if (item.op, item.what) == (op, "value")}
        times = {item.shape for item in items if (item.op, item.what) == (op, "times")}
        assert values == {*specs(op, "ARG_SPECS"), *specs(op, "SERVING_SPECS")} and times == {
            *specs(op, "SERVING_SPECS")
        }


def test_parts_are_of_the_whole():
    parts = [plan(gpu_ops(), [part]) for part in PARTS]
    assert all(parts) and [*itertools.chain(*parts)] == plan(gpu_ops())
    assert all(item.bodies == (BODY, "base") for item in parts[1])
    assert {item.op for item in plan(["ssd"])} == {"ssd"}


@pytest.mark.parametrize(
    ("op", "shape", "goal"),
    [
        ("ragged_paged_attention", "llama3_8b_decode_8_int4", Goal("copies", 0.8)),
        ("ragged_paged_attention", "llama3_8b_prefill_4096", Goal("products", 0.6)),
        ("ragged_paged_attention", "shipped_decode_16_bfloat16", None),
        ("matmul", "llama3_8b_int8_decode_8", Goal("copies", 0.8)),
        ("matmul", "llama3_8b_int8_rows_decode_8", None),
    ],
)
def test_goals_are_those_of_the_sizes_that_are_served(op, shape, goal):
    (item,) = [item for item in plan([op]) if (item.shape, item.what) == (shape, "times")]
    assert item.goal == goal
    assert goal is None or str(goal).startswith("≥ ")


def test_peers_stand_beside_the_shapes_that_they_serve():
    beside = {item.shape: item.bodies for item in plan(gpu_ops()) if item.what == "times"}
    assert beside["llama3_8b_prefill_4096"] == (BODY, "xla", "cudnn", "tokamax_mosaic", "tokamax_triton")
    assert beside["llama3_8b_int4_decode_64"] == (BODY, "xla", "tokamax_mosaic", "tokamax_triton")
    assert beside["llama3_8b_decode_64_int4"] == beside["mamba2_2_7b_decode_64"] == (BODY, "xla")
