"""How well a network's anchors cover the boxes of a data set, and which anchors would cover them better.

The network learns an object through the anchors that overlap it (`yolact.losses.matcher`). An object that no anchor
overlaps by half has only one, poorly fitting anchor to learn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.crop import Crop
from yolact.data.coco import CocoInstances
from yolact.errors import DataError
from yolact.models.anchors import pyramid_anchors
from yolact.models.yolact import Yolact
from yolact.settings import PYRAMID_LEVELS, ModelConfig

RECALL_IOU = 0.5
"""IoU from which an anchor recalls a box; also the published threshold of a positive anchor."""
MAX_BOXES = 20_000
"""Maximum number of boxes measured; of larger data sets, a sample evenly spread over the file."""
MAX_IMAGES = 5_000
"""Maximum number of images whose boxes `anchors_advice` measures, nearly; evenly spread."""
ENOUGH_RECALL = 0.95
"""Best possible recall below which `anchors_advice` warns."""
SEARCH_BOXES = 2_000
"""Maximum number of boxes that guide the search, evenly spread; its results are measured on all boxes."""
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""Lower (inclusive) and upper (exclusive) areas, in pixels of the network's input; COCO's limits."""
ROUNDS = 30
"""Maximum rounds of the clustering; it converges in fewer."""
STRIDES_PER_SCALE = (1, 2, 3, 4, 6, 8)
"""Sides of a level's smallest anchor, in cells of the level, from which the clustering starts; published: 3 to 4."""
POLISHED = 3
"""Number of the best clustering results that are refined further."""
STEPS = (1.3, 1.1, 1.03)
"""Factors by which one scale or ratio at a time is changed, coarse before fine."""


@dataclass(frozen=True)
class Coverage:
    """How well anchors cover some boxes."""

    boxes: int
    recall: float | None
    """Best possible recall: share of the boxes that an anchor overlaps with an IoU of `RECALL_IOU` or more, 0 to 1."""
    mean_iou: float | None
    """Mean over the boxes of the IoU with their best anchor, 0 to 1; None, like ``recall``, without boxes."""


@dataclass(frozen=True)
class AnchorFit:
    """How well one choice of anchors covers a data set."""

    scales: list[list[float]]
    ratios: list[float]
    square: bool
    all: Coverage
    by_size: dict[str, Coverage]
    """By the box's size at the network's input, see `SIZES`."""
    by_level: dict[str, Coverage]
    """By the level of the box's best anchor, P3 to P7; the lower level among equals."""


