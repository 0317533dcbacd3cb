"""Makes the golden model directories beside this file with the published implementations.

    python3.11 -m venv goldenenv && goldenenv/bin/pip install torch==2.13.0 transformers==5.23.0
    goldenenv/bin/python tests/models/transformer/golden/make_golden.py [name …]

Each `<name>/` is a Hugging Face directory of a small random float32 model, with `golden.npz`: for three
prompts `prompt_i` [T] the float32 logits of every position `logits_i` [T, V] and the 64 tokens that greedy
decoding adds, `greedy_i`. Windows are shorter than the prompts, soft-caps bite, norms and biases are not
trivial. Seeds are tried until the winner of every greedy step leads by `MIN_LEAD` and the text is not one
short loop, so that greedy text is a fair thing to ask of another float32 implementation.
"""

import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers as tf

HERE = pathlib.Path(__file__).parent
PROMPT_LENGTHS = (3, 21, 40)
NEW_TOKENS = 64
MIN_LEAD = 2e-3  # Ten times the tolerance on logits.
MIN_DISTINCT = 8  # Tokens in a continuation.

COMMON = dict(
    vocab_size=160,
    hidden_size=32,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
GEMMA = COMMON | dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=8, num_hidden_layers=4)

MODELS = {
    "llama2": (tf.LlamaForCausalLM, tf.LlamaConfig(**COMMON)),
    "llama3": (
        tf.LlamaForCausalLM,
        tf.LlamaConfig(
            **COMMON | dict(num_attention_heads=8),
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
    ),
    "llama_yarn": (
        tf.LlamaForCausalLM,
        tf.LlamaConfig(
            **COMMON,
            head_dim=16,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
    ),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig(**COMMON, sliding_window=8)),
    "qwen2": (
        tf.Qwen2ForCausalLM,
        tf.Qwen2Config(
            **COMMON | dict(num_hidden_layers=3), use_sliding_window=True, sliding_window=8, max_window_layers=1
        ),
    ),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=True)),
    "gemma2": (
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config(**GEMMA, attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
    ),
    "gemma3": (
        tf.Gemma3ForCausalLM,
        tf.Gemma3TextConfig(
            **GEMMA,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        ),
    ),
    "gpt2": (
        tf.GPT2LMHeadModel,
        tf.GPT2Config(vocab_size=160, n_positions=128, n_embd=36, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2),
    ),
}


def make(kind, config, seed: int):
    config._attn_implementation = "eager"  # The others leave soft-caps out.
    torch.manual_seed(seed)
    model = kind(config).eval().float()
    gemma = "Gemma" in kind.__name__
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                fan_in = weight.shape[0 if "c_" in name else 1]
                wide = "embed" in name or name.endswith(("wte.weight", "wpe.weight", "lm_head.weight"))
                # Gemma multiplies its embeddings by sqrt(D), and they are tied: wider, a token would predict itself.
                weight.normal_(std=(0.15 if gemma else 0.4) if wide else 1.5 * fan_in**-0.5)
            else:
                if gemma and "post_" in name:
                    weight.add_(1.0)
                weight.add_(torch.randn_like(weight) * 0.2)
    return model


@torch.no_grad()
def greedy(model, prompt: torch.Tensor) -> tuple[np.ndarray, float]:
    """The continuation, and the smallest lead of a chosen token."""
    tokens, lead = prompt, float("inf")
    for _ in range(NEW_TOKENS):
        logits = model(tokens[None]).logits[0, -1]
        first, second = logits.topk(2).values
        lead = min(lead, float(first - second))
        tokens = torch.cat([tokens, logits.argmax()[None]])
    return tokens[len(prompt) :].numpy().astype(np.int32), lead


def golden(model, seed: int) -> dict[str, np.ndarray] | None:
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for index, length in enumerate(PROMPT_LENGTHS):
        prompt = torch.randint(3, model.config.vocab_size, (length,), generator=generator)
        text, lead = greedy(model, prompt)
        if lead < MIN_LEAD or len(set(text.tolist())) < MIN_DISTINCT:
            return None
        with torch.no_grad():
            arrays[f"logits_{index}"] = model(prompt[None]).logits[0].numpy()
        arrays[f"prompt_{index}"] = prompt.numpy().astype(np.int32)
        arrays[f"greedy_{index}"] = text
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        kind, config = MODELS[name]
        for seed in range(100):
            model = make(kind, config, seed)
            arrays = golden(model, seed)
            if arrays is not None:
                break
        else:
            raise SystemExit(f"{name}: no seed gives greedy text with a clear lead")
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / "golden.npz", **arrays)
        distinct = [len(set(arrays[f"greedy_{i}"].tolist())) for i in range(3)]
        spread = float(arrays["logits_2"].std())
        print(f"{name}: seed {seed}, logits std {spread:.2f}, distinct tokens {distinct}", flush=True)


if __name__ == "__main__":
    main()
