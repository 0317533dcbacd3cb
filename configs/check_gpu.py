"""Every GPU kernel checked and timed on the GPU that is here; a machine without one is told so, exit status 2.

Method    values against the formula on all named shapes; times in alternating rounds with XLA's own body, against the
          bytes that the GPU copies and the bfloat16 products that it makes, measured in the same run
Hardware  one NVIDIA GPU, A100 or newer (pip install 'flexjax[cuda]')
Expect    a few minutes; 1 if any value is wrong; goals are 80 % of copies in decoding, 60 % of products in prefill

    python -m flexjax.launch --config=configs/check_gpu.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "check_gpu"
    config.ops = ()
    config.rounds = 7
    config.round_s = 0.05
    return config
