"""What ships beside the code (configs/, xla_flags/, models/weights/), and how a path of it is found from any folder."""

from pathlib import Path

from flexjax.files import local
from flexjax.refusal import Refusal

_PACKAGE = Path(__file__).resolve().parent


def home() -> Path:
    """The folder that holds configs/, xla_flags/ and models/weights/: flexjax/share of an installed wheel, else the
    checkout."""
    share = _PACKAGE / "share"
    return share if share.is_dir() else _PACKAGE.parent


def found(path: str | Path) -> Path | None:
    """The file or folder of that path as seen from the current folder, else from `home()`; None where neither has
    it."""
    return next((place for place in (Path(path), home() / path) if place.exists()), None)


def absent(path: str | Path) -> str:
    """Where `found` has looked in vain, in words."""
    places = dict.fromkeys(str(folder / path) for folder in (Path.cwd(), home()))
    return f"neither {' nor '.join(places)} exists" if len(places) > 1 else f"{path} does not exist"


def model(path: str | Path) -> Path:
    """The model directory of that path, or a file in one: the current folder's, else the one that ships. Refusal names
    the places looked at and the models that ship, or says that a URL is to be copied first."""
    there = found(local(path, "A model"))
    if there is None:
        raise Refusal(f"There is no model at {path}: {absent(path)}. Models that ship: {', '.join(models())}.")
    return there


def models() -> list[str]:
    """The model directories that ship, as `model` takes them."""
    return sorted(str(file.parent.relative_to(home())) for file in home().glob("models/weights/*/config.json"))
