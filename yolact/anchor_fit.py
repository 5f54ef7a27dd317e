"""How well a network's anchors cover the boxes of a data set, and which anchors would cover them better.

An object is learned through the anchors that overlap it (`yolact.matcher`). One that no anchor overlaps by half has but
a single, badly fitting anchor to be learned from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.boxes import box_iou, cxcywh_to_xyxy
from yolact.config import PYRAMID_LEVELS, ModelConfig
from yolact.data.coco import CocoInstances
from yolact.data.window import Window
from yolact.errors import DataError
from yolact.models.anchors import config_anchors
from yolact.models.yolact import Yolact

RECALL_IOU = 0.5
"""An anchor with this IoU finds the box; also the published threshold of a positive anchor."""
MAX_BOXES = 20_000
"""Of larger data sets that many boxes, evenly spread over the file, are looked at."""
CHUNK = 64
"""Boxes that are compared with all anchors at once: bounds the memory to some hundred megabytes."""
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""Area in pixels of the network's input, from and below; COCO's limits."""
ROUNDS = 100
"""Most rounds of the clustering; it settles in far fewer."""


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
    """By the level of the box's best anchor, P3 to P7; of two that are as good, the lower one."""


@dataclass(frozen=True)
class AnchorReport:
    """The anchors of a network and the suggested ones, over the same boxes."""

    image_size: int
    keep_aspect_ratio: bool
    boxes: int
    """In the data set, crowd regions left out."""
    measured: int
    """Of them looked at, see `MAX_BOXES`."""
    present: AnchorFit
    suggested: AnchorFit

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit_anchors(data: CocoInstances, config: ModelConfig) -> AnchorReport:
    """Measure the anchors of ``config`` on a data set and suggest better ones of the same structure.

    The same structure: as many scales for each level and as many ratios, so the head has the same shape.

    Raises:
        DataError: the data set has no box.
    """
    boxes = dataset_boxes(data, keep_aspect_ratio=config.keep_aspect_ratio)
    if not len(boxes):
        raise DataError(f"{data.images_dir.parent}: no object, so there is nothing that anchors could cover")
    step = max(len(boxes) / MAX_BOXES, 1.0)
    measured = boxes[(torch.arange(int(len(boxes) / step)) * step).long()]
    scales, ratios = suggest_anchors(measured, config)
    better = config.model_copy(update={"anchor_scales": scales, "anchor_ratios": ratios, "square_anchors": False})
    return AnchorReport(
        image_size=config.image_size,
        keep_aspect_ratio=config.keep_aspect_ratio,
        boxes=len(boxes),
        measured=len(measured),
        present=measure_anchors(measured, config),
        suggested=measure_anchors(measured, better),
    )


def dataset_boxes(data: CocoInstances, *, keep_aspect_ratio: bool) -> Tensor:
    """All boxes but those of crowd regions and those without area; (N, 4) float32 xyxy, relative to the input.

    Args:
        keep_aspect_ratio: the network's, see `ModelConfig`.
    """
    rows = []
    for image in data.images:
        window = Window(0, 0, image.width, image.height)
        window = window.squared() if keep_aspect_ratio else window
        rows += [
            [left / window.width, top / window.height, right / window.width, bottom / window.height]
            for left, top, right, bottom in (item.box for item in data.objects[image.id] if not item.crowd)
            if right > left and bottom > top
        ]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def measure_anchors(boxes: Tensor, config: ModelConfig) -> AnchorFit:
    """Coverage of (N, 4) xyxy relative boxes by a network's anchors, each at its place."""
    levels = Yolact.level_sizes(config.image_size, config.image_size)
    corners = cxcywh_to_xyxy(config_anchors(config, levels))  # (A, 4)
    of_level = torch.cat(
        [torch.full((height * width * config.anchors_per_cell,), k) for k, (height, width) in enumerate(levels)]
    )
    best = [box_iou(chunk, corners).max(dim=1) for chunk in boxes.split(CHUNK)]
    iou = torch.cat([values for values, _ in best])  # (N,)
    level = of_level[torch.cat([anchors for _, anchors in best])]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * config.image_size**2
    return AnchorFit(
        scales=[list(scales) for scales in config.anchor_scales],
        ratios=list(config.anchor_ratios),
        square=config.square_anchors,
        all=_coverage(iou),
        by_size={name: _coverage(iou[(area >= low) & (area < high)]) for name, (low, high) in SIZES.items()},
        by_level={f"P{k + 3}": _coverage(iou[level == k]) for k in range(PYRAMID_LEVELS)},
    )


