"""The training data loader on one core: time by stage, alone or next to other augmentations.

A file that ``yolact bench loader --against FILE.py`` names has a function::

    def load_augmentation(image_size: int, seed: int) -> object: ...

The object has one method, which is timed::

    augment(image, boxes, labels, masks, crowd)

``image`` is (H, W, 3) uint8 RGB, ``boxes`` (N, 4) float64 xyxy relative to the image, ``labels`` (N,) int64 from 0,
``masks`` (N, H, W) uint8, 0 or 1, and ``crowd`` (N,) bool; it may change all of them in place. Its result is ignored.
The object may also have ``read(image)``, which is not timed: it converts the array to what the implementation's own
image reader returns (OpenCV's channel order, for example), and ``augment`` gets the result.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from yolact.data.processed import annotations_of, folder_of
from yolact.devices import computing_threads
from yolact.errors import SettingsError
from yolact.formats.instances import Instance
from yolact.formats.registry import read_dataset
from yolact.formats.sample import generate_sample
from yolact.inference.machine import Machine, describe_machine
from yolact.inference.timing import median
from yolact.settings import PUBLISHED_AUGMENTATION, SampleConfig
from yolact_bench.speed.external import call, load_backend
from yolact_bench.speed.images import HEIGHT, WIDTH
from yolact_bench.speed.rounds import Rounds, TimedRun, relative_speed

INSTANCES = 3
"""Objects in a generated image."""

CANDIDATES = 32
"""Number of generated images; those with `INSTANCES` objects in the kept part are used."""

VARIANTS = 60
"""Samples loaded in each round, each augmented differently; the same ones in every round."""

JPEG_QUALITY = 95

STAGES, TOTAL = "yolact, by stage", "yolact, in all"
"""Names of our two runs: the loader's stages, and a whole sample."""


@dataclass(frozen=True)
class LoadingTimes:
    """Milliseconds per image: means over the variants of a round, medians of these over the rounds."""

    decode: float
    """The JPEG file to (H, W, 3) uint8; masks stay run lengths."""
    colors: float
    geometry: float
    """Choice of the crop; crop, expand, mirror and resize of the image."""
    masks: float
    """Run lengths to masks and semantic maps, and boxes."""
    augmentation: float
    """Colours, geometry and masks."""
    total: float
    """The whole sample as a loader worker loads it, measured separately."""


@dataclass(frozen=True)
class OtherAugmentation:
    """Another implementation's results."""

    name: str
    file: str
    milliseconds: float
    """Time of its augmentation of an image and masks that are already decoded."""
    images_per_second: float
    speed: float
    """Its time over `LoadingTimes.augmentation`, which includes decoding masks, in the same round; median."""


@dataclass(frozen=True)
class LoadingBenchmark:
    """Results of `measure`."""

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
    """With decoding, on one core."""
    augmentation_per_second: float
    """Without decoding the image, on one core."""
    against: list[OtherAugmentation]


def measure(
    folder: Path | None,
    *,
    image_size: int,
    rounds: int = 20,
    against: list[Path],
    progress: Callable[[str], None] = lambda _: None,
) -> LoadingBenchmark:
    """Load images with the published augmentation chain, on one core.

    Args:
        folder: output of preprocess; None generates images of 500 x 375 with three objects each.
        image_size: side of the network's input, pixels.
        against: files with other augmentations, which alternate with ours on each image.
        progress: receives a line about the current activity.

    Raises:
        DataError: the data cannot be read.
        SettingsError: a file does not follow the protocol, or the folder has no images.
    """
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as temporary, computing_threads(1):
        if folder is None:
            progress("generating images")
            write_images(Path(temporary))
        data = CocoInstances.load(annotations_of(folder or Path(temporary), "train"))
        if not data.images:
            raise SettingsError(f"{folder}: has no images for training")
        machine = describe_machine(torch.device("cpu"))
        comparison = _Comparison(data, image_size, against)
        name = "generated images" if folder is None else str(folder)
        return comparison.run(machine, name, rounds, progress)


