"""Every GPU kernel checked and timed on the GPU that is here; a machine without one is told so, exit status 2.

Method    values against the formula on all named shapes (on shapes of serving against XLA's body); times in alternating
          rounds with XLA's body, cuDNN's attention and, where it is installed, tokamax's kernels, against the bytes
          that the GPU copies and the bfloat16 products that it makes, measured in the same run; in a process apart,
          so that a kernel which crashes or hangs costs its own row
Hardware  one NVIDIA GPU, A100 or newer (pip install 'flexjax[cuda]'); tokamax is optional (pip install tokamax)
Expect    9 minutes at most (limit_s), the most wanted rows first, each in gpu.csv as soon as it is known; what is left
          out is told, and --config.parts="('values','others')" goes on there. 1 if any value is wrong or a kernel of
          ours failed. Goals: 80 % of copies in decoding, 60 % of products in prefill

    python -m flexjax.launch --config=configs/check_gpu.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "check_gpu"
    config.ops = ()
    config.parts = ("goals", "values", "others")
    config.rounds = 7
    config.round_s = 0.05
    config.limit_s = 540.0
    config.item_s = 90.0
    return config
