"""The main job in small, to see on every change that it works: same sides, same rules, few queries.

Everything is as in bench.py but for one round, short windows and so few queries that LoadGen can judge a
p90 and no p99, with Interactive and the search for the largest rate beside. One pair has no interval:
do not quote its figures.

Hardware  any; written for two CPU cores
Expect    under a minute

    python -m flexjax.launch --config=configs/bench_ci.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench"

    # Data
    config.workload = ConfigDict()
    config.workload.prompts = 64
    config.workload.input = dict(median=24.0, sigma=0.5, low=8, high=32)  # tokens
    config.workload.output = dict(median=12.0, sigma=0.5, low=4, high=32)  # tokens

    # Model
    config.model = "models/weights/pydoc-7m"
    config.engine = dict(dtype="bfloat16", max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64)
    config.sides = ConfigDict()
    config.sides.stock = dict(kind="stock", batch_size=8)
    config.sides.optimised = dict(kind="engine")

    # Run
    config.rounds = 1
    config.scenarios = ("SingleStream", "Offline", "Server", "Interactive")
    config.calibration_queries = 24
    config.single_stream = dict(queries=64, percentile=0.9, min_duration_s=0.2)  # The fewest that LoadGen takes.
    config.offline = dict(queries=32, min_duration_s=0.2)
    config.server = dict(queries=64, percentile=0.9, min_duration_s=0.2, ttft_limit_ms=2000.0, tpot_limit_ms=100.0)
    # A shared CI machine may lose its processor for half a second: looser limits, the same rules.
    config.interactive = dict(
        queries=64, percentile=0.9, min_duration_s=0.2, of_slowest=0.5, ttft_limit_ms=1000.0, tpot_limit_ms=60.0
    )
    config.largest_rate = ("Server",)
    config.search = dict(probes=2, queries=64, min_duration_s=0.2)
    config.unknown_ends = True
    config.overload = 2.0
    config.quality = dict(text_bytes=2000, context_tokens=32, continuation_tokens=32, alone=8)
    return config
