"""Semantic Boundaries annotations (SBD; Hariharan et al., ICCV 2011): MATLAB files with the objects of VOC images.

The published YOLACT for PASCAL VOC was trained on these. ``inst/<id>.mat`` has the struct ``GTinst`` with
``Segmentation``, (H, W) object numbers from 1, and ``Categories``, the class (1 to 20, in VOC's order) of each.
``cls/<id>.mat`` adds nothing and is not read. There is no void border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats import voc
from yolact.formats.dataset import AnnotatedImage, Dataset, Files, ReadOptions, only_one, with_text_files
from yolact.formats.image_files import image_warnings, read_bytes, read_image_file, size_problems
from yolact.formats.instances import instances_from_index_mask
from yolact.formats.matlab import MatlabError, read_struct
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.voc_files import (
    find_image,
    find_part,
    has_image,
    image_lists,
    stems,
    with_unlisted,
    without_annotations,
)

NAME = "Semantic Boundaries"

FOUND_BY = "inst/*.mat, with the images in img, or in the JPEGImages of a PASCAL VOC next to it"

INCLUDES = (voc.NAME,)
"""A PASCAL VOC folder next to the annotations provides the images."""
READS = ()

TARGET = Path("benchmark_RELEASE") / "dataset"
"""Path of the files in SBD's own archive (Hariharan et al. 2011, the release's README)."""


def find(folders: Sequence[Path]) -> list[Path]:
    """Find folders with MATLAB files in ``inst``."""
    return [folder for folder in folders if stems(folder / "inst", ".mat")]


def files(found: Sequence[Path], folders: Sequence[Path]) -> list[Files]:
    """SBD's folders and lists, and the VOC images if it has none of its own."""
    root = only_one(found)
    images_root, images_folder = _image_folder(root, folders)
    own = Files(root, TARGET, with_text_files(root, ("img", "inst", "cls")))
    return [own] if images_root == root else [own, Files(images_root, voc.TARGET, (images_folder,))]


def read(found: Sequence[Path], folders: Sequence[Path], options: ReadOptions) -> Dataset:
    """Read the images of the lists next to ``inst``; without lists, all images with annotations there."""
    root = only_one(found)
    images_root, images_folder = _image_folder(root, folders)
    ids = image_lists(root, partial(has_image, images_root, images_folder), options.own_splits)
    warnings: list[Problem] = []
    if "train" not in ids or options.lists:
        annotated = stems(root / "inst", ".mat")
        if not ids and not options.lists:
            warnings = without_annotations(images_root / images_folder, annotated, "annotations in inst")
        ids = with_unlisted(ids, annotated, options)
    splits = {
        split: [SbdImage(root, images_root, images_folder, name) for name in names] for split, names in ids.items()
    }
    return voc.voc_dataset(NAME, root, splits, warnings)


def _image_folder(root: Path, folders: Sequence[Path]) -> tuple[Path, str]:
    """Root and name of the folder of images: SBD's own ``img``, or the only ``JPEGImages``."""
    if (root / "img").is_dir():
        return root, "img"
    beside = [folder for folder in folders if (folder / "JPEGImages").is_dir()]
    if not beside:
        raise DataError(
            f"{root}: Semantic Boundaries annotations without images. Put them into {root / 'img'}, or a PASCAL VOC "
            "with the folder JPEGImages next to the annotations."
        )
    return only_one(beside), "JPEGImages"


@dataclass(frozen=True)
class SbdImage:
    """An image with Semantic Boundaries annotations; an `ImageSource`."""

    root: Path
    """Parent of ``inst``."""
    images_root: Path
    images_folder: str
    """Name in ``images_root``: SBD's own ``img``, or VOC's ``JPEGImages``."""
    image_id: str

    def read(self) -> AnnotatedImage:
        """Read the image and its ``inst`` file."""
        problems: list[Problem] = []
        image = keep_problems(
            problems,
            lambda: read_image_file(self.images_root, find_image(self.images_root, self.images_folder, self.image_id)),
        )
        file = find_part(self.root, "inst", self.image_id, ".mat")
        found = keep_problems(problems, lambda: read_instances(self.root, file))
        if image is not None and found is not None:
            problems += size_problems(image, {file: found[0]})
        if image is None or found is None or problems:
            raise ProblemError(problems)
        segmentation, classes = found
        height, width = segmentation.shape
        return AnnotatedImage(
            self.image_id,
            image,
            width,
            height,
            tuple(instances_from_index_mask(segmentation, classes)),
            (
                *image_warnings(image),
                *_empty_warnings(segmentation, classes, file),
            ),
            upright=False,  # MATLAB shows images as stored
        )


def read_instances(root: Path, file: str) -> tuple[np.ndarray, dict[int, int]]:
    """Read an ``inst`` file.

    Returns:
        Object numbers, (H, W) unsigned integers, and the class index (1 to 20) of each number that has pixels.

    Raises:
        ProblemError: the file is missing, damaged or not in SBD's form, or an object has no known class.
    """
    data = read_bytes(root, file, "each image needs its annotations; add them, or remove the id from the split file")
    try:
        segmentation, categories = _fields(data)
    except MatlabError as error:
        reason = f"is not a MATLAB file with GTinst.Segmentation and GTinst.Categories ({error})"
        raise ProblemError([Problem(file, f"{reason}; replace the file", kind="damaged MATLAB file")]) from None
    numbers = np.flatnonzero(np.bincount(segmentation.ravel()))
    numbers = numbers[numbers > 0]
    problems = [
        Problem(
            file,
            f"object {number} has no class: GTinst.Categories lists {len(categories)}; replace the file",
            kind="object without class",
        )
        for number in numbers[numbers > len(categories)].tolist()
    ]
    classes = {number: categories[number - 1] for number in numbers[numbers <= len(categories)].tolist()}
    problems += [
        Problem(
            file,
            f"object {number} has class {index}, but there are only 1 to {len(VOC_CLASSES)}; correct it",
            kind="unknown class",
        )
        for number, index in classes.items()
        if not 1 <= index <= len(VOC_CLASSES)
    ]
    if problems:
        raise ProblemError(problems)
    return segmentation, classes


def _fields(data: bytes) -> tuple[np.ndarray, list[int]]:
    """Segmentation (H, W) uint16 and Categories; raises `MatlabError` on anything else."""
    fields = read_struct(data, "GTinst", ("Segmentation", "Categories"))
    for name, values in fields.items():
        # Check the range first, so that no NaN or infinity is rounded.
        if not ((values >= 0) & (values <= np.iinfo(np.uint16).max)).all() or (np.floor(values) != values).any():
            raise MatlabError(f"{name} has values other than integers from 0 to 65535")
    segmentation = fields["Segmentation"].astype(np.uint16)
    if not segmentation.size:
        raise MatlabError(f"Segmentation has the shape {segmentation.shape}")
    return segmentation, [int(value) for value in fields["Categories"].ravel()]


def _empty_warnings(segmentation: np.ndarray, classes: dict[int, int], file: str) -> list[Problem]:
    """Warnings about numbers below the highest that no pixel has: objects that are fully covered."""
    missing = sorted(set(range(1, max(classes, default=0))) - classes.keys())
    kind = "number of an object without a pixel"
    return [Problem(file, f"object {number} has no pixel and is ignored", kind) for number in missing]
