"""A tiny model for a few steps: shows in seconds that training works on this machine.

  python -m flexjax.launch --config=configs/train/smoke.py --workdir=runs/smoke

About 20 s on two cores; the loss falls from 6.2 to below 6. The same over eight devices made of one CPU (NPROC gives
XLA the threads to wait for several collectives at once):

  NPROC=64 XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m flexjax.launch \\
      --config=configs/train/smoke.py --config.mesh.fsdp=4 --config.mesh.tensor=2 --workdir=runs/smoke-8
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "train"

    # Data
    config.vocab_size = 512
    config.data = ConfigDict()
    config.data.batch_size = 4
    config.data.sequence_length = 32
    config.data.seed = 0

    # Model
    config.model = ConfigDict()
    config.model.architectures = ("LlamaForCausalLM",)
    config.model.hidden_size = 32
    config.model.intermediate_size = 64
    config.model.num_hidden_layers = 1
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 1
    config.model.head_dim = 16
    config.model.max_position_embeddings = 64
    config.model.rms_norm_eps = 1e-5
    config.model.rope_theta = 10_000.0
    config.model.tie_word_embeddings = True

    # Run
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 5
    config.loop = ConfigDict()
    config.loop.steps = 20
    config.loop.log_every = 5
    config.loop.checkpoint_every = 10
    config.seed = 0
    return config
