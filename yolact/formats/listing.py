"""What the formats of annotation tools share: listing images by split, and reading one image with its objects."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from yolact.errors import DataError
from yolact.formats import coco
from yolact.formats.coco_rows import MAX_COORDINATE, CocoImage, RowReading
from yolact.formats.dataset import AnnotatedImage, Dataset, ImageSource, ReadOptions, image_numbers, unused_images
from yolact.formats.image_files import header_sizes
from yolact.formats.image_index import Match
from yolact.formats.outlines import Part, Size, number
from yolact.formats.problems import Problem, ProblemError, writable
from yolact.formats.split_names import split_of

HEAD = 1 << 16
"""Bytes of a JSON file that are searched for the keys of a format."""


# Files


def files_below(root: Path, folders: Sequence[Path], suffixes: tuple[str, ...]) -> list[str]:
    """Files of the folders in ``root`` with one of the suffixes (lower case), relative to it, sorted."""
    return sorted(
        (folder / name).relative_to(root).as_posix()
        for folder in folders
        if folder.is_relative_to(root)
        for name in os.listdir(folder)
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )


def has_keys(path: Path, *alternatives: tuple[str, ...]) -> bool:
    """Whether all keys of one of the alternatives are in a JSON file's first `HEAD` bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return any(all(f'"{key}"'.encode() in head for key in keys) for keys in alternatives)


def load_json(root: Path, file: str) -> Any:
    """Read a JSON file.

    Raises:
        ProblemError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads((root / file).read_bytes())
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the file"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({error}); replace the file"
    raise ProblemError([Problem(file, reason, "file that is not JSON")])


def annotation_files(root: Path, found: Sequence[Path], options: ReadOptions) -> list[tuple[Path, str | None]]:
    """The annotation files to read, each with the split that ``data.annotations`` or its path names.

    Raises:
        DataError: ``data.annotations`` names none of them.
    """
    if options.annotations is None:
        return [(path, split_of(path.relative_to(root).as_posix())) for path in found]
    chosen, _ = coco.choose_files(root, found, options.annotations)
    return [(path, split) for split, paths in chosen.items() for path in paths]


# Lists of images


def found_image(name: Any, match: Match | None, file: str) -> str:
    """The image that an annotation file names, see `Match.only`."""
    return (match or Match(())).only(file, f"names the image {str(name)[:80]!r}")


def without_annotations(files: Iterable[str], used: Collection[str], lacking: str) -> list[Problem]:
    """A warning about those images that a tool's files do not name, see `unused_images`."""
    unused = [file for file in files if file not in used]
    folder = PurePosixPath(unused[0]).parent.as_posix() if unused else ""
    return unused_images(folder, unused, lacking, "save them in the tool")


def listed(
    name: str,
    root: Path,
    classes: Sequence[str],
    images: Iterable[tuple[ImageSource, str | None]],
    options: ReadOptions,
    *,
    problems: Mapping[str, Sequence[Problem]] | None = None,
    orphans: Sequence[Problem] = (),
    warnings: Sequence[Problem] = (),
) -> Dataset:
    """A data set of images with the splits that they name; all are for training if none names one.

    Args:
        name: the format's name.
        root: the data set's folder.
        classes: names; their ids are 1, 2, ...
        images: the images, each with its split, if it names one.
        options: settings.
        problems: see `Dataset`.
        orphans: see `Dataset`.
        warnings: see `Dataset`.

    Raises:
        DataError: there are no classes, or only some of the images name a split.
    """
    for label in classes:
        if not label.strip() or writable(label) != label:
            raise DataError(f"{root}: a class has the name {writable(label)!r}. Give it a name.")
    if not classes:
        raise DataError(f"{root}: {name} without a single object, so it has no classes. Annotate objects.")
    by_split, doubts = _by_split(root, images)
    splits: dict[str, Sequence[ImageSource]] = {split: by_split[split] for split in options.splits if split in by_split}
    ids = image_numbers(image.image_id for found in splits.values() for image in found)
    return Dataset(
        name, str(root), dict(enumerate(classes, 1)), splits, problems or {}, ids, orphans, [*warnings, *doubts]
    )


def _by_split(
    root: Path, images: Iterable[tuple[ImageSource, str | None]]
) -> tuple[dict[str, list[ImageSource]], list[Problem]]:
    """The images by split, with a warning if they are used for another one than they name."""
    named: dict[str, list[ImageSource]] = {}
    unnamed: list[ImageSource] = []
    for image, split in images:
        (unnamed if split is None else named.setdefault(split, [])).append(image)
    if (unnamed or not named) and not named.keys() - {"test"}:
        return named | {"train": unnamed}, []
    if unnamed:
        raise DataError(
            f"{root}: it is not clear which images are for training: some are in folders named "
            f"{', '.join(sorted(named))}, but {unnamed[0].image_id} is in none. Name the folders train, val and test, "
            "or put all into one."
        )
    if named and "train" not in named:
        only = "val" if "val" in named else "test"
        named["train"] = named.pop(only)
        reason = f"only {only} images, none for training: they are used for it, and validation images are split off"
        return named, [Problem(".", reason, "no images for training")]
    return named, []


# Reading an image


@dataclass(frozen=True)
class Frame:
    """The coordinate frame of an image's outlines."""

    size: Size
    upright: bool
    """Whether it is the upright image; otherwise sizes decide."""


def frame_of(root: Path, image_id: str, width: Any = None, height: Any = None) -> Frame:
    """The frame of an image in a tool that shows images upright: of the stated size, or else of the image's.

    Tools of before about 2018 showed images as stored; so a stated size that only fits that is believed.
    """
    _, upright = header_sizes(root / image_id) or ((1, 1), (1, 1))  # reading a damaged image reports it
    usable = all(1 <= number(side) <= MAX_COORDINATE and side == side // 1 for side in (width, height))
    size = (int(width), int(height)) if usable else upright
    return Frame(size, size == upright)


@dataclass(frozen=True)
class Outlined:
    """An object of an image."""

    name: str
    """What it is called in messages, such as ``shape 3``."""
    class_index: int
    """From 1."""
    parts: list[Part]


def read_objects(
    root: Path,
    image_id: str,
    file: str,
    frame: Frame | None,
    objects: Iterable[Outlined],
    dropped: Sequence[Problem],
) -> AnnotatedImage:
    """Read an image with its objects.

    Args:
        root: the data set's folder.
        image_id: the image's file.
        file: the annotation file.
        frame: frame of the outlines; None: they are fractions of the upright image's sides.
        objects: the objects.
        dropped: objects that were dropped before.

    Raises:
        ProblemError: the image cannot be used.
    """
    reading = RowReading(normalized=frame is None, shown_upright=True if frame is None or frame.upright else None)
    found = list(objects)
    rows = [{"id": item.name, "category_id": item.class_index, "segmentation": item.parts} for item in found]
    classes = {item.class_index: item.class_index for item in found}
    size = None if frame is None else frame.size
    image = CocoImage(root, image_id, file, size, rows, classes, reading).read()
    return replace(image, dropped=(*dropped, *image.dropped))
