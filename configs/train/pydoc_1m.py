"""A 1 M-parameter draft for pydoc-7m, with its tokenizer: models/weights/pydoc-1m.

Source: the standard library of the running interpreter, 10 MB, without the held-out modules.
Hardware: any; 36 minutes on what other work left of one core of a Sapphire Rapids Xeon.
Result: 1.53 bits per byte on the held-out modules at a context of 512 tokens (xz: 1.76).

  python -m flexjax.launch --config=configs/train/pydoc_1m.py --workdir=runs/pydoc-1m

A second call with the same workdir goes on where the first stopped.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.job = "train"

    # Data: the target's vocabulary, windows of about 1 kB of text.
    config.vocab_size = 4096
    config.tokenizer = "models/weights/pydoc-7m"
    config.data = ConfigDict()
    config.data.batch_size = 16
    config.data.sequence_length = 256
    config.data.lengthen_at = (1_400, 1_700)  # To 512, then 1,024 tokens.
    config.data.seed = 0

    # Model: shallow, since a draft's time goes into its layers one after the other.
    config.model = ConfigDict()
    config.model.architectures = ("LlamaForCausalLM",)
    config.model.hidden_size = 128
    config.model.intermediate_size = 512
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.num_key_value_heads = 1
    config.model.head_dim = 64
    config.model.max_position_embeddings = 1024
    config.model.rms_norm_eps = 1e-5
    config.model.rope_theta = 10_000.0
    config.model.tie_word_embeddings = True

    # Run
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.loop = ConfigDict()
    config.loop.steps = 1_800
    config.loop.precision = "bfloat16"
    config.loop.checkpoint_every = 200
    config.seed = 0
    return config
