"""VGG Image Annotator's JSON, versions 1 and 2: a project, or its export of regions ("Annotations (as json)").

Both hold a dictionary of images; each has ``filename``, ``size`` in bytes and ``regions`` (a list, or in version 1 a
dictionary), each with ``shape_attributes`` (pixels) and ``region_attributes`` (text by the user's own attributes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    has_keys,
    listed,
    load_json,
    read_objects,
    without_annotations,
)
from yolact.formats.outlines import OutlineError, ellipse, number, rectangle
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.split_names import folder_split

NAME = "VGG Image Annotator"

FOUND_BY = "*.json with regions and shape_attributes"

INCLUDES: tuple[str, ...] = ()
READS = ("annotations",)

CLASS_ATTRIBUTES = ("class", "classname", "class_name", "label", "labels", "category", "name", "object", "type")
"""Usual names of the attribute that has the class, in lower case."""

ONLY_CLASS = "object"
"""Name of the class of a data set without attributes."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Files of the annotator."""
    return [path for folder in folders for path in sorted(folder.glob("*.json")) if _is_via(path)]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the JSON files refer to their images by path."""
    return all_files(folders)


def _is_via(path: Path) -> bool:
    return has_keys(
        path, ("_via_img_metadata",), ("regions", "shape_attributes"), ("regions", "file_attributes", "filename")
    )


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """The images of all files; for the class of a region see `_class_attribute`.

    Raises:
        DataError: a file is damaged, it is not clear which attribute is the class, files contradict each other, or only
            some of the images are in a split.
    """
    root = data_root(folders)
    index = ImageIndex(root)
    warnings: list[Problem] = []
    problems: dict[str, list[Problem]] = {}
    chosen: dict[str, _Entry] = {}
    every: list[_Entry] = []
    for path, split in annotation_files(root, found, options):
        file = path.relative_to(root).as_posix()
        entries = _entries(root, file, split)
        every += entries
        matches = index.find_all([entry.name for entry in entries if isinstance(entry.name, str)], file)
        warnings += repair_warnings(file, matches)
        for entry in entries:
            match = matches.get(entry.name) if isinstance(entry.name, str) else None
            faults: list[Problem] = []
            image_id = keep_problems(faults, lambda: found_image(entry.name, match, file))  # noqa: B023
            if image_id is None:
                problems[f"{file} {entry.name}"] = faults
            elif chosen.setdefault(image_id, entry).regions != entry.regions:
                raise _contradiction(root, image_id, chosen[image_id], entry)
    attribute = _class_attribute(root, every, warnings)
    labels = sorted(
        {label for entry in every for region in entry.regions if (label := _class_of(region, attribute)) is not None}
    )
    class_of = {label: place for place, label in enumerate(labels, 1)}
    sources = (
        (
            ViaImage(root, image_id, entry.file, entry.regions, attribute, class_of),
            entry.split or folder_split(image_id),
        )
        for image_id, entry in sorted(chosen.items())
    )
    warnings += without_annotations(files_below(root, folders, IMAGE_SUFFIXES), chosen, "an entry in the project")
    return listed(NAME, root, labels, sources, options, problems=problems, warnings=warnings)


@dataclass(frozen=True)
class _Entry:
    """An image of a file."""

    file: str
    """Relative to the data set's folder."""
    split: str | None
    """That the file names."""
    name: Any
    """The image's name as written."""
    regions: tuple[Any, ...]


def _contradiction(root: Path, image_id: str, first: _Entry, second: _Entry) -> DataError:
    if first.file == second.file:
        return DataError(f"{root / first.file}: two entries for {image_id} differ. Remove one in the annotator.")
    return DataError(
        f"{root}: {first.file} and {second.file} have different regions for {image_id}. Choose one by the setting "
        f"data.annotations, as [{first.file}], or remove the older one."
    )


def _entries(root: Path, file: str, split: str | None) -> list[_Entry]:
    """The images of a file.

    Raises:
        DataError: it is not the annotator's.
    """
    try:
        tree = load_json(root, file)
    except ProblemError as error:
        raise DataError(f"{root / file}: {error.problems[0].reason}.") from None
    if isinstance(tree, dict) and "_via_img_metadata" in tree:
        tree = tree["_via_img_metadata"]
    if not isinstance(tree, dict) or not all(isinstance(row, dict) for row in tree.values()):
        raise DataError(
            f"{root / file}: not a project or export of regions of the VGG Image Annotator. Export it again."
        )
    entries = []
    for row in tree.values():
        regions = row.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        regions = tuple(regions) if isinstance(regions, list) else (regions,)
        entries.append(_Entry(file, split, row.get("filename"), regions))
    return entries


