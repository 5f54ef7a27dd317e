"""Checkpoints: the complete state of a training run, from which a killed run resumes as if uninterrupted.

A checkpoint is one file (`yolact.engine.checkpoint_files`). The digest of its content is in the name, so file and
digest appear together, whole or not at all; a checkpoint that has changed since by even one bit is detected and renamed
to ``….damaged``. The best weights are in the same folder, in subfolders ``best_EEEE-DDDDDDDDDDDDDDDD`` named in the
same way.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from yolact.engine.checkpoint_files import DIGEST_DIGITS, checkpoint_name, checkpoint_paths, number_of
from yolact.errors import WeightsError, YolactError
from yolact.files import flush_folder, publish
from yolact.models.file_names import WEIGHTS_FILE
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact

log = logging.getLogger(__name__)

FORMAT = 4
MIRROR_FOLDER = ".mirror"
"""Folder among the checkpoints in which a mirror may keep files while it uploads them; `CheckpointStore.begin` removes
what a killed run left there."""
DAMAGED = ".damaged"
"""Suffix of a checkpoint that could not be read; it is kept until a run starts over."""


@dataclass
class TrainingState:
    """Everything that a run needs to resume, even within an epoch.

    The order of the data and its augmentation follow from seed, epoch and image, so ``epochs_done`` and
    ``batches_done`` define the position in the data; the learning rate follows from ``step``.
    """

    settings: dict[str, Any]
    """The run's settings, as in ``params.yaml``; the fingerprint decides what must agree."""
    steps_per_epoch: int
    epochs_done: int
    batches_done: int
    """Batches done in the current epoch."""
    step: int
    """Optimizer steps done."""
    validation_due: bool
    """Whether the validation after ``epochs_done`` is still to be done."""
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """State of the gradient scaler with ``fp16``; empty with other precisions."""
    ema: dict[str, Any]
    """Averaged weights; empty without averaging."""
    random: dict[str, Any]
    """State of PyTorch's random generators, the same in every process, see `yolact.distributed.random_state`; no others
    are used."""
    terms: dict[str, Any]
    """Sum of the loss terms since the last logged step, and the number of steps in it."""
    best_score: float
    """Best validation mask AP so far; -1 before the first validation, and where there is nothing to measure."""
    best: str
    """Folder of that validation's weights; empty before the first."""
    history: dict[str, list[dict[str, float]]]
    """Logged rows of the run so far: ``steps`` and ``epochs``."""
    seconds: float
    """Seconds spent in the run's steps so far."""
    finished: bool
    extra: dict[str, str] = field(default_factory=dict)
    """Data of the caller's, such as a run id."""


class Mirror(Protocol):
    """A second location for a run's checkpoints, such as an object store. It must never stop or delay the training."""

    def fetch(self, directory: Path) -> None:
        """Restore what the mirror has of this run into an empty ``directory``; no-op if it has nothing."""

    def sync(self, directory: Path, checkpoints: list[list[str]]) -> None:
        """Start to make the mirror hold exactly these checkpoints of ``directory``; returns at once.

        Only the newest call counts. Files that the newest call does not list may be removed from ``directory``.

        Args:
            checkpoints: the files of each, newest checkpoint first: its best weights' files, which several may share,
                then the checkpoint itself. Names are relative and a name's content never changes.
        """


Extension = Callable[[str, TrainingState], str | None]
"""Decides whether a run with another fingerprint may be continued as this one, with more epochs.

Gets that fingerprint and the newest state. Its result is empty if it may, else the reason; None if more than the number
of epochs differs.
"""


