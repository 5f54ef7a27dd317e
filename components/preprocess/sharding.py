"""Move the written images to the folders of their splits: as they are, or into shards with an index of each split."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from components.preprocess.outcome import Outcome
from components.preprocess.records import Records
from yolact.data.arrow_file import Facts, index_path, write_index
from yolact.data.columns import CocoImage, CocoObject
from yolact.data.processed import annotations_of, folder_of
from yolact.data.shards import FOLDER, Place, plan_shards, shards_digest, write_shard
from yolact.formats.preparation import ImageSummary
from yolact_ops.scanning.workers import map_in_order


def move_images(folder: Path, outcome: Outcome) -> None:
    """Move the images in ``images/`` of ``folder`` to ``images/`` beside the instances files of their splits."""
    for split, images in outcome.images.items():
        target = folder_of(folder, split) / "images"
        target.mkdir(exist_ok=True)
        for image in images:
            os.rename(folder / "images" / image.file_name, target / image.file_name)
    (folder / "images").rmdir()


@dataclass(frozen=True)
class Sharding:
    """How images go into shards."""

    size: int
    """Images in a shard."""
    workers: int
    """Number of processes that write shards."""
    address: str
    """``runtime.shards``."""


def write_shards(
    folder: Path, outcome: Outcome, records: Records, numbers: Mapping[str, int], sharding: Sharding
) -> None:
    """Move the images in ``images/`` of ``folder`` into shards, beside the instances files of their splits or to S3,
    and write an index of each split.

    The bytes are the same for any number of workers.

    Args:
        folder: the processed data, with ``images/`` and the instances files.
        outcome: the images.
        records: their objects.
        numbers: COCO's integer id by image id.
        sharding: how.

    Raises:
        DataError: see `yolact_ops.transfer.shard_upload.move_shards`.
    """
    for split, images in outcome.images.items():
        annotations, target = annotations_of(folder, split), folder_of(folder, split) / FOLDER
        target.mkdir(exist_ok=True)
        files = [folder / "images" / image.file_name for image in images]
        plans = plan_shards(target, split, files, sharding.size)
        places = chain.from_iterable(map_in_order(write_shard, plans, sharding.workers, lambda plan: plan.path.name))
        digest = shards_digest(((image.file_name, image.sha256) for image in images), sharding.size)
        facts = Facts(sorted(outcome.categories.items()), annotations.stat().st_size, digest)
        rows = _rows(images, places, records, numbers, [number for number, _ in facts.categories])
        write_index(index_path(annotations), facts, rows, len(images))
        if sharding.address != "local":
            from yolact_ops.transfer.shard_upload import move_shards  # boto3 takes a while to import

            move_shards([plan.path for plan in plans], sharding.address, facts)
    (folder / "images").rmdir()
    if sharding.address != "local":
        for target in {folder_of(folder, split) / FOLDER for split in outcome.images}:
            target.rmdir()


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
