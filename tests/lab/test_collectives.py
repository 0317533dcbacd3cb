from pathlib import Path

from flexjax.lab import collectives
from tests.support import devices


def test_on_four_devices():
    devices.run_tests(Path(__file__).with_name("collectives_on_four_devices.py"), count=4)


def test_one_device_has_none():
    assert not list(collectives([1]))
