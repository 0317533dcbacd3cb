"""A 7 M-parameter Llama that writes Python documentation: models/weights/pydoc-7m.

Source: the standard library of the running interpreter, 10 MB, without the held-out modules.
Hardware: any; 62 minutes of training on one core of a Sapphire Rapids Xeon shared with other work.
Result: 1.20 bits per byte on the held-out modules at a context of 512 tokens (xz: 1.76).

  python -m flexjax.launch --config=configs/train/pydoc_7m.py --workdir=runs/pydoc-7m

A second call with the same workdir goes on where the first stopped. On a machine that others use,
`NPROC=1` keeps XLA from waiting for cores that it does not get.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "train"

    # Data: 4,096-token vocabulary, windows of about 1 kB of text.
    config.vocab_size = 4096
    config.data = ConfigDict()
    config.data.batch_size = 8
    config.data.sequence_length = 256
    config.data.lengthen_at = (3_300, 3_550)  # To 512, then 1,024 tokens.
    config.data.seed = 0

    # Model: few heads and a wide MLP, because a CPU is far better at products than at softmax.
    config.model = ConfigDict()
    config.model.architectures = ("LlamaForCausalLM",)
    config.model.hidden_size = 256
    config.model.intermediate_size = 1024
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 4
    config.model.num_key_value_heads = 2
    config.model.head_dim = 64
    config.model.max_position_embeddings = 1024
    config.model.rms_norm_eps = 1e-5
    config.model.rope_theta = 10_000.0
    config.model.tie_word_embeddings = True

    # Run
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_fraction = 0.2
    config.loop = ConfigDict()
    config.loop.steps = 3_650
    config.loop.precision = "bfloat16"
    config.loop.checkpoint_every = 100
    config.seed = 0
    return config
