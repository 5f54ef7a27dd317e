"""Atomic writes of files and folders, which never show partial content, locks, and removal of files nobody wants."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from yolact.errors import YolactError

LONGEST_NAME = 255
"""Maximum length of a file's name in the usual file systems, bytes (NAME_MAX of Linux)."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a used-up quota."""

UNLOCKABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""Error numbers of file systems without locks; the last two are one on Linux, and two on macOS."""

LOCK_PATIENCE = 1.0
"""Seconds to wait for a lock: its holder may be about to end."""

TEMPORARY_EXTRA = len("..12345678.part")
"""What temporary names add to a name, bytes."""


class BusyError(YolactError):
    """Another process writes the same folder or file."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that this process writes; it ends with the block, or with the process.

    Its file beside the folder, ``.<name>.lock``, says who holds it and is removed at the end. On a file system without
    locks nothing is held.

    Raises:
        BusyError: another process holds the lock.
    """
    from filelock import FileLock, Timeout  # imports asyncio

    whole = Path(os.path.abspath(folder))
    file = whole.with_name(f".{whole.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(file, timeout=LOCK_PATIENCE, fallback_to_soft=False))
        except Timeout:
            raise BusyError(
                f"{folder}: {_holder(file)} is writing there. Wait for it to end, or use another folder."
            ) from None
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise
        held.callback(_remove, file)  # filelock notices in processes that wait
        with suppress(OSError):  # a full disk
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def _remove(file: Path) -> None:
    with suppress(OSError):  # Windows, which removes no open file
        file.unlink()


def _holder(lock: Path) -> str:
    with suppress(OSError):  # it has just ended
        if text := lock.read_text(encoding="utf-8", errors="replace"):
            return text[:200]
    return "another process"


@contextmanager
def replaced_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; when the block succeeds, flush it to disk and rename it to ``path``.

    If the block raises, the temporary file is removed and ``path`` is unchanged. Leftovers of killed runs
    (``.<name>.*.part``, or a hash instead of a long name) are removed first: of two processes that write the same file
    at once, the one that began later takes the other one's temporary file away.

    Raises:
        BusyError: another process began to write the file meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = _temporary_stem(path.name)
    for leftover in path.parent.glob(f".{glob.escape(stem)}.*.part"):
        leftover.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _full_disk_named(temporary, path):
            yield temporary
            if not temporary.exists():
                raise BusyError(f"{path}: another process began to write it meanwhile. Run one at a time.")
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_stem(name: str) -> str:
    """The name, or a hash of it if a temporary name with it would be too long."""
    raw = os.fsencode(name)
    return name if len(raw) + TEMPORARY_EXTRA <= LONGEST_NAME else hashlib.sha256(raw).hexdigest()


def fitting_name(stem: str, suffix: str) -> str:
    """``stem`` and ``suffix`` as a file's name; the stem loses its end if the name would be too long."""
    raw = stem.encode("utf-8")[: LONGEST_NAME - len(suffix.encode("utf-8"))]
    return raw.decode("utf-8", "ignore") + suffix


def publish(temporary: Path, path: Path) -> None:
    """Give a written file its final name in the same folder; both are flushed to disk when this returns."""
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.chmod(0o666 & ~_umask())
    os.replace(temporary, path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, after which renames survive a power cut. Does nothing on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes_atomic(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity raise a ValueError."""
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove_others(folder: Path, wanted: Set[Path]) -> None:
    """Remove all files below a folder except the wanted ones, and folders that are then empty."""
    for path in sorted(folder.rglob("*"), reverse=True):  # contents before their folder
        if path.is_symlink() or path.is_file():
            if path not in wanted:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


@contextmanager
def replaced_directory(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder next to ``path``; when the block succeeds, it replaces ``path``.

    If the block raises, the temporary folder is removed and ``path`` is unchanged. If the process is killed between
    moving the old folder aside and the new one in, the next call restores it. It also removes other leftovers of
    killed runs (``.<name>.*.part``).

    Raises:
        BusyError: another process builds the same folder.
    """
    path = Path(path)
    with locked(path), _replaced_directory(path) as temporary:
        yield temporary


@contextmanager
def _replaced_directory(path: Path) -> Iterator[Path]:
    """See `replaced_directory`; no other process builds the folder."""
    aside = path.with_name(f".{path.name}.old.part")
    if aside.exists() and not path.exists():
        os.replace(aside, path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with _full_disk_named(temporary, path):
            yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _full_disk_named(temporary: Path, path: Path) -> Iterator[None]:
    """Let the error of a full disk name ``path``: a failed write names no file, a failed copy its source first."""
    try:
        yield
    except OSError as error:
        written = error.filename2 or error.filename
        if error.errno in FULL and (written is None or temporary in (Path(written), *Path(written).parents)):
            error.filename, error.filename2 = str(path), None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
