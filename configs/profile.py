"""Engine overhead: host time a decoding step outside the device, at batch 16 on the shipped model.

Model     models/weights/pydoc-7m
Method    the compiled step alone and the whole engine in alternating rounds of one process
Hardware  any; written for two CPU cores
Expect    half a minute; at most 15 % of a step outside the device

    python -m flexjax.launch --config=configs/profile.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "profile"
    config.model = "models/weights/pydoc-7m"
    config.engine = dict(dtype="bfloat16", max_num_seqs=16, max_model_len=256)
    config.prompt_tokens = 64
    config.output_tokens = 128
    config.rounds = 7
    return config
