"""Keeps the state of a run on disk, so that a kill loses minutes and changes nothing."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from flexjax import files
from flexjax.refusal import Refusal
from flexjax.train import digests
from flexjax.train.finite import not_finite

_SAID_BYTES = 65536  # Longer than any fault, which names one file.


class Checkpoints:
    """The latest states of a run in `directory`, by step.

    A state is whole or absent: orbax writes it beside its place and renames it; then process 0 adds the digests of its
    files. Restoring gives the very bits that were saved: a state whose files have changed since is set aside, and the
    one before is taken. A state with a number that is not finite is neither kept nor restored.

    Over several processes each makes the same calls, on a file system that they share.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        handler = ocp.StandardCheckpointHandler()
        self._directory = files.make_folder(directory, "The folder of checkpoints").resolve()
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handler)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Keeps the state; Refusal where a number in it is not finite, and those kept before stay."""
        if names := not_finite(state):
            raise Refusal(
                f"The state after step {step} has values that are not finite, in {names}: training diverged, though "
                f"the loss of that step was finite. Lower optimizer.learning_rate; the last state kept is of step "
                f"{self.latest_step}."
            )
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            digests.write(self._directory / str(step))

    def restore(self, like: Any) -> Any:
        """The latest state that can be read, with the structure, shapes and dtypes of `like`.

        Later ones that cannot be read are named in a warning and renamed: `latest_step` is then the state's step.
        Refusal where there is no state, where none can be read, and where the state belongs to another model or
        optimiser.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            raise Refusal(f"{self._directory} holds no checkpoint.")
        faults: dict[int, str] = {}
        for step in steps:
            state, faults[step] = self._read(step, like)
            if not faults[step]:
                self._set_aside(faults, step)
                return state
        told = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
        raise Refusal(
            f"No state in {self._directory} can be read ({told}). Bring back one of these folders from a copy, or give "
            "another workdir to begin afresh."
        )

    def close(self) -> None:
        self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, str]:
        """The state of a step, and what is wrong with it; empty where nothing is."""
        folder = self._directory / str(step)
        fault = _told_by_first(lambda: digests.fault(folder))
        if fault:
            return None, fault
        if fault is None:
            _say(f"The state of step {step} has no {digests.NAME}, so that flipped bits in it are not found.")
        try:
            state = self._restore(step, like)
        except Refusal:
            raise
        except Exception as error:  # TensorStore and orbax raise bare ones for files that they cannot read.
            if fault is not None:  # The files are those that were written, so that this is a bug.
                raise
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        names = not_finite(state)
        return (None, f"values that are not finite, in {names}") if names else (state, "")

    def _restore(self, step: int, like: Any) -> Any:
        found, wanted = _shapes(self._manager.item_metadata(step)), _shapes(like)
        if not found:
            raise FileNotFoundError("the names and shapes of its arrays are missing")
        if found != wanted:
            differing = sorted(path for path in found | wanted if found.get(path) != wanted.get(path))
            first = differing[0]
            raise Refusal(
                f"The state in {self._directory} is of another model or optimiser: {len(differing)} arrays "
                f"differ, first {first}: {found.get(first, 'absent')} there, {wanted.get(first, 'absent')} here. "
                "Give the config that it was trained with, or another workdir."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def _set_aside(self, faults: dict[int, str], taken: int) -> None:
        """Renames the states with a fault, in whose place new ones are kept later."""
        faults = {step: fault for step, fault in faults.items() if fault}
        for step, fault in faults.items():
            if jax.process_index() == 0:
                aside = files.set_aside(self._directory / str(step))
                logging.warning(
                    "The state of step %d cannot be read: %s. Going on from step %d; its files are now in %s.",
                    *(step, fault, taken, aside),
                )
        if faults:
            multihost_utils.sync_global_devices("unreadable states are set aside")
            self._manager.reload()


def _say(text: str) -> None:
    if jax.process_index() == 0:
        logging.warning(text)


def _told_by_first(ask: Callable[[], str | None]) -> str | None:
    """What `ask` returns in process 0, in every process."""
    if jax.process_count() == 1:
        return ask()
    said = json.dumps(ask()).encode() if jax.process_index() == 0 else b""
    encoded = np.zeros(_SAID_BYTES, np.uint8)
    encoded[: len(said)] = np.frombuffer(said, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(encoded)).tobytes().rstrip(b"\0"))


def _shapes(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
