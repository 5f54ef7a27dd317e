"""Augmentation of training images: the SSD chain that YOLACT trains with (SSD section 2.2, published code).

Large-scale jitter replaces its expand and crop; `yolact.data.mixing` combines several images.

Order and probabilities are the published ones. Three things differ intentionally. Pixels are uint8 before and after
each of the two steps that change them, colours and resizing, so values are clipped to 0..255. Expand, crop, mirror and
resize are combined into one crop first, so each pixel is resampled once. Colours are changed after resizing if that
leaves fewer pixels to change. The published test for a crop's smallest overlap never rejects anything; without it, one
mode in six keeps the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.crop import Crop, View
from yolact.data.colors import ColorChange, change_colors, draw_colors
from yolact.data.target_masks import reduce_masks
from yolact.masks import Rle
from yolact.settings import AugmentConfig
from yolact.structures import Targets
from yolact.transforms import MEAN_RGB

CROP_TRIES = 50
MIN_SIDE = 1.0
"""Objects narrower or lower than this, in network pixels, are dropped: their mask loss would be divided by zero."""


@dataclass
class Sample:
    """An image and its objects, as stored."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy, pixels."""
    labels: np.ndarray
    """(N,) int64."""
    masks: list[Rle]
    """N masks of H x W pixels, decoded only when needed."""
    crowd: np.ndarray
    """(N,) bool."""


def augment(
    sample: Sample,
    config: AugmentConfig,
    size: int,
    num_classes: int,
    rng: np.random.Generator,
    *,
    keep_aspect_ratio: bool = False,
    mask_upsampling: int = 1,
) -> tuple[Tensor, Targets]:
    """Augment an image at random.

    Args:
        size: S, side of the network's input, pixels.
        keep_aspect_ratio: see `ModelConfig`. The crop is then extended to a square, to the right or below, with more of
            the image where there is some, else with the mean colour.
        mask_upsampling: see `LossConfig`.

    Returns:
        (3, S, S) uint8 RGB and its targets, as a batch of one image, without objects whose centre is outside the crop.

    Raises:
        ValueError: a mask cannot be decoded.
    """
    recolor = draw_recolor(config, rng)
    view = draw_view(sample, config, size, rng, keep_aspect_ratio=keep_aspect_ratio)
    return render(sample.image, view, recolor), crop_targets(sample, view, num_classes, mask_upsampling)


