"""COCO data sets from any source: instances JSON with polygons, RLE masks and crowd regions, and a folder of images.

`yolact.data.coco` reads the normalized form that preprocess writes; this module reads untrusted files and reports every
problem in them.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from pycocotools import mask as mask_utils

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions
from yolact.formats.image_files import image_warnings, read_image_file, stored_form
from yolact.formats.instances import Box, Instance
from yolact.formats.problems import Problem, ProblemError, keep_problems, writable

NAME = "COCO"

FOUND_BY = "*.json with images, annotations and categories; the images next to it, or in a folder named images"

INCLUDES: tuple[str, ...] = ()

OTHER_FILES = ("person_keypoints", "captions", "image_info", "panoptic", "stuff")
"""Name prefixes of COCO's files without instances."""

MAX_COORDINATE = 100_000
"""Pixels; a polygon with a larger coordinate is a mistake (and slow to rasterize)."""

MAX_OUTLINE = 2_000_000
"""Length of a polygon, pixels: pycocotools allocates some 80 bytes for each and does not check for failure. Our choice:
more than a hundred times the outline of a 12-megapixel image."""

BOX_AGREES_IOU = 0.5
"""Minimum IoU of a stated box and the mask's tight box; below it, the tight box is used. Our choice."""

AREA_AGREES = 2.0
"""Maximum ratio of a stated area and the mask's pixel count; beyond it, the pixel count is used. Our choice: COCO's
areas are those of the polygons, which differ slightly from the pixel counts."""

SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Split by the word in a file's or folder's name that indicates it."""

TRIED_IMAGES = 20
"""Number of a file's images that are looked for in each candidate image folder."""


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO data set with its rows of ``annotations``; an `ImageSource`."""

    root: Path
    image_id: str
    """The image's file, relative to ``root``."""
    json_file: str
    """Relative to ``root``."""
    stated_size: tuple[int, int] | None
    """Width and height stated in the JSON."""
    annotations: tuple[Any, ...]
    class_of: Mapping[Any, int]
    """Class index (from 1) by the file's own category id."""

    def read(self) -> AnnotatedImage:
        """Read the image and turn the rows into instances."""
        image = read_image_file(self.root, self.image_id)
        size = self.stated_size or image.stored_size
        if size not in (image.stored_size, image.upright_size):
            wide, high = image.stored_size
            reason = f"says that {self.image_id} is {size[0]} x {size[1]} pixels, but it is {wide} x {high}; correct it"
            raise ProblemError([Problem(self.json_file, reason)])
        problems: list[Problem] = []
        warnings: list[Problem] = [*image_warnings(image, size != image.stored_size)]
        instances = []
        for number, row in enumerate(self.annotations, 1):
            found = _RowProblems(self.json_file, f"{_row_name(row, number)} of {self.image_id}")
            instance = keep_problems(problems, lambda: _instance(row, number, size, self.class_of, found))  # noqa: B023
            warnings += found.warnings
            if instance is not None:
                instances.append(instance)
        if problems:
            raise ProblemError(problems)
        return AnnotatedImage(self.image_id, image, *size, tuple(instances), tuple(warnings))


@dataclass
class _RowProblems:
    """Problems and warnings of one row of ``annotations``."""

    file: str
    row: str
    warnings: list[Problem] = field(default_factory=list)

    def warn(self, reason: str) -> None:
        self.warnings.append(Problem(self.file, f"{self.row} {reason}"))

    def problem(self, reason: str) -> ProblemError:
        return ProblemError([Problem(self.file, f"{self.row} {reason}")])


def _row_name(row: Any, number: int) -> str:
    return f"annotation {row['id']!r}" if isinstance(row, dict) and "id" in row else f"annotation number {number}"


def _instance(
    row: Any, number: int, size: tuple[int, int], class_of: Mapping[Any, int], found: _RowProblems
) -> Instance | None:
    """One row of ``annotations`` as an instance; None, with a warning, if its mask is empty.

    Raises:
        ProblemError: the row cannot be used.
    """
    if not isinstance(row, dict):
        raise found.problem("is not a JSON object; correct or remove it")
    category = row.get("category_id")
    if not _is_id(category) or category not in class_of:
        raise found.problem(f"has category_id {category!r}, which is not in categories; correct it")
    crowd = row.get("iscrowd", 0)
    if not _is_number(crowd) or crowd not in (0, 1):
        raise found.problem(f"has iscrowd {crowd!r}; write 0 or 1")
    counts = _counts(row.get("segmentation"), size, found)
    rle = {"size": [size[1], size[0]], "counts": counts}
    pixels = int(mask_utils.area(rle))
    if not pixels:
        found.warn("has a mask without a pixel inside the image; it is skipped")
        return None
    tight = cast(Box, tuple(int(side) for side in mask_utils.toBbox(rle)))
    box = tight if crowd else _box(row.get("bbox"), tight, size, found)
    return Instance(
        number, class_of[category], box, _area(row.get("area"), pixels), size[1], size[0], counts, bool(crowd)
    )


