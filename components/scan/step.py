"""The step `scan`: read and prepare the images of one part of a data set, for preprocess to merge."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from yolact.errors import SettingsError
from yolact.files import replaced_directory
from yolact.formats.classes import select_classes
from yolact.formats.dataset import ImageSource
from yolact.formats.preparation import OpenImage, PreparedImage, RejectedImage
from yolact.formats.registry import read_dataset
from yolact.limits import usable_cpus
from yolact_ops.scanning.options import options_of, preparation_of, sources_of
from yolact_ops.scanning.scan import ScanWriter
from yolact_ops.scanning.workers import map_in_order
from yolact_ops.settings.params import DataParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """Numbers of images in a part."""

    images: int
    rejected: int
    undecided: int
    """Images of which only the others can say whether their masks are drawn on the upright image."""


def run(
    params: DataParams, *, raw_dir: Path, scan_dir: Path, part: int, parts: int, workers: int | None = None
) -> Counts:
    """Read and prepare the images of one part, which are consecutive in order of image id.

    Args:
        params: settings; uses ``data``.
        raw_dir: folder of the whole data set.
        scan_dir: gets the scan (`yolact_ops.scanning.scan`); replaced as a whole or left unchanged.
        part: number of the part, from 0.
        parts: number of all parts; parts are empty if there are more than images.
        workers: number of processes that read images; None: one per CPU core.

    Raises:
        DataError: there is no data set of a known format, or a list of images is invalid.
        SettingsError: there is no such part, or ``data.classes`` names an unknown class.
    """
    if not 0 <= part < parts:
        raise SettingsError(f"part: must be from 0 to {parts - 1}, as there are {parts} parts (found {part})")
    workers = workers or usable_cpus()
    dataset = read_dataset(raw_dir, options_of(params.data))
    _, category_of = select_classes(dataset.classes, params.data.classes)
    sources = sources_of(dataset)
    own = sources[len(sources) * part // parts : len(sources) * (part + 1) // parts]
    log.info("%s: reading %d of %d images, part %d of %d", dataset.format, len(own), len(sources), part, parts)
    counts: Counter[type] = Counter()
    left_open: list[ImageSource] = []
    with replaced_directory(scan_dir) as folder, ScanWriter(folder, dataset, part, parts) as writer:
        preparation = preparation_of(dataset, params.data, category_of, writer.images)
        results = map_in_order(preparation, own, workers, lambda source: source.image_id)
        for source, result in zip(own, results, strict=True):
            counts[type(result)] += 1
            if isinstance(result, OpenImage):
                left_open.append(source)
            else:
                writer.add(result)
        writer.flush()  # preprocess decides between equal file names
        upright = map_in_order(replace(preparation, inferred=True), left_open, workers)
        as_stored = map_in_order(replace(preparation, inferred=False, folder=None), left_open, workers)
        for one, other in zip(upright, as_stored, strict=True):
            assert not isinstance(one, OpenImage)
            assert not isinstance(other, OpenImage)
            writer.add_readings(one, one if isinstance(one, RejectedImage) else other)
    return Counts(counts[PreparedImage], counts[RejectedImage], counts[OpenImage])
