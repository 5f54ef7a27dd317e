"""labelme's JSON files, one per image, with shapes in pixels of the upright image; also those of (X-)AnyLabeling.

labelme turns an image upright when it opens it (``LabelFile.load_image_file``). Shapes with the same label and
``group_id`` are one object, as in labelme's own converters (``examples/instance_segmentation``).
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact.formats.coco_rows import MAX_COORDINATE
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, all_files, data_root
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.image_index import ImageIndex, Match, repair_warnings
from yolact.formats.listing import (
    Outlined,
    files_below,
    found_image,
    frame_of,
    has_keys,
    listed,
    load_json,
    read_objects,
    without_annotations,
)
from yolact.formats.outlines import OutlineError, Part, Size, decoded_bitmap, ellipse, placed_mask, points, rectangle
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.split_names import folder_split

NAME = "labelme"

FOUND_BY = "a *.json with shapes and imagePath for each image"

INCLUDES: tuple[str, ...] = ()
READS = ()

OPEN_SHAPES = ("line", "linestrip", "point", "points")
"""Shapes without an area, which are no objects."""

LEFT_OUT = ("_background_", "__ignore__")
"""Labels of labelme's own class lists that name no class."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Folders with labelme's files."""
    return [folder for folder in folders if any(map(_is_labelme, sorted(folder.glob("*.json"))))]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the JSON files refer to their images by path."""
    return all_files(folders)


def _is_labelme(path: Path) -> bool:
    # The embedded image may be longer than what is searched, and come before the shapes.
    return has_keys(path, ("shapes", "label", "points"), ("shapes", "imagePath"), ("flags", "imageData"))


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """The images that labelme's files name; classes are the labels in alphabetical order.

    Raises:
        DataError: there are no labels, or only some of the images are in a split.
    """
    root = data_root(folders)
    index = ImageIndex(root)
    labels: set[str] = set()
    problems: dict[str, list[Problem]] = {}
    matches: dict[str, Match] = {}
    file_of: dict[str, str] = {}
    for folder in found:
        for path in filter(_is_labelme, sorted(folder.glob("*.json"))):
            file = path.relative_to(root).as_posix()
            faults: list[Problem] = []
            image_id = keep_problems(faults, lambda: _image_of(root, file, index, labels, matches))  # noqa: B023
            if image_id is not None and file_of.setdefault(image_id, file) != file:
                reason = f"is for {image_id}, as {file_of[image_id]} is; remove one of the two"
                faults.append(Problem(file, reason, "two annotation files for one image"))
            if faults:
                problems[file] = faults
    classes = sorted(labels)
    class_of = {label: place for place, label in enumerate(classes, 1)}
    sources = (
        (LabelmeImage(root, image_id, file, class_of), folder_split(file) or folder_split(image_id))
        for image_id, file in sorted(file_of.items())
    )
    place = found[0].relative_to(root).as_posix()
    warnings = repair_warnings(place, matches)
    warnings += without_annotations(files_below(root, folders, IMAGE_SUFFIXES), file_of, "a labelme file")
    warnings += _warn_of_numbers(place, classes)
    return listed(NAME, root, classes, sources, options, problems=problems, warnings=warnings)


def _image_of(root: Path, file: str, index: ImageIndex, labels: set[str], matches: dict[str, Match]) -> str:
    """The image of a labelme file, whose labels are added to ``labels``, and the name with its match to ``matches``.

    Raises:
        ProblemError: it is not JSON, or its image is not found.
    """
    tree = load_json(root, file)
    name = tree.get("imagePath") if isinstance(tree, dict) else None
    if not isinstance(name, str):
        raise ProblemError([Problem(file, "is not a labelme file (it has no imagePath); replace it", "damaged file")])
    match = index.find_all([name], file)[name]
    if match.files:
        matches[name] = match
    elif (own := _of_own_name(index, file)) is not None:
        matches[f"{name} in {file}"] = match = own
    labels.update(label for label, _ in _objects(_shapes(tree)))
    try:
        return found_image(name, match, file)
    except ProblemError as error:
        if not tree.get("imageData"):
            raise
        reason = f"{error.problems[0].reason}, or write the file's copy with `labelme_export_json {file}`"
        raise ProblemError([Problem(file, reason, error.problems[0].kind)]) from None


def _of_own_name(index: ImageIndex, file: str) -> Match | None:
    """The image beside a file that has its name, as after both were renamed."""
    stem = file.removesuffix(".json")
    found = index.find_all([stem], file)[stem].files
    if len(found) == 1 and posixpath.splitext(found[0])[0] == stem:
        return Match(found, "renamed")
    return None


