"""What every test gets: a CPU backend, strict JAX, compiled programs kept between runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook(["flexjax", "models"], "shapes.check")  # Before anything of the product is imported.

REPOSITORY = Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.rootpath / ".pytest_cache" / "jax"
    folder.mkdir(parents=True, exist_ok=True)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _forget_oldest(folder, most_bytes=2**30)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _forget_oldest(folder: Path, most_bytes: int) -> None:
    """Once a run. Given a limit, JAX would lock the folder and read all of it for each program that it keeps there: a
    tenth of a second beside the three thousand of one run."""
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True):
        most_bytes -= file.stat().st_size
        if most_bytes < 0:
            file.unlink()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none of them is left to one worker when the others have no more to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="module")
def dtype_promotion(request: pytest.FixtureRequest):
    """Strict, but where optax runs: its Adam raises a float to an integer count and fails under it."""
    name = str(request.path.relative_to(REPOSITORY / "tests"))
    uses_optax = name.startswith(("train/", "jobs/test_train", "virtual/test_training"))
    with jax.numpy_dtype_promotion("standard" if uses_optax else "strict"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets that only tests read; a test that asks for it is skipped without it."""
    folder = Path(os.environ.get("FLEXJAX_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the shared data sets are not here: {folder} is no folder (set FLEXJAX_SHARED_DATA)")
    return folder
