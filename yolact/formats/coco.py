"""COCO data sets from any source: instances JSON with polygons, run lengths and crowd regions, and their images.

`yolact.data.coco` reads the normalized form that preprocess writes; this module reads untrusted files. What a value
means is taken where it is certain, and said in a warning; what cannot be used is dropped or refused with its reason.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from yolact.errors import DataError
from yolact.formats.coco_categories import join_classes
from yolact.formats.coco_files import ImageRow, InstancesFile, StoredRows, is_coco, load_instances
from yolact.formats.coco_rows import CocoImage, RowReading, corner, fits_only, reaches_outside
from yolact.formats.dataset import Dataset, Files, ReadOptions, Split, all_files, archives, data_root
from yolact.formats.image_files import header_sizes
from yolact.formats.image_index import ImageIndex, repair_warnings
from yolact.formats.problems import Problem, ProblemError
from yolact.formats.split_names import split_of

NAME = "COCO"

FOUND_BY = "*.json with images, annotations and categories; the images anywhere in the folder"

INCLUDES: tuple[str, ...] = ()
READS = ("annotations", "crowds")

KEYPOINTS = "person_keypoints"
"""Name prefix of COCO's files of persons, which have outlines too; they are read if there are no others."""

OTHER_FILES = (KEYPOINTS, "captions", "image_info", "panoptic", "stuff")
"""Name prefixes of COCO's other files."""

BRUSH_TOOLS = r"\b(CVAT|datumaro|segment.?anything|SAM[ -]?2?)\b"
"""Tools that set ``iscrowd`` for every mask that is not a polygon, as a file's ``info`` may name them."""

UPRIGHT_TOOLS = r"\b(VGG Image Annotator|X-AnyLabeling)\b"
"""Tools that show images upright and draw in pixels of the upright image, as a file's ``info`` names them: VIA as
browsers since 2020, X-AnyLabeling as labelme."""

COCO_AUTHORS = "COCO Consortium"

COCO_IMAGE = r"(.*/)?(COCO_[a-z]+[0-9]+_)?0{6}[0-9]{6}\.jpg"
"""Names of the images of COCO itself; others copy its ``info``."""

MANY_CROWDS = 0.05
"""Share of crowd regions that is worth a warning; COCO has 1 %."""

MEASURED_IMAGES = 50
"""Number of images whose size is compared with their outlines, if the file states no size."""

COMPARED_IMAGES = 5
"""Number of images of one name in two parts of a data set that are compared."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Instances files: those named ``instances_*`` if there are any, otherwise those with such content."""
    files = _json_files(folders)
    named = [path for path in files if path.name.startswith("instances_")]
    return named or [path for path in files if is_coco(path)] or _json_files(folders, KEYPOINTS)


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """All files except hidden ones: the instances files refer to their images by path."""
    return all_files(folders)


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """See `read_coco`; ``data.annotations`` may also name files that `find` leaves out."""
    every = _json_files(folders)
    return read_coco(data_root(folders), found if options.annotations is None else every, options, every)


def _json_files(folders: Sequence[Path], begin: str = "") -> list[Path]:
    files = [
        folder / name for folder in folders for name in sorted(os.listdir(folder)) if name.lower().endswith(".json")
    ]
    others = (".", *(name for name in OTHER_FILES if name != begin))
    return [
        path for path in files if path.is_file() and path.name.startswith(begin) and not path.name.startswith(others)
    ]


