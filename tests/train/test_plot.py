"""The training curve becomes a small PNG."""

from flexjax.train.loop import COLUMNS
from flexjax.train.plot import plot_loss


def test_a_log_becomes_a_png(tmp_path):
    rows = [",".join(COLUMNS), "10,1000,6.2,0.001,5000.0,0.2", "20,2000,5.1,0.0005,5000.0,0.4"]
    (tmp_path / "loss.csv").write_text("\n".join(rows) + "\n")
    plot_loss(tmp_path / "loss.csv", tmp_path / "loss.png")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 50_000
