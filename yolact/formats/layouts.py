"""Which layout a folder of annotated images has, told by looking: PASCAL VOC, Semantic Boundaries or COCO."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats.coco import is_coco, read_coco
from yolact.formats.convert import VocImage, image_numbers
from yolact.formats.images import PHOTO_SUFFIXES
from yolact.formats.instances import ImageSource, Layout
from yolact.formats.problems import Problem, writable
from yolact.formats.sbd import SbdImage
from yolact.formats.voc import SEGMENTATION_SETS, has_image, read_image_list

log = logging.getLogger(__name__)

MAX_DEPTH = 5
"""Folders below the one that is looked through."""

CROWDED = 200
"""Folders with more files than this hold images: no layout starts inside them."""

OTHER_COCO_FILES = ("person_keypoints", "captions", "image_info", "panoptic", "stuff")
"""How COCO's files that hold no instances begin."""


def find_layout(folder: Path) -> Layout:
    """Find the annotated data set below ``folder`` and list its images; none of them is read yet.

    A folder with ``SegmentationObject`` or ``SegmentationClass`` is PASCAL VOC; one with ``inst/*.mat`` is Semantic
    Boundaries, whose images are in its ``img`` or in a PASCAL VOC beside it; JSON files are COCO.

    Raises:
        DataError: there is none or more than one, or its lists of images are faulty.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Run the step `ingest` first: it brings the raw data there.")
    places = _folders(folder)
    voc = [
        place
        for place in places
        if any((place / name).is_dir() for name in ("SegmentationObject", "SegmentationClass"))
    ]
    sbd = [place for place in places if _stems(place / "inst", ".mat")]
    coco = [] if voc or sbd else _instances_files(places)
    if sbd:
        return _with_writable_names(_sbd_layout(_only(folder, sbd), places))
    if voc:
        return _with_writable_names(_voc_layout(_only(folder, voc)))
    if coco:
        return _with_writable_names(read_coco(folder, coco))
    raise DataError(
        f"{folder}: holds no annotated images. Looked for the folders SegmentationObject and SegmentationClass (PASCAL "
        "VOC), for inst/*.mat (Semantic Boundaries) and for *.json with instances (COCO). Check data.source."
    )


def _with_writable_names(layout: Layout) -> Layout:
    """Images whose names cannot be written into JSON and pages become problems."""
    names = [source.image_id for sources in layout.splits.values() for source in sources]
    faulty = {name for name in names if writable(name) != name}
    reason = "has a name that is not UTF-8; rename it and its annotations, as with `convmv -f latin1 -t utf8`"
    return replace(
        layout,
        splits={
            split: [source for source in sources if source.image_id not in faulty]
            for split, sources in layout.splits.items()
        },
        problems={**layout.problems, **{writable(name): [Problem(name, reason)] for name in sorted(faulty)}},
    )


def _folders(folder: Path) -> list[Path]:
    """``folder`` and the folders below it in which a layout may start, in the order of their names."""
    found = []
    for path, names, files in os.walk(folder):
        place = Path(path)
        if len(files) <= CROWDED or any(name.endswith(".json") for name in files):
            found.append(place)
        deep = len(place.relative_to(folder).parts) >= MAX_DEPTH
        names[:] = [] if deep else sorted(name for name in names if not name.startswith((".", "__MACOSX")))
    return sorted(found)


def _only(folder: Path, places: Sequence[Path]) -> Path:
    if len(places) > 1:
        listed = ", ".join(str(place.relative_to(folder)) for place in places)
        raise DataError(f"{folder}: holds more than one data set: {listed}. Let data.source name one of them.")
    return places[0]


def _instances_files(places: Sequence[Path]) -> list[Path]:
    """Those named as COCO's are, or else those with such content, or else any: `read_coco` says what they lack."""
    files = [path for place in places for path in sorted(place.glob("*.json"))]
    files = [path for path in files if not path.name.startswith((".", *OTHER_COCO_FILES))]
    named = [path for path in files if path.name.startswith("instances_")]
    return named or [path for path in files if is_coco(path)] or files


