"""CVAT's XML "CVAT for images 1.1": polygons, masks and ellipses of all images in one file.

A mask's ``rle`` are run lengths, row by row, within its box (``left``, ``top``, ``width``, ``height``); the first run
is outside the object (CVAT, ``cvat/apps/dataset_manager/formats/cvat.py``). Shapes with the same label and ``group_id``
are one object, as in CVAT's own COCO export; ``z_order`` hides nothing, as there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, all_files, data_root
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.image_index import ImageIndex, repair_warnings
from yolact.formats.listing import (
    Outlined,
    annotation_files,
    files_below,
    found_image,
    frame_of,
    listed,
    read_objects,
    without_annotations,
)
from yolact.formats.outlines import OutlineError, Part, Size, ellipse, placed_mask
from yolact.formats.problems import Problem, keep_problems
from yolact.formats.split_names import folder_split, split_of

NAME = "CVAT for images"

FOUND_BY = "*.xml with annotations of CVAT for images 1.1"

INCLUDES: tuple[str, ...] = ()
READS = ("annotations",)

HEAD = 4096
"""Bytes of an XML file that are searched for its first tags."""

NO_OUTLINE = {
    "box": "is a box, not an outline",
    "polyline": "is a line, which has no area",
    "points": "has points, which have no area",
    "cuboid": "is a cuboid, not an outline",
    "skeleton": "is a skeleton, not an outline",
}
"""Why a shape is no object, by tag."""

OUTLINES = ("polygon", "mask", "ellipse")
"""Tags of shapes that are objects."""

MAX_MASK = 1 << 28
"""Pixels of a mask's box; a larger one is a mistake."""

Shape = tuple[str, dict[str, str]]
"""Tag and attributes."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Files of CVAT for images."""
    return [path for folder in folders for path in sorted(folder.glob("*.xml")) if _is_cvat(path)]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the XML refers to its images by path."""
    return all_files(folders)


def _is_cvat(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return b"<annotations" in head and (b"<version>1" in head or b"<meta>" in head or b"<image " in head)


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """The images of all files; the classes are the labels that the files list.

    Raises:
        DataError: a file is not well-formed or a video's, two files have one image, or only some of the images are in a
            split.
    """
    root = data_root(folders)
    index = ImageIndex(root)
    labels: dict[str, None] = {}
    problems: dict[str, list[Problem]] = {}
    warnings: list[Problem] = []
    chosen: dict[str, tuple[str, str | None, _Entry]] = {}
    for path, split in annotation_files(root, found, options):
        file = path.relative_to(root).as_posix()
        entries = {entry.path: entry for entry in _entries(path, labels)}
        matches = index.find_all(list(entries), file)
        warnings += repair_warnings(file, matches)
        for name, entry in entries.items():
            faults: list[Problem] = []
            image_id = keep_problems(faults, lambda: found_image(name, matches[name], file))  # noqa: B023
            if image_id is None:
                problems[f"{file} {name}"] = faults
            elif image_id in chosen:
                raise DataError(
                    f"{root}: {image_id} is in {chosen[image_id][0]} and again in {file}. Choose one by the setting "
                    f"data.annotations, as [{file}], or remove the older one."
                )
            else:
                chosen[image_id] = (file, split_of(f"{entry.subset}/_") or split or folder_split(image_id), entry)
    class_of = {label: place for place, label in enumerate(labels, 1)}
    sources = (
        (CvatImage(root, image_id, file, entry.size, entry.shapes, class_of), split)
        for image_id, (file, split, entry) in sorted(chosen.items())
    )
    warnings += without_annotations(files_below(root, folders, IMAGE_SUFFIXES), chosen, "an <image> in the XML")
    return listed(NAME, root, list(labels), sources, options, problems=problems, warnings=warnings)


@dataclass(frozen=True)
class _Entry:
    """An ``<image>``."""

    name: str
    subset: str
    size: tuple[Any, Any]
    """Stated width and height."""
    shapes: tuple[Shape, ...]

    @property
    def path(self) -> str:
        """The name in the export's folder ``images``."""
        return f"{self.subset}/{self.name}" if self.subset else self.name