def _warn_of_numbers(place: str, labels: Sequence[str]) -> list[Problem]:
    """A warning about labels that may number objects, as ``cat-1`` and ``cat-2`` did before labelme had groups."""
    numbered = defaultdict(list)
    for label in labels:
        if match := re.fullmatch("(.*[^-0-9])-[0-9]{1,3}", label):
            numbered[match[1]].append(label)
    several = [(name, found) for name, found in numbered.items() if len(found) > 1]
    if not several:
        return []
    name, found = several[0]
    reason = (
        f"the labels {', '.join(map(repr, found[:3]))} are classes of their own. If they number the objects of one "
        f"class, merge them: data.classes={{{', '.join(f'{label}: {name}' for label in found[:3])}, …}}, for all labels"
    )
    return [Problem(place, reason, "labels that may number objects")]


def _shapes(tree: Mapping[str, Any]) -> list[Any]:
    shapes = tree.get("shapes")
    return shapes if isinstance(shapes, list) else []


def _objects(shapes: Sequence[Any]) -> Iterator[tuple[str, list[tuple[int, Mapping[str, Any]]]]]:
    """Label and numbered shapes of each object: a shape, or all of a label in a group."""
    groups: dict[tuple[str, Any], list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for place, shape in enumerate(shapes, 1):
        if _fault(shape) is None:
            group = shape.get("group_id")
            own = group if isinstance(group, int | str) else ("alone", place)
            groups[shape["label"], own].append((place, shape))
    for (label, _), members in groups.items():
        yield label, members


def _fault(shape: Any) -> tuple[str, str] | None:
    """Why a shape is no object, and the kind of it; None if it is one."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        return "has no label; give it one", "shape without label"
    if shape["label"] in LEFT_OUT:
        return f"has the label {shape['label']}, which is no class; it is left out", f"label {shape['label']}"
    kind = shape.get("shape_type", "polygon")
    if kind in OPEN_SHAPES:
        return f"is a {kind}, which has no area; it is left out", f"{kind} without area"
    return None


@dataclass(frozen=True)
class LabelmeImage:
    """An image with its labelme file; an `ImageSource`."""

    root: Path
    image_id: str
    json_file: str
    """Relative to ``root``."""
    class_of: Mapping[str, int]
    """Class index (from 1) by label."""

    def read(self) -> AnnotatedImage:
        """Read the image and the shapes of its file."""
        tree = load_json(self.root, self.json_file)
        frame = frame_of(self.root, self.image_id, tree.get("imageWidth"), tree.get("imageHeight"))
        shapes = _shapes(tree)
        dropped = []
        for place, shape in enumerate(shapes, 1):
            if fault := _fault(shape):
                dropped.append(Problem(self.json_file, f"shape {place} {fault[0]}", fault[1]))
        objects = []
        for label, members in _objects(shapes):
            parts: list[Part] = []
            for place, shape in members:
                try:
                    parts.append(_outline(shape, frame.size))
                except OutlineError as error:
                    dropped.append(
                        Problem(self.json_file, f"shape {place} ({label}) {error}; draw it again", error.kind)
                    )
            if parts:
                objects.append(Outlined(f"shape {members[0][0]}", self.class_of[label], parts))
        return read_objects(self.root, self.image_id, self.json_file, frame, objects, dropped)


def _outline(shape: Mapping[str, Any], size: Size) -> Part:
    """A shape as a polygon or run lengths.

    Raises:
        OutlineError: it has an unknown type, or its points or its mask do not fit it.
    """
    kind = shape.get("shape_type") or "polygon"
    outline = points(shape.get("points"))
    if outline is None:
        raise OutlineError("has points that are not a list of x and y")
    if kind == "mask":
        if len(outline) != 4 or not all(abs(side) <= MAX_COORDINATE for side in outline):
            raise OutlineError("is a mask without the two corners of its box")
        return placed_mask(decoded_bitmap(shape.get("mask")), int(outline[0]), int(outline[1]), size)
    if kind == "circle":
        if len(outline) != 4:
            raise OutlineError("is a circle without its center and a point of its edge")
        cx, cy, x, y = outline
        radius = math.hypot(x - cx, y - cy)
        return ellipse(cx, cy, radius, radius)
    if kind == "rectangle" and len(outline) == 4:
        return rectangle(*outline)
    if kind in ("polygon", "rectangle", "rotation", "quadrilateral"):
        return outline
    raise OutlineError(f"has the shape_type {str(kind)[:20]!r}, which is unknown")
