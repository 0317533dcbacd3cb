"""Points of a sweep: every combination once, each resolved, checked and named by what it resolves to."""

import dataclasses
import json
import runpy

import pytest

from flexjax.config import from_config_dict
from flexjax.config_file import Launch, split
from flexjax.sweep import grid, resolve


@dataclasses.dataclass(frozen=True)
class Engine:
    size: int = 4
    dtype: str = "bfloat16"
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    engine: Engine = Engine()
    other: Engine | None = None
    names: tuple[str, ...] = ("a", "b")
    extra: dict[str, int] = dataclasses.field(default_factory=dict)


LAUNCHER = {"job": "bench"}


def test_a_grid_is_every_combination_with_the_last_axis_fastest():
    assert grid([("x", (1, 2)), ("y", ("a", "b"))]) == [
        dict(x=1, y="a"),
        dict(x=1, y="b"),
        dict(x=2, y="a"),
        dict(x=2, y="b"),
    ]
    assert grid([]) == [{}]


@pytest.mark.parametrize(
    ("axes", "says"), [([("x", (1,)), ("x", (2,))], "'x' stands 2 times"), ([("x", ())], "'x' has none")]
)
def test_a_grid_that_cannot_be_is_refused(axes, says):
    with pytest.raises(ValueError, match=says):
        grid(axes)


def test_a_point_holds_every_field_and_not_only_those_set():
    point = resolve(Config, LAUNCHER, {"engine": {"size": 8}}, {"engine.dtype": "float32", "xla_flags": "cpu/debug"})
    assert point.config == {
        **dict(job="bench", xla_flags="cpu/debug", distributed=False),
        **dict(engine=dict(size=8, dtype="float32", limit=None), other=None, names=["a", "b"], extra={}),
    }


def test_the_key_is_of_what_a_point_resolves_to():
    by_default = resolve(Config, LAUNCHER, {}, {})
    spelled_out = resolve(Config, LAUNCHER, {"engine": {"size": 9}}, {"engine.size": 4, "names": ("a", "b")})
    different = resolve(Config, LAUNCHER, {}, {"engine.size": 5})
    assert by_default.key == spelled_out.key != different.key


def test_optional_sections_and_dicts_can_be_set_into():
    point = resolve(Config, LAUNCHER, {}, {"other.size": 1, "extra.new": 2, "engine.limit": 3})
    assert point.config["other"]["size"] == 1
    assert point.config["extra"] == {"new": 2}
    assert point.config["engine"]["limit"] == 3.0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"engine.sise": 1}, "config.engine has no field 'sise'; nearest: size"),
        ({"engine.size": "large"}, "config.engine.size must be int; got 'large'"),
        ({"motor.size": 1}, "config has no field 'motor'"),
    ],
)
def test_a_field_that_is_not_there_is_refused_before_anything_runs(override, says):
    with pytest.raises(ValueError, match=says):
        resolve(Config, LAUNCHER, {}, override)


def test_the_config_file_of_a_point_gives_the_point_again(tmp_path):
    point = resolve(Config, LAUNCHER, {}, {"engine.dtype": 'odd "quoted" \\ ü', "names": ("x'y",)})
    file = tmp_path / "config.py"
    file.write_text(point.config_file)
    launcher, job = split(runpy.run_path(str(file))["get_config"]())
    assert from_config_dict(Launch, launcher) == Launch("bench")
    assert from_config_dict(Config, job) == Config(Engine(dtype='odd "quoted" \\ ü'), names=("x'y",))
    assert resolve(Config, launcher, job, {}).key == point.key
    assert json.loads(json.dumps(point.config)) == point.config
