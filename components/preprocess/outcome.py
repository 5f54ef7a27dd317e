"""What preprocess found in a data set, before it is summarized."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from yolact.formats.dataset import Dataset
from yolact.formats.duplicates import MAX_DISTANCE, picture_groups
from yolact.formats.image_files import MISSING_FILE, MISSING_IMAGE
from yolact.formats.preparation import CATEGORY, ImageSummary
from yolact.formats.problems import Problem
from yolact.formats.split import Choice, choose
from yolact_ops.settings.params import DataConfig

log = logging.getLogger(__name__)


ABSENT = (MISSING_FILE, MISSING_IMAGE)
"""Kinds of problems of images that a list names but that are not published."""

SplitBy = Literal["source", "lists", "share"]
"""The source, lists of ``data.split``, or a share of ``data.split`` that was chosen by class."""


@dataclass(frozen=True)
class Outcome:
    """Everything found in a data set."""

    format: str
    """Name of the data set's format."""
    split_by: Mapping[str, SplitBy]
    """What decided which images are in each split, in the order train, val and, if images are held out, test."""
    classes: Mapping[int, str]
    """The source's classes, by the source's category ids."""
    categories: Mapping[int, str]
    """The kept classes, with their new names and ids."""
    source_category_ids: Mapping[int, Any]
    """The source's own id by category id, where they differ."""
    images: Mapping[str, Sequence[ImageSummary]]
    """By split, in the order of their ids."""
    unused: Sequence[ImageSummary]
    """Images that are left out, though nothing is wrong with them."""
    rejected: Mapping[str, Sequence[Problem]]
    """By image id."""
    empty: Sequence[str]
    """Ids of the images that are left out because they have no object."""
    orphans: Sequence[Problem]
    """Annotations that belong to no image."""
    left_out_split: Mapping[str, str]
    """Which split each rejected or empty image was listed in."""
    source_warnings: Sequence[Problem]
    """Irregularities of the data set as a whole."""
    divided: Sequence[Sequence[str]]
    """Files of each group of near-duplicates that was too large to keep in one split."""

    @property
    def every_image(self) -> Sequence[ImageSummary]:
        """The images of all splits."""
        return list(chain.from_iterable(self.images.values()))

    @property
    def chosen(self) -> Sequence[str]:
        """The splits whose images were chosen by class."""
        return [split for split, by in self.split_by.items() if by == "share"]

    @property
    def dropped(self) -> Sequence[tuple[str, Problem]]:
        """Image id (empty for an orphan annotation) and problem of each object that cannot be used."""
        found = [(image.image_id, problem) for image in self.every_image for problem in image.dropped]
        return [*found, *(("", problem) for problem in self.orphans)]

    @property
    def objects(self) -> int:
        """Number of objects of all usable images, used or not, duplicates aside."""
        used = sum(len(image.instances) + len(image.other_classes) for image in self.every_image)
        return used + len(self.dropped)


def _without_objects(images: Mapping[str, ImageSummary]) -> list[str]:
    """Ids of the images whose annotation has no object, which ``data.empty_images: drop`` leaves out."""
    return [
        name
        for name, image in images.items()
        if not len(image.instances) and not image.other_classes and not image.dropped
    ]


def hashes(images: Sequence[ImageSummary]) -> np.ndarray:
    """Difference hashes, (N,) uint64."""
    return np.array([image.difference_hash for image in images], dtype=np.uint64)


def _without_unannotated_test(
    dataset: Dataset, images: Mapping[str, ImageSummary], rejected: Mapping[str, Sequence[Problem]], data: DataConfig
) -> tuple[Dataset, set[str]]:
    """The data set without its test split if no image of it has an annotation, and the ids of these images.

    Benchmarks publish test images without annotations, such as those of VOC 2012. Images that ``data.split.test``
    lists are kept: there it is a mistake.

    Args:
        dataset: the data set as listed.
        images: the usable images, by image id.
        rejected: the problems of the others.
        data: settings of the split.
    """
    names = {source.image_id for source in dataset.splits.get("test", ())}
    found = [images[name] for name in names & images.keys()]
    annotated = any(len(image.instances) or image.other_classes or image.dropped for image in found)
    problems = [problem for name in names & rejected.keys() for problem in rejected[name]]
    if not names or annotated or "test" in data.split.lists or any(p.kind not in ABSENT for p in problems):
        return dataset, set()
    reason = f"none of its {len(names)} images is annotated, so they are not used"
    problem = Problem("test", reason, "test split without annotations, not used")
    splits = {split: found for split, found in dataset.splits.items() if split != "test"}
    return replace(dataset, splits=splits, warnings=[*dataset.warnings, problem]), names


def outcome_of(
    dataset: Dataset,
    categories: Mapping[int, str],
    images: Mapping[str, ImageSummary],
    rejected: Mapping[str, Sequence[Problem]],
    data: DataConfig,
) -> Outcome:
    """Divide the images into splits: the source's, those of lists, or chosen by shares, see ``data.split``.

    Args:
        dataset: the data set as listed.
        categories: the kept classes, by category id.
        images: the usable images, by image id.
        rejected: the problems of the others.
        data: settings of the split, and of images without objects.
    """
    dataset, unannotated = _without_unannotated_test(dataset, images, rejected, data)
    prepared = images
    images = {name: image for name, image in prepared.items() if name not in unannotated}
    rejected = {name: problems for name, problems in rejected.items() if name not in unannotated}
    empty = _without_objects(images) if data.empty_images == "drop" else []
    images = {name: image for name, image in images.items() if name not in set(empty)}
    split_of = {source.image_id: split for split, found in dataset.splits.items() for source in found}
    split_by: dict[str, SplitBy] = {
        split: "lists" if split in data.split.lists else "source" for split in dataset.splits
    }
    divided: list[tuple[str, ...]] = []
    for split, share in (("test", data.split.test), ("val", data.split.val)):
        if split not in dataset.splits and isinstance(share, float) and share:
            own = [image for name, image in images.items() if split_of[name] == "train"]
            choice = _choose(split, own, share, data.split.seed)
            split_of |= dict.fromkeys(choice.images, split)
            split_by[split] = "share"
            divided += choice.divided
    splits = [split for split in ("train", "val", "test") if split in split_by]
    return Outcome(
        format=dataset.format,
        split_by={split: split_by[split] for split in splits},
        classes=dataset.classes,
        categories=categories,
        source_category_ids=dataset.source_category_ids,
        images={split: [image for name, image in images.items() if split_of[name] == split] for split in splits},
        unused=[image for name, image in prepared.items() if name not in images],
        rejected=rejected,
        empty=empty,
        orphans=dataset.orphans,
        left_out_split={name: split_of[name] for name in [*rejected, *empty] if name in split_of},
        source_warnings=dataset.warnings,
        divided=[[images[name].file_name for name in names] for names in divided],
    )


def _choose(split: str, images: Sequence[ImageSummary], share: float, seed: int) -> Choice:
    """Choose images for a split; near-duplicates stay in one split unless there are too many."""
    names = [image.image_id for image in images]
    groups = {
        name: names[first] for name, first in zip(names, picture_groups(hashes(images), MAX_DISTANCE), strict=True)
    }
    classes = {image.image_id: set(image.instances[:, CATEGORY].astype(int).tolist()) for image in images}
    log.info("the source has no %s images: choosing %g of the images (data.split.%s)", split, share, split)
    return choose(classes, groups, share, seed)
