"""Which fields of a config.json a forward pass would need, and which it can leave unread.

A published config.json holds what its network needs, what other programs need, and leftovers. A field that nothing
here reads is looked up in this order: known to do no harm; known to change results, and then refused unless it says
that it is off; named like something that changes results, and then likewise; else passed, and reported once. What such
a name hides from the tables shows in the weights, which must fit the network tensor by tensor.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flexjax.refusal import Refusal

# Fields that other programs read, or that change speed, training or sampling but no forward pass.
HARMLESS = frozenset(
    "architectures model_type auto_map dtype torch_dtype transformers_version transformers.js_config name_or_path "
    "attn_implementation reorder_and_upcast_attn pretraining_tp is_decoder is_llama_config tokenizer_class prefix "
    "output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate torchscript "
    "use_bfloat16 tf_legacy_loss summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout task_specific_params n_ctx n_special predict_special_tokens id2label label2id num_labels "
    "problem_type finetuning_task unsloth_fixed unsloth_version max_length min_length max_new_tokens do_sample "
    "early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens remove_invalid_values "
    "max_sequence_length model_max_length seq_length max_seq_len tokenizer_model_max_length".split()
)
# Fields known to change results in some published architecture → the values at which they change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_multiplier": (),  # In the place of 1 / sqrt(head_dim), so that 1.0 is not neutral.
    "add_cross_attention": (False,),
    "attn_config": (),
    "chunk_size_feed_forward": (0,),
    "dim_model_base": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "layer_norm_type": ("rms", "rmsnorm", "rms_norm"),
    "norm_type": ("rms", "rmsnorm", "rms_norm"),
    "num_logits_to_keep": (0, 1),
    "position_embedding_type": ("rope", "rotary"),
    "rope_type": ("default",),
    "scale_attn_weights": (True,),
    "scale_depth": (),
    "tie_encoder_decoder": (False,),
}


def _words(pattern: str) -> re.Pattern[str]:
    """A pattern in which `<` and `>` are the ends of a word between underscores (in `(?<!` a look-behind, as ever)."""
    return re.compile(re.sub(r"(?<!\?)<(?![!=])", r"(?:^|_)", pattern).replace(">", r"(?:_|$)"))


@dataclasses.dataclass(frozen=True)
class Need:
    """Something that a network has or has not, and the names of fields that ask for it."""

    what: str
    names: re.Pattern[str]
    off: tuple[float, ...]  # Numbers that say that there is none.

    def is_off(self, value: Any) -> bool:
        """Whether the value says that there is no such thing: also false, an empty one, or all layers alike."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value in self.off
        if isinstance(value, list):
            return all(entry in ("full_attention", "attention", 1, None) for entry in value)
        return not value or value in ("none", "default", "full")


HARMLESS_NAMES = _words(
    "^_|_token$|_token_ids?$|_token_index$|dropout|pdrop|_drop$|<init(ializer)?>|<loss>|cache|checkpointing|flash|fused|"
    "fusion|kernel|upcast|fp32|float32|prefill|(model|tensor|sequence|context|pipeline)_parallel"
)

# The first that fits a name counts.
NEEDS = tuple(
    Need(what, _words(names), off)
    for what, names, off in (
        ("weights that are not plain floats", "quant|compress|load_in_.bit|<n?bits>|sparsity|pruned", ()),
        ("experts", "expert|<moe>|router|routed|norm_topk|sparse_step|<shared_intermediate", (0,)),
        ("attention over latent vectors", "lora_rank|qk_nope|qk_rope|v_head_dim|<mla>|latent", (0,)),
        ("a recurrent or convolutional layer", "mamba|<ssm|<conv[0-9]?>|linear_attn|linear_attention|<lru", (0,)),
        ("layers without a rotary embedding", "no_?rope|<nope", (0,)),
        ("another rotary embedding", "<m?rope>|rotary|<ntk|<logn>|yarn", (1,)),
        ("another position embedding", "alibi|position_bias|relative_|(?<!max_)position_(embedding|encoding)", (0,)),
        ("an attention window", "(?<!context_)window|sliding|<local_|<chunk|global_attn|dilat|attention_sink", (0, -1)),
        ("another kind of attention", "cross_attention|bidirectional|causal|encoder|prefix_lm|attn_output_gate", ()),
        ("another kind of attention", "(attention|attn|layer|block|mixer)_types?>|temperature_tuning|attn_temp", ()),
        ("another number of heads", "multi_query|key_value|<kv_|head_dim|head_size|num_heads", (0,)),
        ("a soft-cap or a clip", "<(soft)?cap(ping|s)?>|softcap|<clip", (0,)),
        ("a multiplier", "multiplier|scal(e|ed|es|ing|ar)>|<mup>", (1,)),
        ("a norm", "norm(?!.*eps)", (0,)),
        ("a bias", "bias", (0,)),
        ("an activation", "activation|<act>|act_fn|hidden_act|glu", ()),
        ("another order of the sub-layers", "parallel|residual|<skip_|shared_layers|kv_shared|share_", (0,)),
        ("inputs to each layer", "per_layer|altup|laurel|engram|token_shift", (0,)),
        ("another embedding", "embed_proj|embedding_(size|dim)|<tied?_|factorized", (0,)),
    )
)


def check_unread(
    hf: Mapping[str, Any], read: Iterable[str], *, model_type: str, neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refusal for a field that nobody read and that the forward pass would need; other unknown ones are reported.

    `neutral` adds to `NEUTRAL`, or takes its place, what the architecture of `model_type` knows.
    """
    known = {**NEUTRAL, **neutral}
    unused = {"sliding_window", "max_window_layers"} if hf.get("use_sliding_window") is False else set()
    unknown = []
    for name in sorted(hf.keys() - set(read) - unused):
        value = hf[name]
        if value is None or name in HARMLESS:
            continue
        if name in known:
            if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in known[name]):
                served = " or ".join(map(repr, known[name])) or "none at all"
                raise _refusal(name, value, model_type, f"changes the result: the value served is {served}")
        elif not HARMLESS_NAMES.search(name):
            need = next((need for need in NEEDS if need.names.search(name.lower())), None)
            if need is None:
                unknown.append(name)
            elif not need.is_off(value):
                raise _refusal(name, value, model_type, f"asks for {need.what}, which this network does not have")
    if unknown:
        _report(model_type, tuple(unknown))


def _refusal(name: str, value: Any, model_type: str, why: str) -> Refusal:
    shown = repr(value)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    return Refusal(
        f"The field {name!r} = {shown} in config.json of a {model_type} model {why}. If its weights were made without "
        "it, remove it from config.json."
    )


@functools.cache
def _report(model_type: str, names: tuple[str, ...]) -> None:
    """Once a process: a directory is read several times on its way to a model."""
    logging.getLogger(__name__).warning(
        "config.json of a %s model has fields that are not known and not read: %s. They are taken to change no result.",
        model_type,
        ", ".join(names),
    )
