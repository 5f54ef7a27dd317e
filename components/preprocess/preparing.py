"""Prepare the images of a data set in parallel processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from components.preprocess.orientation import Undecided, infer
from components.preprocess.records import Records
from components.preprocess.workers import map_in_order
from yolact.formats.dataset import Dataset, ImageSource, ReadOptions
from yolact.formats.preparation import ImageSummary, OpenImage, Preparation, RejectedImage, names_are_unique
from yolact.formats.problems import Problem
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


def prepare_all(
    dataset: Dataset, preparation: Preparation, records: Records | None, workers: int
) -> tuple[dict[str, ImageSummary], dict[str, Sequence[Problem]], Undecided | None]:
    """Prepare all images in parallel processes; keep the rows of their objects in ``records``, if there are any.

    Images of which only the others can say whether their masks are drawn on the upright image are read again after
    them: a first pass over all headers would open every file of every data set twice for these few.

    Returns:
        The summaries of the usable images and the problems of the others, both in order of image id; and the images
        that the others do not decide either, if there are any.
    """
    sources = sorted((source for found in dataset.splits.values() for source in found), key=lambda s: s.image_id)
    accepted: dict[str, ImageSummary] = {}
    rejected: dict[str, Sequence[Problem]] = {}

    def prepare(sources: Sequence[ImageSource], preparation: Preparation) -> list[ImageSource]:
        """Prepare images; return those that are left open."""
        left_open = []
        results = map_in_order(preparation, sources, workers, lambda source: source.image_id)
        shown = tqdm(results, total=len(sources), unit="image", disable=None)  # None: only on a terminal
        for source, result in zip(sources, shown, strict=True):
            if isinstance(result, OpenImage):
                left_open.append(source)
            elif isinstance(result, RejectedImage):
                rejected[result.image_id] = result.problems
            else:
                accepted[result.summary.image_id] = result.summary
                if records is not None:
                    records.add(result.summary.image_id, result.rows)
        return left_open

    undecided = None
    if left_open := prepare(sources, preparation):
        inferred = infer(left_open, accepted.values())
        if isinstance(inferred, Undecided):
            undecided = inferred
            rejected |= undecided.problems()
        else:
            prepare(left_open, replace(preparation, inferred=inferred))
    return dict(sorted(accepted.items())), {**dataset.problems, **dict(sorted(rejected.items()))}, undecided
