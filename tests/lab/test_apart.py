import operator
import os
import time

import pytest

from flexjax.lab import Apart, Failed, TookTooLong
from flexjax.lab.apart import MOST_CHARACTERS, reason


def test_what_a_call_does_is_its_own():
    """Functions of the standard library, which a new process finds by name."""
    with Apart(os.getpid, {"FLEXJAX_APART": "seen"}) as apart:
        first = apart.call(60, os.getpid)
        assert first != os.getpid()
        assert apart.call(60, os.getenv, "FLEXJAX_APART") == "seen"
        with pytest.raises(Failed, match="ZeroDivisionError: division by zero"):
            apart.call(60, operator.truediv, 1, 0)
        assert apart.call(60, os.getpid) == first  # It is still healthy.

        with pytest.raises(Failed, match="its process died of SIGABRT"):
            apart.call(60, os.abort)
        with pytest.raises(Failed, match="its process ended with 3"):
            apart.call(60, os._exit, 3)
        began = time.monotonic()
        with pytest.raises(TookTooLong, match="stopped after 1 s"):
            apart.call(1, time.sleep, 300)
        assert time.monotonic() - began < 60
        last = apart.call(60, os.getpid)
        assert last != first
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_process_that_is_ruined_is_not_asked_again():
    with Apart(healthy=os.abort) as apart:
        first = apart.call(60, os.getpid)
        with pytest.raises(Failed, match="SIGABRT"):
            apart.call(60, operator.truediv, 1, 0)
        assert apart.call(60, os.getpid) != first
    with Apart(healthy=operator.truediv) as apart:  # Raises, without its arguments.
        first = apart.call(60, os.getpid)
        with pytest.raises(Failed, match="ZeroDivisionError"):
            apart.call(60, operator.truediv, 1, 0)
        assert apart.call(60, os.getpid) != first


def test_reasons_are_one_short_line():
    assert reason(ValueError("a\n  b")) == "ValueError: a b"
    assert reason(ExceptionGroup("all", [ValueError("a"), TypeError("b")])) == "ValueError: a; TypeError: b"
    assert len(reason(ValueError("a" * 10_000))) == MOST_CHARACTERS
