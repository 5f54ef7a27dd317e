"""Masks whose pixels number an image's objects, all of one class: Penn-Fudan's ``PNGImages`` and ``PedMasks``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, image_numbers
from yolact.formats.image_files import image_warnings, read_image_file, size_problems
from yolact.formats.instances import instances_from_index_mask
from yolact.formats.mask_files import VOID, read_numbers
from yolact.formats.mask_folders import (
    ONLY_CLASS,
    MaskedImages,
    common_root,
    image_file,
    image_name,
    mask_dataset_files,
    mask_file,
    masked_images,
    named_classes,
    several_classes,
    split_of_pair,
    unnamed_class,
    unpaired,
)
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.limits import usable_cpus

NAME = "Numbered masks"

FOUND_BY = "the folders PNGImages and PedMasks, or images and masks: NAME.png or NAME_mask.png for each image"

INCLUDES: tuple[str, ...] = ()
READS = ("class_names",)

EXAMINED = 200
"""Number of masks that are read to find out whether they number objects. Our choice."""

LARGE_PIECE = 0.1
"""Minimum fraction of a value's pixels for a connected piece to count. Our choice: not a few stray pixels."""

TORN_SHARE = 0.2
"""Maximum fraction of values in several pieces, for them to be objects; classes are in several pieces. Our choice."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Find folders with images and at most one mask for each."""
    return [pair.root for pair in masked_images(folders) if not pair.for_each_object]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """The folders of images and masks, and a class list if present."""
    return mask_dataset_files(masked_images(folders))


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Read the images with masks; folders named ``train`` and ``val`` are the splits."""
    pairs = masked_images(folders)
    root = common_root(pairs)
    classes = named_classes(root, options)
    if classes is not None and len(classes.names) > 1:
        raise several_classes(root, classes)
    problems, warnings = unpaired(pairs, root)
    splits: dict[str, list[NumberedImage]] = {}
    for pair in pairs:
        sources = splits.setdefault(split_of_pair(pair, root), [])
        for image, (mask,) in pair.masks_of.items():
            names = image_name(pair, root, image), image_file(pair, root, image), mask_file(pair, root, mask)
            sources.append(NumberedImage(root, *names))
    splits = {split: found_sources for split, found_sources in splits.items() if split in options.splits}
    sources = [source for found_sources in splits.values() for source in found_sources]
    warnings += _doubts(root, pairs, [source.mask_file for source in sources], named=classes is not None)
    if classes is None:
        warnings.append(unnamed_class(root))
    name = classes.names[0] if classes else ONLY_CLASS
    ids = [source.image_id for source in sources]
    return Dataset(NAME, str(root), {1: name}, splits, problems, image_numbers(ids), warnings=warnings)


def _doubts(root: Path, pairs: Sequence[MaskedImages], masks: Sequence[str], named: bool) -> list[Problem]:
    """Warnings about masks that may not number objects.

    Raises:
        DataError: the values are rather those of classes than numbers of objects.
    """
    places = np.linspace(0, len(masks) - 1, min(len(masks), EXAMINED)).round().astype(int)
    with ThreadPoolExecutor(usable_cpus()) as threads:
        found = list(threads.map(lambda place: _examined(root, masks[place]), places.tolist()))
    values = sum(len(pieces) for _, pieces in found)
    torn = sum(count > 1 for _, pieces in found for count in pieces)
    counted = all(numbers == list(range(1, len(numbers) + 1)) for numbers, _ in found)
    if not values:
        return []
    if max(len(numbers) for numbers, _ in found) == 1:  # one value a mask
        if torn or not (named or any(pair.marks_objects for pair in pairs)):
            raise DataError(
                f"{root}: no mask has more than one value besides 0, such as {masks[0]}: these are masks of a class, "
                "which do not say where one object ends and the next begins. Number the objects 1, 2, … in each mask, "
                "draw each into a file of its own, or export COCO. If each image shows one object, name its class: "
                "data.class_names=[NAME]."
            )
        reason = "each mask has one value, in one piece: it is taken as one object for each image"
        return [Problem(pairs[0].masks, reason, "one object for each image")]
    certain = named or any(pair.marks_objects for pair in pairs)
    if not certain and (not counted or torn > TORN_SHARE * values):
        sign = f"{torn} of {values} values are in several pieces" if counted else "their values do not count 1, 2, 3, …"
        raise DataError(
            f"{root}: the masks' values may be classes or numbers of objects: {sign}, such as in {masks[0]}. If each "
            "value is an object, name the class of all: data.class_names=[NAME]. If the values are classes, the masks "
            "do not say where one object ends and the next begins: export PASCAL VOC or COCO."
        )
    if certain:
        return []
    reason = (
        "the values of the masks are taken as numbers of objects; if they are classes, export PASCAL VOC or COCO; if "
        "not, data.class_names=[NAME] says so"
    )
    return [Problem(pairs[0].masks, reason, "values of masks taken as numbers of objects")]


def _examined(root: Path, mask: str) -> tuple[list[int], list[int]]:
    """A mask's values, and the number of large connected pieces of each; none if the mask cannot be read."""
    try:
        numbers = read_numbers(root, mask)
    except ProblemError:
        return [], []  # reported when the image is read
    values = _object_numbers(numbers)
    places = ndimage.find_objects(numbers.astype(np.int32))
    pieces = []
    for value in values:
        part = numbers[places[value - 1]] == value
        labels, _ = ndimage.label(part, structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        pieces.append(int((sizes >= LARGE_PIECE * sizes.sum()).sum()))
    return values, pieces


def _object_numbers(numbers: np.ndarray) -> list[int]:
    """The values of objects: all but 0, and 255 if it marks void, as it does beside smaller numbers."""
    values = np.flatnonzero(np.bincount(numbers.ravel())).tolist()
    values = [value for value in values if value]
    return values[:-1] if values[-1:] == [VOID] and len(values) > 1 and VOID - 1 not in values else values


@dataclass(frozen=True)
class NumberedImage:
    """An image with a mask that numbers its objects; an `ImageSource`."""

    root: Path
    image_id: str
    image_file: str
    """Relative to ``root``."""
    mask_file: str

    def read(self) -> AnnotatedImage:
        """Read the image and its mask."""
        problems: list[Problem] = []
        image = keep_problems(problems, lambda: read_image_file(self.root, self.image_file))
        numbers = keep_problems(problems, lambda: read_numbers(self.root, self.mask_file))
        if image is not None and numbers is not None:
            problems += size_problems(image, {self.mask_file: numbers})
        if image is None or numbers is None or problems:
            raise ProblemError(problems)
        height, width = numbers.shape
        instances = instances_from_index_mask(numbers, dict.fromkeys(_object_numbers(numbers), 1))
        warnings = image_warnings(image)
        return AnnotatedImage(self.image_id, image, width, height, tuple(instances), tuple(warnings))
