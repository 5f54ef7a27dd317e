"""Semantic Boundaries annotations (Hariharan et al., ICCV 2011): MATLAB files with the objects of VOC images.

The published YOLACT for PASCAL VOC learned from these. ``inst/<id>.mat`` holds the struct ``GTinst`` with
``Segmentation``, (H, W) object numbers from 1, and ``Categories``, the class (1 to 20, in VOC's order) of each.
``cls/<id>.mat`` says nothing more and is not read. There is no void border.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolact.class_names import VOC_CLASSES
from yolact.formats.convert import size_problems
from yolact.formats.images import image_warnings, read_bytes, read_image
from yolact.formats.instances import AnnotatedImage, instances_from_index_mask
from yolact.formats.matlab import MatlabError, read_struct
from yolact.formats.problems import Problem, ProblemError, keep_problems
from yolact.formats.voc import find_image, find_part


@dataclass(frozen=True)
class SbdImage:
    """A image with Semantic Boundaries annotations; a `ImageSource`."""

    root: Path
    """Holds ``inst``."""
    images_root: Path
    images_folder: str
    """Inside ``images_root``: SBD's own ``img``, or VOC's ``JPEGImages``."""
    image_id: str

    def read(self) -> AnnotatedImage:
        """Read the image and its ``inst`` file."""
        problems: list[Problem] = []
        image = keep_problems(
            problems,
            lambda: read_image(self.images_root, find_image(self.images_root, self.images_folder, self.image_id)),
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
                *image_warnings(image, (width, height) != image.stored_size),
                *_empty_warnings(segmentation, classes, file),
            ),
        )


def read_instances(root: Path, file: str) -> tuple[np.ndarray, dict[int, int]]:
    """Read an ``inst`` file.

    Returns:
        Object numbers, (H, W) unsigned integers, and the class index (1 to 20) of each number that has pixels.

    Raises:
        ProblemError: the file is missing, damaged, not what SBD has, or an object has no known class.
    """
    data = read_bytes(root, file, "each image needs its annotations; bring them, or take the id out of the split file")
    try:
        segmentation, categories = _fields(data)
    except MatlabError as error:
        reason = f"is no MATLAB file with GTinst.Segmentation and GTinst.Categories ({error})"
        raise ProblemError([Problem(file, f"{reason}; bring the file again")]) from None
    numbers = np.flatnonzero(np.bincount(segmentation.ravel()))
    numbers = numbers[numbers > 0]
    problems = [
        Problem(file, f"object {number} has no class: GTinst.Categories lists {len(categories)}; bring the file again")
        for number in numbers[numbers > len(categories)].tolist()
    ]
    classes = {number: categories[number - 1] for number in numbers[numbers <= len(categories)].tolist()}
    problems += [
        Problem(file, f"object {number} has class {index}, but there are 1 to {len(VOC_CLASSES)} only; correct it")
        for number, index in classes.items()
        if not 1 <= index <= len(VOC_CLASSES)
    ]
    if problems:
        raise ProblemError(problems)
    return segmentation, classes


def _fields(data: bytes) -> tuple[np.ndarray, list[int]]:
    """Segmentation (H, W) uint16 and Categories; anything that is not them raises `MatlabError`."""
    fields = read_struct(data, "GTinst", ("Segmentation", "Categories"))
    for name, values in fields.items():
        # The range first: no NaN or infinity is rounded then.
        if not ((values >= 0) & (values <= np.iinfo(np.uint16).max)).all() or (np.floor(values) != values).any():
            raise MatlabError(f"{name} holds other values than whole numbers from 0 to 65535")
    segmentation = fields["Segmentation"].astype(np.uint16)
    if not segmentation.size:
        raise MatlabError(f"Segmentation has the shape {segmentation.shape}")
    return segmentation, [int(value) for value in fields["Categories"].ravel()]


def _empty_warnings(segmentation: np.ndarray, classes: dict[int, int], file: str) -> list[Problem]:
    """Numbers below the highest one that no pixel has: objects that something else covers."""
    missing = sorted(set(range(1, max(classes, default=0))) - classes.keys())
    return [Problem(file, f"object {number} has no pixel; no instance shows it") for number in missing]
