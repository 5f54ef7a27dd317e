"""labelme's JSON files, one per image, with shapes in pixels of the upright image; also those of (X-)AnyLabeling.

labelme turns an image upright when it opens it (``LabelFile.load_image_file``). Shapes with the same label and
``group_id`` are one object, as in labelme's own converters (``examples/instance_segmentation``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolact.formats import coco
from yolact.formats.coco import CocoImage
from yolact.formats.dataset import AnnotatedImage, Dataset, Files
from yolact.formats.listing import (
    ImageNames,
    data_root,
    frame_size,
    listed,
    load_json,
    split_of,
    starts_with_keys,
    without,
)
from yolact.formats.outlines import OutlineError, Size, decoded_bitmap, ellipse, placed_mask, points, rectangle
from yolact.formats.problems import Problem, ProblemError, keep_problems

NAME = "labelme"

FOUND_BY = "a *.json with shapes and imagePath for each image"

INCLUDES: tuple[str, ...] = ()

OPEN_SHAPES = ("line", "linestrip", "point", "points")
"""Shapes without an area, which are no objects."""

LEFT_OUT = ("_background_", "__ignore__")
"""Labels of labelme's own class lists that name no class."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Folders with labelme's files."""
    return [folder for folder in folders if any(map(_is_labelme, sorted(folder.glob("*.json"))))]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the JSON files refer to their images by path."""
    return coco.files(found, folders)


def _is_labelme(path: Path) -> bool:
    # The embedded image may be longer than what is searched, and come before the shapes.
    keys = ((b"shapes", b"label", b"points"), (b"shapes", b"imagePath"), (b"flags", b"imageData"))
    return not path.name.startswith(".") and starts_with_keys(path, *keys)


def read(found: Sequence[Path], folders: Sequence[Path]) -> Dataset:
    """The images that labelme's files name; classes are the labels in alphabetical order.

    Raises:
        DataError: there are no labels, or only some of the images are in a split.
    """
    root = data_root(folders)
    images = ImageNames(root, folders)
    labels: set[str] = set()
    problems: dict[str, list[Problem]] = {}
    listed_images: dict[str, tuple[str, str | None]] = {}
    for folder in found:
        for path in filter(_is_labelme, sorted(folder.glob("*.json"))):
            file = path.relative_to(root).as_posix()
            faults: list[Problem] = []
            image_id = keep_problems(faults, lambda: _image_of(root, file, images, labels))  # noqa: B023
            if image_id in listed_images:
                reason = f"is for {image_id}, as {listed_images[image_id][0]} is; remove one of the two"
                faults = [Problem(file, reason, "two annotation files for one image")]
            if image_id is None or faults:
                problems[file] = faults
            else:
                folder_name = PurePosixPath(file).parent.as_posix()
                split = split_of(folder_name) or split_of(PurePosixPath(image_id).parent.as_posix())
                listed_images[image_id] = (file, split)
    classes = sorted(labels)
    class_of = {label: index for index, label in enumerate(classes, 1)}
    sources = (
        (LabelmeImage(root, image_id, file, class_of), split)
        for image_id, (file, split) in sorted(listed_images.items())
    )
    unused = images.unused(listed_images, "a labelme file")
    return listed(NAME, root, classes, sources, problems=problems, warnings=unused)


def _image_of(root: Path, file: str, images: ImageNames, labels: set[str]) -> str:
    """The image of a labelme file, whose labels are added to ``labels``.

    Raises:
        ProblemError: it is not JSON, or its image is not found.
    """
    tree = load_json(root, file)
    if not isinstance(tree, dict):
        raise ProblemError([Problem(file, "is not a labelme file; replace it", "not a labelme file")])
    near = PurePosixPath(file).parent.as_posix()
    try:
        image_id = images.find(tree.get("imagePath"), near, file)
    except ProblemError as error:
        if not tree.get("imageData"):
            raise
        reason = f"{error.problems[0].reason}, or write the file's copy with `labelme_export_json {file}`"
        raise ProblemError([Problem(file, reason, error.problems[0].kind)]) from None
    labels.update(label for label, _ in _objects(_shapes(tree)))
    return image_id


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
        shapes = _shapes(tree) if isinstance(tree, dict) else []
        size = frame_size(self.root, self.image_id, tree.get("imageWidth"), tree.get("imageHeight"))
        dropped = []
        for place, shape in enumerate(shapes, 1):
            if fault := _fault(shape):
                dropped.append(Problem(self.json_file, f"shape {place} {fault[0]}", fault[1]))
        rows = []
        for label, members in _objects(shapes):
            parts = []
            for place, shape in members:
                try:
                    parts.append(_segmentation(shape, size or (1, 1)))
                except OutlineError as error:
                    reason = f"shape {place} ({label}) {error}; draw it again"
                    dropped.append(Problem(self.json_file, reason, error.kind))
            if parts:
                segmentation = parts[0] if len(parts) == 1 and isinstance(parts[0], dict) else parts
                rows.append({"id": f"shape {members[0][0]}", "category_id": label, "segmentation": segmentation})
        image = CocoImage(self.root, self.image_id, self.json_file, size, tuple(rows), self.class_of)
        return without(image.read(), dropped)


def _segmentation(shape: Mapping[str, Any], size: Size) -> list[float] | dict[str, Any]:
    """A shape as a polygon or run lengths.

    Raises:
        OutlineError: it has an unknown type, or its points or its mask do not fit it.
    """
    kind = shape.get("shape_type") or "polygon"
    outline = points(shape.get("points"))
    if outline is None:
        raise OutlineError("has points that are not a list of x and y")
    if kind == "mask":
        if len(outline) != 4 or not all(abs(side) <= coco.MAX_COORDINATE for side in outline):
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
