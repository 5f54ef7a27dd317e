"""The raw data set, as ingest leaves it for scan and preprocess: its files, or a reference to its source."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from yolact.errors import DataError
from yolact.files import replaced_directory, write_json_atomic
from yolact.formats.dataset import Annotations, Files
from yolact.formats.registry import dataset_files
from yolact.formats.sample import generate_sample
from yolact_ops.lineage.redaction import shown_source
from yolact_ops.settings.params import DataParams
from yolact_ops.sources.data_source import find_source, state_of
from yolact_ops.sources.local import Local, files_below, walk
from yolact_ops.transfer.archives import JUNK, unpack
from yolact_ops.transfer.disk import require_free_disk

log = logging.getLogger(__name__)

REFERENCE = ".reference.json"
"""File that stands for the data set in its folder; hidden, as no file of a data set is."""

_Folder = TypeVar("_Folder", Path, Path | None)

SHOWN_FAILURES = 5
"""Maximum number of files in an error message; the rest is counted."""


def write_reference(raw_dir: Path, fingerprint: str) -> None:
    """Write a reference to the source, in place of the data set, into a folder that need not exist.

    Args:
        raw_dir: the folder.
        fingerprint: the source's, see `yolact_ops.sources.state.State`.
    """
    raw_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(raw_dir / REFERENCE, {"fingerprint": fingerprint})


@contextmanager
def opened(raw_dir: _Folder, params: DataParams) -> Iterator[_Folder]:
    """The folder of the raw data set: ``raw_dir``, or if that has a reference, a temporary one that it is fetched into.

    Args:
        raw_dir: what ingest wrote; None if it is not needed, and the result is None.
        params: settings; those of `bring`.

    Raises:
        DataError: see `bring`; or the source has changed since the reference was written.
    """
    if raw_dir is None or not (reference := raw_dir / REFERENCE).is_file():
        yield raw_dir
        return
    shown = shown_source(params.data.source)
    expected = json.loads(reference.read_text(encoding="utf-8"))["fingerprint"]

    def check() -> None:
        if state_of(find_source(params.data)).fingerprint != expected:
            raise DataError(f"data.source: {shown} has changed since ingest identified it. Run the pipeline again.")

    check()
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / "raw"
        log.info("%s: fetching, as ingest has only referred to it", shown)
        bring(params, fetched, Path(folder) / "downloads")
        check()  # fetching takes long
        yield fetched


def bring(params: DataParams, raw_dir: Path, downloads_dir: Path) -> None:
    """Put the data set that ``data.source`` names into ``raw_dir``; see the step ingest."""
    source = find_source(params.data)
    if source is None:
        with replaced_directory(raw_dir) as folder:
            generate_sample(folder, params.data.sample)
        return
    found = source.fetch(downloads_dir)
    if found.is_dir():
        _bring_folder(found, raw_dir, params.data.annotations)
    else:
        if isinstance(source, Local):
            _refuse_shared_files(found, raw_dir)
        _bring_archive(found, raw_dir, params.data.annotations)


def _bring_folder(folder: Path, raw_dir: Path, annotations: Annotations) -> None:
    groups = dataset_files(folder, annotations)
    for group in groups:
        _refuse_shared_files(group.origin, raw_dir)
    places = [group.origin / name for group in groups for name in group.names]
    size = sum(path.stat().st_size for place in places for path in files_below(place))
    require_free_disk(raw_dir, size, f"copying {folder}")
    with replaced_directory(raw_dir) as target:
        for group in groups:
            _transfer(group, target, shutil.copyfile)


def _bring_archive(archive: Path, raw_dir: Path, annotations: Annotations) -> None:
    with replaced_directory(raw_dir) as target:
        unpacked = target / ".unpacked"
        unpack(archive, unpacked)
        try:
            groups = dataset_files(unpacked, annotations)
        except DataError as error:
            raise DataError(str(error).replace(str(unpacked), str(archive))) from None
        for group in groups:
            _transfer(group, target, os.replace)
        shutil.rmtree(unpacked)


def _refuse_shared_files(origin: Path, raw_dir: Path) -> None:
    """Refuse overlapping folders: a source inside the target would be deleted, one around it copied into itself."""
    source, target = origin.resolve(), raw_dir.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise DataError(
            f"data.source: {source} and this step's output {target} are the same folder, or one contains the other. "
            "Move the source out of it, and name its new path."
        )


def _transfer(files: Files, folder: Path, transfer: Callable[[str, str], object]) -> None:
    """Copy or move files into ``folder``; links become files, hidden files and junk are skipped.

    File modes are not copied: files from a read-only folder can be changed and removed.

    Raises:
        DataError: files cannot be copied (the first few are named); the target is then incomplete.
        OSError: a folder cannot be read or created.
    """
    origin, target = files.origin, folder / files.target
    target.mkdir(parents=True, exist_ok=True)
    failures = []
    for path in _paths_to_bring(files):
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            transfer(str(origin / path), str(copy))
        except OSError as error:
            failures.append(f"  {origin / path}: {error}")
    if failures:
        more = f"\n  and {len(failures) - SHOWN_FAILURES} more" if len(failures) > SHOWN_FAILURES else ""
        raise DataError(
            f"data.source: {len(failures)} files below {origin} could not be copied; nothing was changed. Check that "
            "they are readable and that the disk has room:\n" + "\n".join(failures[:SHOWN_FAILURES]) + more
        )


def _paths_to_bring(files: Files) -> Iterator[Path]:
    """Files and (possibly broken) links, relative to their origin; hidden files and folders and junk are skipped."""
    origin = files.origin
    for name in files.names:
        if not (origin / name).is_dir():
            yield from [Path(name)] if (origin / name).exists() else []
            continue
        for place, inside in walk(origin / name):
            paths = (place.relative_to(origin) / file for file in inside)
            yield from (path for path in paths if not any(_is_left_out(part) for part in path.parts[1:]))


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in JUNK
