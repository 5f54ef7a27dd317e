"""Batches for training: order, size and augmentation of the images."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from yolact.data.augment import Sample, augment
from yolact.data.coco import CocoInstances, run_lengths
from yolact.data.columns import Images
from yolact.data.mixing import Partners, draw_partners, mix
from yolact.errors import DataError, SettingsError
from yolact.settings import AugmentConfig, TrainConfig
from yolact.structures import Targets

log = logging.getLogger(__name__)

ORDER, AUGMENTATION, SIZE, REPEATS = 1, 2, 3, 4
"""Separate the random streams (seeds of different lengths would not: NumPy pads short seeds with zeros)."""

AHEAD = 16
"""Images that a loader process begins to fetch before it needs them, at least: with as many parallel requests, 20 ms of
latency are hidden where an image takes a process 1.25 ms or more."""

WHOLE = 2**20
"""Repeat factors are rounded to multiples of 1 / WHOLE, which makes their sum independent of order."""


class SampleKey(NamedTuple):
    """One augmented copy of an image. Augmentation is seeded per (seed, epoch, image, copy), never per worker."""

    epoch: int
    image: int
    """Index in the data set."""
    copy: int
    """How many times the image has been drawn in this epoch before."""
    size: int
    """Side of the network's input, pixels; does not affect the random draws."""


@dataclass
class Batch:
    """What the trainer receives."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB."""
    targets: Targets
    image_ids: list[int]

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; a `DataLoader` with ``pin_memory`` calls this on custom types."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.image_ids)


class TrainingSet(Dataset[Batch]):
    """Augmented images of a data set, addressed by `SampleKey`; each is a batch of one image.

    Args:
        keep_aspect_ratio: see `ModelConfig`.
        mosaic_epochs: how many of the first epochs have mosaics.
        mask_upsampling: see `LossConfig`.
    """

    def __init__(
        self,
        data: CocoInstances,
        config: AugmentConfig,
        seed: int,
        *,
        keep_aspect_ratio: bool = False,
        mosaic_epochs: int = 0,
        mask_upsampling: int = 1,
    ) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self.keep_aspect_ratio = keep_aspect_ratio
        self.mosaic_epochs = mosaic_epochs
        self.mask_upsampling = mask_upsampling

    def __len__(self) -> int:
        return len(self.data.images)

    def __getitem__(self, key: SampleKey) -> Batch:
        """Decode an image, and those that are combined with it, and augment it.

        Raises:
            DataError: see `CocoInstances.read_image`; or a mask cannot be decoded.
        """
        rng, partners = self._draw(key)
        indices = [key.image, *partners.images]
        sample, *others = (read_sample(self.data, index) for index in indices)
        tiles, source = others[: len(partners.mosaic)], None if partners.pasted is None else others[-1]
        combine = partial(mix, tiles=tiles, source=source) if others else augment
        try:
            pixels, targets = combine(
                sample,
                config=self.config,
                size=key.size,
                num_classes=len(self.data.category_ids),
                rng=rng,
                keep_aspect_ratio=self.keep_aspect_ratio,
                mask_upsampling=self.mask_upsampling,
            )
        except ValueError as error:
            paths = ", ".join(self.data.store.location(self.data.images[index]) for index in indices)
            raise DataError(f"{paths}: the segmentation of an object cannot be decoded: {error}") from error
        return Batch(pixels[None], targets, [self.data.images[key.image].id])

    def __getitems__(self, keys: KeyBatch) -> list[Batch]:
        """The samples of a batch; `DataLoader` calls this. Images of later ones begin to be fetched first."""
        self.data.store.fetch_ahead(self.data.images[index] for key in keys.announced for index in self._all(key))
        return [self[key] for key in keys]

    def _draw(self, key: SampleKey) -> tuple[np.random.Generator, Partners]:
        """The sample's random stream, and the images that are combined with it."""
        rng = np.random.default_rng([self.seed, AUGMENTATION, key.epoch, key.image, key.copy])
        return rng, draw_partners(self.config, len(self), rng, mosaic=key.epoch < self.mosaic_epochs)

    def _all(self, key: SampleKey) -> list[int]:
        """Indices of all images of a sample."""
        return [key.image, *self._draw(key)[1].images]


def read_sample(data: CocoInstances, index: int) -> Sample:
    """Decode image number ``index``; its masks stay RLE.

    Raises:
        DataError: see `CocoInstances.read_image`.
    """
    image = data.images[index]
    objects = data.objects[image.id]
    return Sample(
        image=data.read_image(image),
        boxes=np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4),
        labels=np.array([item.label for item in objects], dtype=np.int64),
        masks=[run_lengths(item, image.height, image.width) for item in objects],
        crowd=np.array([item.crowd for item in objects], dtype=bool),
    )


