"""The tuning job from config to set file."""

import csv
import dataclasses
from pathlib import Path

import pytest

from flexjax import config as config_lib
from flexjax import config_file
from flexjax.engine import EngineConfig
from flexjax.hardware import chips, flag_check, topology, xla_flags
from flexjax.jobs import tune_flags
from flexjax.tune import Attention, Cost, MeasuredStep
from flexjax.tune.blocks import find

GOLDEN = Path(__file__).resolve().parents[1] / "models" / "transformer" / "golden" / "llama3"
CONFIG = tune_flags.Config(
    model=str(GOLDEN),
    factors=(("xla_cpu_prefer_vector_width", (512,), "Width."), ("xla_cpu_nonsense", (True,), "Nothing.")),
    set_name="cpu/decode",
    engine=EngineConfig(dtype="float32", max_num_seqs=2, max_num_batched_tokens=8, decode_steps=2),
    context=16,
    rounds=3,
    dispatches=2,
)


def test_what_was_tried_is_kept_even_where_nothing_pays(tmp_path, capsys, monkeypatch):
    """A tiny step on a busy machine: the figures are of no interest, that they are taken and written down is."""
    monkeypatch.setattr(Cost, "pays", lambda self, gain: False)
    assert tune_flags.run(CONFIG, tmp_path) == 0
    text = (tmp_path / "decode.txt").read_text()
    assert xla_flags.parse(text, "decode.txt") == ()
    assert "# The decoding step of llama3, float32, 2 sequences of 16 tokens." in text
    assert "xla_cpu_prefer_vector_width=512: " in text
    assert "xla_cpu_nonsense=true: refused: INVALID_ARGUMENT: No such compile option" in text
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == ["xla_cpu_prefer_vector_width=512", "xla_cpu_nonsense=true"]
    assert float(rows[0]["ratio"]) > 0 and rows[1]["ratio"] == ""
    said = capsys.readouterr().out
    assert "Nothing pays" in said and "measured on" in said


def test_what_pays_becomes_a_set_that_the_compiler_takes(tmp_path, monkeypatch, capsys):
    cost = Cost(0.8, 0.79, 0.81, 0.8, 1.0, True)
    monkeypatch.setattr(MeasuredStep, "__init__", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(MeasuredStep, "__call__", lambda self, candidate, effort=1: cost)
    config = dataclasses.replace(CONFIG, factors=CONFIG.factors[:1])
    assert tune_flags.run(config, tmp_path) == 0
    (tmp_path / "cpu").mkdir()
    (tmp_path / "decode.txt").rename(tmp_path / "cpu" / "decode.txt")
    flags = xla_flags.load("cpu/decode", tmp_path)
    assert str(flags) == "--xla_cpu_prefer_vector_width=512"
    assert flag_check.refused(flags) == {}
    assert "1 → 0.8 ms a step: 0.800 of the time (0.790–0.810)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(chip="v5e", topology="2x4"), "names chip and topology, a measured one neither; got 'v5e' and '2x4'"),
        (dict(evaluate="compiled"), "A compiled search names chip and topology"),
        (dict(evaluate="compiled", chip="v5e"), "got 'v5e' and ''"),
        (dict(set_name="v9/decode"), "No chip is called 'v9'"),
        (dict(rounds=0), "must be at least 1"),
        (
            dict(evaluate="kernel", chip="v5e", topology="2x4"),
            "not other flags; got xla_cpu_prefer_vector_width, xla_cpu_nonsense",
        ),
    ],
)
def test_a_wrong_config_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CONFIG, **change)


def test_the_kernel_that_is_tuned_is_one_device_s_part(tmp_path, monkeypatch):
    made: list[Attention] = []

    class Kernel:
        kind, unit = "compiled", "µs a layer"

        def __init__(self, attention: Attention):
            made.append(attention)

        def __call__(self, candidate, effort=1):
            return Cost(1.0, 1.0, 1.0, 41.0, 41.0, None)

    monkeypatch.setattr(tune_flags, "CompiledKernel", Kernel)
    _, fields = config_file.split(config_file.load("configs/tune_flags.py:v6e_blocks"))
    config = config_lib.from_config_dict(tune_flags.Config, fields)
    if topology.missing(chips.find("v6e")) is not None:
        pytest.skip(str(topology.missing(chips.find("v6e"))))
    assert tune_flags.run(config, tmp_path) == 0
    assert made == [Attention("v6e", 32, 2048, num_heads=8, num_kv_heads=2, head_dim=128, page_size=128)]
    text = (tmp_path / "attention_blocks.txt").read_text()
    assert "# Attention while decoding of llama3-8b, bfloat16, 32 sequences of 2048 tokens." in text
    assert "# The defaults: 41 µs a layer." in text and xla_flags.parse(text, "blocks") == ()


@pytest.mark.parametrize("which", ["v5e", "v5p", "v6e"])
def test_the_block_sizes_that_are_searched_are_the_kernel_s(which):
    _, fields = config_file.split(config_file.load(f"configs/tune_flags.py:{which}_blocks"))
    for name, values, _ in config_lib.from_config_dict(tune_flags.Config, fields).factors:
        module, constant = find(name)
        assert getattr(module, constant) not in values


@pytest.mark.parametrize("which", ["cpu", "v5e"])
def test_the_searches_that_ship_try_flags_that_the_compiler_knows(which):
    _, fields = config_file.split(config_file.load(f"configs/tune_flags.py:{which}"))
    config = config_lib.from_config_dict(tune_flags.Config, fields)
    variable = xla_flags.variable_of(config.set_name)
    if variable == "LIBTPU_INIT_ARGS" and not flag_check.has_libtpu():
        pytest.skip("libtpu is not installed (extra 'virtual')")
    # The last value of each: the first may be the empty one, and a name stands once in a set.
    text = "\n".join(
        f"# why\n--{name}={str(values[-1]).lower() if isinstance(values[-1], bool) else values[-1]}"
        for name, values, _ in config.factors
    )
    flag_check.check(xla_flags.FlagSet(config.set_name, variable, xla_flags.parse(text, which)))
