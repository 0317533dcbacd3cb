"""Fewer bits, before and after: the engine in bfloat16 against the engine with int8 weights and an int8 cache.

Model     models/weights/pydoc-7m
Sides     bfloat16: throughout. fewer bits: projections and tied table rounded to int8, keys and values in int8
Prompts   held-out standard-library text, 8–96 tokens; answers 4–48 tokens of exact length
Hardware  any; written for two CPU cores
Expect    under 4 minutes; bits per byte and equal tokens stand below the speed

    python -m flexjax.launch --config=configs/quantize.py
    python -m flexjax.launch --config=configs/quantize.py --config.engine.weight_dtype=int4
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench"

    # Data
    config.workload = ConfigDict()
    config.workload.prompts = 459
    config.workload.input = dict(median=40.0, sigma=0.5, low=8, high=96)  # tokens
    config.workload.output = dict(median=18.0, sigma=0.5, low=4, high=48)  # tokens

    # Model
    config.model = "models/weights/pydoc-7m"
    shape = dict(dtype="bfloat16", max_num_seqs=64, max_num_batched_tokens=512, max_model_len=144)
    config.sides = ConfigDict()
    config.sides["bfloat16"] = dict(kind="engine", engine=shape)
    config.sides["fewer bits"] = dict(kind="engine")
    config.compare = ("bfloat16", "fewer bits")
    config.engine = dict(**shape, weight_dtype="int8", cache_dtype="int8")

    # Run
    config.rounds = 4
    config.scenarios = ("SingleStream", "Offline", "Server")
    config.server = dict(queries=64, percentile=0.9, ttft_limit_ms=2000.0, tpot_limit_ms=100.0, of_slowest=0.7)
    return config
