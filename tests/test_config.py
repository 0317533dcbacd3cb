"""The door between config files and typed code."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from flexjax.config import check_path, complete, describe, from_config_dict, to_config_dict


@dataclasses.dataclass(frozen=True)
class Draft:
    model: str
    num_tokens: int = 4  # Tokens proposed a step.


@dataclasses.dataclass(frozen=True)
class Engine:
    max_num_seqs: int = 8  # Sequences in a step.
    max_num_tokens: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    utilization: float = 1
    donate: bool = True
    draft: Draft | None = None

    def __post_init__(self):
        if self.max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1; got {self.max_num_seqs}.")


@dataclasses.dataclass(frozen=True)
class Config:
    model: Path
    engine: Engine = dataclasses.field(default_factory=Engine)
    sides: tuple[Engine, ...] = ()
    mesh: tuple[int, str] = (1, "data")
    seed: int | str = 0
    limits: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: Any = None


drafts = st.builds(Draft, model=st.text(), num_tokens=st.integers())
engines = st.builds(
    Engine,
    max_num_seqs=st.integers(1),
    max_num_tokens=st.none() | st.integers(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    utilization=st.floats(allow_nan=False),
    donate=st.booleans(),
    draft=st.none() | drafts,
)
configs = st.builds(
    Config,
    model=st.sampled_from([Path("a"), Path("b/c")]),
    engine=engines,
    sides=st.lists(engines, max_size=2).map(tuple),
    mesh=st.tuples(st.integers(), st.text()),
    seed=st.integers() | st.text(),
    limits=st.dictionaries(st.sampled_from(["ttft", "tpot"]), st.floats(allow_nan=False)),
    extra=st.none() | st.integers(),
)


@given(configs)
def test_there_and_back(config):
    assert from_config_dict(Config, to_config_dict(config)) == config
    assert from_config_dict(Config, complete(Config, to_config_dict(config))) == config


def test_sections_take_what_is_given_and_keep_their_defaults():
    values = ConfigDict(dict(model="m", engine=dict(utilization=1), sides=[dict(max_num_seqs=2)], mesh=[2, "x"]))
    config = from_config_dict(Config, values)
    assert config == Config(Path("m"), Engine(), (Engine(max_num_seqs=2),), (2, "x"))
    assert isinstance(config.engine.utilization, float)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(modl="m"), "config has no field 'modl'; nearest: model"),
        (
            dict(model="m", engine=dict(max_num_seq=1)),
            "config.engine has no field 'max_num_seq'; nearest: max_num_seqs",
        ),
        (dict(model="m", engine=dict(zzzz=1)), "its fields: max_num_seqs, max_num_tokens, dtype"),
        (dict(model="m", sides=[{}, dict(dtyp="x")]), r"config.sides\[1\] has no field 'dtyp'; nearest: dtype"),
        (dict(), "config.model must be set"),
        (dict(model="m", engine=dict(draft={})), "config.engine.draft.model must be set"),
        (dict(model=3), r"config.model must be Path; got 3 \(int\)"),
        (dict(model="m", engine=3), "config.engine is a section with fields max_num_seqs, .*; got 3"),
        (dict(model="m", engine=dict(max_num_seqs="4")), r"config.engine.max_num_seqs must be int; got '4' \(str\)"),
        (dict(model="m", engine=dict(max_num_seqs=True)), "config.engine.max_num_seqs must be int; got True"),
        (dict(model="m", engine=dict(donate=1)), "config.engine.donate must be bool; got 1"),
        (dict(model="m", engine=dict(utilization="1")), "config.engine.utilization must be float"),
        (dict(model="m", engine=dict(dtype="bfloat")), "must be one of 'float32', 'bfloat16'.*Did you mean 'bfloat16'"),
        (dict(model="m", mesh=(1,)), r"config.mesh must be tuple\[int, str\], 2 values; got 1"),
        (dict(model="m", mesh=(1, 2)), r"config.mesh\[1\] must be str; got 2"),
        (dict(model="m", mesh="1x2"), "config.mesh must be .* a tuple or a list"),
        (dict(model="m", seed=1.5), r"config.seed must be int \| str; got 1.5"),
        (dict(model="m", limits=dict(ttft="fast")), "config.limits.ttft must be float"),
        (dict(model="m", engine=dict(max_num_seqs=0)), "config.engine: max_num_seqs must be at least 1; got 0"),
    ],
)
def test_errors_name_path_value_and_rule(values, says):
    with pytest.raises(ValueError, match=says):
        from_config_dict(Config, ConfigDict(values))


def test_placeholders():
    values = ConfigDict(dict(model=config_dict.required_placeholder(str), engine=dict()))
    with pytest.raises(ValueError, match="config.model must be set"):
        from_config_dict(Config, values)
    values.model = "m"
    assert from_config_dict(Config, values) == Config(Path("m"))


def test_complete_gives_every_field_the_type_that_flags_parse():
    filled = complete(Config, dict(model="m"), overrides=["engine.draft.num_tokens"])
    assert filled.get_type("model") is str
    assert filled.get_type("mesh") is tuple
    assert filled.engine.get_type("max_num_seqs") is int
    assert filled.engine.get_type("utilization") is float
    assert filled.engine.get_type("max_num_tokens") is object
    assert filled.engine.draft.num_tokens == 4
    assert complete(Config, dict(model="m")).engine.draft is None
    with pytest.raises(ValueError, match="config.engine.draft.model must be set"):
        from_config_dict(Config, filled)


def test_complete_refuses_what_the_dataclass_lacks():
    with pytest.raises(ValueError, match="config has no field 'engin'; nearest: engine"):
        complete(Config, dict(engin={}))
    with pytest.raises(ValueError, match="config.engine is a section"):
        complete(Config, dict(engine=1))
    with pytest.raises(ValueError, match="config has no field 'engin'; nearest: engine"):
        complete(Config, {}, overrides=["engin.max_num_seqs"])


def test_fields_of_a_dict_are_its_own_and_can_be_overridden():
    filled = complete(Config, dict(model="m", limits=dict(ttft=1.0)), overrides=["limits.ttft", "limits.tpot"])
    filled.lock()
    filled.limits.ttft = 2.0
    filled.limits.tpot = 3
    assert from_config_dict(Config, filled).limits == {"ttft": 2.0, "tpot": 3.0}


def test_check_path():
    check_path(Config, "limits.anything")
    check_path(Config, "engine.draft.model")
    with pytest.raises(ValueError, match=r"config.engine.draft has no field 'modle'; nearest: model"):
        check_path(Config, "engine.draft.modle")
    with pytest.raises(ValueError, match=r"config.seed is one value \(int \| str\); it has no field 'x'"):
        check_path(Config, "seed.x")


def test_describe_lists_fields_with_their_comments():
    rows = {path: (kind, default, comment) for path, kind, default, comment in describe(Config)}
    assert rows["config.model"] == ("Path", "required", "")
    assert rows["config.engine.max_num_seqs"] == ("int", "8", "Sequences in a step.")
    assert rows["config.engine.draft.num_tokens"] == ("int", "4", "Tokens proposed a step.")
