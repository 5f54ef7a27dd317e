"""Checkpoints: the whole state of a training run, so that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import logging
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
    history: dict[str, list[dict[str, float]]]
    """Logged rows of the run so far: ``steps`` and ``epochs``."""
    seconds: float
    """Spent in the steps of the run so far."""
    finished: bool
    extra: dict[str, str] = field(default_factory=dict)
    """What the caller wants to find again, such as a run id."""


class CheckpointStore:
    """A folder of ``epoch_NNNN.pt`` files, of which the last few are kept."""

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
        return path

    def latest(self, fingerprint: str) -> TrainingState | None:
        """The newest checkpoint that belongs to this run, or None.

        An unreadable checkpoint is passed over with a warning. Checkpoints of finished runs, and of runs with other
        settings or data, are left alone and not used.
        """
        for path in reversed(self._paths()):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                if content.pop("format") != FORMAT:
                    raise ValueError("format of another version")
                state = TrainingState(**content)
            except Exception as error:  # torch.load raises many kinds for a damaged file
                log.warning("%s: not readable, the one before is used (%s)", path, error)
                continue
            if state.finished or state.fingerprint != fingerprint:
                return None
            return state
        return None

    def clear(self) -> None:
        """Remove all checkpoints, and what a killed run left half-written."""
        for path in [*self._paths(), *self.directory.glob(".*.part")]:
            path.unlink()

    def _paths(self) -> list[Path]:
        """Oldest first; a number of more than four digits is longer."""
        return sorted(self.directory.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name))
