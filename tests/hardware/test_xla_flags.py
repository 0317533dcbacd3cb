import pytest

from flexjax.hardware import xla_flags

GOOD = """
# A heading, apart from the flags.

# Because of this
# and that.
--xla_one=true

# Why not.
--xla_two=3
"""


@pytest.mark.parametrize("name", xla_flags.available())
def test_every_set_in_the_tree_parses(name):
    flags = xla_flags.load(name)
    assert flags.variable in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    assert all(flag.reason for flag in flags.flags)


@pytest.mark.parametrize(
    ("value", "option"),
    [
        ("true", True),
        ("false", False),
        ("98304", 98304),
        ("0.5", 0.5),
        ("ENABLED", "ENABLED"),
        ("xla_dump", "xla_dump"),
    ],
)
def test_values_are_typed_for_the_compiler(value, option):
    got = xla_flags.as_option(value)
    assert got == option and type(got) is type(option)


def test_a_folder_is_a_chip_or_a_platform():
    assert xla_flags.variable_of("v5e/latency") == "LIBTPU_INIT_ARGS"
    assert xla_flags.variable_of("h100/latency") == xla_flags.variable_of("gpu/latency") == "XLA_FLAGS"
    with pytest.raises(ValueError, match="No chip is called 'v9'"):
        xla_flags.variable_of("v9/latency")


def test_reasons_and_order_are_kept():
    one, two = xla_flags.parse(GOOD, "a.txt")
    assert (str(one), one.reason) == ("--xla_one=true", "Because of this and that.")
    assert (str(two), two.reason) == ("--xla_two=3", "Why not.")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("# why\nxla_one=true", r"a\.txt, line 2: a line is .*'xla_one=true'"),
        ("# why\n--xla_one true", r"line 2: a line is"),
        ("# why\n--xla_one", r"line 2: a line is"),
        ("\n--xla_one=true", r"line 2: --xla_one=true has no reason"),
        ("# far above\n\n--xla_one=true", r"line 3: .* no reason"),
        ("# why\n--xla_one=1\n# why\n--xla_one=2", r"line 4: --xla_one is already set to 1"),
    ],
)
def test_a_bad_line_is_named(text, error):
    with pytest.raises(ValueError, match=error):
        xla_flags.parse(text, "a.txt")


@pytest.mark.parametrize("name", ["cpu/fast", "cpu", "../pyproject"])
def test_an_unknown_set_lists_the_known(name):
    with pytest.raises(ValueError, match="cpu/default"):
        xla_flags.load(name)


def test_flags_given_by_hand_win(monkeypatch):
    monkeypatch.setattr(xla_flags, "jax_started", lambda: False)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_two=4")
    xla_flags.apply(xla_flags.FlagSet("v5e/x", "LIBTPU_INIT_ARGS", xla_flags.parse(GOOD, "a.txt")))
    assert xla_flags.in_force()["LIBTPU_INIT_ARGS"] == "--xla_one=true --xla_two=3 --xla_two=4"


def test_options_of_single_compiles_read_as_flags():
    assert xla_flags.as_text({"xla_a": True, "xla_b": "", "xla_c": 3}) == "--xla_a=true --xla_b= --xla_c=3"
    assert xla_flags.as_text(None) == ""


def test_a_running_jax_is_refused():
    import jax

    jax.devices()
    with pytest.raises(ValueError, match="before JAX starts"):
        xla_flags.apply(xla_flags.load("cpu/default"))
