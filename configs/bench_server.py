"""A server behind a URL against the engine in this process: the same prompts, LoadGen and rules.

Model     models/weights/pydoc-7m, which the server must serve too (any OpenAI-compatible one: vLLM, SGLang, llama.cpp)
Sides     server: HTTP, its own process. engine: in this process, bfloat16, no HTTP
Hardware  any; the two share the machine's cores, so leave one idle while the other is measured, as pairs of runs do
Expect    about 4 minutes; bits per byte where the server echoes log-probabilities

    vllm serve models/weights/pydoc-7m --dtype bfloat16 --max-model-len 144 --port 8000    # in another terminal
    python -m flexjax.launch --config=configs/bench_server.py --config.sides.server.http.url=http://127.0.0.1:8000
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
    config.engine = dict(dtype="bfloat16", max_num_seqs=64, max_num_batched_tokens=512, max_model_len=144)
    config.sides = ConfigDict()
    config.sides.server = dict(kind="http", http=dict(url="http://127.0.0.1:8000"))
    config.sides.engine = dict(kind="engine")
    config.compare = ("server", "engine")

    # Run
    config.rounds = 4
    config.scenarios = ("SingleStream", "Offline", "Server")
    config.server = dict(ttft_limit_ms=2000.0, tpot_limit_ms=100.0, of_slowest=0.7)
    return config