def _entries(path: Path, labels: dict[str, None]) -> Iterator[_Entry]:
    """The images of a file, which is read in parts; its labels are added to ``labels``.

    Raises:
        DataError: it is not well-formed, has a document type definition, or is a video's.
    """
    try:
        for _, element in defusedxml.ElementTree.iterparse(path, forbid_dtd=True):
            if element.tag == "label":
                if name := (element.findtext("name") or "").strip():
                    labels[name] = None
            elif element.tag == "track":
                raise DataError(f"{path}: has tracks of a video. Export the task from CVAT as `COCO 1.0`, with images.")
            elif element.tag == "image":
                shapes = tuple((str(child.tag), dict(child.attrib)) for child in element)
                named = (shape.get("label", "").strip() for tag, shape in shapes if tag in OUTLINES)
                labels |= dict.fromkeys(filter(None, named))
                size = (_whole(element.get("width")), _whole(element.get("height")))
                yield _Entry(element.get("name", ""), element.get("subset", ""), size, shapes)
                element.clear()
    except DefusedXmlException:
        raise DataError(
            f"{path}: has a document type definition (<!DOCTYPE>), which can hide attacks. Remove it."
        ) from None
    except DataError:  # a ValueError too
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not well-formed XML ({error}). Export it again.") from None


def _whole(text: str | None) -> int | None:
    """A whole number of at most 8 digits, as 12 or 12.00."""
    text = (text or "").strip().partition(".")[0] if (text or "").partition(".")[2].strip("0 ") == "" else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class CvatImage:
    """An image with its shapes; an `ImageSource`."""

    root: Path
    image_id: str
    xml_file: str
    """Relative to ``root``."""
    stated_size: tuple[Any, Any]
    """Width and height."""
    shapes: tuple[Shape, ...]
    """As in the file; text needs less memory than numbers."""
    class_of: Mapping[str, int]
    """Class index (from 1) by label."""

    def read(self) -> AnnotatedImage:
        """Read the image and turn its shapes into objects."""
        frame = frame_of(self.root, self.image_id, *self.stated_size)
        dropped = []
        objects: dict[Any, Outlined] = {}
        for place, (tag, shape) in enumerate(self.shapes, 1):
            label, group = shape.get("label", "").strip(), shape.get("group_id", "0")
            try:
                part = _outline(tag, shape, frame.size)
                if part is not None and label not in self.class_of:
                    raise OutlineError("has no label; give it one", "shape without label")
            except OutlineError as error:
                dropped.append(Problem(self.xml_file, f"{tag} {place} of {self.image_id} {error}", error.kind))
                continue
            if part is not None:
                key = (label, place if group in ("", "0") else f"group {group}")
                first = Outlined(f"{tag} {place}", self.class_of[label], [])
                objects.setdefault(key, first).parts.append(part)
        return read_objects(self.root, self.image_id, self.xml_file, frame, objects.values(), dropped)


def _outline(tag: str, shape: Mapping[str, str], size: Size) -> Part | None:
    """A shape as a polygon or run lengths; None if the element is none (a tag of the image).

    Raises:
        OutlineError: it has no outline.
    """
    if tag in NO_OUTLINE:
        raise OutlineError(f"{NO_OUTLINE[tag]}; it is left out", f"{tag} without outline")
    if tag == "polygon":
        return [_number(side) for point in shape.get("points", "").split(";") for side in point.split(",")]
    if tag == "ellipse":
        x, y, rx, ry = (_number(shape.get(side)) for side in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, rx, ry, math.radians(_number(shape.get("rotation", "0"))))
    if tag == "mask":
        return _mask(shape, size)
    return None


def _mask(shape: Mapping[str, str], size: Size) -> dict[str, Any]:
    left, top, width, height = (_whole(shape.get(side)) for side in ("left", "top", "width", "height"))
    runs = [_whole(run.strip()) for run in shape.get("rle", "").split(",")]
    if left is None or top is None or not width or not height or None in runs or width * height > MAX_MASK:
        raise OutlineError("has no run lengths, or no box in pixels; draw it again", "damaged mask")
    lengths = [run for run in runs if run is not None]
    if sum(lengths) != width * height:
        raise OutlineError("has run lengths that do not fill its box; draw it again", "damaged mask")
    values = np.arange(len(lengths)) % 2 == 1
    return placed_mask(np.repeat(values, lengths).reshape(height, width), left, top, size)
