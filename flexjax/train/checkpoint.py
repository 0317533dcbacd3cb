"""Keeps the state of a run on disk, so that a kill loses minutes and changes nothing."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from flexjax.refusal import Refusal


class Checkpoints:
    """The latest states of a run in `directory`, by step.

    A state is whole or absent: orbax writes it beside its place and renames it. Restoring gives the very
    bits that were saved.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(Path(directory).resolve(), options=options, item_handlers=handler)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The latest state, with the structure, shapes and dtypes of `like`.

        Refusal where there is none, or where it belongs to another model or optimiser.
        """
        step = self.latest_step
        if step is None:
            raise Refusal(f"{self._manager.directory} holds no checkpoint.")
        found, wanted = _shapes(self._manager.item_metadata(step)), _shapes(like)
        if found != wanted:
            differing = sorted(path for path in found | wanted if found.get(path) != wanted.get(path))
            first = differing[0]
            raise Refusal(
                f"The state in {self._manager.directory} is of another model or optimiser: {len(differing)} arrays "
                f"differ, first {first}: {found.get(first, 'absent')} there, {wanted.get(first, 'absent')} here. "
                "Give the config that it was trained with, or another workdir."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        self._manager.close()


def _shapes(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