def suggest_anchors(boxes: Tensor, config: ModelConfig) -> tuple[list[list[float]], list[float]]:
    """Scales for each level, in network pixels and ascending, and ratios, ascending, by clustering box shapes.

    K-means with the distance 1 - IoU of centred boxes (Redmon and Farhadi 2017, section 2), where the clusters are the
    combinations of a scale and a ratio: each box belongs to the combination that overlaps it most, and then every scale
    becomes the geometric mean of its boxes' sides, sqrt(width * height), and every ratio that of their width / height.
    The best of all rounds counts.

    Args:
        boxes: (N, 4) xyxy, relative; at least one.
    """
    sizes = ((boxes[:, 2:] - boxes[:, :2]) * config.image_size).double().numpy()  # (N, 2)
    log_side, log_ratio = np.log(sizes).mean(axis=1), np.log(sizes[:, 0] / sizes[:, 1])
    per_level = len(config.anchor_scales[0])
    scales = _quantiles(log_side, PYRAMID_LEVELS * per_level)
    ratios = _quantiles(log_ratio, len(config.anchor_ratios))
    best_iou, best = -1.0, (scales, ratios)
    for _ in range(ROUNDS):
        iou = shape_iou(sizes, scales, ratios)  # (N, scales * ratios)
        mean = float(iou.max(axis=1).mean())
        if mean <= best_iou + 1e-9:
            break
        best_iou, best = mean, (scales, ratios)
        scale_of, ratio_of = np.divmod(iou.argmax(axis=1), len(ratios))
        scales, ratios = _means(log_side, scale_of, scales), _means(log_ratio, ratio_of, ratios)
    sides = [round(float(side), 1) for side in np.exp(np.sort(best[0]))]
    levels = [sides[k : k + per_level] for k in range(0, len(sides), per_level)]
    return levels, [round(float(ratio), 3) for ratio in np.exp(np.sort(best[1]))]


def shape_iou(sizes: np.ndarray, log_scales: np.ndarray, log_ratios: np.ndarray) -> np.ndarray:
    """IoU of (N, 2) widths and heights with centred anchors; (N, S * R) for S scales and R ratios, given as logarithms.

    Anchors are ordered by scale, then ratio.
    """
    sides, stretch = np.exp(log_scales)[:, None], np.exp(log_ratios / 2)[None, :]
    widths, heights = (sides * stretch).ravel(), (sides / stretch).ravel()  # (S * R,)
    shared = np.minimum(sizes[:, :1], widths) * np.minimum(sizes[:, 1:], heights)
    union: np.ndarray = sizes.prod(axis=1)[:, None] + widths * heights - shared
    return shared / union


def _quantiles(values: np.ndarray, count: int) -> np.ndarray:
    """The middles of ``count`` equally full parts."""
    return np.quantile(values, (np.arange(count) + 0.5) / count)


def _means(values: np.ndarray, cluster: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Mean of each cluster's values; an empty cluster stays where it was."""
    counts = np.bincount(cluster, minlength=len(before))
    sums = np.bincount(cluster, weights=values, minlength=len(before))
    return np.where(counts > 0, sums / np.maximum(counts, 1), before)


def _coverage(iou: Tensor) -> Coverage:
    if not len(iou):
        return Coverage(0, None, None)
    return Coverage(len(iou), float((iou >= RECALL_IOU).float().mean()), float(iou.mean()))


def as_yaml(scales: Sequence[Sequence[float]], ratios: Sequence[float]) -> str:
    """The two settings as lines of ``params.yaml``."""
    return f"  anchor_scales: {[list(level) for level in scales]}\n  anchor_ratios: {list(ratios)}"
