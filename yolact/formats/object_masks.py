"""A mask image for each object: Data Science Bowl 2018's ``ID/images`` and ``ID/masks``, or ``masks/NAME/*.png``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, image_numbers
from yolact.formats.image_files import image_warnings, read_image_file
from yolact.formats.instances import Instance, instances_from_index_mask
from yolact.formats.mask_files import read_object
from yolact.formats.mask_folders import (
    ONLY_CLASS,
    common_root,
    image_file,
    image_name,
    mask_dataset_files,
    mask_file,
    masked_images,
    named_classes,
    split_of_pair,
    unnamed_class,
    unpaired,
)
from yolact.formats.problems import Problem, keep_problems

NAME = "Mask per object"

FOUND_BY = (
    "the folders ID/images and ID/masks for each image, or images/NAME.jpg and masks/NAME/*.png or masks/NAME_*.png"
)

INCLUDES: tuple[str, ...] = ()
READS = ("class_names",)

FEW_WORDS = 20
"""Maximum number of words in the masks' names that look like classes. Our choice."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Find folders with images and several masks for some of them."""
    pairs = [pair for pair in masked_images(folders) if pair.for_each_object]
    return [common_root(pairs)] if pairs else []


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """The folders of images and masks, and a class list if present."""
    return mask_dataset_files(masked_images(folders))


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Read the images with masks; folders named ``train`` and ``val`` are the splits."""
    pairs = masked_images(folders)
    root = common_root(pairs)
    classes = named_classes(root, options)
    names = classes.names if classes else (ONLY_CLASS,)
    problems, warnings = unpaired(pairs, root)
    splits: dict[str, list[ObjectMasksImage]] = {}
    for pair in pairs:
        sources = splits.setdefault(split_of_pair(pair, root), [])
        for image, masks in pair.masks_of.items():
            mask_files = tuple(mask_file(pair, root, mask) for mask in masks)
            image_id, file = image_name(pair, root, image), image_file(pair, root, image)
            sources.append(ObjectMasksImage(root, image_id, file, mask_files, names))
    splits = {split: found_sources for split, found_sources in splits.items() if split in options.splits}
    sources = [source for found_sources in splits.values() for source in found_sources]
    if classes is None:
        warnings += [unnamed_class(root), *_words([mask for source in sources for mask in source.mask_files])]
    ids = [source.image_id for source in sources]
    return Dataset(NAME, str(root), dict(enumerate(names, 1)), splits, problems, image_numbers(ids), warnings=warnings)


def _words(masks: Sequence[str]) -> list[Problem]:
    """A warning if the masks' names have words that may be classes, such as ``bolt_1.png`` and ``nut_1.png``."""
    words = Counter(re.sub(r"[\d_. -]+", " ", PurePosixPath(mask).stem).strip() for mask in masks)
    if not 1 < len(words) <= FEW_WORDS or min(words.values()) < 2 or "" in words:
        return []
    listing = ", ".join(word for word, _ in words.most_common())
    reason = f"their names have the words {listing}; if these are classes, set data.class_names=[{listing}]"
    return [Problem("masks", reason, "words in the names of masks")]


@dataclass(frozen=True)
class ObjectMasksImage:
    """An image with a mask file for each object; an `ImageSource`."""

    root: Path
    image_id: str
    image_file: str
    """Relative to ``root``."""
    mask_files: tuple[str, ...]
    classes: tuple[str, ...]
    """With several, a mask's class is the one whose name its path has."""

    def read(self) -> AnnotatedImage:
        """Read the image and its masks; a mask that cannot be used is dropped."""
        image = read_image_file(self.root, self.image_file)
        dropped: list[Problem] = []
        masks: dict[str, np.ndarray] = {}
        for file in self.mask_files:
            mask = keep_problems(dropped, partial(read_object, self.root, file))
            if mask is not None:
                masks[file] = mask
        sizes = {file: (mask.shape[1], mask.shape[0]) for file, mask in masks.items()}
        frame = image.stored_size
        if frame not in sizes.values() and image.upright_size in sizes.values():
            frame = image.upright_size
        instances = []
        for number, (file, mask) in enumerate(masks.items(), 1):
            found = self._instance(number, file, mask, frame, dropped)
            if found is not None:
                instances.append(found)
        warnings = image_warnings(image)
        return AnnotatedImage(self.image_id, image, *frame, tuple(instances), tuple(warnings), dropped=tuple(dropped))

    def _instance(
        self, number: int, file: str, mask: np.ndarray, frame: tuple[int, int], dropped: list[Problem]
    ) -> Instance | None:
        size = mask.shape[1], mask.shape[0]
        if size != frame:
            reason = f"is {size[0]} x {size[1]} pixels, but {self.image_file} is {frame[0]} x {frame[1]}"
            reason += "; save the mask at the image's size, without smoothing (nearest neighbour)"
            dropped.append(Problem(file, reason, "mask of another size"))
            return None
        if not mask.any():
            dropped.append(Problem(file, "has no pixel besides black; draw the object or remove it", "empty mask"))
            return None
        index = self._class_index(file)
        if index is None:
            reason = f"has none, or several, of the names {', '.join(self.classes)} in its path; rename it"
            dropped.append(Problem(file, reason, "mask without a class in its name"))
            return None
        (instance,) = instances_from_index_mask(mask.astype(np.uint8), {1: index})
        return replace(instance, number=number)

    def _class_index(self, file: str) -> int | None:
        if len(self.classes) == 1:
            return 1
        text = _spaced(file.removesuffix(".png"))
        matches = [index for index, name in enumerate(self.classes, 1) if _spaced(name) in text]
        return matches[0] if len(matches) == 1 else None


def _spaced(text: str) -> str:
    """A text's words and numbers in lower case, each between spaces."""
    words = re.sub(r"[\W_]|(?<=[^0-9])(?=[0-9])", " ", text).casefold().split()
    return f" {' '.join(words)} "