def read_coco(root: Path, paths: Sequence[Path], options: ReadOptions, every: Sequence[Path] = ()) -> Dataset:
    """Read the data set of the chosen instances files below a folder.

    Args:
        root: the data set's folder.
        paths: the files to choose from.
        options: settings.
        every: all JSON files; those that are instances but are not read are named in a warning.

    Raises:
        DataError: a file is not instances JSON or has only boxes, it is not clear which files are meant, or the images
            are not found.
    """
    chosen, warnings = choose_files(root, paths, options.annotations)
    chosen = {split: chosen[split] for split in options.splits if split in chosen}
    if options.annotations is None:
        warnings += _left_out(root, paths, every)
    loaded = [
        (split, load_instances(path, path.relative_to(root).as_posix()))
        for split, found in chosen.items()
        for path in found
    ]
    every_file = [file for _, file in loaded]
    for file in every_file:
        _refuse_boxes(file)
    classes = join_classes(every_file)
    warnings += classes.warnings
    index = ImageIndex(root)
    splits: dict[str, list[CocoImage]] = {split: [] for split in chosen}
    numbers: dict[str, int | str] = {}
    problems: dict[str, list[Problem]] = {}
    orphans: list[Problem] = []
    parts: dict[str, list[tuple[InstancesFile, set[str]]]] = {split: [] for split in chosen}
    for (split, file), class_of in zip(loaded, classes.class_of, strict=True):
        problems |= file.problems
        orphans += _orphans(file)
        warnings += file.warnings
        rows_of = _rows_by_image(root, index, file, problems, warnings)
        reading = _reading(file, options, warnings)
        if not reading.normalized:
            _refuse_resized(root, file, rows_of)
            reading = replace(reading, sizes_as_stored=_sizes_as_stored(root, file, rows_of, warnings))
        for other, images_of_other in parts[split]:
            _refuse_same_images(root, file, rows_of, other, images_of_other)
        parts[split].append((file, set(rows_of)))
        for image_id, rows in rows_of.items():
            numbers[image_id] = rows[0].number
            size = next((row.size for row in rows if row.size is not None), None)
            stored = _stored(file, [row.number for row in rows])
            splits[split].append(CocoImage(root, image_id, file.name, size, stored, class_of, reading))
    return Dataset(
        NAME,
        str(root),
        classes.names,
        splits,
        problems,
        _image_ids(numbers),
        orphans,
        warnings,
        source_category_ids=classes.own_ids,
    )


# Which files


def _left_out(root: Path, paths: Sequence[Path], every: Sequence[Path]) -> list[Problem]:
    """A warning about instances files that are not read because others are named ``instances_*``."""
    if not any(path.name.startswith("instances_") for path in paths):
        return []
    names = [path.relative_to(root).as_posix() for path in every if path not in paths and is_coco(path)]
    if not names:
        return []
    reason = f"not read, as there are files named instances_*: {', '.join(names)}; data.annotations chooses"
    return [Problem(names[0], reason, "annotation files that are not read")]


def choose_files(
    root: Path, paths: Sequence[Path], annotations: Sequence[str] | Mapping[Split, Sequence[str]] | None
) -> tuple[dict[Split, list[Path]], list[Problem]]:
    """Files by split, as the setting ``data.annotations`` or else their names and folders say; with warnings.

    Raises:
        DataError: the setting names no file, or it is not clear which files are for training.
    """
    names = {path.relative_to(root).as_posix(): path for path in sorted(paths)}
    if isinstance(annotations, Mapping):
        by_split = {split: _matching(root, names, patterns) for split, patterns in annotations.items()}
        return {split: [names[name] for name in found] for split, found in by_split.items()}, []
    chosen = list(names) if annotations is None else _matching(root, names, annotations)
    found: dict[Any, list[str]] = defaultdict(list)
    for name in chosen:
        found[split_of(name)].append(name)
    unnamed, warnings = found.pop(None, []), []
    if unnamed and not found.keys() - {"test"}:
        found["train"] = unnamed
        if len(unnamed) > 1:
            reason = f"{len(unnamed)} files are read as parts of one data set: {', '.join(unnamed)}"
            warnings.append(Problem(unnamed[0], reason, "annotation files that are joined"))
    elif not unnamed and "train" not in found:
        only = "val" if "val" in found else "test"
        found["train"] = found.pop(only)
        reason = (
            f"is named {only}, but there is no other file: it is used for training, and validation images are split off"
        )
        warnings.append(Problem(found["train"][0], reason, "no annotation file for training"))
    elif unnamed:
        raise DataError(
            f"{root}: it is not clear which of these files is for training: {', '.join(chosen)}. Choose by the setting "
            f"data.annotations, as {{train: [{unnamed[0]}]}} or {{train: [A.json], val: [B.json]}}."
        )
    return {split: [names[name] for name in part] for split, part in found.items()}, warnings


def _matching(root: Path, names: Mapping[str, Path], patterns: Sequence[str]) -> list[str]:
    """Names that match any of the patterns, which may also begin above ``root`` or be only the end of a path."""
    matching: list[str] = []
    for pattern in patterns:
        parts = pattern.replace("\\", "/").removeprefix("./").split("/")
        tries = ["/".join(parts[start:]) for start in range(len(parts))]
        found = next((hits for text in tries if (hits := [name for name in names if fnmatchcase(name, text)])), None)
        found = found or [name for name in names if name.endswith(f"/{parts[-1]}")]
        if not found:
            listing = ", ".join(names) or "none"
            raise DataError(f"data.annotations: no JSON file below {root} is {pattern!r}. There are: {listing}.")
        matching += [name for name in found if name not in matching]
    return matching


