"""Keys and values in fewer bits, before and after: a bfloat16 cache against one of int8, float8 or int4.

Model     models/weights/pydoc-7m, in bfloat16 on both sides
Sides     bfloat16: keys and values in bfloat16. fewer bits: in engine.cache_dtype
Prompts   held-out standard-library text, 200-700 tokens, so that there is a cache to read; answers 16-120 tokens
Hardware  any; written for two CPU cores
Expect    under two minutes; the cache's size stands among the rows of a scenario, bits per byte and equal tokens below

    python -m flexjax.launch --config=configs/quantize_cache.py
    python -m flexjax.launch --config=configs/quantize_cache.py --config.engine.cache_dtype=float8_e4m3fn
    python -m flexjax.launch --config=configs/quantize_cache.py --config.engine.cache_dtype=int4
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench"

    # Data
    config.workload = ConfigDict()
    config.workload.prompts = 96
    config.workload.input = dict(median=400.0, sigma=0.3, low=200, high=700)  # tokens
    config.workload.output = dict(median=60.0, sigma=0.4, low=16, high=120)  # tokens

    # Model
    config.model = "models/weights/pydoc-7m"
    shape = dict(dtype="bfloat16", max_num_seqs=64, max_num_batched_tokens=512, max_model_len=832)
    config.sides = ConfigDict()
    config.sides["bfloat16"] = dict(kind="engine", engine=shape)
    config.sides["fewer bits"] = dict(kind="engine")
    config.compare = ("bfloat16", "fewer bits")
    config.engine = dict(**shape, cache_dtype="int8")

    # Run
    config.rounds = 4
    config.calibration_queries = 32
    config.offline = dict(queries=96)
    config.scenarios = ("SingleStream", "Offline")
    return config
