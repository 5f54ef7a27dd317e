"""What the training data loader does with a image, stage by stage, on one core; alone or beside another augmentation.

A file that `yolact bench --loader --against FILE.py` names has a function::

    def load_augmentation(image_size: int, seed: int) -> object: ...

The object has one method, which is timed::

    augment(image, boxes, labels, masks, crowd)

``image`` is (H, W, 3) uint8 RGB, ``boxes`` (N, 4) float64 xyxy relative to the image, ``labels`` (N,) int64 from 0,
``masks`` (N, H, W) uint8, 0 or 1, and ``crowd`` (N,) bool; all of them are its own to change. What it returns is not
looked at. It may also have ``read(image)``, which is not timed: it turns the array into what the implementation's own
reader of pictures gives (OpenCV's channel order, for example), and ``augment`` gets that.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from yolact.class_names import VOC_CLASSES
from yolact.crop import View
from yolact.data.augment import Sample, crop_targets, draw_crop, render
from yolact.data.coco import CocoInstances, decode_masks
from yolact.data.colors import change_colors, draw_colors
from yolact.data.loader import SampleKey, TrainingSet, read_sample
from yolact.errors import SettingsError
from yolact.formats.convert import read_voc_image
from yolact.formats.instances import Instance
from yolact.formats.sample import generate_sample
from yolact.formats.voc import read_split, voc_root
from yolact.inference.machine import Machine, describe_machine
from yolact.inference.timing import median
from yolact.settings import AugmentConfig, SampleConfig
from yolact_bench.speed.contestants import guard, load_function
from yolact_bench.speed.images import HEIGHT, WIDTH

FULL_CHAIN = AugmentConfig(photometric=True, expand=True, random_crop=True, mirror=True, image_sizes=[])
"""The published chain."""

INSTANCES = 3
"""Objects in a generated image."""

CANDIDATES = 32
"""Images that are drawn; those with as many objects in the part that is kept are used."""

VARIANTS = 60
"""Images loaded in each round, each with changes of its own; the same ones in every round."""

JPEG_QUALITY = 95


@dataclass(frozen=True)
class LoadingTimes:
    """Milliseconds for a image: means over the variants of a round, medians of these over the rounds."""

    decode: float
    """The JPEG file to (H, W, 3) uint8; masks stay run lengths."""
    colors: float
    geometry: float
    """Choice of the window, crop, expand, mirror and resize of the image."""
    masks: float
    """Run lengths to masks and semantic maps, and boxes."""
    augmentation: float
    """Colours, geometry and masks."""
    total: float
    """All of it, measured by itself, as a loader's worker does it."""


@dataclass(frozen=True)
class OtherAugmentation:
    """Another implementation's metrics."""

    name: str
    file: str
    milliseconds: float
    """Of its augmentation of a image and masks that are decoded already."""
    images_per_second: float
    speed: float
    """Its time over `LoadingTimes.augmentation`, which includes decoding masks, in the same round; median."""


@dataclass(frozen=True)
class LoadingBenchmark:
    """The whole measurement."""

    machine: Machine
    data: str
    images: int
    width: float
    height: float
    objects: float
    """Means over the images."""
    image_size: int
    rounds: int
    variants: int
    milliseconds: LoadingTimes
    images_per_second: float
    """Of one core, with decoding."""
    augmentation_per_second: float
    """Of one core, without decoding the image."""
    against: list[OtherAugmentation]