def _refuse_same_images(
    root: Path, file: InstancesFile, own: Collection[str], other: InstancesFile, others: Collection[str]
) -> None:
    """Refuse two files of one split that list the same images, or copies of them: one is a copy or older."""
    shared = [image_id for image_id in own if image_id in others]
    if not shared:
        places = {posixpath.basename(image_id): image_id for image_id in others}
        pairs = [(image_id, places.get(posixpath.basename(image_id))) for image_id in own]
        tried = [(a, b) for a, b in pairs if b is not None][:COMPARED_IMAGES]
        equal = [a for a, b in tried if filecmp.cmp(root / a, root / b, shallow=False)]
        shared = equal if 2 * len(equal) > len(tried) else []
    if shared:
        raise DataError(
            f"{other.path} and {file.name} list the same images, such as {shared[0]!r}. Choose one by the setting "
            f"data.annotations, as [{other.name}]; or, if each has a part of the objects, merge them into one file."
        )


# The rows of a file


def _refuse_boxes(file: InstancesFile) -> None:
    """Refuse a file of boxes only."""
    if file.annotations and not file.outlines:
        raise DataError(
            f"{file.path}: none of its {file.annotations} annotations has an outline (segmentation): these are "
            "boxes, for object detection. YOLACT learns outlines: draw polygons or masks, or export them."
        )


def _reading(file: InstancesFile, options: ReadOptions, warnings: list[Problem]) -> RowReading:
    """What holds for all rows of a file; says what is not as COCO has it."""
    info = file.info if isinstance(file.info, dict) else {}
    objects = _crowds_are_objects(file, info, options, warnings)
    if file.normalized:
        reason = "all coordinates are between 0 and 1: they are taken as fractions of the image's width and height"
        warnings.append(Problem(file.name, reason, "normalized coordinates", changed=True))
    shown_upright = True if re.search(UPRIGHT_TOOLS, str(info)) else None
    if info.get("contributor") == COCO_AUTHORS and all(re.fullmatch(COCO_IMAGE, row.name) for row in file.images):
        shown_upright = False  # its tools, pycocotools among them, show images as stored
    return RowReading(objects, file.normalized, info.get("contributor") == "Label Studio", shown_upright)


def _crowds_are_objects(
    file: InstancesFile, info: Mapping[str, Any], options: ReadOptions, warnings: list[Problem]
) -> bool:
    """Whether ``iscrowd`` marks objects: CVAT and tools around SAM set it for all masks that are not polygons."""
    if not file.crowds or options.crowds != "auto":
        return options.crowds == "objects"
    from_cvat = file.cvat_masks == file.crowds and not any(info.values())
    from_tool = from_cvat or re.search(BRUSH_TOOLS, str(info), re.IGNORECASE) is not None
    objects = 2 * file.crowds > file.annotations or from_tool
    share = f"{file.crowds} of {file.annotations} annotations have iscrowd 1"
    if objects:
        reason = f"{share}: they are read as objects; data.crowds: regions reads them as regions that are not learned"
        warnings.append(Problem(file.name, reason, "iscrowd read as objects"))
    elif file.crowds > MANY_CROWDS * file.annotations:
        reason = f"{share}: they are read as regions that are not learned; data.crowds: objects reads them as objects"
        warnings.append(Problem(file.name, reason, "many crowd regions"))
    return objects


def _stored(file: InstancesFile, numbers: Sequence[int | str]) -> StoredRows:
    """The annotations of an image, which may have several rows of ``images``."""
    known = file.ids_of
    found = [file.rows_of[one] for number in numbers for one in known[number] if one in file.rows_of]
    if len(found) == 1:
        return found[0]
    starts = np.concatenate([rows.starts for rows in found] or [np.zeros(0, np.uint64)])
    lengths = np.concatenate([rows.lengths for rows in found] or [np.zeros(0, np.uint32)])
    return StoredRows(file.path, starts, lengths)


