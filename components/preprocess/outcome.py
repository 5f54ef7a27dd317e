"""What preprocess found in a data set, before it is summarized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from yolact.formats.preparation import ImageSummary
from yolact.formats.problems import Problem


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