def _attributes(region: Any) -> dict[str, str]:
    """A region's attributes that have a text: typed, or the only one that is ticked."""
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    found = {}
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        if isinstance(value, dict):
            ticked = [option for option, state in value.items() if state]
            value = ticked[0] if len(ticked) == 1 else None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 1e9 else None
        if isinstance(value, str) and value.strip():
            found[name] = value.strip()
    return found


def _class_attribute(root: Path, entries: Sequence[_Entry], warnings: list[Problem]) -> str | None:
    """The attribute with the class: the only one, or the only one with a usual name; None if there is none at all.

    Raises:
        DataError: it is not clear.
    """
    counts = Counter(name for entry in entries for region in entry.regions for name in _attributes(region))
    if len(counts) <= 1:
        return next(iter(counts), None)
    usual = [name for name in counts if name.strip().lower() in CLASS_ATTRIBUTES]
    if len(usual) != 1:
        shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(10))
        raise DataError(
            f"{root}: it is not clear which attribute of the regions is the class: {shown}. In the annotator, remove "
            "the others (Attributes, Region Attributes), or rename it to `class`, and save the project again."
        )
    others = ", ".join(name for name in counts if name != usual[0])
    reason = f"regions have several attributes; {usual[0]} is taken as the class, not used: {others[:200]}"
    warnings.append(Problem(entries[0].file, reason, "attribute of the class"))
    return usual[0]


def _class_of(region: Any, attribute: str | None) -> str | None:
    return ONLY_CLASS if attribute is None else _attributes(region).get(attribute)


@dataclass(frozen=True)
class ViaImage:
    """An image with its regions; an `ImageSource`."""

    root: Path
    image_id: str
    json_file: str
    """Relative to ``root``."""
    regions: tuple[Any, ...]
    """As in the file."""
    attribute: str | None
    """The region attribute that has the class; None if there is only one class."""
    class_of: Mapping[str, int]
    """Class index (from 1) by name."""

    def read(self) -> AnnotatedImage:
        """Read the image and turn its regions into objects."""
        objects, dropped = [], []
        for place, region in enumerate(self.regions, 1):
            label = _class_of(region, self.attribute)
            try:
                outline = _outline(region)
                if label is None:
                    reason = f"has no value of the attribute {self.attribute}; choose one"
                    raise OutlineError(reason, "region without class")
                objects.append(Outlined(f"region {place}", self.class_of[label], [outline]))
            except OutlineError as error:
                dropped.append(Problem(self.json_file, f"region {place} of {self.image_id} {error}", error.kind))
        # Browsers show images upright since 2020.
        frame = frame_of(self.root, self.image_id)
        return read_objects(self.root, self.image_id, self.json_file, frame, objects, dropped)


def _outline(region: Any) -> list[float]:
    """A region's polygon.

    Raises:
        OutlineError: it has none.
    """
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        raise OutlineError("has no shape; remove it", "region without shape")
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise OutlineError("has no lists of x and y of one length; draw it again", "region without points")
        outline = [number(side) for point in zip(xs, ys, strict=True) for side in point]
        if kind == "polyline" and not (len(xs) > 3 and outline[:2] == outline[-2:]):
            raise OutlineError("is an open line, which has no area; it is left out", "open polyline without area")
        return outline
    if kind == "rect":
        x, y, width, height = (number(shape.get(side)) for side in ("x", "y", "width", "height"))
        return rectangle(x, y, x + width, y + height)
    if kind == "circle":
        x, y, radius = (number(shape.get(side)) for side in ("cx", "cy", "r"))
        return ellipse(x, y, radius, radius)
    if kind == "ellipse":
        x, y, rx, ry = (number(shape.get(side)) for side in ("cx", "cy", "rx", "ry"))
        return ellipse(x, y, rx, ry, number(shape.get("theta", 0)))
    if kind == "point":
        raise OutlineError("is a point, which has no area; it is left out", "point without area")
    raise OutlineError(f"has the unknown shape {str(kind)[:20]!r}; draw it again", "unknown shape")