class _Comparison:
    """Times our loader and the other augmentations, which alternate on each image."""

    def __init__(self, data: CocoInstances, image_size: int, against: list[Path]) -> None:
        self.data = data
        self.image_size = image_size
        self.dataset = TrainingSet(data, PUBLISHED_AUGMENTATION, seed=0)
        self.others = [_Other(file, image_size) for file in against]

    def run(self, machine: Machine, name: str, rounds: int, progress: Callable[[str], None]) -> LoadingBenchmark:
        """Results of all rounds; ``name`` names the data."""
        runs: dict[str, TimedRun] = {STAGES: self._stages, TOTAL: self._total}
        runs |= {str(other.file): partial(self._other, other) for other in self.others}
        timed = Rounds(runs, progress, runs_per_round=VARIANTS)
        timed.warm_up(1)
        timed.measure(rounds)
        images = self.data.images
        decode, colors, geometry, masks, _ = timed.medians(STAGES)
        augmentation = [sum(stages[1:]) for stages in timed.times[STAGES]]
        [total, _] = timed.medians(TOTAL)
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
            milliseconds=LoadingTimes(decode, colors, geometry, masks, median(augmentation), total),
            images_per_second=1000 / total,
            augmentation_per_second=1000 / median(augmentation),
            against=[self._result(other.file, timed.totals(str(other.file)), augmentation) for other in self.others],
        )

    def _key(self, number: int) -> SampleKey:
        variant = number % VARIANTS
        return SampleKey(variant, variant % len(self.data.images), 0, self.image_size)

    def _stages(self, number: int) -> list[float]:
        return _time_stages(self.data, self._key(number))

    def _total(self, number: int) -> list[float]:
        start = time.perf_counter()
        self.dataset[self._key(number)]
        return [(time.perf_counter() - start) * 1000]

    def _other(self, other: _Other, number: int) -> list[float]:
        key = self._key(number)
        image = self.data.images[key.image]
        masks = decode_masks(self.data.objects[image.id], image.height, image.width)
        return [other.time(read_sample(self.data, key.image), masks)]

    @staticmethod
    def _result(file: Path, times: list[float], augmentation: list[float]) -> OtherAugmentation:
        speed = relative_speed(augmentation, times)
        return OtherAugmentation(file.stem, str(file), median(times), 1000 / median(times), speed)


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
    view = View.of(draw_crop(sample, PUBLISHED_AUGMENTATION, rng), height, width, key.size)
    render(sample.image, view, recolor)
    times.append(time.perf_counter())
    crop_targets(sample, view, len(data.category_ids))
    times.append(time.perf_counter())
    decode, pixels, masks = np.diff(times)
    return [1000 * float(seconds) for seconds in (decode, inner, pixels - inner, masks)]


class _Other:
    """Another implementation's augmentation, from a file."""

    def __init__(self, file: Path, image_size: int) -> None:
        self.file = file
        self._backend: Any = load_backend(file, "load_augmentation", ("augment",), image_size=image_size, seed=0)

    def time(self, sample: Sample, masks: np.ndarray) -> float:
        """Milliseconds for one image."""
        height, width = sample.image.shape[:2]
        read = getattr(self._backend, "read", np.array)
        image = call(self.file, read, sample.image)
        boxes = sample.boxes / [width, height, width, height]
        labels, crowd, masks = sample.labels.copy(), sample.crowd.copy(), masks.copy()
        start = time.perf_counter()
        call(self.file, self._backend.augment, image, boxes, labels, masks, crowd)
        return (time.perf_counter() - start) * 1000


# --- Generated images -----------------------------------------------------------------------------------------------


def write_images(folder: Path) -> None:
    """Write generated images of 500 x 375 with three objects each in the form of preprocess's output."""
    images_dir = folder_of(folder, "train") / "images"
    images_dir.mkdir(parents=True)
    config = SampleConfig(
        seed=0, train_images=CANDIDATES, val_images=1, min_size=WIDTH, max_size=WIDTH, max_objects=INSTANCES
    )
    generate_sample(folder / "raw", config)
    dataset = read_dataset(folder / "raw")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in (source.read() for source in dataset.splits["train"]):
        objects = [entry for entry in map(_lower_part, image.instances) if entry["area"]]
        if len(objects) < INSTANCES:
            continue
        number = len(images) + 1
        with Image.open(Path(dataset.root) / image.image.file) as opened:
            lower = opened.crop((0, image.height - HEIGHT, WIDTH, image.height))
        lower.save(images_dir / f"{number}.jpg", quality=JPEG_QUALITY)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        annotations += [
            {"id": len(annotations) + row, "image_id": number, **entry} for row, entry in enumerate(objects)
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(VOC_CLASSES, 1)]
    annotations = [{"id": number, **entry} for number, entry in enumerate(annotations, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    annotations_of(folder, "train").write_text(json.dumps(tree), encoding="utf-8")


def _lower_part(instance: Instance) -> dict[str, Any]:
    """Annotation of an instance's part in the image's last `HEIGHT` rows."""
    mask = coco_mask.decode({"size": [instance.height, instance.width], "counts": instance.counts})
    rle = coco_mask.encode(np.asfortranarray(mask[-HEIGHT:]))
    return {
        "category_id": instance.class_index,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }
