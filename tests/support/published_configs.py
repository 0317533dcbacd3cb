"""config.json files of published models, what becomes of each, and small copies that run.

Run as a script it writes docs/published_configs.md.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "models" / "transformer" / "published_configs" / "configs.jsonl"
DOC = ROOT / "docs" / "published_configs.md"

# Sizes of the small copies; those of the published ones that are smaller stay.
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "original_max_position_embeddings": 16,
    "sliding_window": 16,
    "max_window_layers": 1,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


@dataclasses.dataclass(frozen=True)
class Published:
    """One config.json, and where its values were seen: a file at a commit of a repository, or a page."""

    name: str
    config: Mapping[str, Any]
    repository: str = ""
    commit: str = ""
    path: str = ""
    page: str = ""
    note: str = ""
    refused: str = ""  # Part of the message; empty where it loads.
    why: str = ""  # What its class would need, where the class is not served.

    @property
    def source(self) -> str:
        where = self.page or f"https://github.com/{self.repository}/blob/{self.commit}/{self.path}"
        label = self.page.removeprefix("https://github.com/") or f"{self.repository}@{self.commit[:7]}"
        return f"[{label}]({where})" + (f" ({self.note})" if self.note else "")


def read() -> list[Published]:
    return [Published(**json.loads(line)) for line in FILE.read_text().splitlines()]


def small(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields with small sizes, also inside text_config and rope_scaling."""
    copy: dict[str, Any] = {}
    for name, value in hf.items():
        if name in ("text_config", "rope_scaling", "rope_parameters") and value:
            copy[name] = small(value)
        elif name == "layer_types":
            copy[name] = value[: SMALL["num_hidden_layers"]]
        elif name == "num_key_value_heads":
            copy[name] = 2  # Of all alike, so that more of them share a program.
        elif name == "eos_token_id":
            copy[name] = [2, 3] if isinstance(value, list) else 2
        else:
            copy[name] = min(value, SMALL[name]) if name in SMALL and value else value
    if "text_config" in copy:  # Sizes that it leaves out as the defaults of its class would be large.
        left_out = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
        copy["text_config"] = {**left_out, **heads, **copy["text_config"]}
    return copy


def table(outcome: Mapping[str, str]) -> str:
    """docs/published_configs.md; `outcome` is what becomes of each by name."""
    published = read()
    loads = [p for p in published if not p.refused]
    rows = [
        f"| {p.name} | {(p.config.get('architectures') or ['none'])[0]} | {outcome[p.name]} | {p.source} |"
        for p in (*loads, *(p for p in published if p.refused))
    ]
    head = f"""# Published configurations

What becomes of the config.json of {len(published)} published models: {len(loads)} load, {len(published) - len(loads)} \
are refused. The values are those of the file or page named last; `tests/models/transformer/published_configs` keeps
them, its test loads a small copy of each that loads and generates, and holds this table to them. Written by
`python tests/support/published_configs.py`.

| Model | Class | Outcome | Values seen in |
|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def outcomes() -> dict[str, str]:
    """What becomes of each by name."""
    from flexjax.refusal import Refusal
    from models import transformer

    found = {}
    for p in read():
        try:
            config = transformer.config_from_hf(p.config)
            found[p.name] = f"loads, {config.max_position:,} tokens of context"
        except Refusal as refusal:
            found[p.name] = f"refused: {p.why or str(refusal).partition('. If its weights')[0].replace('|', '/')}"
    return found


if __name__ == "__main__":
    DOC.write_text(table(outcomes()))