@dataclass(frozen=True)
class AnchorReport:
    """The anchors of a network and the suggested ones, over the same boxes."""

    image_size: int
    keep_aspect_ratio: bool
    boxes: int
    """Boxes in the data set, crowd regions excluded."""
    measured: int
    """Boxes measured, see `MAX_BOXES`."""
    present: AnchorFit
    suggested: AnchorFit
    """Neither its recall nor its mean IoU is below that of ``present``; equal to ``present`` if nothing better was
    found."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit_anchors(data: CocoInstances, config: ModelConfig) -> AnchorReport:
    """Measure the anchors of ``config`` on a data set and suggest better ones of the same structure.

    The same structure means the same number of scales per level and of ratios, so the head keeps its shape.

    Raises:
        DataError: the data set has no box.
    """
    boxes = dataset_boxes(data, keep_aspect_ratio=config.keep_aspect_ratio)
    if not len(boxes):
        raise DataError(f"{data.folder}: no objects, so there is nothing for anchors to cover")
    measured = _spread(boxes, MAX_BOXES)
    present = measure_anchors(measured, config)
    return AnchorReport(
        image_size=config.image_size,
        keep_aspect_ratio=config.keep_aspect_ratio,
        boxes=len(boxes),
        measured=len(measured),
        present=present,
        suggested=max(
            (fit for fit in (present, *_candidates(measured, config)) if _no_worse(fit.all, present.all)),
            key=lambda fit: (fit.all.recall, fit.all.mean_iou),
        ),
    )


def anchors_advice(data: CocoInstances, config: ModelConfig, positive_iou: float) -> str | None:
    """A warning if the anchors miss many objects (see `ENOUGH_RECALL`), measured on a sample of the images; else None.

    Args:
        positive_iou: IoU from which an anchor learns an object, ``train.loss.positive_iou``.
    """
    step = max(len(data.images) // MAX_IMAGES, 1)
    sample = replace(data, images=[data.images[k] for k in range(0, len(data.images), step)])
    boxes = _spread(dataset_boxes(sample, keep_aspect_ratio=config.keep_aspect_ratio), MAX_BOXES)
    if not len(boxes):
        return None
    shapes = Shapes(np.array(config.anchor_scales), np.array(config.anchor_ratios))
    iou = PlacedBoxes.of(boxes, config.image_size).iou(shapes, square=config.square_anchors).max(axis=(1, 2))
    missed = int((iou < positive_iou).sum())
    if missed <= (1 - ENOUGH_RECALL) * len(iou):
        return None
    return (
        f"the anchors miss {missed} of {len(iou)} objects ({missed / len(iou):.0%}): no anchor overlaps them by "
        f"train.loss.positive_iou, {positive_iou:g}, so they are hard to learn. What helps: "
        f"yolact anchors {data.folder}"
    )


def dataset_boxes(data: CocoInstances, *, keep_aspect_ratio: bool) -> Tensor:
    """All boxes except crowd regions and boxes without area; (N, 4) float32 xyxy, relative to the input.

    Args:
        keep_aspect_ratio: the network's setting, see `ModelConfig`.
    """
    rows = []
    for image in data.images:
        crop = Crop(0, 0, image.width, image.height)
        crop = crop.squared() if keep_aspect_ratio else crop
        rows += [
            [left / crop.width, top / crop.height, right / crop.width, bottom / crop.height]
            for left, top, right, bottom in (item.box for item in data.objects[image.id] if not item.crowd)
            if right > left and bottom > top
        ]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def measure_anchors(boxes: Tensor, config: ModelConfig) -> AnchorFit:
    """Coverage of (N, 4) xyxy relative boxes by a network's anchors at their positions."""
    placed = PlacedBoxes.of(boxes, config.image_size)
    of_level = placed.iou(
        Shapes(np.array(config.anchor_scales), np.array(config.anchor_ratios)), square=config.square_anchors
    ).max(axis=2)  # (N, levels)
    iou, level = of_level.max(axis=1), of_level.argmax(axis=1)
    area = placed.sizes.prod(axis=1)
    return AnchorFit(
        scales=[list(scales) for scales in config.anchor_scales],
        ratios=list(config.anchor_ratios),
        square=config.square_anchors,
        all=_coverage(iou),
        by_size={name: _coverage(iou[(area >= low) & (area < high)]) for name, (low, high) in SIZES.items()},
        by_level={f"P{k + 3}": _coverage(iou[level == k]) for k in range(PYRAMID_LEVELS)},
    )


@dataclass(frozen=True)
class Shapes:
    """Scales and ratios during the search; every level has each ratio at each of its scales."""

    scales: np.ndarray
    """(levels, S) float64, network pixels."""
    ratios: np.ndarray
    """(R,) float64, width / height."""

    @classmethod
    def ascending(cls, scales: np.ndarray, ratios: np.ndarray) -> Shapes:
        """A copy with the scales sorted over all levels: larger objects belong to the levels with larger receptive
        fields."""
        return cls(np.sort(scales, axis=None).reshape(scales.shape), np.sort(ratios))


