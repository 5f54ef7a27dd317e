"""Checkpoints: the whole state of a training run, so that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from yolact.errors import YolactError
from yolact.files import replaced_file

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass
class TrainingState:
    """Everything that a run needs to go on after an epoch. The order of the data follows from seed and epoch."""

    fingerprint: str
    """Digest of the settings and data that the run's result depends on; another one means another run."""
    epochs_done: int
    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    torch_rng: torch.Tensor
    best_score: float
    """Best validation mask AP so far; -1 before the first validation."""
    best_epoch: int
    """Epochs done at that validation, whose weights are in ``best_NNNN/``; 0 before the first."""
    history: dict[str, list[dict[str, float]]]
    """Logged rows of the run so far: ``steps`` and ``epochs``."""
    seconds: float
    """Spent in the steps of the run so far."""
    finished: bool
    extra: dict[str, str] = field(default_factory=dict)
    """What the caller wants to find again, such as a run id."""


class CheckpointStore:
    """A folder of ``epoch_NNNN.pt`` files, of which the last few are kept, and of the best weights so far."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint whole or not at all, then remove the oldest ones beyond ``keep``.

        Raises:
            YolactError: it cannot be written to the end.
        """
        path = self.directory / f"epoch_{state.epochs_done:04d}.pt"
        with replaced_file(path) as temporary:
            try:
                torch.save({"format": FORMAT, **vars(state)}, temporary)
            except RuntimeError as error:  # what torch makes of a full disk
                raise YolactError(f"{path}: could not be written to the end; is the disk full? ({error})") from error
        for old in self._paths()[: -self.keep]:
            old.unlink()
        named = {self.best_dir(kept.best_epoch) for kept in map(self._read, self._paths()) if kept is not None}
        for best in set(self.directory.glob("best_*")) - named:
            shutil.rmtree(best)
        return path

    def best_dir(self, epochs_done: int) -> Path:
        """Where the weights of a validation are kept while they are the best.

        Each has a folder of its own, which stays as long as a checkpoint names it: after a kill, or when the newest
        checkpoint is damaged, the one before still has the weights that belong to it.
        """
        return self.directory / f"best_{epochs_done:04d}"

    def begin(self, fingerprint: str) -> TrainingState | None:
        """The checkpoint from which the run goes on, or None when it begins anew.

        Checkpoints of a finished run, and of one without a finished epoch, are removed. Those of an unfinished run
        with other settings or data are moved aside, with a warning that says where to and how to take that run up
        again; so are checkpoints of which none can be read.
        """
        state = self.latest()
        if state is None and self._paths():
            log.warning("no checkpoint can be read; they are now in %s", self._move_aside("unreadable"))
            return None
        if state is not None and not state.finished and state.fingerprint == fingerprint:
            return state
        if state is None or state.finished or state.epochs_done == 0:
            self._clear()
            return None
        aside = self._move_aside(state.fingerprint[:8])
        log.warning(
            "%s has an unfinished run (%d epochs done) with other settings or data; it is now in %s. To go on with it, "
            "restore its settings and move the folder back. This run begins anew.",
            self.directory,
            state.epochs_done,
            aside,
        )
        return None

    def latest(self) -> TrainingState | None:
        """The newest readable checkpoint, or None; an unreadable one is passed over with a warning."""
        return next((state for state in map(self._read, reversed(self._paths())) if state is not None), None)

    def _read(self, path: Path) -> TrainingState | None:
        """One checkpoint, or None with a warning; tensors are mapped from the file until they are used."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if content.pop("format") != FORMAT:
                raise ValueError("format of another version")
            return TrainingState(**content)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            log.warning("%s: not readable, passed over (%s)", path, error)
            return None

    def _move_aside(self, name: str) -> Path:
        """Rename the folder to ``<folder>-<name>``, in the place of one moved there before."""
        aside = self.directory.with_name(f"{self.directory.name}-{name}")
        shutil.rmtree(aside, ignore_errors=True)
        self.directory.replace(aside)
        return aside

    def _clear(self) -> None:
        """Remove all checkpoints and best weights, and what a killed run left half-written."""
        for path in [*self._paths(), *self.directory.glob(".*.part")]:
            path.unlink()
        for best in self.directory.glob("best_*"):
            shutil.rmtree(best)

    def _paths(self) -> list[Path]:
        """Oldest first; a number of more than four digits is longer."""
        return sorted(self.directory.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name))
