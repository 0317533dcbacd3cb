"""Batch size × decoding steps a dispatch: the short benchmark at every point, records in one store.

Each point runs as a process of its own. A sweep that was cut off goes on with the same command and --workdir: points
that have ended well are not run again.

Base      configs/bench_ci.py
Hardware  any; over many hosts with launch/ray_cluster.sh
Expect    about a minute a point on two CPU cores

    python -m flexjax.launch --config=configs/sweep.py --workdir=runs/sweep
    python -m flexjax.launch --config=configs/sweep.py --workdir=runs/sweep --config.executor.kind=ray
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "sweep"

    # Data: any config file, and values for any of its fields.
    config.base = "configs/bench_ci.py"
    config.grid = (
        ("engine.max_num_seqs", (4, 8)),
        ("engine.decode_steps", (1, 4)),
    )

    # Run
    config.executor = dict(kind="processes", parallel=1)  # One at a time: points beside each other would slow both.
    config.show = ("metrics.output_tokens_per_s", "metrics.ttft_p99_ms", "metrics.tpot_p99_ms")
    config.where = (("technique.name", "optimised"), ("submission.scenario", "Offline"))
    return config
