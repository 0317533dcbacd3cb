import subprocess
import sys

import numpy as np
import pytest

from flexjax.hardware import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux restarts the peak")
SIZE = 200_000_000  # bytes


def test_the_peak_sees_an_allocation():
    before = memory.peak_rss_bytes()
    held = np.ones(before + SIZE, np.uint8)
    assert memory.peak_rss_bytes() >= before + SIZE
    del held


@linux
def test_the_peak_can_be_restarted():
    np.ones(SIZE, np.uint8).sum()
    large = memory.peak_rss_bytes()
    if not memory.reset_peak_rss():
        pytest.skip("this kernel does not let a process restart its peak")
    assert large - memory.peak_rss_bytes() > SIZE / 2


def test_device_memory_is_known_or_none():
    peak = memory.peak_device_bytes()
    assert peak is None or peak >= 0


# In a process of its own: one that has held much has blocks to reuse, and threads that allocate meanwhile.
FREED = """
from pathlib import Path
from flexjax.hardware import memory

resident = lambda: int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
# Below what the C library maps one by one, and small ones between that stay.
blocks = [bytearray(60_000 if i % 2 else 600) for i in range(6000)]
del blocks[1::2]
held = resident()
memory.trim()
print(held - resident())
"""


@linux
def test_code_that_is_forgotten_runs_again():
    before = memory.rss_bytes()
    memory.forget_code()
    assert memory.rss_bytes() < before - 5_000_000  # Python, numpy and what else has been imported here.
    assert np.linalg.inv(np.eye(3) * 2)[0, 0] == 0.5


@linux
def test_trimming_gives_freed_blocks_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000
