"""Keeps the state of a run on disk, so that a kill loses minutes and changes nothing."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The latest states of a run in `directory`, by step.

    A state is whole or absent: orbax writes it beside its place and renames it. Restoring gives the very
    bits that were saved.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(directory).resolve(), options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The latest state, with the structure, shapes and dtypes of `like`.

        ValueError where there is none, or where it belongs to another model or optimiser.
        """
        step = self.latest_step
        if step is None:
            raise ValueError(f"{self._manager.directory} holds no checkpoint.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        self._manager.close()
