from pathlib import Path

from devices import run_tests


def test_over_four_devices():
    run_tests(Path(__file__).with_name("on_four_devices.py"), 4)
