"""Move the written images into shards, and write an index of each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from components.preprocess.outcome import Outcome
from components.preprocess.records import Records
from yolact.data.arrow_file import Facts, index_path, write_index
from yolact.data.columns import CocoImage, CocoObject
from yolact.data.shards import FOLDER, Place, plan_shards, write_shard
from yolact.formats.preparation import ImageSummary
from yolact_ops.scanning.workers import map_in_order


def write_shards(
    folder: Path, outcome: Outcome, records: Records, numbers: Mapping[str, int], size: int, workers: int
) -> None:
    """Replace ``images/`` by ``shards/``, with an index of each split beside its instances file.

    The bytes are the same for any number of workers.

    Args:
        folder: the processed data, with ``images/`` and the instances files.
        outcome: the images.
        records: their objects.
        numbers: COCO's integer id by image id.
        size: images in a shard.
        workers: number of processes.
    """
    (folder / FOLDER).mkdir()
    for split, images in outcome.images.items():
        annotations = folder / f"{split}.json"
        files = [folder / "images" / image.file_name for image in images]
        plans = plan_shards(folder / FOLDER, split, files, size)
        places = chain.from_iterable(map_in_order(write_shard, plans, workers, lambda plan: plan.path.name))
        facts = Facts(sorted(outcome.categories.items()), annotations.stat().st_size)
        rows = _rows(images, places, records, numbers, [number for number, _ in facts.categories])
        write_index(index_path(annotations), facts, rows, len(images))
    (folder / "images").rmdir()


def _rows(
    images: Sequence[ImageSummary],
    places: Iterator[Place],
    records: Records,
    numbers: Mapping[str, int],
    categories: Sequence[int],
) -> Iterator[tuple[CocoImage, list[CocoObject]]]:
    """Each image with its objects; ``categories`` are the ids of the classes in ascending order."""
    label_of = {number: label for label, number in enumerate(categories)}
    for image, place in zip(images, places, strict=True):
        found = CocoImage(numbers[image.image_id], image.file_name, image.width, image.height, place)
        yield found, [CocoObject.of_row(row, label_of) for row in records.objects(image.image_id)]
