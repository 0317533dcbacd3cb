"""The tuning job from config to set file."""

import csv
import dataclasses
from pathlib import Path

import pytest

from flexjax import config as config_lib
from flexjax import config_file
from flexjax.engine import EngineConfig
from flexjax.hardware import flag_check, xla_flags
from flexjax.jobs import tune_flags
from flexjax.lab import Cost
from flexjax.records import store
from flexjax.tune import MeasuredStep

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
KERNEL = dict(evaluate="kernel", kernel="ragged_paged_attention/llama3_8b_of_4", model="", factors=())


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
    (tmp_path / "xla_flags" / "cpu").mkdir(parents=True)
    (tmp_path / "decode.txt").rename(tmp_path / "xla_flags" / "cpu" / "decode.txt")
    monkeypatch.chdir(tmp_path)
    flags = xla_flags.load("cpu/decode")
    assert str(flags) == "--xla_cpu_prefer_vector_width=512"
    assert flag_check.refused(flags) == {}
    assert "1 → 0.8 ms a step: 0.800 of the time (0.790–0.810)" in capsys.readouterr().out
    (record,) = store.read(tmp_path / "results.parquet")
    assert record.columns["technique.flags_json"] == '{"xla_cpu_prefer_vector_width": 512}'
    assert (record.columns["metrics.default_step_ms"], record.columns["metrics.tuned_step_ms"]) == (1.0, 0.8)
    assert record.columns["metrics.tuned_ratio"] == 0.8 and record.columns["metrics.kind"] == "measured"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(chip="v5e", topology="2x4"), "names chip and topology, a measured one neither, .*; got 'v5e' and '2x4'"),
        (dict(evaluate="compiled"), "A compiled search names chip and topology"),
        (dict(evaluate="compiled", chip="v5e"), "got 'v5e' and ''"),
        (dict(set_name="v9/decode"), "No chip is called 'v9'"),
        (dict(rounds=0), "must be at least 1"),
        (dict(evaluate="kernel", chip="v5e", topology="2x4"), "one of a kernel at most the chip"),
        (
            dict(evaluate="kernel"),
            "names model and factors, .*; got model='.*, 2 factors",
        ),
        (dict(kernel="ssd/decode"), "kernel='ssd/decode'"),
        (dict(model=""), "got model='', 2 factors"),
        (KERNEL | dict(kernel="ssd/decode"), "ssd is tuned on the shapes mamba2_2_7b_decode_64, .*; got 'decode'"),
        (KERNEL | dict(kernel="attention/decode"), "'attention' does not exist"),
    ],
)
def test_a_wrong_config_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CONFIG, **change)


def test_a_kernel_is_searched_by_its_own_block_sizes(tmp_path, monkeypatch):
    made = []

    class Kernel:
        kind, unit, least = "compiled", "µs a call", 40.5

        def __init__(self, *of):
            made.append(of)

        def __call__(self, candidate, effort=1):
            return Cost(1.0, 1.0, 1.0, 41.0, 41.0, None)

    monkeypatch.setattr(tune_flags, "CompiledKernel", Kernel)
    _, fields = config_file.split(config_file.load("configs/tune_flags.py:v6e/ragged_paged_attention/llama3_8b_of_4"))
    config = config_lib.from_config_dict(tune_flags.Config, fields)
    assert tune_flags.run(config, tmp_path) == 0
    assert made == [("ragged_paged_attention", "llama3_8b_of_4", "v6e")]
    text = (tmp_path / "ragged_paged_attention_llama3_8b_of_4_blocks.txt").read_text()
    assert "# The kernels of ragged_paged_attention, llama3_8b_of_4." in text and "alone takes 40.5 µs" in text
    assert "# The defaults: 41 µs a call." in text and xla_flags.parse(text, "blocks") == ()
    assert "ragged_paged_attention.pallas_tpu.BLOCK_KV=4096: 1.000" in text
    (record,) = store.read(tmp_path / "results.parquet")
    assert (record.columns["metrics.default_call_us"], record.columns["metrics.tuned_ratio"]) == (41.0, 1.0)
    assert record.columns["metrics.kind"] == "compiled" and "metrics.tuned_call_us" not in record.columns


def test_a_kernel_is_measured_on_a_tpu_and_nowhere_else(tmp_path, monkeypatch):
    _, fields = config_file.split(config_file.load("configs/tune_flags.py:tpu/ssd/mamba2_2_7b_decode_64"))
    config = config_lib.from_config_dict(tune_flags.Config, fields)
    with pytest.raises(ValueError, match=r"what JAX runs on is cpu. Name a TPU \(chip=\)"):
        tune_flags.run(config, tmp_path)
    with pytest.raises(ValueError, match="H100 SXM is gpu|H100.* is gpu"):
        tune_flags.run(dataclasses.replace(config, chip="h100", set_name="h100/blocks"), tmp_path)
    made = []
    monkeypatch.setattr(tune_flags.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(tune_flags, "MeasuredKernel", lambda *of, **rounds: made.append((of, rounds)))
    tune_flags._kernel(config)
    assert made == [(("ssd", "mamba2_2_7b_decode_64"), dict(rounds=9, dispatches=11))]


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
