"""What this machine reaches: matrix products by dtype, memory, collectives over all devices, dispatch.

Method    small programs whose result is their next argument, in alternating rounds; medians
Hardware  any; collectives need more than one device
Expect    a minute or two; on an accelerator at least 80 % of the table's peak in the largest product

    python -m flexjax.launch --config=configs/bench_micro.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench_micro"
    config.dtypes = ()
    config.sizes = (256, 1024, 2048)
    config.memory_mib = (16, 64, 256, 1024)
    config.collectives_kib = (16, 256, 4096)
    config.rounds = 5
    config.round_s = 0.05
    return config
