"""YOLO segmentation data sets: a text file of normalized polygons per image, and ``data.yaml`` with the class names.

A line of a label file is ``CLASS X1 Y1 X2 Y2 ...``: the class counts from 0, coordinates are fractions of the upright
image's width and height (Ultralytics, "Instance Segmentation Datasets Overview"; ``verify_image_label`` and
``check_det_dataset`` of its ``ultralytics/data/utils.py`` say what is read). The label file of ``images/a.jpg`` is
``labels/a.txt``, or ``a.txt`` next to the image. A line of five numbers is a box.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, all_files, data_root, only_one
from yolact.formats.image_files import IMAGE_SUFFIXES
from yolact.formats.image_index import ImageIndex
from yolact.formats.listing import Outlined, files_below, found_image, listed, read_objects
from yolact.formats.outlines import OutlineError
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.split_names import folder_split

NAME = "YOLO segmentation"

FOUND_BY = "data.yaml with names, and *.txt of normalized polygons in a folder labels beside images, or next to them"

INCLUDES: tuple[str, ...] = ()
READS = ()

NAME_FILES = ("classes.txt", "obj.names")
"""Files with one class name per line, of tools that write no ``data.yaml`` (Label Studio, Darknet)."""

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Split by key of ``data.yaml``."""

MAX_YAML = 1 << 20
"""Bytes; a larger file lists no classes."""

OUTSIDE = 1.0
"""Tools let outlines leave the image; a coordinate farther outside than the image is wide is none. Our choice."""

LOOKED_AT = 20
"""Number of a folder's text files that are looked at to tell whether they are label files."""


# Find


def find(folders: Sequence[Path]) -> list[Path]:
    """Files like ``data.yaml`` and folders of label files; none without label files."""
    labels = [folder for folder in folders if _has_labels(folder)]
    if not labels:
        return []
    return [path for folder in folders for path in sorted(folder.glob("*.y*ml")) if _data_yaml(path)] + labels


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: lists and ``data.yaml`` refer to images by path."""
    return all_files(folders)


def _has_labels(folder: Path) -> bool:
    """Whether a folder has label files: in a folder named ``labels``, or next to images of the same name."""
    texts = sorted(folder.glob("*.txt"))
    if not texts:
        return False
    if "labels" not in (part.lower() for part in folder.parts):
        images = {path.stem for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        texts = [path for path in texts if path.stem in images]
    return any(_is_label_file(path) for path in texts[:LOOKED_AT])


def _is_label_file(path: Path) -> bool:
    """Whether a text file's first line is a class and at least four fractions."""
    words = next((line.split() for line in _head(path).splitlines() if line.strip()), [])
    values = [_value(word) for word in words]
    return len(values) >= 5 and values[0] >= 0 and all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values[1:])


