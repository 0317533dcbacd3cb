"""Can the benchmark's figures be trusted here? Equal sides compared 20 times, a planted slowdown found.

Model     models/weights/pydoc-7m, twice the same engine and once stock
Checks    - equal sides: the 95 % interval of Offline tokens/s and of Server TTFT p50 holds 1 in 17 of 20
          - sides swapped: every ratio inverted
          - one side slowed by 5 %, asleep in each turn: the interval lies below 1 in 17 of 20
          - Server with twice the queries: the ratios stay within noise
          - a busy loop on one core: every run is marked as disturbed
Hardware  any that is otherwise idle; written for two CPU cores
Expect    an hour and a half; docs/method.md has the table of such a run

    python -m flexjax.launch --config=configs/check_method.py
    python -m flexjax.launch --config=configs/check_method.py --config.parts="('slowed',)"    # 50 minutes
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "check_method"
    config.model = "models/weights/pydoc-7m"
    # One dispatch in flight, so that a sleep between two turns is not hidden behind the device.
    config.engine = dict(
        dtype="bfloat16", max_num_seqs=64, max_num_batched_tokens=512, max_model_len=144, pipeline_depth=1
    )
    config.workload = ConfigDict()
    config.workload.prompts = 459
    config.workload.input = dict(median=40.0, sigma=0.5, low=8, high=96)  # tokens
    config.workload.output = dict(median=18.0, sigma=0.5, low=4, high=48)  # tokens
    return config
