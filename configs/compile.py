r"""Steps of serving and training compiled for chips that are not here: do they fit, how long must they take.

Model     llama3-8b by its published dimensions; no weights are needed. --config.model=<name or directory>
Hardware  8 × TPU v5e, described to its own compiler (pip install 'flexjax[virtual]'); this machine's processor compiles
Method    every decode and mixed step of the engine, all sequences at full context; nothing runs
Expect    under two minutes on two cores; fits, and a static time of 1.5 to 2 times the roofline

    python -m flexjax.launch --config=configs/compile.py
    python -m flexjax.launch --config=configs/compile.py --config.chip=v6e --config.topology=2x4
    python -m flexjax.launch --config=configs/compile.py --config.model=llama3-70b --config.topology=4x4
    python -m flexjax.launch --config=configs/compile.py --config.chip=h200 --config.topology=1
    python -m flexjax.launch --config=configs/compile.py --config.engine.weight_dtype=int8 \
        --config.engine.cache_dtype=int8 --config.engine.mesh.tensor=4 --config.engine.mesh.data=2
    python -m flexjax.launch --config=configs/compile.py --config.chip=v5p --config.topology=2x2x4 \
        --config.steps=none --config.train.batch_size=64
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "compile"
    config.model = "llama3-8b"

    config.chip = "v5e"
    config.topology = "2x4"
    config.engine = dict(
        dtype="bfloat16",
        max_num_seqs=64,
        max_model_len=2048,
        max_num_batched_tokens=512,
        page_size=128,  # tokens; the TPU kernel reads whole pages, and many small ones slowly
    )
    config.steps = "decode"  # "all" takes the mixed steps too, "largest" one decode step, "none" leaves the train step
    config.search = True
    return config
