"""Trains a small language model on the standard library, and writes it as a Hugging Face directory."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flexjax import files, shipped
from flexjax.data import (
    END_OF_TEXT,
    DataConfig,
    PackedBatches,
    corpus,
    load_tokenizer,
    save_tokenizer,
    tokenize,
    train_tokenizer,
)
from flexjax.families import Family, find_family
from flexjax.hardware.mesh import MeshConfig, make_mesh
from flexjax.records import JobRecord, Value
from flexjax.refusal import Refusal
from flexjax.train import LoopConfig, OptimizerConfig, Trainer, TrainProgram, is_first, plot_loss, read_log

PROCESSES = "every"
VERSION = "1"  # Of what the columns mean.


def _llama_6x256() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and for how long."""

    model: dict[str, Any] = dataclasses.field(default_factory=_llama_6x256)  # config.json without the vocabulary.
    vocab_size: int = 4096
    tokenizer: str = ""  # Directory of the tokenizer to share; empty trains one on the corpus.
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # Else over all devices; the default is one.
    seed: int = 0  # Of the first weights.


def run(config: Config, workdir: Path) -> int:
    """Trains, or goes on where `workdir` stopped; leaves model/, loss.csv and loss.png in it.

    Several processes need a workdir on a file system that they share.
    """
    for folder, what in ((workdir, "The workdir"), (workdir / "model", "The folder of the model")):
        files.make_folder(folder, what)
    record = JobRecord.begin("train", VERSION, config, workdir) if is_first() else None
    mesh = mesh_of(config.mesh)
    family = _family(config)
    documents = corpus.train_documents()
    tokenizer_home = shipped.model(config.tokenizer) if config.tokenizer else workdir / "model"
    if not config.tokenizer and is_first() and not (tokenizer_home / "tokenizer.json").is_file():
        fresh = train_tokenizer((d.text for d in documents), config.vocab_size)
        save_tokenizer(fresh, tokenizer_home, config.model["max_position_embeddings"])
    multihost_utils.sync_global_devices("tokenizer")
    tokenizer = load_tokenizer(tokenizer_home)
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise Refusal(
            f"vocab_size must be the tokenizer's; {tokenizer_home} has {tokenizer.get_vocab_size()} tokens and "
            f"config.vocab_size is {config.vocab_size}."
        )

    batches = PackedBatches(tokenize(tokenizer, documents), config.data)
    end = tokenizer.token_to_id(END_OF_TEXT)
    published = {**config.model, "vocab_size": config.vocab_size, "bos_token_id": end, "eos_token_id": end}
    model_config = family.config_from_hf(published)
    build = functools.partial(family.build, model_config, dtype=jnp.float32, seed=config.seed)
    trainer = Trainer(TrainProgram(build, config.optimizer, config.loop, mesh), batches, workdir)
    size = sum(p.size for p in jax.tree.leaves(trainer.state.params))
    say = print if is_first() else lambda _: None
    say(
        f"{size:,} parameters {trainer.program.where}; corpus {corpus.fingerprint(documents)}, {len(documents)} "
        f"documents, {batches.tokens:,} tokens; {batches.steps_per_epoch():,} steps an epoch; starting at step "
        f"{trainer.state.step}"
    )

    def export(trainer: Trainer) -> None:
        model = trainer.host_model(jnp.bfloat16)
        if model is None:
            return
        family.save(model, workdir / "model")
        save_tokenizer(tokenizer, workdir / "model", config.model["max_position_embeddings"])
        plot_loss(workdir / "loss.csv", workdir / "loss.png")

    if trainer.state.step == config.loop.steps:
        export(trainer)  # The run before may have been killed between its last state and the export.
    trainer.run(on_checkpoint=export)
    if record is not None:
        record.keep(_columns(workdir / "loss.csv", config, size), kind="measured")
    say(f"{workdir}: model/ (bfloat16, Hugging Face layout), loss.csv, loss.png, checkpoints/")
    return 0


def _columns(log: Path, config: Config, parameters: int) -> dict[str, Value]:
    """Of the whole training, also where it was resumed."""
    last = read_log(log)[-1]
    return {
        "model.name": log.parent.name,
        "model.architecture": config.model["architectures"][0],
        "model.parameters": parameters,
        "metrics.steps": last["step"],
        "metrics.tokens": last["tokens"],
        "metrics.loss_nats_per_token": last["loss"],
        "metrics.train_s": last["train_s"],
        "metrics.tokens_per_s": last["tokens"] / last["train_s"] if last["train_s"] else None,
    }


def mesh_of(config: MeshConfig) -> Mesh:
    """The mesh over all devices; of one axis of size 1, over the first."""
    alone = config == MeshConfig() and jax.process_count() == 1
    return make_mesh(config, jax.devices()[:1] if alone else None)


def _family(config: Config) -> Family:
    names = config.model.get("architectures") or []
    if len(names) != 1:
        raise Refusal(f"config.model.architectures must name exactly one architecture; got {list(names)!r}.")
    return find_family(names[0])
