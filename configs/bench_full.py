"""Where the factor comes from and how far it goes: a ladder from stock to optimised, and the largest rate of each.

Model     models/weights/pydoc-7m
Sides     stock in float32 and bfloat16, static batches of 16; the engine with 16 sequences in float32 with plain XLA,
          then bfloat16, then with products in C++, then with 64 sequences
Prompts   held-out standard-library text, 8–96 tokens; answers 4–48 tokens of exact length
Measures  offline, Server at one rate, and the largest rate within Server's limits; for the first and the last side
          also one stream, Interactive and its largest rate, answers whose ends are not known in advance, an overload
Hardware  any; written for two CPU cores
Expect    an hour after set-up (56 minutes on two Zen 4 cores)

    python -m flexjax.launch --config=configs/bench_full.py
    python -m flexjax.launch --config=configs/bench_full.py --config.compare="('stock','+ batch 64')"
"""

from ml_collections import ConfigDict

XLA = dict(matmul="xla", ragged_paged_attention="xla", rotary="xla")


def get_config():
    config = ConfigDict()
    config.job = "bench"

    # Data
    config.workload = ConfigDict()
    config.workload.prompts = 500
    config.workload.input = dict(median=40.0, sigma=0.5, low=8, high=96)  # tokens
    config.workload.output = dict(median=18.0, sigma=0.5, low=4, high=48)  # tokens

    # Model
    config.model = "models/weights/pydoc-7m"
    shape = dict(max_num_seqs=16, max_num_batched_tokens=512, max_model_len=144)
    config.sides = ConfigDict()
    config.sides["stock"] = dict(kind="stock", batch_size=16)
    config.sides["stock bfloat16"] = dict(kind="stock", dtype="bfloat16", batch_size=16)
    config.sides["engine"] = dict(kind="engine", bodies=XLA, engine=dict(dtype="float32", **shape))
    config.sides["+ bfloat16"] = dict(kind="engine", bodies=XLA, engine=dict(dtype="bfloat16", **shape))
    config.sides["+ C++ products"] = dict(kind="engine", engine=dict(dtype="bfloat16", **shape))
    config.sides["+ batch 64"] = dict(kind="engine", engine=dict(shape, dtype="bfloat16", max_num_seqs=64))
    # The baseline first; each but the first two is the one before it and one thing more.
    config.compare = ("stock", "stock bfloat16", "engine", "+ bfloat16", "+ C++ products", "+ batch 64")

    # Run
    config.rounds = 5
    config.scenarios = ("Offline", "Server")
    config.first_and_last = ("SingleStream", "Interactive")
    config.single_stream = dict(queries=500, min_duration_s=10.0)
    config.offline = dict(queries=500, min_duration_s=10.0)
    # MLPerf's limits for Llama 3.1 8B.
    config.server = dict(queries=500, min_duration_s=10.0, ttft_limit_ms=2000.0, tpot_limit_ms=100.0)
    config.interactive = dict(queries=500, min_duration_s=10.0, ttft_limit_ms=500.0, tpot_limit_ms=30.0, of_slowest=0.6)
    config.largest_rate = ("Server", "Interactive")
    config.unknown_ends = True
    config.overload = 2.0
    return config
