"""The ingest step: bring the photos and their annotations, in VOC layout, to ``data/raw/VOCdevkit/VOC2012``.

The source (``data.source``) is ``sample``, which is generated here, or a folder in VOC layout, which is copied.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from components.common.command import run_command
from yolact.config import Params
from yolact.data.sample import generate_sample
from yolact.data.voc import SEGMENTATION_SETS
from yolact.errors import DataError
from yolact.files import replaced_directory

log = logging.getLogger(__name__)

VOC2012 = Path("VOCdevkit") / "VOC2012"
NEEDED_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", SEGMENTATION_SETS)
COPIED_FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets")
"""What later steps read; Annotations may be missing."""


def run(params: Params, *, raw_dir: Path) -> None:
    """Put the raw data set into ``raw_dir``, whole or not at all; what was there is replaced.

    Args:
        params: ``data.source`` and, for ``sample``, ``data.sample`` are read.
        raw_dir: gets ``VOCdevkit/VOC2012``.

    Raises:
        DataError: the source is no folder, has no VOC layout, cannot be read, or shares files with ``raw_dir``.
    """
    source = params.data.source
    if source == "sample":
        with replaced_directory(raw_dir) as folder:
            generate_sample(folder, params.data.sample)
    else:
        root = find_voc2012(_source_folder(source))
        _refuse_shared_files(root, raw_dir)
        with replaced_directory(raw_dir) as folder:
            _copy_voc2012(root, folder / VOC2012)
    files = [path for path in (raw_dir / VOC2012).rglob("*") if path.is_file()]
    photos = sum(path.parent.name == "JPEGImages" for path in files)
    size = sum(path.stat().st_size for path in files)
    log.info("%s: %d photos, %d bytes in %s", source, photos, size, raw_dir / VOC2012)


def find_voc2012(folder: Path) -> Path:
    """The VOC2012 folder: ``folder`` itself, or inside it ``VOC2012`` or ``VOCdevkit/VOC2012``.

    Raises:
        DataError: none of the three has the folders of the VOC layout; names what each of them lacks.
    """
    lacks = []
    for candidate in (folder / VOC2012, folder / VOC2012.name, folder):
        missing = [name for name in NEEDED_FOLDERS if not (candidate / name).is_dir()]
        if not missing:
            return candidate
        what = f"has no folder {', '.join(missing)}" if candidate.is_dir() else "is no folder"
        lacks.append(f"  {candidate} {what}")
    raise DataError(
        f"data.source: {folder} is not in VOC layout. Looked for {', '.join(NEEDED_FOLDERS)} in three places:\n"
        + "\n".join(lacks)
        + "\nName the folder that holds VOCdevkit/VOC2012, or VOCdevkit, or VOC2012."
    )


def _source_folder(source: str) -> Path:
    supported = "Supported are `sample` and a folder in VOC layout."
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if "://" in source:
        raise DataError(f"data.source: {source!r} is an address. {supported} Download it and name the folder.")
    if folder.exists():
        raise DataError(f"data.source: {source!r} is not a folder. {supported} Unpack an archive and name its folder.")
    raise DataError(f"data.source: {source!r} does not exist (looked for {folder.absolute()}). {supported}")


def _refuse_shared_files(root: Path, raw_dir: Path) -> None:
    """Replacing ``raw_dir`` would delete a source inside it, and a source around it would be copied into itself."""
    source, target = root.resolve(), raw_dir.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise DataError(
            f"data.source: {source} and the output {target} of this step are one folder, or one holds the other. "
            "Move the source out of it, and name the new place."
        )


def _copy_voc2012(source: Path, target: Path) -> None:
    """Copy the folders that later steps read; links become files of their own.

    Raises:
        DataError: files cannot be copied (the first few are named); the target is then incomplete.
        OSError: a folder cannot be read or made.
    """
    target.mkdir(parents=True)
    for name in COPIED_FOLDERS:
        if not (source / name).is_dir():
            continue
        try:
            shutil.copytree(source / name, target / name, copy_function=shutil.copyfile)
        except shutil.Error as error:
            failures = [f"  {path}: {reason}" for path, _, reason in error.args[0]]
            more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
            raise DataError(
                f"data.source: {len(failures)} files below {source / name} could not be copied; nothing was changed. "
                "Check that they can be read and that the disk has room:\n" + "\n".join(failures[:5]) + more
            ) from error


if __name__ == "__main__":
    run_command("ingest", lambda params: run(params, raw_dir=Path("data/raw")))