def _voc_layout(root: Path) -> Layout:
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        if not (root / part).is_dir():
            raise DataError(f"{root / part}: no such folder, but the VOC layout needs it. Check data.source.")
    masks = root / "SegmentationObject"
    ids = _listed(root / SEGMENTATION_SETS, partial(has_image, root, "JPEGImages"))
    warnings: list[Problem] = []
    if not ids:
        ids = {"train": _stems(masks, ".png")}
        if not ids["train"]:
            raise DataError(f"{masks}: holds no *.png. Each image needs a mask there and one in SegmentationClass.")
        warnings = _unused_images(root / "JPEGImages", ids["train"], "a mask in SegmentationObject")
    splits = {split: [VocImage(root, name) for name in names] for split, names in ids.items()}
    return _voc_like("PASCAL VOC", root, splits, warnings)


def _sbd_layout(root: Path, places: Sequence[Path]) -> Layout:
    image_folders = [(root, "img"), *((place, "JPEGImages") for place in places)]
    found = next(((place, name) for place, name in image_folders if (place / name).is_dir()), None)
    if found is None:
        raise DataError(
            f"{root}: Semantic Boundaries annotations without images. Put them into {root / 'img'}, or PASCAL VOC's "
            "JPEGImages beside the annotations."
        )
    ids = _listed(root, partial(has_image, *found))
    warnings: list[Problem] = []
    if not ids:
        ids = {"train": _stems(root / "inst", ".mat")}
        warnings = _unused_images(found[0] / found[1], ids["train"], "annotations in inst")
    splits = {split: [SbdImage(root, *found, name) for name in names] for split, names in ids.items()}
    return _voc_like("Semantic Boundaries", root, splits, warnings)


def _stems(folder: Path, *suffixes: str) -> list[str]:
    """Names, without ending, of the files in a folder that have one of the endings, in any case; sorted."""
    if not folder.is_dir():
        return []
    names = (os.path.splitext(name) for name in os.listdir(folder) if not name.startswith("."))
    return sorted({stem for stem, suffix in names if suffix.lower() in suffixes})


def _listed(folder: Path, exists: Callable[[str], bool]) -> dict[str, list[str]]:
    """Image ids by split: of ``train.txt`` and ``val.txt``, or of the file that lists all; empty where none does.

    Args:
        folder: holds them.
        exists: whether there is a image of an id.
    """
    if (folder / "val.txt").is_file() or (folder / "train.txt").is_file():
        names = [name for name in ("train", "val") if name == "train" or (folder / "val.txt").is_file()]
        return {name: read_image_list(folder / f"{name}.txt", name, exists) for name in names}
    if (folder / "trainval.txt").is_file():
        return {"train": read_image_list(folder / "trainval.txt", "train", exists)}
    return {}


def _unused_images(folder: Path, used: Sequence[str], lacking: str) -> list[Problem]:
    """A warning about the images in a folder that have no annotations, where no list says which images are meant."""
    known = {unicodedata.normalize("NFC", name) for name in used}
    unused = [name for name in _stems(folder, *PHOTO_SUFFIXES) if unicodedata.normalize("NFC", name) not in known]
    if not unused:
        return []
    reason = (
        f"images without {lacking} are not used: {len(unused)}, such as {unused[0]!r}; images that show no object can "
        "be learned from too: give them annotations without one"
    )
    log.warning("%s: %s", folder, reason)
    return [Problem(folder.name, reason)]


def _voc_like(
    name: str, root: Path, splits: Mapping[str, Sequence[ImageSource]], warnings: Sequence[Problem]
) -> Layout:
    ids = {source.image_id for sources in splits.values() for source in sources}
    return Layout(name, str(root), dict(enumerate(VOC_CLASSES, 1)), splits, {}, image_numbers(ids), warnings=warnings)
