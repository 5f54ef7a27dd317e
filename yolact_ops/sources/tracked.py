"""A path of a git repository that DVC or git tracks, brought here file by file, so that a broken transfer goes on.

DVC's own ``get`` fetches all again after a break, and does not look whether there is room.
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
from yolact_ops.transfer.archives import safe_name
from yolact_ops.transfer.disk import file_digest, require_free_disk
from yolact_ops.transfer.download import FIRST_PAUSE, MAX_TRIES
from yolact_ops.transfer.storage import is_disk_error

log = logging.getLogger(__name__)

THREADS = 16
"""Files at once: small ones wait for answers, not for bandwidth."""

ARRIVING = ".arriving"
"""Folder of files that are on their way, inside the target's."""


@dataclass(frozen=True)
class _File:
    """One tracked file."""

    name: str
    """In the repository."""
    place: Path
    """Here."""
    md5: str | None
    """None for files that git itself tracks."""

    def is_here(self) -> bool:
        """Whether its content has arrived; a file without a checksum is fetched again."""
        return self.md5 is not None and self.place.is_file() and file_digest(self.place, "md5") == self.md5


def fetch_tracked(repository: str, path: str, commit: str, folder: Path, what: str) -> None:
    """Make ``folder`` hold a tracked file or folder, under its own name, and nothing else.

    Files appear whole or not at all. What ``folder`` holds already, of an earlier commit or of a broken transfer, is
    not fetched again where its MD5 is right.

    Args:
        repository: a folder or anything that git can clone.
        path: in the repository.
        commit: of the repository.
        folder: is made.
        what: for messages.

    Raises:
        DataError: there is no room, a name leaves the folder, or a file arrives damaged.
        DvcException, SCMError, BotoCoreError, OSError: the repository or its storage cannot be read.
    """
    from dvc.api import DVCFileSystem

    with closing(DVCFileSystem(repository, rev=commit, subrepos=True)) as tracked:
        files = _patiently(lambda: _listed(tracked, path, folder), path)
        here = [file for file in files if file.is_here()]
        missing = sorted(set(files) - set(here), key=lambda file: file.name)
        _remove_others(folder, {file.place for file in files})
        there = sum(file.place.stat().st_size for file in here)
        # DVC knows the size of what was added to it as a whole, not of each file in it.
        size = max(tracked.du(path) - there, 0)
        require_free_disk(folder, size, f"fetching {what}")
        _fetch_all(tracked, missing, folder / ARRIVING, what, size)


def _listed(tracked: Any, path: str, folder: Path) -> list[_File]:
    top = folder / PurePosixPath(path).name
    tracked.info(path)  # an unknown path has no files either
    files = []
    for name, info in sorted(tracked.find(path, detail=True).items()):
        inside = name.lstrip("/").removeprefix(path).strip("/")
        try:
            relative = safe_name(inside)
        except ValueError as error:
            raise DataError(f"{path}: the tracked name {name!r} {error}. The repository is refused.") from None
        files.append(_File(name, top / (relative or ""), info.get("md5")))
    return files


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    """Remove what is not wanted, and what was arriving when a transfer broke."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside before the folder itself
        if path.is_symlink() or path.is_file():
            if path not in wanted:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _fetch_all(tracked: Any, files: Sequence[_File], arriving: Path, what: str, size: int) -> None:
    """Fetch files in parallel; the first failure ends it. ``size``: their bytes, 0 where that is not known."""
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
    progress.show(temporary.stat().st_size)  # a copy by the file system itself reports nothing
    if file.md5 is not None and (found := file_digest(temporary, "md5")) != file.md5:
        temporary.unlink()
        raise DataError(
            f"{file.name}: what arrived has the md5 {found}, not {file.md5}. Run it again, or push it again."
        )
    file.place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, file.place)


class _Progress(Callback):
    """Moves a bar by the bytes of one file as they arrive."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self._bar = bar
        self._shown = 0

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """The storage's library has counted on: ``self.value`` is the bytes that have arrived."""
        self.show(self.value)

    def show(self, value: int) -> None:
        """So many bytes of the file are here."""
        self._bar.update(value - self._shown)
        self._shown = value

    def again(self) -> _Progress:
        """The same for a try that begins at the first byte."""
        self.absolute_update(0)
        return self


Result = TypeVar("Result")


def _patiently(action: Callable[[], Result], what: str) -> Result:
    """What ``action`` returns, tried again with growing pauses where its failure may pass."""
    failed = 0
    while True:
        try:
            return action()
        except Exception as error:  # each kind of storage raises types of its own
            failed += 1
            if failed == MAX_TRIES or not _may_pass(error):
                raise
            log.warning("%s: %s; trying again", what, type(error).__name__)
            time.sleep(FIRST_PAUSE * 2 ** (failed - 1))


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: not where the file or the right to read it is missing, or the disk is full."""
    from dvc.exceptions import DvcException

    return not (
        isinstance(error, DataError | DvcException | FileNotFoundError | PermissionError) or is_disk_error(error)
    )