def repeat_factors(data: CocoInstances, threshold: float) -> np.ndarray:
    """How often to draw each image per epoch on average (Gupta et al. 2019, "LVIS", repeat factor sampling).

    A class in the share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest of its
    classes; one without objects has 1. Crowd regions do not count: the network does not learn their class.

    Returns:
        (images,) float64, 1 or more.
    """
    rows, labels = data.objects.rows.shown_classes()
    factors = np.sqrt(threshold * len(data.images) / _images_of_classes(data).clip(min=1)).clip(min=1)
    factor_of_row = np.ones(len(data.objects))
    np.maximum.at(factor_of_row, rows, factors[labels])
    return factor_of_row[_rows_of_images(data)]


def _rows_of_images(data: CocoInstances) -> np.ndarray:
    """(images,) int64: the row of each image in the data set's columns."""
    if isinstance(data.images, Images) and data.images.rows is data.objects.rows:
        return np.arange(len(data.images))
    return np.array([data.objects.rows.row_of(image.id) for image in data.images], dtype=np.int64)


def _images_of_classes(data: CocoInstances) -> np.ndarray:
    """How many images show each class; (classes,) int64."""
    rows, labels = data.objects.rows.shown_classes()
    times = np.bincount(_rows_of_images(data), minlength=len(data.objects))
    return np.bincount(labels, weights=times[rows], minlength=len(data.category_ids)).astype(np.int64)


def _balanced_factors(data: CocoInstances, threshold: float, *, warn: bool) -> np.ndarray:
    """`repeat_factors`, with a warning if they change nothing."""
    factors = repeat_factors(data, threshold)
    images = _images_of_classes(data)
    if warn and images.any() and not (factors > 1).any():
        rarest = int(np.where(images > 0, images, images.max() + 1).argmin())
        share = images[rarest] / len(data.images)
        log.warning(
            "train.sampling: class_balanced draws every image once, as uniform does: the rarest class, %s, is in a "
            "share of %.3g of the images, which is not below train.repeat_threshold, %g. %s",
            data.class_names[rarest],
            share,
            threshold,
            "Set a repeat_threshold above that share, or train.sampling: uniform."
            if share < 1
            else "No class is rarer than another; set train.sampling: uniform.",
        )
    return factors