def _counts(segmentation: Any, size: tuple[int, int], found: _RowProblems) -> str:
    """Compressed RLE of a segmentation in any of COCO's three forms."""
    width, height = size
    if isinstance(segmentation, dict):
        runs = _runs(segmentation, size, found)
        return str(mask_utils.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode())
    if not isinstance(segmentation, list) or not segmentation:
        raise found.problem("has no mask (segmentation is missing or empty); draw its outline, or remove the row")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise found.problem("has a polygon that is not a list of x, y for at least 3 points; correct its outline")
        if not all(_is_number(value) and abs(value) <= MAX_COORDINATE for value in polygon):
            raise found.problem(f"has a polygon with a value that is not a number up to {MAX_COORDINATE}; correct it")
        if len(polygon) * max(map(abs, polygon)) > MAX_OUTLINE and _outline_length(polygon) > MAX_OUTLINE:
            raise found.problem(f"has a polygon whose outline is longer than {MAX_OUTLINE} pixels; correct it")
    merged = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return str(merged["counts"].decode())


def _outline_length(polygon: list[float]) -> float:
    """Rasterization steps of a closed polygon, pixels: the sum over its edges of the larger of width and height."""
    points = np.reshape(polygon, (-1, 2))
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _runs(segmentation: dict[str, Any], size: tuple[int, int], found: _RowProblems) -> list[int]:
    """Run lengths, checked to add up to the image's pixels; otherwise pycocotools accesses memory outside the mask."""
    width, height = size
    if segmentation.get("size") != [height, width]:
        stated = segmentation.get("size")
        raise found.problem(
            f"has run lengths of size {stated!r}, but its image has [{height}, {width}]; redraw its mask"
        )
    runs = segmentation.get("counts")
    if isinstance(runs, str):
        runs = decompressed_runs(runs)
    whole = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not whole or sum(cast(list[int], runs)) != height * width:
        raise found.problem(f"has run lengths that do not add up to {height * width} pixels; redraw its mask")
    return cast(list[int], runs)


def decompressed_runs(text: str) -> list[int] | None:
    """Decode COCO's compressed run lengths; None if the text is damaged.

    Five bits per character, lowest first, plus 48; bit 5 is the continuation flag, bit 4 of the last is the sign; from
    the fourth number on, each is the difference to the number two places before (pycocotools, ``rleToString``).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


def _box(stated: Any, tight: Box, size: tuple[int, int], found: _RowProblems) -> Box:
    """The stated box, clipped to the image, if it fits the mask; otherwise the tight one."""
    if stated is None:
        return tight
    if not (isinstance(stated, list) and len(stated) == 4 and all(_is_number(side) for side in stated)):
        found.warn("has a bbox that is not a list of four numbers; the mask's tight box is used")
        return tight
    x0, y0 = max(stated[0], 0), max(stated[1], 0)
    x1, y1 = min(stated[0] + stated[2], size[0]), min(stated[1] + stated[3], size[1])
    inside = (x0, y0, x1 - x0, y1 - y0)
    if x1 <= x0 or y1 <= y0 or _iou(inside, tight) < BOX_AGREES_IOU:
        found.warn(f"has the bbox {stated}, which does not fit its mask; the mask's tight box {list(tight)} is used")
        return tight
    return inside


def _iou(a: Box, b: Box) -> float:
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    overlap = max(wide, 0) * max(high, 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


def _area(stated: Any, pixels: int) -> float:
    return stated if _is_number(stated) and pixels / AREA_AGREES <= stated <= pixels * AREA_AGREES else pixels


def _is_number(value: Any) -> bool:
    """Whether a JSON value can be a coordinate or an area: finite, and not an integer too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


# Files


def find(folders: Sequence[Path]) -> list[Path]:
    """Instances files: those named ``instances_*`` if there are any, otherwise those with such content."""
    files = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.is_file()]
    files = [path for path in files if not path.name.startswith((".", *OTHER_FILES))]
    return [path for path in files if path.name.startswith("instances_")] or [path for path in files if is_coco(path)]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the instances files refer to their images by path."""
    root = _root(folders)
    return [Files(root, Path(), tuple(path.name for path in _visible(root)))]


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """See `read_coco`."""
    return read_coco(_root(folders), found)


def _root(folders: Sequence[Path]) -> Path:
    """The outermost searched folder, below any that hold only another folder."""
    root = folders[0]
    while len(inside := _visible(root)) == 1 and inside[0].is_dir():
        root = inside[0]
    return root


def _visible(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder))
    return [folder / name for name in names if not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db")]


def is_coco(path: Path) -> bool:
    """Whether a JSON file mentions images and annotations; without parsing it, as it may have half a gigabyte."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b'"images"') >= 0 and data.find(b'"annotations"') >= 0


