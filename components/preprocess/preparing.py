"""The images of a data set, prepared in parallel processes here or by scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from components.preprocess.orientation import Undecided, infer
from components.preprocess.records import Records
from yolact.formats.dataset import Dataset, ImageSource
from yolact.formats.preparation import (
    ImageSummary,
    OpenImage,
    Preparation,
    PreparedImage,
    RejectedImage,
    name_is_taken,
)
from yolact.formats.problems import Problem
from yolact_ops.scanning.listing import ScannedSource
from yolact_ops.scanning.options import sources_of
from yolact_ops.scanning.scan import Scan, StoredReadings, StoredResult
from yolact_ops.scanning.workers import map_in_order

Prepared = tuple[dict[str, ImageSummary], dict[str, Sequence[Problem]], Undecided | None]
"""The summaries of the usable images and the problems of the others, both in order of image id; and the images that
the others do not decide either, if there are any."""


class _Results:
    """Collects what is found in each image."""

    def __init__(self, records: Records | None) -> None:
        self.accepted: dict[str, ImageSummary] = {}
        self.rejected: dict[str, Sequence[Problem]] = {}
        self._records = records

    def add(self, result: PreparedImage | RejectedImage) -> None:
        if isinstance(result, RejectedImage):
            self.rejected[result.image_id] = result.problems
            return
        self.accepted[result.summary.image_id] = result.summary
        if self._records is not None:
            self._records.add(result.summary.image_id, result.rows)

    def in_order(self, dataset: Dataset, undecided: Undecided | None) -> Prepared:
        rejected = {**self.rejected, **(undecided.problems() if undecided else {})}
        return dict(sorted(self.accepted.items())), {**dataset.problems, **dict(sorted(rejected.items()))}, undecided


def prepare_all(dataset: Dataset, preparation: Preparation, records: Records | None, workers: int) -> Prepared:
    """Prepare all images in parallel processes; keep the rows of their objects in ``records``, if there are any.

    Images of which only the others can say whether their masks are drawn on the upright image are read again after
    them: a first pass over all headers would open every file of every data set twice for these few.
    """
    found = _Results(records)

    def prepare(sources: Sequence[ImageSource], preparation: Preparation) -> list[ImageSource]:
        """Prepare images; return those that are left open."""
        left_open = []
        results = map_in_order(preparation, sources, workers, lambda source: source.image_id)
        shown = tqdm(results, total=len(sources), unit="image", disable=None)  # None: only on a terminal
        for source, result in zip(sources, shown, strict=True):
            if isinstance(result, OpenImage):
                left_open.append(source)
            else:
                found.add(result)
        return left_open

    def read(place: int, upright: bool, folder: Path) -> PreparedImage | RejectedImage:
        result = replace(preparation, folder=folder, exif=upright)(left_open[place])
        assert not isinstance(result, OpenImage)
        return result

    undecided = None
    if left_open := prepare(sources_of(dataset), preparation):
        inferred = infer(left_open, found.accepted.values(), read)
        if isinstance(inferred, Undecided):
            undecided = inferred
        else:
            prepare(left_open, replace(preparation, inferred=inferred))
    return found.in_order(dataset, undecided)


def merge_scans(scans: Sequence[Scan], dataset: Dataset, folder: Path, records: Records) -> Prepared:
    """Write the images that scans prepared, and keep the rows of their objects: with the results of `prepare_all`.

    Args:
        scans: those of all parts, in their order.
        dataset: the data set as listed.
        folder: existing folder for the images.
        records: for the objects.
    """
    found = _Results(records)
    left_open: list[tuple[Scan, int, ScannedSource]] = []

    def take(scan: Scan, result: StoredResult, folder: Path) -> PreparedImage | RejectedImage:
        """Write the image of a result, unless an earlier one has its name."""
        if isinstance(result, RejectedImage):
            return result
        prepared, summary = result.prepared, result.prepared.summary
        try:
            with (folder / summary.file_name).open("xb") as file:
                file.write(scan.image(result.place))
        except FileExistsError:
            return RejectedImage(summary.image_id, (name_is_taken(prepared.file, summary.file_name),))
        return prepared

    def read(place: int, upright: bool, folder: Path) -> PreparedImage | RejectedImage:
        scan, position, _ = left_open[place]
        return take(scan, scan.readings_at(position).reading(upright), folder)

    for scan in scans:
        for position, result in scan.results():
            if isinstance(result, StoredReadings):
                left_open.append((scan, position, ScannedSource(result.image_id)))
            else:
                found.add(take(scan, result, folder))
    undecided = None
    if left_open:
        inferred = infer([source for _, _, source in left_open], found.accepted.values(), read)
        if isinstance(inferred, Undecided):
            undecided = inferred
        else:
            for place in range(len(left_open)):
                found.add(read(place, inferred, folder))
    return found.in_order(dataset, undecided)