class EpochSampler(Sampler[list[SampleKey]]):
    """Batches of one epoch, or this process's part of each; they depend only on the seed and the epoch.

    An epoch draws each image as often as its repeat factor says: the integer part always, and once more with the
        fraction as probability; the epoch's length is always the sum of the factors, rounded down. With all factors 1
        it draws each image once. The last batch is dropped if it is not full, as published, unless it is the only one.

    Set ``epoch`` before each pass, and ``start`` to the first batch to resume in the middle of an epoch.

    Args:
        repeats: (images,) how often to draw each image on average, 1 or more.
        batch_size: images per optimizer step, over all processes.
        sizes: sides of the network's input, pixels; one is drawn for each batch.
        seed: random seed of order, repeats and sizes.
        rank: index of this process, 0 to ``world_size`` - 1. The parts of all processes, concatenated by rank, are the
            batch of a single process; their lengths differ by at most 1.
        world_size: number of processes that train together.

    Raises:
        SettingsError: a process would have no images.
    """

    def __init__(
        self, repeats: np.ndarray, batch_size: int, sizes: Sequence[int], seed: int, *, rank: int, world_size: int
    ) -> None:
        self.shares = np.rint(repeats * WHOLE).astype(np.int64)
        self.images = int(self.shares.sum() // WHOLE)
        self.batch_size = min(batch_size, self.images)
        if self.batch_size < world_size:
            raise SettingsError(
                f"{world_size} processes cannot share a batch of {self.batch_size} (train.batch_size {batch_size}, "
                f"{self.images} images in an epoch): start {self.batch_size} processes or fewer"
            )
        self.sizes = list(sizes)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next pass starts."""
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        images, copies = self._order()
        for batch in range(self.start, len(self)):
            first = batch * self.batch_size
            low, high = first + self.share.start, first + self.share.stop
            size = self._size_of(batch)
            yield [
                SampleKey(self.epoch, image, copy, size)
                for image, copy in zip(images[low:high].tolist(), copies[low:high].tolist(), strict=True)
            ]

    @property
    def share(self) -> slice:
        """Positions of this process's images in a batch."""
        return slice(*(self.batch_size * part // self.world_size for part in (self.rank, self.rank + 1)))

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Images of the epoch in order, and how many times each was drawn before; both (images of an epoch,) int64."""
        order = np.random.default_rng([self.seed, ORDER, self.epoch])
        first = order.permutation(len(self.shares))
        if (self.shares == WHOLE).all():
            return first, np.zeros_like(first)
        # Systematic sampling: cumulative sums in random order from a random offset; each image is drawn as often as its
        # share crosses a whole number.
        rng = np.random.default_rng([self.seed, REPEATS, self.epoch])
        offset = rng.integers(WHOLE)
        counts = np.diff((self.shares[first].cumsum() + offset) // WHOLE, prepend=0)
        images = first.repeat(counts)
        copies = np.arange(len(images)) - (counts.cumsum() - counts).repeat(counts)
        chosen = rng.permutation(len(images))[: self.images]
        return images[chosen], copies[chosen]

    def _size_of(self, batch: int) -> int:
        if len(self.sizes) == 1:
            return self.sizes[0]
        return self.sizes[int(np.random.default_rng([self.seed, SIZE, self.epoch, batch]).integers(len(self.sizes)))]


class KeyBatch(list[SampleKey]):
    """The samples of a batch, and those whose images the same loader process begins to fetch before it loads these."""

    announced: Sequence[SampleKey] = ()


class LookAhead(Sampler[KeyBatch]):
    """The batches of a sampler, each with samples that the same loader process loads then or later.

    Every sample is announced to its process once: those of its first batch with that, all others so many batches ahead
    that these are `AHEAD` images or more. A small batch alone would not last as long as a request takes.

    Args:
        batches: batches of the same length.
        workers: number of loader processes, which load the batches in turn.
    """

    def __init__(self, batches: Sampler[list[SampleKey]], workers: int) -> None:
        self._batches = batches
        self._workers = workers

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # `EpochSampler` has a length

    def __iter__(self) -> Iterator[KeyBatch]:
        waiting: deque[KeyBatch] = deque()
        first = self._workers
        for keys in self._batches:
            waiting.append(KeyBatch(keys))
            if len(waiting) > self._workers * -(-AHEAD // len(keys)):
                waiting[0].announced = self._of_same_worker(waiting) if first > 0 else list(waiting[-1])
                yield waiting.popleft()
                first -= 1
        while waiting:
            if first > 0:
                waiting[0].announced = self._of_same_worker(waiting)
            yield waiting.popleft()
            first -= 1

    def _of_same_worker(self, waiting: Iterable[KeyBatch]) -> list[SampleKey]:
        """The samples of the first batch and of all others that go to its process."""
        return [key for batch in islice(waiting, 0, None, self._workers) for key in batch]


def collate(rows: list[Batch]) -> Batch:
    """Join batches of images of the same size."""
    return Batch(
        images=torch.cat([row.images for row in rows]),
        targets=Targets.cat([row.targets for row in rows]),
        image_ids=[image_id for row in rows for image_id in row.image_ids],
    )


def ignore_stop_signals(worker: int) -> None:
    """Keep a loader process running when its process group is asked to stop: the current step needs its batch.

    Ignores SIGINT and SIGTERM, however often they are sent. The process ends when the loader is closed or within
    seconds of its parent's death; if it hangs, `end_children` ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_children() -> None:
    """Kill loader processes that still run at exit.

    Python sends them SIGTERM, which they ignore, and would wait forever for one that hangs.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def training_loader(
    data: CocoInstances,
    config: TrainConfig,
    image_size: int,
    *,
    workers: int,
    pin: bool,
    keep_aspect_ratio: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DataLoader[Batch], EpochSampler]:
    """A loader over one epoch's batches; set ``epoch`` and ``start`` of the sampler before each pass.

    Each worker process uses one thread (set by `DataLoader`), so W workers use W cores. The loader does not touch
    torch's global random state: a resumed run draws the same numbers as an uninterrupted one.

    Args:
        image_size: side of the network's input, used if ``config.augment.image_sizes`` is empty.
        workers: loader processes; 0 loads in this process.
        pin: put batches into page-locked memory.
        keep_aspect_ratio: the network's setting, see `ModelConfig`.
        rank: index of this process, see `EpochSampler`.
        world_size: processes that train together.

    Raises:
        SettingsError: see `EpochSampler`.
    """
    balanced = config.sampling == "class_balanced"
    sampler = EpochSampler(
        _balanced_factors(data, config.repeat_threshold, warn=rank == 0) if balanced else np.ones(len(data.images)),
        config.batch_size,
        config.augment.image_sizes or [image_size],
        config.seed,
        rank=rank,
        world_size=world_size,
    )
    loader: DataLoader[Batch] = DataLoader(
        TrainingSet(
            data,
            config.augment,
            config.seed,
            keep_aspect_ratio=keep_aspect_ratio,
            mosaic_epochs=config.augment.mosaic_epochs(config.num_epochs),
            mask_upsampling=config.loss.mask_upsampling,
        ),
        batch_sampler=LookAhead(sampler, max(workers, 1)),  # the batches go to the processes in turn
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_stop_signals,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
    if workers:
        atexit.register(end_children)
    return loader, sampler