@dataclass(frozen=True)
class PlacedBoxes:
    """Boxes relative to the cell grids of a pyramid, network pixels."""

    sizes: np.ndarray
    """(N, 2) float64 width and height."""
    offsets: np.ndarray
    """(N, levels, 2) float64: distance in x and y from the box's centre to that of the level's nearest cell."""
    image_size: int

    @classmethod
    def of(cls, boxes: Tensor, image_size: int) -> PlacedBoxes:
        """From (N, 4) xyxy, relative, inside the image."""
        corners = boxes.double().numpy() * image_size
        centers = (corners[:, :2] + corners[:, 2:]) / 2
        offsets = []
        for height, width in Yolact.level_sizes(image_size, image_size):
            cells = np.array([width, height])
            nearest = np.clip(np.floor(centers / image_size * cells), 0, cells - 1)
            offsets.append(np.abs(centers - (nearest + 0.5) / cells * image_size))
        return cls(corners[:, 2:] - corners[:, :2], np.stack(offsets, axis=1), image_size)

    def iou(self, shapes: Shapes, *, square: bool = False) -> np.ndarray:
        """Largest IoU of each box with the anchors of each shape; (N, levels, S * R), by scale, then ratio.

        Among anchors of one shape, the one with the nearest centre overlaps most: the overlap in x (and likewise in y)
            only decreases with the distance of the centres. So no other anchor needs to be computed.

        Args:
            square: see `yolact.models.anchors.level_anchors`.
        """
        one_cell = [(1, 1)] * PYRAMID_LEVELS
        anchors = pyramid_anchors(one_cell, shapes.scales.tolist(), shapes.ratios.tolist(), self.image_size, square)
        sides = anchors[:, 2:].double().numpy().reshape(1, PYRAMID_LEVELS, -1, 2) * self.image_size
        sizes, offsets = self.sizes[:, None, None, :], self.offsets[:, :, None, :]
        shared = np.minimum(np.minimum(sizes, sides), (sizes + sides) / 2 - offsets).clip(min=0).prod(axis=3)
        union: np.ndarray = sizes.prod(axis=3) + sides.prod(axis=3) - shared
        return shared / union


def _candidates(boxes: Tensor, config: ModelConfig) -> list[AnchorFit]:
    """Anchor sets of the same structure that fit ``boxes`` well, each measured on all boxes.

    The clustering starts from the present anchors, from scales in proportion to each level's cells and from the boxes'
    quantiles, and finds several local optima; the best are then refined one number at a time.
    """
    some = PlacedBoxes.of(_spread(boxes, SEARCH_BOXES), config.image_size)
    found = [_cluster(some, start) for start in _starts(some, config)]
    found.sort(key=lambda shapes: _worth(some, shapes), reverse=True)
    fits = []
    for shapes in found + [_polish(some, shapes) for shapes in found[:POLISHED]]:
        update = {
            "anchor_scales": [[_rounded(scale) for scale in level] for level in shapes.scales],
            "anchor_ratios": [_rounded(ratio) for ratio in shapes.ratios],
            "square_anchors": False,
        }
        fits.append(measure_anchors(boxes, config.model_copy(update=update)))
    return fits


def _starts(boxes: PlacedBoxes, config: ModelConfig) -> list[Shapes]:
    """Starting points of the clustering; the ratios are the present ones, or quantiles together with the quantile
    scales."""
    present, ratios = np.array(config.anchor_scales), np.array(config.anchor_ratios)
    per_level = present.shape[1]
    within = 2 ** (np.arange(per_level) / per_level)  # an octave, as from level to level
    strides = np.array([config.image_size / width for _, width in Yolact.level_sizes(*[config.image_size] * 2)])
    log_sizes = np.log(boxes.sizes)
    quantiles = Shapes.ascending(
        np.exp(_quantiles(log_sizes.mean(axis=1), present.size)).reshape(present.shape),
        np.exp(_quantiles(log_sizes[:, 0] - log_sizes[:, 1], len(ratios))),
    )
    return [
        Shapes.ascending(present, ratios),
        quantiles,
        *(
            Shapes.ascending((factor * strides[:, None] * within).clip(max=config.image_size), ratios)
            for factor in STRIDES_PER_SCALE
        ),
    ]


