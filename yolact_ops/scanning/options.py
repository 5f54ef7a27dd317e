"""How the settings want a data set read and its images prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolact.formats.dataset import Dataset, ImageSource, ReadOptions
from yolact.formats.preparation import Preparation, names_are_unique
from yolact_ops.settings.params import DataConfig


def options_of(data: DataConfig) -> ReadOptions:
    """How the settings want a data set read."""
    return ReadOptions(
        annotations=data.annotations,
        crowds=data.crowds,
        class_names=data.class_names,
        splits=("train", "val") if data.split.test == "none" else ("train", "val", "test"),
        lists=data.split.lists,
    )


def preparation_of(
    dataset: Dataset, data: DataConfig, category_of: Mapping[int, int], folder: Path | None
) -> Preparation:
    """How the settings want images prepared; for ``category_of`` and ``folder`` see `Preparation`."""
    return Preparation(
        folder=folder,
        max_side=data.max_side or None,
        category_of=category_of,
        short_names=names_are_unique([source.image_id for found in dataset.splits.values() for source in found]),
        exif=None if data.exif == "auto" else data.exif == "upright",
    )


def sources_of(dataset: Dataset) -> list[ImageSource]:
    """The images of all splits, in order of image id."""
    return sorted((source for found in dataset.splits.values() for source in found), key=lambda s: s.image_id)
