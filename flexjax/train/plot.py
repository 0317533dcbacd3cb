"""Draws a training curve."""

from pathlib import Path

from flexjax import files
from flexjax.train.loop import read_log


def plot_loss(log: Path, picture: Path) -> None:
    """The loss of `log` (loss.csv) by tokens, and the learning rate below it, as a small PNG."""
    from matplotlib.figure import Figure  # Slow to import, and only needed here.

    rows = read_log(log)
    tokens = [r["tokens"] / 1e6 for r in rows]
    figure = Figure(figsize=(6, 3.6), dpi=80, layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    loss.plot(tokens, [r["loss"] for r in rows], linewidth=1)
    loss.set(ylabel="loss, nats a token")
    loss.grid(alpha=0.3)
    rate.plot(tokens, [r["learning_rate"] for r in rows], linewidth=1, color="gray")
    rate.set(ylabel="learning rate", xlabel="training tokens, millions")
    with files.replacing(picture, "wb") as file:
        figure.savefig(file, format="png")