def _cluster(boxes: PlacedBoxes, shapes: Shapes) -> Shapes:
    """K-means with the distance 1 - IoU (Redmon and Farhadi 2017, section 2) of boxes and anchors at their positions.

    The clusters are the combinations of a scale and a ratio: each box belongs to the anchor that overlaps it most, and
    then every scale becomes the geometric mean of its boxes' sides, sqrt(width * height), and every ratio that of
    their width / height. Returns the best of all rounds, the start included.
    """
    log_sizes = np.log(boxes.sizes)
    log_side, log_ratio = log_sizes.mean(axis=1), log_sizes[:, 0] - log_sizes[:, 1]
    best, best_worth = shapes, (-1.0, -1.0)
    for _ in range(ROUNDS):
        iou = boxes.iou(shapes)
        worth = _worth_of(iou)
        if worth > best_worth:
            best, best_worth = shapes, worth
        scale_of, ratio_of = np.divmod(iou.reshape(len(iou), -1).argmax(axis=1), len(shapes.ratios))
        scales = _means(log_side, scale_of, np.log(shapes.scales).ravel()).reshape(shapes.scales.shape)
        moved = Shapes.ascending(np.exp(scales), np.exp(_means(log_ratio, ratio_of, np.log(shapes.ratios))))
        if np.allclose(moved.scales, shapes.scales, 1e-3) and np.allclose(moved.ratios, shapes.ratios, 1e-3):
            break
        shapes = moved
    return best


def _polish(boxes: PlacedBoxes, shapes: Shapes) -> Shapes:
    """Change one scale or ratio at a time while that improves the fit: cluster means leave gaps in the recall."""
    values = np.concatenate([shapes.scales.ravel(), shapes.ratios])

    def shaped(numbers: np.ndarray) -> Shapes:
        count = shapes.scales.size
        return Shapes.ascending(numbers[:count].reshape(shapes.scales.shape), numbers[count:])

    best_worth = _worth(boxes, shapes)
    for step in STEPS:
        for place in range(len(values)):
            for factor in (step, 1 / step):
                changed = values.copy()
                changed[place] *= factor
                if (worth := _worth(boxes, shaped(changed))) > best_worth:
                    values, best_worth = changed, worth
    return shaped(values)


def _worth(boxes: PlacedBoxes, shapes: Shapes) -> tuple[float, float]:
    return _worth_of(boxes.iou(shapes))


def _worth_of(iou: np.ndarray) -> tuple[float, float]:
    """Sort key of (N, levels, S * R) overlaps: recall, then mean IoU."""
    best = iou.max(axis=(1, 2))
    return float((best >= RECALL_IOU).mean()), float(best.mean())


def _no_worse(one: Coverage, other: Coverage) -> bool:
    """Coverage of at least one box."""
    assert one.recall is not None
    assert one.mean_iou is not None
    assert other.recall is not None
    assert other.mean_iou is not None
    return one.recall >= other.recall and one.mean_iou >= other.mean_iou


def _rounded(value: float) -> float:
    """Rounded to three significant digits, so never to 0."""
    return float(f"{value:.3g}")


def _spread(boxes: Tensor, most: int) -> Tensor:
    """At most ``most`` of the boxes, evenly spread over the file."""
    step = max(len(boxes) / most, 1.0)
    return boxes[(torch.arange(int(len(boxes) / step)) * step).long()]


def _quantiles(values: np.ndarray, count: int) -> np.ndarray:
    """Midpoint quantiles of ``count`` equal parts."""
    return np.quantile(values, (np.arange(count) + 0.5) / count)


def _means(values: np.ndarray, cluster: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Mean of each cluster's values; an empty cluster keeps its value."""
    counts = np.bincount(cluster, minlength=len(before))
    sums = np.bincount(cluster, weights=values, minlength=len(before))
    return np.where(counts > 0, sums / np.maximum(counts, 1), before)


def _coverage(iou: np.ndarray) -> Coverage:
    if not len(iou):
        return Coverage(0, None, None)
    return Coverage(len(iou), float((iou >= RECALL_IOU).mean()), float(iou.mean()))


def as_yaml(scales: Sequence[Sequence[float]], ratios: Sequence[float]) -> str:
    """The two settings as lines of ``params.yaml``."""
    return f"  anchor_scales: {[list(level) for level in scales]}\n  anchor_ratios: {list(ratios)}"
