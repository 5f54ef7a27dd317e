"""A data format from outside the package: ``images/NAME.png`` with ``numbers/NAME.png``, index masks of objects.

All objects are of the class that ``class.txt`` names. Images in ``images/val`` and ``numbers/val`` are for validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, only_one
from yolact.formats.image_files import image_warnings, read_image_file, size_problems
from yolact.formats.instances import instances_from_index_mask
from yolact.formats.mask_files import read_mask
from yolact.formats.problems import ProblemError
from yolact.formats.voc_files import stems

NAME = "index masks"
FOUND_BY = "the folders images and numbers, and class.txt"
INCLUDES: tuple[str, ...] = ()
READS: tuple[str, ...] = ()


def find(folders: Sequence[Path]) -> list[Path]:
    """Folders with masks and a class."""
    return [folder for folder in folders if (folder / "numbers").is_dir() and (folder / "class.txt").is_file()]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """The files that `read` needs, without others next to them."""
    return [Files(only_one(found), Path("index-masks"), ("images", "numbers", "class.txt"))]


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Images by split; `val` is empty or missing if preprocess should choose the validation images."""
    root = only_one(found)
    name = (root / "class.txt").read_text(encoding="utf-8").strip()
    if not name:
        raise DataError(f"{root / 'class.txt'}: empty. Write the class of the objects there.")
    ids = {
        "train": stems(root / "images", ".png"),
        "val": [f"val/{stem}" for stem in stems(root / "images" / "val", ".png")],
    }
    splits = {split: [MaskedImage(root, image_id) for image_id in names] for split, names in ids.items() if names}
    every = sorted(image_id for names in ids.values() for image_id in names)
    return Dataset(NAME, str(root), {1: name}, splits, {}, {image_id: n for n, image_id in enumerate(every, 1)})


@dataclass(frozen=True)
class MaskedImage:
    """One image; an `ImageSource`."""

    root: Path
    image_id: str

    def read(self) -> AnnotatedImage:
        """Read the image and its mask."""
        image = read_image_file(self.root, f"images/{self.image_id}.png")
        file = f"numbers/{self.image_id}.png"
        mask = read_mask(self.root, file)
        if problems := size_problems(image, {file: mask}):
            raise ProblemError(problems)
        classes = {int(number): 1 for number in np.unique(mask) if number}
        height, width = mask.shape
        warnings = image_warnings(image)
        instances = instances_from_index_mask(mask, classes)
        return AnnotatedImage(self.image_id, image, width, height, tuple(instances), tuple(warnings))
