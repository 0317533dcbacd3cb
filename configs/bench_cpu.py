"""Decoding and prefill on this CPU, through the engine, against what its memory and its products allow.

Method    random Llamas of 8 M, 100 M and 0.39 B parameters; precisions and limits in alternating rounds, medians
Hardware  a CPU; an otherwise idle machine, with a C++ compiler at `make setup` for the kernels to be built
Expect    a few minutes on two Sapphire Rapids cores, and 5 GB of memory; fewer --config.sizes="('S','M')" take less

    JAX_PLATFORMS=cpu python -m flexjax.launch --config=configs/bench_cpu.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench_cpu"
    config.sizes = ("S", "M", "L")
    config.precisions = ("float32", "bfloat16", "int8", "int8_rows", "int4", "int4_rows")
    config.prompt = 128
    config.output = 128
    config.prefill = 1024
    config.batches = (16, 32)
    config.batch_size = "M"
    config.batch_precisions = ("int8", "int8_rows")
    config.resident_sizes = ("M",)
    config.rounds = 5
    config.step_rows = 1024
    config.decode_steps = 16
    return config
