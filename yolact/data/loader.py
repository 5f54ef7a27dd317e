"""Batches for training: which photos in which order, and how they become tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from yolact.config import AugmentConfig, TrainConfig
from yolact.data.augment import ImageTargets, Sample, augment
from yolact.data.coco import CocoInstances, decode_masks
from yolact.errors import DataError
from yolact.models.yolact import Yolact
from yolact.structures import Targets, targets_from_masks

ORDER, AUGMENTATION = 1, 2
"""Keep the random streams of the two apart (NumPy pads short seeds with zeros, so lengths alone do not)."""


class SampleKey(NamedTuple):
    """Which variant of which photo: its randomness depends on these two and the seed, never on the worker."""

    epoch: int
    photo: int
    """Its number in the data set."""


@dataclass
class Batch:
    """What the trainer receives."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB."""
    targets: Targets
    image_ids: list[int]

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; a `DataLoader` with ``pin_memory`` calls this on types of our own."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.image_ids)


class TrainingSet(Dataset[tuple[Tensor, ImageTargets, int]]):
    """Augmented photos of a data set, addressed by `SampleKey`."""

    def __init__(self, data: CocoInstances, config: AugmentConfig, size: int, seed: int) -> None:
        self.data = data
        self.config = config
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data.images)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, ImageTargets, int]:
        rng = np.random.default_rng([self.seed, AUGMENTATION, key.epoch, key.photo])
        pixels, targets = augment(read_sample(self.data, key.photo), self.config, self.size, rng)
        return pixels, targets, self.data.images[key.photo].id


def read_sample(data: CocoInstances, index: int) -> Sample:
    """Decode photo number ``index`` and its masks.

    Raises:
        DataError: see `CocoInstances.read_image`; or a mask cannot be decoded.
    """
    image = data.images[index]
    objects = data.objects[image.id]
    try:
        masks = decode_masks(objects, image.height, image.width)
    except DataError as error:
        raise DataError(f"{data.images_dir / image.file_name}: {error}") from error
    return Sample(
        image=data.read_image(image),
        boxes=np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        labels=np.array([item.label for item in objects], dtype=np.int64),
        masks=masks,
        crowd=np.array([item.crowd for item in objects], dtype=bool),
    )


class EpochSampler(Sampler[list[SampleKey]]):
    """Batches of one epoch in an order that depends only on the seed and the epoch.

    The last batch is left out when it is not full, as published, unless it is the only one. Of each batch, every one
    of ``world_size`` processes gets the slice of its ``rank``; ``start`` is the first batch that is not left out.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.batch_size = min(batch_size, length)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng([self.seed, ORDER, self.epoch]).permutation(self.length)
        for batch in range(self.start, self.length // self.batch_size):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            own = np.array_split(chosen, self.world_size)[self.rank]
            yield [SampleKey(self.epoch, int(photo)) for photo in own]


def collate(rows: list[tuple[Tensor, ImageTargets, int]], num_classes: int) -> Batch:
    """Join single samples; masks are brought to the resolutions of the losses."""
    images, targets, image_ids = zip(*rows, strict=True)
    height, width = Yolact.level_sizes(*images[0].shape[1:])[0]  # of P3
    return Batch(
        torch.stack(images),
        targets_from_masks(
            boxes=[target.boxes for target in targets],
            labels=[target.labels for target in targets],
            masks=[target.masks for target in targets],
            crowd=[target.crowd for target in targets],
            num_classes=num_classes,
            mask_size=(2 * height, 2 * width),
            semantic_size=(height, width),
        ),
        list(image_ids),
    )


def training_loader(
    data: CocoInstances,
    config: TrainConfig,
    image_size: int,
    *,
    workers: int,
    pin: bool,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataLoader, EpochSampler]:
    """A loader over one epoch; set ``epoch`` and ``start`` of the sampler before each pass.

    It leaves torch's global random state alone, so that a resumed run draws what an uninterrupted one does.
    """
    dataset = TrainingSet(data, config.augment, image_size, config.seed)
    sampler = EpochSampler(len(dataset), config.batch_size, config.seed, rank, world_size)
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=partial(collate, num_classes=len(dataset.data.class_names)),
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
    return loader, sampler
