"""Bits per byte of a model on held-out text, beside what a unigram model and two compressors need.

python -m flexjax.train.evaluate models/weights/pydoc-7m
"""

import argparse
import dataclasses
import gzip
import lzma
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from flexjax import shipped
from flexjax.data import Document, corpus, load_tokenizer, tokenize
from flexjax.families import family_of_directory
from flexjax.hardware import platforms
from flexjax.model import CausalLM

# Tokens [B, T+1] → nats that each of the last T needs, given those before it in its row.
TokenNats = Callable[[np.ndarray], Float[Array, "B T"]]


@dataclasses.dataclass(frozen=True)
class Score:
    """What some text cost."""

    nats: float
    tokens: int
    bytes: int  # UTF-8

    @property
    def bits_per_byte(self) -> float:
        return self.nats / np.log(2) / self.bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens


def token_nats(model: CausalLM) -> TokenNats:
    graph, params = nnx.split(model)

    @jax.jit
    def nats(params, tokens: Int[Array, "B T+1"]) -> Float[Array, "B T"]:
        model = nnx.merge(graph, params)
        logits = model.logits(model.dense(tokens[:, :-1])[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])

    return lambda tokens: nats(params, jnp.asarray(tokens))


def score(
    nats_of: TokenNats, tokenizer: Tokenizer, documents: Sequence[Document], context: int, batch_size: int = 8
) -> Score:
    """What all tokens of the documents cost, each counted once and seen with at least `context // 2` before it
    where the document has as many. A document begins after the end-of-text token.
    """
    total, count = 0.0, 0
    for windows, counted in _batches(tokenize(tokenizer, documents), context, batch_size):
        total += float(np.where(counted, np.asarray(nats_of(windows), np.float64), 0).sum())
        count += int(counted.sum())
    return Score(total, count, sum(len(d.text.encode()) for d in documents))


def _batches(documents: Sequence[np.ndarray], context: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Overlapping windows of `context` targets, and which targets no earlier window has counted."""
    rows, masks = [], []
    stride = max(context // 2, 1)
    for tokens in documents:
        done = 0  # Targets tokens[1 : done + 1] are counted.
        for start in range(0, len(tokens) - 1, stride):
            window = tokens[start : start + context + 1]
            rows.append(np.pad(window, (0, context + 1 - len(window))))
            position = start + np.arange(context)
            masks.append((position >= done) & (position < len(tokens) - 1))
            done = max(done, start + len(window) - 1)
            if done == len(tokens) - 1:
                break
    while len(rows) % batch_size:  # One shape, one compile.
        rows.append(np.zeros(context + 1, np.int32))
        masks.append(np.zeros(context, bool))
    for i in range(0, len(rows), batch_size):
        yield np.stack(rows[i : i + batch_size]), np.stack(masks[i : i + batch_size])


def unigram_bits_per_byte(
    tokenizer: Tokenizer, train: Sequence[Document], held_out: Sequence[Document], vocab_size: int
) -> float:
    """Cross-entropy under the training text's token frequencies, each count plus one."""
    counts = np.bincount(np.concatenate(tokenize(tokenizer, train)), minlength=vocab_size) + 1.0
    nats = -np.log(counts / counts.sum())
    total = sum(nats[tokens[1:]].sum() for tokens in tokenize(tokenizer, held_out))
    return float(total / np.log(2) / sum(len(d.text.encode()) for d in held_out))


def gzip_bits_per_byte(documents: Sequence[Document]) -> float:
    text = _text(documents)
    return 8 * len(gzip.compress(text, compresslevel=9)) / len(text)


def xz_bits_per_byte(documents: Sequence[Document], after: Sequence[Document] = ()) -> float:
    """What xz needs for the documents; `after`: when it has just compressed those, and can refer back to them."""
    before, text = _text(after), _text(documents)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]  # Its window is 64 MiB.
    size = len(lzma.compress(before + text, filters=filters)) - (
        len(lzma.compress(before, filters=filters)) if before else 0
    )
    return 8 * size / len(text)


def _text(documents: Sequence[Document]) -> bytes:
    return "".join(d.text for d in documents).encode()


def report(directory: Path, context: int) -> Table:
    """Every figure, for the model of a Hugging Face directory."""
    family, _ = family_of_directory(directory)
    tokenizer = load_tokenizer(directory)
    model = family.load(directory, dtype=jnp.float32)
    train, held_out = corpus.train_documents(), corpus.held_out_documents()
    scored = score(token_nats(model), tokenizer, held_out, context)
    table = Table(
        title=f"{directory}: {len(held_out)} held-out modules, {scored.bytes:,} bytes, {scored.tokens:,} tokens\n"
        f"Python {platform.python_version()}, training corpus {corpus.fingerprint(train)}, context {context} tokens"
    )
    table.add_column("")
    table.add_column("bits per byte", justify="right")
    rows = {
        f"this model ({scored.nats_per_token:.3f} nats a token)": scored.bits_per_byte,
        "xz -9e, after the training text": xz_bits_per_byte(held_out, after=train),
        "xz -9e": xz_bits_per_byte(held_out),
        "gzip -9": gzip_bits_per_byte(held_out),
        "unigram over the same tokens": unigram_bits_per_byte(tokenizer, train, held_out, model.config.vocab_size),
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="model directory, Hugging Face layout")
    parser.add_argument("--context", type=int, default=512, help="tokens that the model sees at once")
    args = parser.parse_args()
    platforms.cpu_unless_accelerated()
    Console().print(report(shipped.model(args.directory), args.context))


if __name__ == "__main__":
    main()
