"""The journal of a run: keeps everything logged on disk until MLflow has it.

A journal is the folder ``models/tracking/<run id>/`` with two lists of entries in sending order, each with its sent
position: metrics, tags and the like (`Journal.records`), and files (`Journal.files`, with copies of them). Lists are
append-only, so a killed process loses nothing that it logged. The folder is removed once everything is sent.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolact.errors import DataError, YolactError
from yolact_ops.tracking.run_record import RUN_FILE, RunRecord

Entry = dict[str, Any]
"""A JSON object in one of the forms of `yolact_ops.tracking.sender.send_records`."""

FOLDER = "tracking"
"""Folder of the journals, next to ``run.json``."""
COMPACTED_ABOVE = 1 << 20
"""Bytes; a longer list is emptied once all of it is sent."""
LOCK_PATIENCE = 60.0
"""Seconds that a step waits while another process sends the same journal."""
RUNNING = "running"
"""Empty file in a journal while a step works on a run whose status it sets; a killed step leaves it."""
UNREADABLE = "unreadable"
"""Key of the entry for a line that is not a JSON object; the value is its text."""


class JournalBusyError(YolactError):
    """Another process is sending the journal."""


class Lane:
    """A list of entries in a file, one JSON object per line, and the number of bytes sent.

    Thread-safe; only one process may have a lane open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent_path = path.with_suffix(".sent")
        self._changed = threading.Condition()
        self._cut_torn_end()
        self._size = path.stat().st_size if path.exists() else 0
        self._sent = self._read_sent()

    def append(self, entry: Entry) -> None:
        """Append an entry, which then survives the process; an incompletely written one is removed."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._changed:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
            except BaseException:  # a full disk may have stored half of the line
                with suppress(OSError):
                    os.truncate(self.path, self._size)
                raise
            self._size += len(line)
            self._changed.notify_all()

    def read(self, limit: int) -> list[tuple[Entry, int]]:
        """The oldest unsent entries, at most ``limit``, each with its length in bytes for `mark_sent`.

        A damaged line is returned as ``{UNREADABLE: text}``.
        """
        with self._changed:
            if self._sent == self._size:
                return []
            with self.path.open("rb") as file:
                file.seek(self._sent)
                lines = [line for _, line in zip(range(limit), file, strict=False)]
        return [(_parse(line), len(line)) for line in lines]

    def mark_sent(self, length: int) -> None:
        """Record that MLflow has the next ``length`` bytes; otherwise they are sent again."""
        with self._changed:
            self._sent += length
            if self._sent == self._size > COMPACTED_ABOVE:
                self._note_sent(0)  # first: if killed after this, entries are sent again, but none is lost
                os.truncate(self.path, 0)
                self._sent = self._size = 0
            else:
                self._note_sent(self._sent)
            self._changed.notify_all()

    def _note_sent(self, length: int) -> None:
        temporary = self._sent_path.with_suffix(".part")
        temporary.write_text(str(length))
        os.replace(temporary, self._sent_path)

    def wait(self, timeout: float) -> None:
        """Return when there is something to send, when `wake` is called, or after ``timeout`` seconds."""
        with self._changed:
            if self._sent == self._size:
                self._changed.wait(timeout)

    def wake(self) -> None:
        """Make `wait` return."""
        with self._changed:
            self._changed.notify_all()

    @property
    def is_empty(self) -> bool:
        """Whether everything is sent."""
        with self._changed:
            return self._sent == self._size

    @property
    def position(self) -> int:
        """Number of bytes sent; changes with each success."""
        with self._changed:
            return self._sent

    def _cut_torn_end(self) -> None:
        """Remove an incomplete last line, which a power cut may leave."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)

    def _read_sent(self) -> int:
        try:
            sent = int(self._sent_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return sent if sent <= self._size else 0


class Journal:
    """The journal of one run, which this process locks until `release`.

    Args:
        folder: the journal's folder; created if necessary.
        record: the run's record; None reads it from the folder.
        patience: seconds to wait for another process that has it locked.

    Raises:
        JournalBusyError: another process has it locked.
        DataError: there is no journal, or its record is invalid.
    """

    def __init__(self, folder: Path, record: RunRecord | None = None, *, patience: float = LOCK_PATIENCE) -> None:
        self.folder = folder
        self.is_new = False
        """Whether this call created it, so nothing in it is from an earlier step."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=patience)
        try:
            self._lock.acquire()
        except Timeout:
            raise JournalBusyError(
                f"{folder}: in use by another process, a step or `yolact sync`. Wait until it has ended, and try again."
            ) from None
        try:
            self._open(record)
        except BaseException:
            self._unlock()
            raise

    def _open(self, record: RunRecord | None) -> None:
        note = self.folder / RUN_FILE
        if record is None:
            if not note.is_file():
                raise DataError(f"{note}: no such file, so the folder is not the journal of a run")
            record = RunRecord.read(note)
        else:
            with suppress(FileExistsError):
                self.folder.mkdir()
                self.is_new = True
            if not note.is_file():
                record.write(note)
        self.record = record
        self.records = Lane(self.folder / "records.jsonl")
        self.files = Lane(self.folder / "files.jsonl")
        self._refused_path = self.folder / "refused.jsonl"

    def add_file(self, source: Path, artifact_path: str | None) -> None:
        """Copy a file, to be stored under ``artifact_path`` of the run (None: at its top)."""
        parent = self.folder / "copies"
        parent.mkdir(exist_ok=True)
        copy = Path(tempfile.mkdtemp(dir=parent)) / source.name
        shutil.copyfile(source, copy)
        self.files.append({"copy": f"{copy.parent.name}/{copy.name}", "path": artifact_path})

    def add_status(self, status: str, time: int | None) -> None:
        """Add the run's status; ``time``, milliseconds since 1970, is when the run ended, and None while it runs."""
        self.records.append({"status": status, "time": time})
        if time is None:
            (self.folder / RUNNING).touch()
        else:
            (self.folder / RUNNING).unlink(missing_ok=True)

    def end_if_killed(self) -> None:
        """Add the status KILLED, as of the last entry, if the process that worked on the run did not end it.

        Holding the lock proves that it is gone.
        """
        if (self.folder / RUNNING).exists():
            self.add_status("KILLED", int((self.folder / "records.jsonl").stat().st_mtime * 1000))

    def copy_of(self, entry: Entry) -> Path:
        """Path of the copy that belongs to an entry of `files`."""
        return self.folder / "copies" / str(entry["copy"])

    def drop_copy(self, entry: Entry) -> None:
        """Remove the copy of a file that was sent."""
        shutil.rmtree(self.copy_of(entry).parent, ignore_errors=True)

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Record an entry that MLflow rejects as invalid, with the reason."""
        with self._refused_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "entry": entry}) + "\n")

    @property
    def refused(self) -> int:
        """Number of entries set aside."""
        if not self._refused_path.is_file():
            return 0
        with self._refused_path.open("rb") as file:
            return sum(1 for _ in file)

    @property
    def is_sent(self) -> bool:
        """Whether MLflow has everything."""
        return self.is_taken and self.refused == 0

    @property
    def is_taken(self) -> bool:
        """Whether MLflow has everything except what it rejected."""
        return self.records.is_empty and self.files.is_empty

    def left(self) -> str:
        """Human-readable count of unsent entries: ``312 metrics and 4 files``."""
        entries = [entry for entry, _ in self.records.read(1_000_000_000)]
        metrics = sum(len(entry.get("metrics", ())) for entry in entries)
        files = len(self.files.read(1_000_000_000))
        others = sum(1 for entry in entries if "metrics" not in entry)
        counted = [(metrics, "metric"), (files, "file"), (others, "note"), (self.refused, "refused entry")]
        parts = [f"{count} {_plural(word, count)}" for count, word in counted if count]
        return " and ".join(parts) or "nothing"

    def discard(self) -> None:
        """Delete the journal's contents."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Unlock the journal; remove it if MLflow has everything."""
        try:
            if self.is_sent:
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        """Release the lock; its file is removed with the folder, which a waiting process detects (filelock)."""
        try:
            if not self.folder.exists():
                Path(self._lock.lock_file).unlink(missing_ok=True)
        finally:
            self._lock.release()


def find_journals(parent: Path) -> list[Path]:
    """Folders of the journals below ``parent`` (``models/tracking``), sorted by name."""
    return sorted(note.parent for note in parent.glob(f"*/{RUN_FILE}"))


def _parse(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {UNREADABLE: line.decode(errors="replace")}


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
