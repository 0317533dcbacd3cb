"""What distinguishes one decoder-only transformer from another, as data."""

import dataclasses
from typing import Literal

from flexjax.nn import Rope
from flexjax.refusal import Refusal


@dataclasses.dataclass(frozen=True)
class Layer:
    """How one layer attends: `window` tokens back including its own (None: all), turned by `rope` (None: not)."""

    window: int | None = None
    rope: Rope | None = None


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A decoder-only transformer.

    Invariants: there is a layer; `num_heads` is a multiple of `num_kv_heads`; windows are positive;
    `head_dim` is even where a layer has a rope. Refusal otherwise.
    """

    architecture: str  # Published class name, e.g. "LlamaForCausalLM".
    vocab_size: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_position: int  # Longest context, tokens.
    layers: tuple[Layer, ...]  # One entry a layer, first to last.

    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated_mlp: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x))).
    norm: Literal["rms", "layer"] = "rms"  # "layer" subtracts the mean and has a bias.
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # Added to the stored scale; Gemma stores scale - 1.
    post_norms: bool = False  # Norm each sub-layer's output before it is added.
    qk_norm: bool = False  # RMSNorm over H of queries and keys, before the rope.
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    query_scalar: float | None = None  # q·k is divided by its square root; None is head_dim.
    attention_softcap: float | None = None  # cap * tanh(score / cap)
    final_softcap: float | None = None
    scaled_embeddings: bool = False  # Times sqrt(d_model).
    learned_positions: bool = False
    tied_embeddings: bool = False

    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self):
        if not self.layers:
            raise Refusal("A transformer has at least one layer; got layers = ().")
        if self.num_heads % self.num_kv_heads:
            raise Refusal(
                f"num_heads must be a multiple of num_kv_heads; got {self.num_heads} and {self.num_kv_heads}."
            )
        for index, layer in enumerate(self.layers):
            if layer.window is not None and layer.window < 1:
                raise Refusal(f"An attention window is at least 1 token or None; layer {index} has {layer.window}.")
            if layer.rope is not None and self.head_dim % 2:
                raise Refusal(f"A rotary embedding needs an even head_dim; got {self.head_dim}.")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Size of each logical axis that a parameter can have."""
        return {
            "vocab": self.vocab_size,
            "position": self.max_position,
            "embed": self.d_model,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "mlp": self.d_ff,
        }
