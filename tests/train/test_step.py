"""The train step on a mesh is the train step on one device, and its program moves what it must and no more."""

from pathlib import Path

import pytest
from devices import run_tests


@pytest.mark.slow
def test_on_eight_devices():
    run_tests(Path(__file__).with_name("on_eight_devices.py"), 8)