def _orphans(file: InstancesFile) -> Iterator[Problem]:
    """A problem for each annotation that belongs to no image."""
    known = {one for ids in file.ids_of.values() for one in ids}
    for number, rows in file.rows_of.items():
        if number in known or number in file.rejected:
            continue
        if number is None:
            reason = "an annotation has no image_id; write which image it belongs to, or remove it"
        else:
            reason = f"an annotation has image_id {number!r:.80}, which no row of images has; add it, or remove this"
        yield from [Problem(file.name, reason, "annotation of no image")] * len(rows.starts)


# Images


def _rows_by_image(
    root: Path, index: ImageIndex, file: InstancesFile, problems: dict[str, list[Problem]], warnings: list[Problem]
) -> dict[str, list[ImageRow]]:
    """The usable rows of ``images`` by the file they name; the others go to ``problems``.

    Raises:
        DataError: no image is found.
    """
    found = index.find_all([row.name for row in file.images], file.name)
    rows_of: dict[str, list[ImageRow]] = defaultdict(list)
    missing: dict[str, list[Problem]] = {}
    for row in file.images:
        try:
            image_id = found[row.name].only(file.name, f"image {row.number} is named {row.name!r:.120}")
        except ProblemError as error:
            missing[f"{file.name} image {row.number}"] = list(error.problems)
        else:
            rows_of[image_id].append(row)
    if missing and not rows_of:
        reason = next(iter(missing.values()))[0].reason
        packed = archives(root)
        advice = f" Unpack {' and '.join(packed[:3])} in its folder." if packed else ""
        raise DataError(f"{file.path}: none of its {len(file.images)} images is found below {root}: {reason}.{advice}")
    problems |= missing
    warnings += repair_warnings(file.name, found)
    repeated = [image_id for image_id, rows in rows_of.items() if len(rows) > 1]
    if repeated:
        reason = f"{len(repeated)} images have several rows, such as {repeated[0]!r}; their objects are joined"
        warnings.append(Problem(file.name, reason, "image in several rows", changed=True))
    return rows_of


def _refuse_resized(root: Path, file: InstancesFile, rows_of: Mapping[str, Sequence[ImageRow]]) -> None:
    """Refuse a file that states no sizes if its outlines are those of larger images."""
    unsized = [(image_id, rows) for image_id, rows in rows_of.items() if all(row.size is None for row in rows)]
    tried = outside = 0
    for image_id, rows in unsized[:: max(1, len(unsized) // MEASURED_IMAGES)]:
        outer = corner(_stored(file, [row.number for row in rows]))
        frames = header_sizes(root / image_id) if outer is not None else None
        if outer is not None and frames is not None:
            tried += 1
            outside += all(reaches_outside(outer, frame) for frame in frames)
    if 2 * outside > tried:
        raise DataError(
            f"{file.path}: outlines lie outside the image in {outside} of {tried} images, and no width and height are "
            "stated: the images were probably resized after they were annotated. Use the annotated images, or scale "
            "the outlines with them."
        )


def _sizes_as_stored(
    root: Path, file: InstancesFile, rows_of: Mapping[str, Sequence[ImageRow]], warnings: list[Problem]
) -> bool:
    """Whether stated sizes are those of the images as stored, but outlines are drawn on upright ones.

    So does COCO Annotator: its server reads the size without EXIF orientation, but browsers show images upright.
    """
    sized = [(image_id, rows) for image_id, rows in rows_of.items() if any(row.size for row in rows)]
    for image_id, rows in sized[:: max(1, len(sized) // MEASURED_IMAGES)]:
        stored, upright = header_sizes(root / image_id) or ((1, 1), (1, 1))
        if stored == upright or not any(row.size == stored for row in rows):
            continue
        if fits_only(corner(_stored(file, [row.number for row in rows])), upright, stored):
            reason = (
                f"states the sizes of the images as stored, but the outlines of {image_id} fit only the upright image: "
                "in images with EXIF orientation, outlines decide"
            )
            warnings.append(Problem(file.name, reason, "sizes of the images as stored"))
            return True
    return False


def _image_ids(numbers: Mapping[str, Any]) -> dict[str, int]:
    """The files' own image ids if they are integers from 1 and unique, otherwise 1, 2, … in the images' order."""
    own = list(numbers.values())
    if all(isinstance(number, int) and number >= 1 for number in own) and len(set(own)) == len(own):
        return dict(numbers)
    return {image_id: number for number, image_id in enumerate(sorted(numbers), 1)}