def measure(
    folder: Path | None,
    *,
    image_size: int,
    rounds: int = 20,
    against: list[Path],
    progress: Callable[[str], None] = lambda _: None,
) -> LoadingBenchmark:
    """Load images with the published chain of random changes, on one core.

    Args:
        folder: what preprocess wrote; None generates images of 500 x 375 with three objects each.
        image_size: side of the network's input, pixels.
        against: files with other augmentations, which run in turn with ours.
        progress: is told what is being done.

    Raises:
        DataError: the data cannot be read.
        SettingsError: a file does not follow the protocol.
    """
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as temporary, _one_thread():
        if folder is None:
            progress("drawing images")
            write_images(Path(temporary))
        data = CocoInstances.load((folder or Path(temporary)) / "train.json", (folder or Path(temporary)) / "images")
        if not data.images:
            raise SettingsError(f"{folder}: train.json has no image")
        machine = describe_machine(torch.device("cpu"))
        race = _Race(data, image_size, against)
        for number in range(rounds + 1):
            progress(f"round {number} of {rounds}")
            race.run(warm_up=number == 0)
        return race.result(machine, "generated images" if folder is None else str(folder), rounds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch with one thread, as in a worker of a `DataLoader`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Race:
    """Ours and the other augmentations, in turn with each image."""

    def __init__(self, data: CocoInstances, image_size: int, against: list[Path]) -> None:
        self.data = data
        self.image_size = image_size
        self.dataset = TrainingSet(data, FULL_CHAIN, seed=0)
        self.others = [(file, _Other(file, image_size)) for file in against]
        self.stages: list[list[float]] = []
        self.totals: list[float] = []
        self.other_times: list[list[float]] = []

    def run(self, *, warm_up: bool) -> None:
        """One round; one to warm up is not counted."""
        keys = [SampleKey(variant, variant % len(self.data.images), 0, self.image_size) for variant in range(VARIANTS)]
        rows = [self._load(key) for key in keys]  # (variants, 4 stages + total + others)
        if not warm_up:
            means = np.mean(rows, axis=0).tolist()
            self.stages.append(means[:4])
            self.totals.append(means[4])
            self.other_times.append(means[5:])

    def _load(self, key: SampleKey) -> list[float]:
        stages = _time_stages(self.data, key)
        start = time.perf_counter()
        self.dataset[key]
        total = (time.perf_counter() - start) * 1000
        others = []
        if self.others:
            sample = read_sample(self.data, key.image)
            image = self.data.images[key.image]
            masks = decode_masks(self.data.objects[image.id], image.height, image.width)
            others = [other.time(sample, masks) for _, other in self.others]
        return [*stages, total, *others]

    def result(self, machine: Machine, name: str, rounds: int) -> LoadingBenchmark:
        """The metrics of all counted rounds."""
        images, totals = self.data.images, median(self.totals)
        augmentation = [sum(stages[1:]) for stages in self.stages]
        others = []
        for index, (file, _) in enumerate(self.others):
            times = [row[index] for row in self.other_times]
            speed = median([other / ours for other, ours in zip(times, augmentation, strict=True)])
            others.append(OtherAugmentation(file.stem, str(file), median(times), 1000 / median(times), speed))
        decode, colors, geometry, masks = (median(stage) for stage in zip(*self.stages, strict=True))
        return LoadingBenchmark(
            machine=machine,
            data=name,
            images=len(images),
            width=float(np.mean([image.width for image in images])),
            height=float(np.mean([image.height for image in images])),
            objects=float(np.mean([len(self.data.objects[image.id]) for image in images])),
            image_size=self.image_size,
            rounds=rounds,
            variants=VARIANTS,
            milliseconds=LoadingTimes(decode, colors, geometry, masks, median(augmentation), totals),
            images_per_second=1000 / totals,
            augmentation_per_second=1000 / median(augmentation),
            against=others,
        )


def _time_stages(data: CocoInstances, key: SampleKey) -> list[float]:
    """Milliseconds of decoding, colours, geometry and masks, as `augment` does them."""
    rng = np.random.default_rng(key[:2])
    times = [time.perf_counter()]
    sample = read_sample(data, key.image)
    times.append(time.perf_counter())
    change, inner = draw_colors(rng), 0.0

    def recolor(planes: np.ndarray) -> np.ndarray:
        nonlocal inner
        start = time.perf_counter()
        changed = change_colors(planes, change)
        inner = time.perf_counter() - start
        return changed

    height, width = sample.image.shape[:2]
    view = View.of(draw_crop(sample, FULL_CHAIN, rng), height, width, key.size)
    render(sample.image, view, recolor)
    times.append(time.perf_counter())
    crop_targets(sample, view, len(data.category_ids))
    times.append(time.perf_counter())
    decode, pixels, masks = np.diff(times)
    return [1000 * float(seconds) for seconds in (decode, inner, pixels - inner, masks)]


class _Other:
    """Another implementation's augmentation, from a file."""

    def __init__(self, file: Path, image_size: int) -> None:
        self._file = file
        load = load_function(file, "load_augmentation")
        self._augmentation: Any = guard(file, load, image_size=image_size, seed=0)
        if not callable(getattr(self._augmentation, "augment", None)):
            raise SettingsError(f"--against {file}: what load_augmentation returned has no method augment")

    def time(self, sample: Sample, masks: np.ndarray) -> float:
        """Milliseconds for one image."""
        height, width = sample.image.shape[:2]
        read = getattr(self._augmentation, "read", np.array)
        image = guard(self._file, read, sample.image)
        boxes = sample.boxes / [width, height, width, height]
        labels, crowd, masks = sample.labels.copy(), sample.crowd.copy(), masks.copy()
        start = time.perf_counter()
        guard(self._file, self._augmentation.augment, image, boxes, labels, masks, crowd)
        return (time.perf_counter() - start) * 1000


# --- Generated images -----------------------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Write generated images of 500 x 375 with three objects each, as preprocess lays them out."""
    (folder / "images").mkdir()
    config = SampleConfig(
        seed=0, train_images=CANDIDATES, val_images=1, min_size=WIDTH, max_size=WIDTH, max_objects=INSTANCES
    )
    generate_sample(folder / "raw", config)
    root = voc_root(folder / "raw")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in (read_voc_image(root, image_id) for image_id in read_split(root, "train")):
        objects = [entry for entry in map(_lower_part, image.instances) if entry["area"]]
        if len(objects) < INSTANCES:
            continue
        number = len(images) + 1
        with Image.open(root / image.image.file) as opened:
            lower = opened.crop((0, image.height - HEIGHT, WIDTH, image.height))
        lower.save(folder / "images" / f"{number}.jpg", quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        annotations += [
            {"id": len(annotations) + row, "image_id": number, **entry} for row, entry in enumerate(objects)
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(VOC_CLASSES, 1)]
    annotations = [{"id": number, **entry} for number, entry in enumerate(annotations, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(tree), encoding="utf-8")


def _lower_part(instance: Instance) -> dict[str, Any]:
    """The annotation of what an instance has in the image's last `HEIGHT` rows."""
    mask = coco_mask.decode({"size": [instance.height, instance.width], "counts": instance.counts})
    rle = coco_mask.encode(np.asfortranarray(mask[-HEIGHT:]))
    return {
        "category_id": instance.class_index,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }
