"""Each kernel against its own limit: bytes over bandwidth or operations over peak, both measured in the same run.

Method    the bodies of a shape in alternating rounds; the higher of the limits measured before and after
Hardware  any; every body that this platform has, plain JAX included
Expect    some minutes for all ops; shapes too large for the machine are left out (most_s), and told;
          --config.ops="('ragged_paged_attention',)" and --config.shapes=decode for fewer

    python -m flexjax.launch --config=configs/bench_kernels.py
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "bench_kernels"
    config.ops = ()
    config.shapes = ""
    config.rounds = 7
    config.round_s = 0.03
    config.most_s = 0.025
    return config
