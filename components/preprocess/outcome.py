"""What preprocess found in a data set, before it is summarized."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from yolact.formats.dataset import Dataset
from yolact.formats.duplicates import MAX_DISTANCE, picture_groups
from yolact.formats.preparation import CATEGORY, ImageSummary
from yolact.formats.problems import Problem
from yolact.formats.split import Choice, choose_validation
from yolact_ops.settings.params import DataConfig

log = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Outcome:
    """Everything found in a data set."""

    format: str
    """Name of the data set's format."""
    split_by_source: bool
    """Whether the source has a val split."""
    classes: Mapping[int, str]
    """The source's classes, by the source's category ids."""
    categories: Mapping[int, str]
    """The kept classes, with their new names and ids."""
    source_category_ids: Mapping[int, Any]
    """The source's own id by category id, where they differ."""
    images: Mapping[str, Sequence[ImageSummary]]
    """By split, in the order of their ids."""
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
    def dropped(self) -> Sequence[tuple[str, Problem]]:
        """Image id (empty for an orphan annotation) and problem of each object that cannot be used."""
        found = [(image.image_id, problem) for image in self.every_image for problem in image.dropped]
        return [*found, *(("", problem) for problem in self.orphans)]

    @property
    def objects(self) -> int:
        """Number of objects of all usable images, used or not, duplicates aside."""
        used = sum(len(image.instances) + len(image.other_classes) for image in self.every_image)
        return used + len(self.dropped)


def without_objects(images: Mapping[str, ImageSummary]) -> list[str]:
    """Ids of the images whose annotation has no object, which ``data.empty_images: drop`` leaves out."""
    return [
        name
        for name, image in images.items()
        if not len(image.instances) and not image.other_classes and not image.dropped
    ]


def hashes(images: Sequence[ImageSummary]) -> np.ndarray:
    """Difference hashes, (N,) uint64."""
    return np.array([image.difference_hash for image in images], dtype=np.uint64)


def outcome_of(
    dataset: Dataset,
    categories: Mapping[int, str],
    images: Mapping[str, ImageSummary],
    rejected: Mapping[str, Sequence[Problem]],
    empty: Sequence[str],
    data: DataConfig,
) -> Outcome:
    """Divide the images into splits: the source's, or chosen by ``data.val_fraction``.

    Args:
        dataset: the data set as listed.
        categories: the kept classes, by category id.
        images: the usable images, by image id.
        rejected: the problems of the others.
        empty: ids of images that are left out because they have no object.
        data: settings of the split.
    """
    split_of = {source.image_id: split for split, found in dataset.splits.items() for source in found}
    by_source = "val" in dataset.splits
    choice = Choice(set())
    if not by_source:
        choice = _choose_validation(list(images.values()), data)
        split_of |= dict.fromkeys(choice.validation, "val")
    return Outcome(
        format=dataset.format,
        split_by_source=by_source,
        classes=dataset.classes,
        categories=categories,
        source_category_ids=dataset.source_category_ids,
        images={split: [image for name, image in images.items() if split_of[name] == split] for split in SPLITS},
        rejected=rejected,
        empty=empty,
        orphans=dataset.orphans,
        left_out_split={name: split_of[name] for name in [*rejected, *empty] if name in split_of},
        source_warnings=dataset.warnings,
        divided=[[images[name].file_name for name in names] for names in choice.divided],
    )


def _choose_validation(images: Sequence[ImageSummary], data: DataConfig) -> Choice:
    """Choose the validation images; near-duplicates stay in one split unless there are too many."""
    names = [image.image_id for image in images]
    groups = {
        name: names[first] for name, first in zip(names, picture_groups(hashes(images), MAX_DISTANCE), strict=True)
    }
    classes = {image.image_id: set(image.instances[:, CATEGORY].astype(int).tolist()) for image in images}
    log.info("the source has no validation images: choosing %g of the images (data.val_fraction)", data.val_fraction)
    return choose_validation(classes, groups, data.val_fraction, data.split_seed)