@dataclass(frozen=True)
class _Instances:
    """One instances file; its lists and categories are checked, its rows are not."""

    path: Path
    images: list[Any]
    annotations: list[Any]
    categories: dict[Any, str]
    """Name by the file's own category id."""


def read_coco(root: Path, files: Sequence[Path]) -> Dataset:
    """Read the data set of all instances files below a folder.

    Raises:
        DataError: a file is not instances JSON, files contradict each other, or the images are not found.
    """
    by_split = _by_split(root, files)
    loaded = {split: [_load(path) for path in paths] for split, paths in by_split.items()}
    every = [instances for group in loaded.values() for instances in group]
    classes = _classes(every)
    index_of = {name: index for index, name in enumerate(classes.values(), 1)}
    splits: dict[str, list[CocoImage]] = {}
    problems: dict[str, list[Problem]] = {}
    orphans: list[Problem] = []
    numbers: dict[str, Any] = {}
    for split, group in loaded.items():
        splits[split] = []
        seen: dict[str, str] = {}
        for instances in group:
            for image, number in _images(root, instances, index_of, problems, orphans, seen):
                splits[split].append(image)
                numbers[image.image_id] = number
    return Dataset(NAME, str(root), classes, splits, problems, _image_ids(numbers), orphans)


def _by_split(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by split, according to their names or else their folders; a single file may name no split."""
    by_split: dict[str, list[Path]] = {}
    unnamed = []
    for path in sorted(files):
        split = _split_of(path.relative_to(root))
        if split is None:
            unnamed.append(path)
        else:
            by_split.setdefault(split, []).append(path)
    by_split.pop("test", None)
    if unnamed and not by_split and len(unnamed) == 1:
        return {"train": unnamed}
    if unnamed or "train" not in by_split:
        found = ", ".join(path.relative_to(root).as_posix() for path in sorted(files))
        raise DataError(
            f"{root}: it is not clear which instances files are for training: {found}. Put `train` and `val` into the "
            "names of the files or their folders, or keep a single file, which is then split."
        )
    return by_split


def _split_of(path: Path) -> str | None:
    for part in reversed(path.with_suffix("").parts):
        found = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def _load(path: Path) -> _Instances:
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}. Replace the file.") from None
    parts = [tree.get(name) if isinstance(tree, dict) else None for name in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) for part in parts):
        raise DataError(f"{path}: not COCO instances JSON: it needs the lists images, annotations and categories.")
    images, annotations, rows = cast(list[list[Any]], parts)
    categories: dict[Any, str] = {}
    for place, row in enumerate(rows):
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name.strip() or writable(name) != name or not _is_id(row.get("id")):
            raise DataError(f"{path}: categories[{place}] needs an id and a name, but is {str(row)[:80]}. Correct it.")
        if row["id"] in categories or name in categories.values():
            raise DataError(
                f"{path}: categories[{place}] repeats the id {row['id']!r} or the name {name!r}. Correct it."
            )
        categories[row["id"]] = name
    if not categories:
        raise DataError(f"{path}: categories is empty. List the classes there, each with an id and a name.")
    return _Instances(path, images, annotations, categories)


def _classes(files: Sequence[_Instances]) -> dict[int, str]:
    """Name by category id: the files' own ids if all are integers from 1 and agree, otherwise 1, 2, …"""
    merged: dict[Any, str] = {}
    for instances in files:
        for number, name in instances.categories.items():
            if merged.setdefault(number, name) != name:
                raise DataError(
                    f"{instances.path}: category id {number!r} is {name!r} here and {merged[number]!r} in another "
                    "file. Give each class one id."
                )
    names = list(merged.values())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{files[0].path.parent}: the class {twice!r} has two category ids. Give each class one id.")
    if all(isinstance(number, int) and number >= 1 for number in merged):
        return dict(sorted(merged.items()))
    return dict(enumerate((merged[number] for number in sorted(merged, key=lambda n: (isinstance(n, str), n))), 1))


def _images(
    root: Path,
    instances: _Instances,
    index_of: Mapping[str, int],
    problems: dict[str, list[Problem]],
    orphans: list[Problem],
    seen: dict[str, str],
) -> Iterator[tuple[CocoImage, Any]]:
    """The file's images with their numbers; rejected ones go to ``problems``, orphan annotations to ``orphans``.

    Args:
        root: the data set's folder.
        instances: the file.
        index_of: class index by name.
        problems: appended to. The annotations of a rejected image are dropped with it.
        orphans: appended to.
        seen: file of each of the split's images so far, by image id; added to.
    """
    file = instances.path.relative_to(root).as_posix()

    def refuse(place: str, reason: str) -> None:
        problems[f"{file} {place}"] = [Problem(file, f"{place} {reason}")]

    usable: dict[Any, dict[str, Any]] = {}
    refused: set[Any] = set()
    for place, row in enumerate(instances.images):
        reason = _image_fault(row, usable)
        if reason is None:
            usable[row["id"]] = row
        else:
            refuse(f"images[{place}]", reason)
            if isinstance(row, dict) and _is_id(row.get("id")):
                refused.add(row["id"])
    rows_of: dict[Any, list[Any]] = {number: [] for number in usable}
    for place, row in enumerate(instances.annotations):
        number = row.get("image_id") if isinstance(row, dict) else None
        if _is_id(number) and number in rows_of:
            rows_of[number].append(row)
        elif not (_is_id(number) and number in refused):
            orphans.append(Problem(file, f"annotations[{place}] {_unknown_image(number, rows_of)}"))
    folder = _image_folder(root, instances, [row["file_name"] for row in usable.values()])
    class_of = {number: index_of[name] for number, name in instances.categories.items()}
    for number, row in usable.items():
        name = stored_form(folder, row["file_name"]) or row["file_name"]
        image_id = (folder / name).relative_to(root).as_posix()
        if image_id in seen:
            where = "" if seen[image_id] == file else f" in {seen[image_id]}, whose objects would be lost"
            fix = "remove one" if seen[image_id] == file else "put the image's annotations into one file"
            refuse(f"image {number!r}", f"has the file_name {row['file_name']!r} of another image{where}; {fix}")
            continue
        seen[image_id] = file
        size = (row["width"], row["height"]) if "width" in row and "height" in row else None
        yield CocoImage(root, image_id, file, size, tuple(rows_of[number]), class_of), number


def _image_fault(row: Any, usable: Mapping[Any, Any]) -> str | None:
    """Why a row of ``images`` cannot be used; None if it can."""
    if not isinstance(row, dict) or row.get("id") is None:
        return "has no id; give it one"
    if not _is_id(row["id"]):
        return f"has the id {str(row['id'])[:80]}; write a whole number"
    if row["id"] in usable:
        return f"has the id {row['id']!r} of another image; give each its own"
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        return "has no file_name; name its image"
    if "\\" in name:
        return f"has the file_name {name[:80]!r}; replace each backslash with /"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return f"has the file_name {name[:80]!r}, which leaves the folder of images; correct it"
    for side in ("width", "height"):
        if side in row and not (isinstance(row[side], int) and not isinstance(row[side], bool) and row[side] > 0):
            return f"has the {side} {row[side]!r}, which is not a number of pixels; correct it"
    return None


def _unknown_image(number: Any, known: Collection[Any]) -> str:
    """What is wrong with an unknown ``image_id``; says so if only its type differs."""
    same: Any = None
    if isinstance(number, int):
        same = str(number)
    elif number.is_integer() if isinstance(number, float) else re.fullmatch("[0-9]{1,18}", str(number)):
        same = int(number)
    shown = repr(number)[:80]
    if same in known:
        return f"has image_id {shown}, but images has the id {same!r}; write both as the same whole number"
    return f"has image_id {shown}, which no usable row of images has; correct it"


def _image_folder(root: Path, instances: _Instances, names: Sequence[str]) -> Path:
    """The folder that file names are relative to: of the usual places, the one with most of the first images."""
    stem = instances.path.stem.removeprefix("instances_")
    split = _split_of(instances.path.relative_to(root))
    above = [instances.path.parent, *(p for p in instances.path.parents if p.is_relative_to(root))]
    inner = [
        f"{images}/{part}".strip("/") for part in (stem, split or "", "") for images in ("", "images", "JPEGImages")
    ]
    places = list(dict.fromkeys(base / part for base in above for part in inner))
    tried = names[:TRIED_IMAGES]
    best = max(places, key=lambda place: sum(stored_form(place, name) is not None for name in tried))
    if tried and not any(stored_form(best, name) for name in tried):
        looked = ", ".join(place.relative_to(root).as_posix() for place in places if place.is_dir())
        raise DataError(
            f"{instances.path}: none of its first {len(tried)} images, such as {tried[0]!r}, is in any of these "
            f"folders of {root}: {looked}. Put the images into `images`, or next to the file."
        )
    return best


def _image_ids(numbers: Mapping[str, Any]) -> dict[str, int]:
    """The files' own image ids if they are integers from 1 and unique, otherwise 1, 2, … in the images' order."""
    own = list(numbers.values())
    if all(isinstance(number, int) and number >= 1 for number in own) and len(set(own)) == len(own):
        return dict(numbers)
    return {image_id: number for number, image_id in enumerate(sorted(numbers), 1)}
