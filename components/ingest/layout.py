"""Which of a source's files are taken, and where they go: VOC, SBD and COCO layouts are told apart by looking."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolact.errors import DataError
from yolact.formats.coco import is_coco

VOC2012 = Path("VOCdevkit") / "VOC2012"
VOC_NEEDED = ("JPEGImages", "SegmentationClass", "SegmentationObject")
VOC_TAKEN = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets")
"""What later steps read; Annotations and ImageSets may be missing."""

SBD = Path("benchmark_RELEASE") / "dataset"
"""Where SBD's archive has its files (Hariharan et al. 2011, the release's README)."""
SBD_NEEDED = ("inst",)
SBD_TAKEN = ("img", "inst", "cls", "train.txt", "val.txt", "train_noval.txt")

SHOWN_FILES = 3
"""COCO files that a message names."""

MAX_DEPTH = 4
"""Folders below the source in which a layout is looked for."""


@dataclass(frozen=True)
class Taken:
    """Files that belong together."""

    origin: Path
    target: Path
    """Below the output folder."""
    names: tuple[str, ...]
    """Files and folders of ``origin``; those that are not there are left out."""


def _has_matlab(folder: Path) -> bool:
    return any(path.suffix.lower() == ".mat" for path in folder.iterdir())


def find_layout(folder: Path) -> list[Taken]:
    """What to take of a source's folder.

    Raises:
        DataError: it has none of the layouts; names what comes near and what that lacks. Or it has several data sets.
    """
    folders = list(_folders(folder))
    voc = [path for path in folders if _has_all(path, VOC_NEEDED)]
    sbd = [path for path in folders if _has_all(path, SBD_NEEDED) and _has_matlab(path / "inst")]
    coco = [path for place in folders for path in sorted(place.glob("*.json")) if is_coco(path)]
    if coco and (sbd or voc):
        raise _several(folder, [*sbd, *voc, *coco[:SHOWN_FILES]])
    if sbd:
        return _sbd(folder, sbd, folders)
    if voc:
        return [Taken(_only_one(folder, voc), VOC2012, VOC_TAKEN)]
    if coco:
        root = folder
        while len(inside := _visible(root)) == 1 and inside[0].is_dir():
            root = inside[0]
        return [Taken(root, Path(), tuple(path.name for path in _visible(root)))]
    raise DataError(_unknown(folder, folders))


def _sbd(folder: Path, found: list[Path], folders: list[Path]) -> list[Taken]:
    """SBD's annotations with their images: their own, or those of a VOC folder beside them."""
    root = _only_one(folder, found)
    taken = [Taken(root, SBD, SBD_TAKEN)]
    if not (root / "img").is_dir():
        images = [path for path in folders if (path / "JPEGImages").is_dir()]
        if not images:
            raise DataError(
                f"data.source: {root} has SBD's annotations, but neither it (in img) nor a VOC folder beside it (in "
                "JPEGImages) has the images. Add them."
            )
        taken.append(Taken(_only_one(folder, images), VOC2012, ("JPEGImages",)))
    return taken


def _only_one(folder: Path, found: list[Path]) -> Path:
    best = [path for path in found if path.name == VOC2012.name] if len(found) > 1 else found
    if len(best) != 1:
        raise _several(folder, found)
    return best[0]


def _several(folder: Path, found: list[Path]) -> DataError:
    listing = "\n".join(f"  {path}" for path in found)
    return DataError(
        f"data.source: {folder} holds more than one data set:\n{listing}\nName the folder of one, or take the rest out."
    )


def _unknown(folder: Path, folders: list[Path]) -> str:
    lines = []
    for path in folders:
        missing = [name for name in VOC_NEEDED if not (path / name).is_dir()]
        if len(missing) < len(VOC_NEEDED):
            lines.append(f"  {path} has no folder {', '.join(missing)}, which the VOC layout needs")
    found = "\n".join(lines) or f"  {folder} has: {', '.join(path.name for path in _visible(folder)[:10]) or 'nothing'}"
    return (
        f"data.source: {folder} is in no known layout.\n{found}\nLooked {MAX_DEPTH} folders deep for VOC's "
        f"({', '.join(VOC_NEEDED)}), SBD's (inst/*.mat, img) and COCO's (a .json file with images and annotations)."
    )


def _folders(root: Path, depth: int = 0) -> Iterator[Path]:
    """``root`` and the folders inside it, a VOC folder's own aside, nearest first within each branch."""
    yield root
    own = VOC_TAKEN if (root / "JPEGImages").is_dir() else ()
    if depth < MAX_DEPTH:
        for path in _visible(root):
            if path.is_dir() and path.name not in own:
                yield from _folders(path, depth + 1)


def _visible(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db")]


def _has_all(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_dir() for name in names)