def draw_recolor(config: AugmentConfig, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Choose how the colours of (3, h, w) uint8 planes change."""
    return partial(change_colors, change=draw_colors(rng) if config.photometric else ColorChange())


def draw_view(
    sample: Sample, config: AugmentConfig, size: int, rng: np.random.Generator, *, keep_aspect_ratio: bool
) -> View:
    """Choose a crop, see `draw_crop`, for an input of ``size`` pixels."""
    crop = draw_crop(sample, config, rng)
    if keep_aspect_ratio:
        crop = crop.squared()
    height, width = sample.image.shape[:2]
    return View.of(crop, height, width, size)


def draw_crop(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Crop:
    """Choose the part of the image, or of a larger canvas around it, that the network will see."""
    height, width = sample.image.shape[:2]
    crop = Crop(0, 0, width, height)
    if config.scale_jitter:
        crop = _jittered(height, width, config.scale_jitter, rng)
    if config.expand and rng.random() < 0.5:
        ratio = rng.uniform(1, 4)
        left = int(rng.uniform(0, width * ratio - width))
        top = int(rng.uniform(0, height * ratio - height))
        crop = Crop(-left, -top, int(width * ratio), int(height * ratio))
    if config.random_crop and rng.integers(6) > 0:
        crop = _crop_canvas(sample, crop, rng)
    mirrored = config.mirror and rng.random() < 0.5
    return Crop(crop.left, crop.top, crop.width, crop.height, bool(mirrored))


def _jittered(height: int, width: int, scales: Sequence[float], rng: np.random.Generator) -> Crop:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): the image enlarged by a factor.

    Its size in the network's input is a random factor times that without augmentation. A larger image is cropped; a
    smaller one has the mean colour around it. The position is random.
    """
    smallest, largest = scales
    scale = rng.uniform(smallest, largest)
    sides = [max(round(side / scale), 1) for side in (width, height)]
    spaces = [image - side for image, side in zip((width, height), sides, strict=True)]
    left, top = (int(rng.integers(min(space, 0), max(space, 0), endpoint=True)) for space in spaces)
    return Crop(left, top, sides[0], sides[1])


def _crop_canvas(sample: Sample, canvas: Crop, rng: np.random.Generator) -> Crop:
    """A random rectangle of the canvas that contains some object's centre; the canvas itself if none is found."""
    centers = (sample.boxes[~sample.crowd, :2] + sample.boxes[~sample.crowd, 2:]) / 2
    for _ in range(CROP_TRIES):
        width = rng.uniform(0.3, 1) * canvas.width
        height = rng.uniform(0.3, 1) * canvas.height
        if not 0.5 <= height / width <= 2:
            continue
        left = canvas.left + int(rng.uniform(0, canvas.width - width))
        top = canvas.top + int(rng.uniform(0, canvas.height - height))
        crop = Crop(left, top, max(int(width), 1), max(int(height), 1))
        if crop.contains(centers).any():
            return crop
    return canvas


def render(
    image: np.ndarray, view: View, recolor: Callable[[np.ndarray], np.ndarray] = lambda planes: planes
) -> Tensor:
    """Make the network's input from a crop of the image; the area outside the image gets the mean colour.

    Resizing is bilinear with half-pixel centres, without antialiasing, by torch's uint8 operation: it rounds after each
    of the two axes, so levels differ by at most 1 from those rounded once.

    Args:
        image: (H, W, 3) uint8 RGB.
        recolor: changes the colours of (3, h, w) uint8 planes.

    Returns:
        (3, S, S) uint8 RGB.
    """
    pixels = torch.empty((3, view.size, view.size), dtype=torch.uint8)
    for plane, level in zip(pixels, MEAN_RGB, strict=True):
        plane.fill_(round(level))
    part = view.part
    if part is not None:
        planes = np.ascontiguousarray(image[part.source_rows, part.source_columns].transpose(2, 0, 1))
        if planes.size <= 3 * part.shape[0] * part.shape[1]:
            resized = _resize(recolor(planes), part.shape)
        else:
            resized = torch.from_numpy(recolor(_resize(planes, part.shape).numpy()))
        pixels[:, part.target_rows, part.target_columns] = resized
    return pixels.flip(-1) if view.crop.mirrored else pixels


def _resize(planes: np.ndarray, shape: tuple[int, int]) -> Tensor:
    source = torch.from_numpy(planes)[None]
    return F.interpolate(source, size=shape, mode="bilinear", align_corners=False)[0].contiguous()


def visible_objects(sample: Sample, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Which objects have their centre inside the crop and are not too small, (N,) bool; and all boxes, (N, 4) xyxy in
    pixels of the network's input, clipped to it."""
    kept = view.crop.contains((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2)
    boxes = _boxes_in_input(sample.boxes, view)
    return kept & ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1), boxes


def crop_targets(sample: Sample, view: View, num_classes: int, mask_upsampling: int = 1) -> Targets:
    """Targets of the `visible_objects`, as a batch of one image.

    Args:
        mask_upsampling: see `LossConfig`.
    """
    kept, boxes = visible_objects(sample, view)
    labels, crowd = sample.labels[kept], sample.crowd[kept]
    kept_masks = [mask for mask, keep in zip(sample.masks, kept, strict=True) if keep]
    masks, semantic = reduce_masks(kept_masks, labels, crowd, view, num_classes, mask_upsampling)
    return Targets(
        boxes=torch.from_numpy(boxes[kept] / view.size).float(),
        labels=torch.from_numpy(labels),
        crowd=torch.from_numpy(crowd),
        images=torch.zeros(len(labels), dtype=torch.int64),
        masks=torch.from_numpy(masks),
        semantic=torch.from_numpy(semantic)[None],
        counts=[len(labels)],
    )


def _boxes_in_input(boxes: np.ndarray, view: View) -> np.ndarray:
    """(N, 4) xyxy boxes in pixels of the network's input, clipped to the crop."""
    crop, size = view.crop, view.size
    scale = np.array([size / crop.width, size / crop.height] * 2)
    placed = ((boxes - np.array([crop.left, crop.top] * 2)) * scale).clip(0, size)
    if crop.mirrored:
        placed[:, [0, 2]] = size - placed[:, [2, 0]]
    return placed