def _head(path: Path) -> str:
    """A file's first 64 kB without the last word, which may be cut."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    text = head.decode("utf-8-sig", "replace")
    return text if len(head) < 1 << 16 else text.rpartition(" ")[0]


def _value(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _data_yaml(path: Path) -> dict[str, Any]:
    """Content of a file like ``data.yaml``, with all values as text; empty if it is something else."""
    try:
        if path.stat().st_size > MAX_YAML:
            return {}
        # Texts only: YAML 1.1 reads the class names `no` and `on` as booleans.
        text = path.read_text(encoding="utf-8-sig")
        tree = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes only texts, lists and mappings
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    usable = isinstance(tree, dict) and ("names" in tree or "nc" in tree) and any(key in tree for key in SPLIT_KEYS)
    return tree if usable else {}


# Read


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """The images that ``data.yaml`` names; without it, all images beside label files.

    An image without label file has no objects.

    Raises:
        DataError: the classes have no names, all objects are boxes or have keypoints, or no training images are found.
    """
    root = data_root(folders)
    settings = [path for path in found if path.is_file()]
    label_folders = [path for path in found if path.is_dir()]
    contents = {str(_data_yaml(path)): path for path in settings}  # copies count once
    tree, place = ({}, root) if not settings else (_data_yaml(path := only_one(list(contents.values()))), path)
    if "kpt_shape" in tree:
        raise DataError(f"{place}: these are keypoints (kpt_shape), but YOLACT needs outlines of objects.")
    warnings: list[Problem] = []
    names = _class_names(tree, place, root, folders, warnings)
    images = files_below(root, folders, IMAGE_SUFFIXES)
    problems: dict[str, list[Problem]] = {}
    split = _by_yaml(tree, place, root, folders, images, problems, warnings)
    split = split or _by_folder(root, label_folders, images)
    texts = set(files_below(root, folders, (".txt",)))
    label_of = {file: label for file in images if (label := _label_file(file, texts))}
    used = set(label_of.values())
    labels = [
        text
        for folder in label_folders
        for path in sorted(folder.glob("*.txt"))
        if (text := path.relative_to(root).as_posix()) in used or _is_label_file(path)
    ]
    _refuse_boxes(root, labels)
    orphans = [
        Problem(text, "is the label file of no image; add the image, or remove the file", "label file without image")
        for text in labels
        if text not in used
    ]
    unlisted = sorted(label_of.keys() - split.keys())
    if unlisted:
        reason = f"names no split of {len(unlisted)} images with label files, such as {unlisted[0]}; they are not used"
        warnings.append(Problem(place.name, reason, "images in no split"))
    # Names that are equal are one class.
    classes = list(dict.fromkeys(names.values()))
    index = {number: classes.index(name) + 1 for number, name in names.items()}
    sources = ((YoloImage(root, file, label_of.get(file), index), split[file]) for file in sorted(split))
    return listed(NAME, root, classes, sources, options, problems=problems, orphans=orphans, warnings=warnings)


def _class_names(
    tree: Mapping[str, Any], place: Path, root: Path, folders: Sequence[Path], warnings: list[Problem]
) -> dict[int, str]:
    """Class names by number, from ``data.yaml`` or a list in a file of its own."""
    stated = tree.get("names")
    if isinstance(stated, list) and all(isinstance(name, str) for name in stated):
        names = dict(enumerate(stated))
    elif isinstance(stated, dict) and all(_is_number(key) and isinstance(stated[key], str) for key in stated):
        names = dict(sorted((int(key), name) for key, name in stated.items()))
    elif stated is not None:
        raise DataError(f"{place}: names is neither a list of names nor numbers with names. Write names: [cat, dog].")
    else:
        lists = [folder / file for folder in folders for file in NAME_FILES if (folder / file).is_file()]
        texts = {_lines(path): path for path in lists}  # copies count once
        if len(texts) != 1:
            found = f" (there is more than one of: {', '.join(NAME_FILES)})" if texts else ""
            raise DataError(
                f"{root}: label files without the names of their classes{found}. Write a file data.yaml there, such as:"
                "\n  train: train/images\n  val: valid/images\n  names: [cat, dog]\nwith the names in the order of the "
                "numbers in the label files, and only `train` if there is no folder of validation images."
            )
        names = dict(enumerate(next(iter(texts))))
    names = {number: name.strip() for number, name in names.items()}
    count = tree.get("nc")
    if isinstance(count, str) and _is_number(count) and int(count) != len(names):
        warnings.append(Problem(place.name, f"has nc: {count}, but {len(names)} names", "nc and names differ"))
    return names


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 6


def _lines(path: Path) -> tuple[str, ...]:
    lines = [line.strip() for line in path.read_bytes().decode("utf-8-sig", "replace").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _by_yaml(
    tree: Mapping[str, Any],
    place: Path,
    root: Path,
    folders: Sequence[Path],
    images: Sequence[str],
    problems: dict[str, list[Problem]],
    warnings: list[Problem],
) -> dict[str, str | None]:
    """Split of each image that the entries of ``data.yaml`` name; empty if none of them is here."""
    split_of_image: dict[str, str | None] = {}
    for key, split in SPLIT_KEYS.items():
        entries = tree.get(key) or []
        missing = []
        named: set[str] = set()
        for entry in entries if isinstance(entries, list) else [entries]:
            found = _entry(entry, tree.get("path"), place, root, folders)
            if found is None:
                missing.append(str(entry)[:80])
            elif found.is_dir():
                inside = found.relative_to(root).as_posix()
                named.update(file for file in images if PurePosixPath(file).is_relative_to(inside))
            else:
                named.update(_listed_images(found, root, problems))
        again = named & split_of_image.keys()
        if named and named == again:
            reason = f"names the same images for {key} as for {split_of_image[next(iter(named))]}; they are used once"
            warnings.append(Problem(place.name, reason, "one split named twice"))
            continue
        if again:
            other = split_of_image[min(again)]
            raise DataError(
                f"{place}: images in both {key} and {other}: {len(again)}, such as {min(again)!r}. A model must not be "
                "evaluated on its training images: remove them from one."
            )
        if missing and split != "test" and not (named or split in split_of_image.values()):
            if split == "train":
                raise DataError(
                    f"{place}: {key}: {missing[0]}: no such folder or list below {root}. Correct the path, or name in "
                    "data.source a folder that has both data.yaml and the images."
                )
            reason = f"names {missing[0]} for {key}, which is not here; validation images are chosen from the others"
            warnings.append(Problem(place.name, reason, "missing split"))
        split_of_image |= dict.fromkeys(named, split)
    return split_of_image


def _entry(entry: Any, base: Any, place: Path, root: Path, folders: Sequence[Path]) -> Path | None:
    """The folder or list of an entry, relative to ``path`` or ``data.yaml``, or found by its last parts."""
    parts = _parts(entry)
    if not parts:
        return place.parent if entry in (".", "./") else None
    starts = (place.parent.joinpath(*_parts(base)), place.parent)
    for start in starts:
        for above in (start, *start.parents):
            path = above.joinpath(*parts)
            if path.is_relative_to(root) and _is_entry(path):
                return path
    for first in range(len(parts)):
        found = [path for folder in folders if _is_entry(path := folder.joinpath(*parts[first:]))]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _is_entry(path: Path) -> bool:
    """Whether a path is a folder or a list of images."""
    return os.path.isdir(path) or (path.suffix == ".txt" and os.path.isfile(path))


def _listed_images(path: Path, root: Path, problems: dict[str, list[Problem]]) -> Iterator[str]:
    """The images of a list; those that are missing go to ``problems``."""
    file = path.relative_to(root).as_posix()
    for line, match in ImageIndex(root).find_all(list(filter(None, _lines(path))), file).items():
        faults: list[Problem] = []
        image = keep_problems(faults, lambda: found_image(line, match, file))  # noqa: B023
        if image is None:
            problems[f"{file} {line}"] = faults
        else:
            yield image


def _parts(path: Any) -> list[str]:
    """Parts of a path of any machine, without drive, ``.`` and ``..``; none if it is no path."""
    parts = path.replace("\\", "/").split("/") if isinstance(path, str) else []
    return [part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part)]


def _by_folder(root: Path, label_folders: Sequence[Path], images: Sequence[str]) -> dict[str, str | None]:
    """Images beside the folders of label files, with the split that their folder names."""
    beside: set[str] = set()
    for folder in label_folders:
        place = folder.relative_to(root).as_posix()
        beside |= {place, _swapped(place, "labels", "images")}
    return {file: folder_split(file) for file in images if PurePosixPath(file).parent.as_posix() in beside}


def _swapped(path: str, old: str, new: str) -> str:
    """A path with the last part ``old`` replaced by ``new``; unchanged without such a part."""
    parts = list(PurePosixPath(path).parts)
    for place in reversed(range(len(parts))):
        if parts[place].lower() == old:
            return "/".join((*parts[:place], new, *parts[place + 1 :]))
    return path


def _label_file(image: str, texts: set[str]) -> str | None:
    """The label file of an image: in ``labels`` instead of ``images``, or next to it."""
    beside = PurePosixPath(image).with_suffix(".txt").as_posix()
    own = _swapped(beside, "images", "labels")
    return own if own in texts else beside if beside in texts and beside != own else None


def _refuse_boxes(root: Path, labels: Sequence[str]) -> None:
    """Refuse a data set whose lines all have five numbers."""
    boxes = 0
    for label in labels:
        counts = [len(line.split()) for line in (root / label).read_bytes().splitlines()]
        if any(count > 6 for count in counts):
            return
        boxes += sum(count == 5 for count in counts)
    if boxes:
        raise DataError(
            f"{root}: the label files have boxes only (5 numbers a line, {boxes} lines), but YOLACT learns outlines. "
            "Export the data set for instance segmentation; if the objects were drawn as boxes, draw outlines."
        )


@dataclass(frozen=True)
class YoloImage:
    """An image with its label file; an `ImageSource`."""

    root: Path
    image_id: str
    label_file: str | None
    """Relative to ``root``; None if the image has no objects."""
    class_of: Mapping[int, int]
    """Class index (from 1) by number in the label file."""

    def read(self) -> AnnotatedImage:
        """Read the image and the outlines of its label file."""
        file = self.label_file or self.image_id
        objects, dropped = [], []
        for number, line in self._lines():
            try:
                class_index, outline = _object(line, self.class_of)
                objects.append(Outlined(f"line {number}", class_index, [outline]))
            except OutlineError as error:
                dropped.append(Problem(file, f"line {number} {error}", error.kind))
        return read_objects(self.root, self.image_id, file, None, objects, dropped)

    def _lines(self) -> list[tuple[int, str]]:
        if self.label_file is None:
            return []
        try:
            text = (self.root / self.label_file).read_bytes().decode("utf-8-sig", "replace")
        except OSError as error:
            raise ProblemError([Problem(self.label_file, f"cannot be read ({error.strerror}); check it")]) from None
        return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _object(line: str, class_of: Mapping[int, int]) -> tuple[int, list[float]]:
    """Class index and outline of a line.

    Raises:
        OutlineError: it is a box, or anything but a class and an outline.
    """
    values = [_value(word) for word in line.split()]
    if not all(math.isfinite(value) for value in values):
        reason = f"is not numbers separated by spaces ({line.strip()[:40]!r}); correct or remove it"
        raise OutlineError(reason, "line that is not numbers")
    if values[0] not in class_of:
        reason = f"has the class {line.split()[0][:20]}, but the names count from 0 to {max(class_of, default=-1)}"
        raise OutlineError(f"{reason}; correct it", "class without name")
    if len(values) == 5:
        raise OutlineError("is a box (5 numbers), not an outline; it is left out", "box without an outline")
    if len(values) < 7 or len(values) % 2 == 0:
        reason = f"has {len(values) - 1} numbers after the class, not x and y of at least 3 points; correct it"
        raise OutlineError(reason, "line that is no outline")
    if not all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values[1:]):
        reason = "has coordinates that are not fractions of the image's width and height, from 0 to 1; divide them"
        raise OutlineError(reason, "coordinates that are not fractions")
    return class_of[int(values[0])], values[1:]
