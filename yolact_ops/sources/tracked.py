"""Fetch a path of a git repository that DVC or git tracks, file by file, so that an interrupted transfer resumes.

DVC's own ``get`` starts over after an interruption, and does not check free disk space.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec.callbacks import Callback  # type: ignore[import-untyped]
from tqdm import tqdm

from yolact.errors import DataError
from yolact.files import remove_others
from yolact_ops.transfer.archives import safe_name
from yolact_ops.transfer.disk import file_digest, require_free_disk
from yolact_ops.transfer.download import FIRST_PAUSE, MAX_TRIES
from yolact_ops.transfer.storage import is_disk_error

log = logging.getLogger(__name__)

THREADS = 16
"""Number of parallel transfers: small files wait for responses, not for bandwidth."""

ARRIVING = ".arriving"
"""Folder of incomplete files, inside the target folder."""


@dataclass(frozen=True)
class _File:
    """One tracked file."""

    name: str
    """Path in the repository."""
    place: Path
    """Path on this machine."""
    md5: str | None
    """Hex; None for files that git itself tracks."""

    def is_here(self) -> bool:
        """Whether it is completely fetched; a file without a checksum never is."""
        return self.md5 is not None and self.place.is_file() and file_digest(self.place, "md5") == self.md5


def fetch_tracked(repository: str, path: str, commit: str, folder: Path, what: str) -> None:
    """Make ``folder`` contain a tracked file or folder, under its own name, and nothing else.

    Files appear whole or not at all. Files that are already in ``folder``, from an earlier commit or an interrupted
    transfer, are not fetched again if their MD5 is right.

    Args:
        repository: a folder or anything that git can clone.
        path: path in the repository.
        commit: commit of the repository.
        folder: target; created if necessary.
        what: name of the source, for messages.

    Raises:
        DataError: the disk is too full, a name leaves the folder, or a file is damaged in transfer.
        DvcException, SCMError, BotoCoreError, OSError: the repository or its storage cannot be read.
    """
    from dvc.api import DVCFileSystem

    with closing(DVCFileSystem(repository, rev=commit, subrepos=True)) as tracked:
        files = _patiently(lambda: _listed(tracked, path, folder), path)
        here = [file for file in files if file.is_here()]
        missing = sorted(set(files) - set(here), key=lambda file: file.name)
        remove_others(folder, {file.place for file in files})
        there = sum(file.place.stat().st_size for file in here)
        # DVC knows the total size of what was added at once, not the size of each file in it.
        size = max(tracked.du(path) - there, 0)
        require_free_disk(folder, size, f"fetching {what}")
        _fetch_all(tracked, missing, folder / ARRIVING, what, size)


def _listed(tracked: Any, path: str, folder: Path) -> list[_File]:
    top = folder / PurePosixPath(path).name
    tracked.info(path)  # raises for an unknown path, which has no files either
    files = []
    for name, info in sorted(tracked.find(path, detail=True).items()):
        inside = name.lstrip("/").removeprefix(path).strip("/")
        try:
            relative = safe_name(inside)
        except ValueError as error:
            raise DataError(f"{path}: the tracked name {name!r} {error}. The repository is refused.") from None
        files.append(_File(name, top / (relative or ""), info.get("md5")))
    return files


def _fetch_all(tracked: Any, files: Sequence[_File], arriving: Path, what: str, size: int) -> None:
    """Fetch files in parallel; the first failure stops it. ``size``: total bytes, 0 if unknown."""
    arriving.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=what, total=size or None, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dvc")
    try:
        tasks = [pool.submit(_fetch, tracked, file, arriving / str(number), bar) for number, file in enumerate(files)]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    arriving.rmdir()


def _fetch(tracked: Any, file: _File, temporary: Path, bar: tqdm) -> None:
    require_free_disk(temporary, 0, f"fetching {file.name}")
    progress = _Progress(bar)
    _patiently(lambda: tracked.get_file(file.name, str(temporary), callback=progress.again()), file.name)
    progress.show(temporary.stat().st_size)  # a copy by the file system itself reports no progress
    if file.md5 is not None and (found := file_digest(temporary, "md5")) != file.md5:
        temporary.unlink()
        raise DataError(
            f"{file.name}: the received file has the md5 {found}, not {file.md5}. Run it again, or push it again."
        )
    file.place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, file.place)


class _Progress(Callback):
    """Updates a progress bar with the received bytes of one file."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self._bar = bar
        self._shown = 0

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Called by the storage's library: ``self.value`` is the number of received bytes."""
        self.show(self.value)

    def show(self, value: int) -> None:
        """Show that ``value`` bytes of the file are received."""
        self._bar.update(value - self._shown)
        self._shown = value

    def again(self) -> _Progress:
        """A callback for another attempt, which starts at the first byte."""
        self.absolute_update(0)
        return self


Result = TypeVar("Result")


def _patiently(action: Callable[[], Result], what: str) -> Result:
    """Call ``action``, and retry it with growing pauses if its failure may be temporary."""
    failed = 0
    while True:
        try:
            return action()
        except Exception as error:  # each kind of storage has its own exception types
            failed += 1
            if failed == MAX_TRIES or not is_temporary(error):
                raise
            log.warning("%s: %s; retrying", what, type(error).__name__)
            time.sleep(FIRST_PAUSE * 2 ** (failed - 1))


def is_temporary(error: Exception) -> bool:
    """Whether a retry may succeed: not if the file or the permission to read it is missing, or the disk is full."""
    from dvc.exceptions import DvcException

    return not (
        isinstance(error, DataError | DvcException | FileNotFoundError | PermissionError) or is_disk_error(error)
    )