class CheckpointStore:
    """A folder with the last few checkpoints and the best weights so far.

    Args:
        directory: created when something is saved.
        keep: number of checkpoints to keep, at least 1.
        fingerprint: digest of the settings and data that the run's result depends on; checkpoints with another one
            belong to another run.
        mirror: receives everything that is saved, and fills an empty folder.
    """

    def __init__(self, directory: Path, keep: int, fingerprint: str, mirror: Mirror | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.fingerprint = fingerprint
        self.mirror = mirror
        self._best_of: dict[str, str] = {}
        """Name of the best weights by checkpoint name, for checkpoints read or written by this object."""

    def save(self, state: TrainingState) -> Path:
        """Write a checkpoint whole or not at all, then remove the oldest ones beyond ``keep``.

        It has reached the disk when this returns. Best weights that no kept checkpoint names are removed too.

        Raises:
            YolactError: it cannot be written to the end.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._sweep()
        paths = self._paths()
        number = 1 + (number_of(paths[-1]) if paths else 0)
        handle, name = tempfile.mkstemp(prefix=".checkpoint.", suffix=".part", dir=self.directory)
        os.close(handle)
        temporary = Path(name)
        try:
            try:
                torch.save({"format": FORMAT, "fingerprint": self.fingerprint, **vars(state)}, temporary)
            except RuntimeError as error:  # torch raises this on a full disk
                raise YolactError(
                    f"{self.directory}: checkpoint {number} could not be written to the end; is the disk full? "
                    f"({error})"
                ) from error
            path = self.directory / checkpoint_name(number, state.step, digest_of(temporary))
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._best_of[path.name] = state.best
        self._prune()
        if self.mirror is not None:
            self.mirror.sync(self.directory, self._files())
        return path

    def save_best(self, model: Yolact, classes: list[str], epochs_done: int) -> str:
        """Write weights that are the best so far; returns the name of their folder, for `TrainingState.best`.

        The folder is kept as long as a kept checkpoint names it: after a kill, or when the newest checkpoint is
        damaged, the previous one still has its weights.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".best.", suffix=".part", dir=self.directory))
        try:
            save_model(model, classes, temporary)
            path = self.directory / f"best_{epochs_done:04d}-{digest_of(temporary / WEIGHTS_FILE)}"
            if not self._has_best(path.name):  # else written before a kill, with the same content
                shutil.rmtree(path, ignore_errors=True)  # damaged since
                temporary.chmod(0o777 & self.directory.stat().st_mode)
                temporary.replace(path)
                flush_folder(self.directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path.name

    def load_best(self, name: str) -> tuple[Yolact, list[str]]:
        """The weights that `save_best` wrote, in evaluation mode, and their class names.

        Raises:
            WeightsError: they are missing or damaged.
        """
        path = self.directory / name / WEIGHTS_FILE
        if path.is_file() and not name.endswith(f"-{digest_of(path)}"):
            raise WeightsError(
                f"{path}: has changed since it was written. The same command resumes from a checkpoint whose best "
                "weights are intact, or validates again where there is none"
            )
        return load_model(self.directory / name)

    def begin(self, *, with_finished: bool = False, extension: Extension | None = None) -> TrainingState | None:
        """The checkpoint from which the run resumes, or None if it starts over.

        An empty folder is first filled from the mirror. Checkpoints of a finished run, and of a run without a finished
        step, are removed; with ``with_finished``, the last one of a finished run with the same settings and data is
        returned too, unless it came from the mirror, which all runs with these settings and data share. Checkpoints of
        an unfinished run with other settings or data are moved aside, with a warning that says where to and how to
        resume that run; so are checkpoints if none of them can be read.

        With ``extension``, a run that is finished or not, and to which it gives more epochs, is returned; if it says
        why not, that run is moved aside with a warning.

        If the best weights of the newest checkpoint are missing or damaged, the run resumes from the newest checkpoint
        whose best weights are intact. If there is none, it resumes from the newest and searches for the best weights
        again: ``best_score`` is -1 and, at the end of an epoch, the validation is due again.
        """
        shutil.rmtree(self.directory / MIRROR_FOLDER, ignore_errors=True)
        if self.mirror is not None and not self._paths():
            with_finished = False
            self.directory.mkdir(parents=True, exist_ok=True)
            self.mirror.fetch(self.directory)
        paths = self._paths()
        readable = (found for found in map(self._read, reversed(paths)) if found is not None)
        found = next(readable, None)
        if found is None:
            if paths:
                log.warning("no checkpoint can be read; they are now in %s", self._move_aside("unreadable"))
            return None
        fingerprint, state = found
        is_same, why_not = fingerprint == self.fingerprint, None
        if extension is not None and not is_same and state.step > 0:
            why_not = extension(fingerprint, state)
        if why_not == "" or (is_same and (with_finished or not state.finished)):
            return self._with_best(state, (older for owner, older in readable if owner == fingerprint))
        if why_not is None and (state.finished or state.step == 0):
            self._clear()
            return None
        self._warn_of_other(state, self._move_aside(fingerprint[:8]), why_not)
        return None

    def _warn_of_other(self, state: TrainingState, aside: Path, why_not: str | None) -> None:
        """Say that another run's checkpoints were moved aside; ``why_not``: why it cannot have more epochs."""
        if why_not is None:
            log.warning(
                "%s has an unfinished run (%d epochs done) with other settings or data; it is now in %s. To resume it, "
                "restore its settings and move the folder back. This run starts over.",
                self.directory,
                state.epochs_done,
                aside,
            )
            return
        ways = "" if state.finished else " To finish it, restore its settings and move the folder back."
        if state.best:
            ways += (
                " To train on from its best weights with a new schedule, stop this run and set "
                f"model.initial_weights: {aside / state.best}"
            )
        log.warning(
            "%s has a run of %d epochs done that cannot be continued: %s. It is now in %s, and this run starts over.%s",
            self.directory,
            state.epochs_done,
            why_not,
            aside,
            ways,
        )

    def _with_best(self, newest: TrainingState, older: Iterable[TrainingState]) -> TrainingState:
        """The newest state, or the one from which a run with damaged best weights resumes, see `begin`."""
        if self._has_best(newest.best):
            return newest
        for state in older:
            if state.best != newest.best and self._has_best(state.best):
                log.warning(
                    "%s: the best weights are missing or damaged; the run resumes from the checkpoint of step %d, "
                    "which names others",
                    self.directory / newest.best,
                    state.step,
                )
                return state
        log.warning(
            "%s: the best weights are missing or damaged, and no older ones are kept; the run resumes, and the best of "
            "the validations from here on are kept",
            self.directory / newest.best,
        )
        at_end_of_epoch = newest.epochs_done > 0 and newest.batches_done == 0
        rows = newest.history["epochs"]
        if at_end_of_epoch:  # its row will be written again
            rows = [row for row in rows if row["epoch"] != newest.epochs_done]
        return replace(
            newest,
            best="",
            best_score=-1.0,
            validation_due=at_end_of_epoch,
            finished=False,
            history=newest.history | {"epochs": rows},
        )

    def _has_best(self, name: str) -> bool:
        """Whether the best weights exist and are intact; also True if there are none yet (``name`` is empty)."""
        try:
            return not name or bool(self.load_best(name))
        except WeightsError:
            return False

    def _read(self, path: Path) -> tuple[str, TrainingState] | None:
        """Fingerprint and state; tensors are memory-mapped until they are used.

        A checkpoint that cannot be read is set aside with a warning and no longer counts towards ``keep``; the result
        is then None.
        """
        try:
            if not path.name.endswith(f"-{digest_of(path)}.pt"):
                raise ValueError("its content is not what was written")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if content.pop("format") != FORMAT:
                raise ValueError("format of another version")
            fingerprint = content.pop("fingerprint")
            state = TrainingState(**content)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            aside = path.with_name(path.name + DAMAGED)
            path.replace(aside)
            log.warning("%s: not readable, skipped (%s); it is now %s", path, error, aside.name)
            return None
        self._best_of[path.name] = state.best
        return fingerprint, state

    def _prune(self) -> None:
        for path in self._paths():
            if path.name not in self._best_of:
                self._read(path)  # before they are counted: damaged ones do not count
        for old in self._paths()[: -self.keep]:
            old.unlink()
        kept = self._paths()
        named = {self._best_of.get(path.name) for path in kept}
        for best in self.directory.glob("best_*"):
            if best.name not in named:
                shutil.rmtree(best)

    def _files(self) -> list[list[str]]:
        """The files of each checkpoint, see `Mirror.sync`."""
        found = []
        for path in reversed(self._paths()):
            best = self._best_of.get(path.name)
            weights = sorted((self.directory / best).glob("*")) if best else []
            found.append([path.relative_to(self.directory).as_posix() for path in [*weights, path]])
        return found

    def _move_aside(self, name: str) -> Path:
        """Rename the folder to ``<folder>-<name>``, replacing one moved there before."""
        aside = self.directory.with_name(f"{self.directory.name}-{name}")
        shutil.rmtree(aside, ignore_errors=True)
        self.directory.replace(aside)
        return aside

    def _clear(self) -> None:
        """Remove all checkpoints (damaged ones too), the best weights and the partial files of a killed run."""
        self._sweep()
        for path in [*self._paths(), *self.directory.glob(f"*.pt{DAMAGED}")]:
            path.unlink()
        for best in self.directory.glob("best_*"):
            shutil.rmtree(best)

    def _sweep(self) -> None:
        """Remove the partial files of a killed run."""
        for path in self.directory.glob(".*.part"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _paths(self) -> list[Path]:
        """Oldest first."""
        return checkpoint_paths(self.directory)


def digest_of(path: Path) -> str:
    """The first `DIGEST_DIGITS` hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_DIGITS]
