"""Supervisely's projects: ``meta.json``, and data sets of ``img/NAME`` with ``ann/NAME.json``.

A bitmap is a PNG compressed with zlib, in base64, whose first pixel is at ``origin`` (Supervisely's documentation,
"Supervisely JSON format"). Polygons have an exterior and interiors, which are holes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolact.errors import DataError
from yolact.formats.coco_rows import MAX_COORDINATE
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, all_files, data_root, only_one
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.listing import (
    Outlined,
    files_below,
    frame_of,
    has_keys,
    listed,
    load_json,
    read_objects,
    without_annotations,
)
from yolact.formats.outlines import OutlineError, Part, Size, decoded_bitmap, number, placed_mask, points, with_holes
from yolact.formats.problems import Problem, ProblemError
from yolact.formats.split_names import folder_split

NAME = "Supervisely"

FOUND_BY = "meta.json, and below it folders img with the images and ann with a JSON for each"

INCLUDES: tuple[str, ...] = ()
READS = ()

OPEN_SHAPES = ("rectangle", "line", "point", "graph", "cuboid", "cuboid_2d")
"""Shapes that are no outlines, and of classes without outlines."""

SPLIT_TAGS = ("train", "val")
"""Tags that Supervisely's apps give images to name their split."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Folders of projects."""
    parents = [folder.parent for folder in folders if folder.name == "ann" and (folder.parent / "img").is_dir()]
    return [
        folder
        for folder in folders
        if any(parent.is_relative_to(folder) for parent in parents) and has_keys(folder / "meta.json", ("classes",))
    ]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files of the project except hidden ones."""
    return all_files(folders)


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """The annotated images of all data sets of the project; classes are those of ``meta.json`` that can have outlines.

    Raises:
        DataError: there are several projects, ``meta.json`` is damaged, or only some of the images are in a split.
    """
    project, root = only_one(found), data_root(folders)
    meta = _meta(root, (project / "meta.json").relative_to(root).as_posix())
    classes = list(
        dict.fromkeys(
            row["title"].strip() for row in _rows(meta.get("classes"), "title") if row.get("shape") not in OPEN_SHAPES
        )
    )
    class_of = {name: place for place, name in enumerate(classes, 1)}
    images = files_below(root, folders, IMAGE_SUFFIXES)
    annotations = [file for file in files_below(root, folders, (".json",)) if PurePosixPath(file).parent.name == "ann"]
    images = [file for file in images if PurePosixPath(file).parent.name == "img"]
    image_of = {_annotation(str(PurePosixPath(file).with_suffix(""))): file for file in images}  # of old projects
    image_of |= {_annotation(file): file for file in images}
    problems: dict[str, list[Problem]] = {}
    found_images: dict[str, str] = {}
    for file in annotations:
        if file in image_of:
            found_images[image_of[file]] = file
        else:
            reason = "has no image of its name in the folder img; add it, or remove the file"
            problems[file] = [Problem(file, reason, "image that is missing")]
    tags = {row["name"].strip().lower() for row in _rows(meta.get("tags"), "name")}
    tagged = _tagged(root, found_images) if tags.issuperset(SPLIT_TAGS) else {}
    sources = (
        (SuperviselyImage(root, image_id, file, class_of), tagged.get(image_id) or folder_split(image_id))
        for image_id, file in sorted(found_images.items())
    )
    warnings = without_annotations(images, found_images, "a file in ann")
    return listed(NAME, root, classes, sources, options, problems=problems, warnings=warnings)


def _meta(root: Path, file: str) -> Mapping[str, Any]:
    try:
        tree = load_json(root, file)
    except ProblemError as error:
        raise DataError(f"{root / file}: {error.problems[0].reason}.") from None
    if not isinstance(tree, dict):
        raise DataError(f"{root / file}: not a Supervisely project's meta.json. Export the project again.")
    return tree


def _rows(values: Any, key: str) -> list[Mapping[str, Any]]:
    """The rows of a list that have a text under a key."""
    rows = values if isinstance(values, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get(key), str)]


def _annotation(image: str) -> str:
    """The annotation file of an image."""
    path = PurePosixPath(image)
    return (path.parent.parent / "ann" / f"{path.name}.json").as_posix()


def _tagged(root: Path, found: Mapping[str, str]) -> dict[str, str]:
    """Split by image, if each image has exactly one of the tags; otherwise empty."""
    tagged = {}
    for image_id, file in found.items():
        try:
            tree = load_json(root, file)
        except ProblemError:
            continue  # reading the image reports it
        tags = {
            row["name"].strip().lower() for row in _rows(tree.get("tags") if isinstance(tree, dict) else None, "name")
        }
        own = tags.intersection(SPLIT_TAGS)
        if len(own) != 1:
            return {}
        tagged[image_id] = own.pop()
    return tagged


@dataclass(frozen=True)
class SuperviselyImage:
    """An image with its annotation file; an `ImageSource`."""

    root: Path
    image_id: str
    json_file: str
    """Relative to ``root``."""
    class_of: Mapping[str, int]
    """Class index (from 1) by name."""

    def read(self) -> AnnotatedImage:
        """Read the image and the objects of its file."""
        tree = load_json(self.root, self.json_file)
        if not isinstance(tree, dict) or not isinstance(tree.get("objects"), list):
            reason = "has no list of objects; export the project again"
            raise ProblemError([Problem(self.json_file, reason, "damaged annotation file")])
        stated = tree.get("size")
        width, height = (stated.get("width"), stated.get("height")) if isinstance(stated, dict) else (None, None)
        frame = frame_of(self.root, self.image_id, width, height)
        objects, dropped = [], []
        for place, row in enumerate(tree["objects"], 1):
            try:
                part = _outline(row, frame.size)
                title = row.get("classTitle")
                name = title.strip() if isinstance(title, str) else ""
                if name not in self.class_of:
                    reason = f"has the class {str(title)[:40]!r}, which meta.json does not list; correct it"
                    raise OutlineError(reason, "class that meta.json does not list")
                objects.append(Outlined(f"object {place}", self.class_of[name], [part]))
            except OutlineError as error:
                dropped.append(Problem(self.json_file, f"object {place} {error}", error.kind))
        return read_objects(self.root, self.image_id, self.json_file, frame, objects, dropped)


def _outline(row: Any, size: Size) -> Part:
    """An object's polygon or run lengths.

    Raises:
        OutlineError: it has none.
    """
    if not isinstance(row, dict):
        raise OutlineError("is not a JSON object; remove it", "damaged object")
    kind = row.get("geometryType")
    if kind in OPEN_SHAPES:
        raise OutlineError(f"is a {kind}, not an outline; it is left out", f"{kind} without outline")
    bitmap, shape = row.get("bitmap"), row.get("points")
    if isinstance(bitmap, dict):
        origin = bitmap.get("origin")
        left, top = (number(side) for side in origin) if isinstance(origin, list) and len(origin) == 2 else (1e9, 1e9)
        if not (abs(left) <= MAX_COORDINATE and abs(top) <= MAX_COORDINATE):
            raise OutlineError("has a bitmap without its origin; draw it again", "damaged bitmap")
        return placed_mask(decoded_bitmap(bitmap.get("data"), packed=True), int(left), int(top), size)
    exterior = points(shape.get("exterior")) if isinstance(shape, dict) else None
    if exterior is None or kind not in ("polygon", None):
        raise OutlineError(f"has the unknown shape {str(kind)[:20]!r}; it is left out", "unknown shape")
    interior = shape["interior"] if isinstance(shape, dict) and "interior" in shape else None
    holes = [points(hole) for hole in interior] if isinstance(interior, list) else []
    return with_holes(exterior, [hole for hole in holes if hole is not None])
