"""Random changes of training images: the SSD chain that YOLACT trains with (SSD section 2.2, published code).

The order and the probabilities are the published ones. Three things differ on purpose. Pixels are uint8 before and
after each of the two steps that change them, colours and resizing, so values are clipped to 0..255. Expand, crop,
mirror and resize are worked out as one window first, so that each pixel is resampled once. Colours are changed after
resizing where that leaves fewer pixels to change. The published test for a crop's smallest overlap never rejects
anything; it is left out, which leaves one mode in six that keeps the whole image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.crop import Window, inside, visible_part
from yolact.data.colors import ColorChange, change_colors, draw_colors
from yolact.data.target_masks import Grids, reduce_masks
from yolact.masks import Rle
from yolact.settings import AugmentConfig
from yolact.structures import Targets
from yolact.transforms import MEAN_RGB

CROP_TRIES = 50
MIN_SIDE = 1.0
"""Objects narrower or lower than this many network pixels are dropped: their mask loss would be divided by nothing."""


@dataclass
class Sample:
    """A image and its objects, as stored."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy, pixels."""
    labels: np.ndarray
    """(N,) int64."""
    masks: list[Rle]
    """N run lengths of H x W pixels, decoded only where they are needed."""
    crowd: np.ndarray
    """(N,) bool."""


def augment(
    sample: Sample,
    config: AugmentConfig,
    grids: Grids,
    num_classes: int,
    rng: np.random.Generator,
    *,
    keep_aspect_ratio: bool = False,
) -> tuple[Tensor, Targets]:
    """Draw a random variant of a image.

    Args:
        keep_aspect_ratio: see `ModelConfig`. The window that is drawn then grows to a square, to the right or below: as
            far as there is image it shows more of that, and beyond it the mean colour.

    Returns:
        (3, S, S) uint8 RGB and its targets, as a batch of one image. Objects whose centre is outside the window are
        gone.

    Raises:
        ValueError: run lengths are damaged.
    """
    recolor = partial(change_colors, change=draw_colors(rng) if config.photometric else ColorChange())
    window = draw_window(sample, config, rng)
    if keep_aspect_ratio:
        window = window.squared()
    return render(sample.image, window, grids.image, recolor), window_targets(sample, window, grids, num_classes)


def draw_window(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Window:
    """Choose the part of the image, or of a larger canvas around it, that the network will see."""
    height, width = sample.image.shape[:2]
    window = Window(0, 0, width, height)
    if config.expand and rng.random() < 0.5:
        ratio = rng.uniform(1, 4)
        left = int(rng.uniform(0, width * ratio - width))
        top = int(rng.uniform(0, height * ratio - height))
        window = Window(-left, -top, int(width * ratio), int(height * ratio))
    if config.random_crop and rng.integers(6) > 0:
        window = _draw_crop(sample, window, rng)
    mirrored = config.mirror and rng.random() < 0.5
    return Window(window.left, window.top, window.width, window.height, bool(mirrored))


def _draw_crop(sample: Sample, canvas: Window, rng: np.random.Generator) -> Window:
    """A random rectangle of the canvas that holds some object's centre; the canvas itself where none is found."""
    centers = (sample.boxes[~sample.crowd, :2] + sample.boxes[~sample.crowd, 2:]) / 2
    for _ in range(CROP_TRIES):
        width = rng.uniform(0.3, 1) * canvas.width
        height = rng.uniform(0.3, 1) * canvas.height
        if not 0.5 <= height / width <= 2:
            continue
        left = canvas.left + int(rng.uniform(0, canvas.width - width))
        top = canvas.top + int(rng.uniform(0, canvas.height - height))
        crop = Window(left, top, max(int(width), 1), max(int(height), 1))
        if inside(centers, crop).any():
            return crop
    return canvas


def render(
    image: np.ndarray, window: Window, size: int, recolor: Callable[[np.ndarray], np.ndarray] = lambda planes: planes
) -> Tensor:
    """The window's content as the network's input; what lies outside the image has the mean colour.

    Resizing is bilinear with half-pixel centres, without antialiasing, by torch's operation for uint8: it rounds after
    each of the two axes, which makes levels differ by 1 at most from those rounded once.

    Args:
        image: (H, W, 3) uint8 RGB.
        recolor: changes the colours of (3, h, w) uint8 planes.

    Returns:
        (3, size, size) uint8 RGB.
    """
    pixels = torch.empty((3, size, size), dtype=torch.uint8)
    for plane, level in zip(pixels, MEAN_RGB, strict=True):
        plane.fill_(round(level))
    height, width = image.shape[:2]
    part = visible_part(window, height, width, size)
    if part is not None:
        planes = np.ascontiguousarray(image[part.source_rows, part.source_columns].transpose(2, 0, 1))
        if planes.size <= 3 * part.shape[0] * part.shape[1]:
            resized = _resize(recolor(planes), part.shape)
        else:
            resized = torch.from_numpy(recolor(_resize(planes, part.shape).numpy()))
        pixels[:, part.target_rows, part.target_columns] = resized
    return pixels.flip(-1) if window.mirrored else pixels


def _resize(planes: np.ndarray, shape: tuple[int, int]) -> Tensor:
    source = torch.from_numpy(planes)[None]
    return F.interpolate(source, size=shape, mode="bilinear", align_corners=False)[0].contiguous()


def window_targets(sample: Sample, window: Window, grids: Grids, num_classes: int) -> Targets:
    """The targets of the objects whose centre is inside the window, as a batch of one image."""
    kept = inside((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2, window)
    boxes = _boxes_in(window, sample.boxes, grids.image)
    kept &= ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
    labels, crowd = sample.labels[kept], sample.crowd[kept]
    height, width = sample.image.shape[:2]
    masks, semantic = reduce_masks(
        [mask for mask, keep in zip(sample.masks, kept, strict=True) if keep],
        labels,
        crowd,
        visible_part(window, height, width, grids.image),
        grids,
        num_classes,
        mirrored=window.mirrored,
    )
    return Targets(
        boxes=torch.from_numpy(boxes[kept] / grids.image).float(),
        labels=torch.from_numpy(labels),
        crowd=torch.from_numpy(crowd),
        images=torch.zeros(len(labels), dtype=torch.int64),
        masks=torch.from_numpy(masks),
        semantic=torch.from_numpy(semantic)[None],
        counts=[len(labels)],
    )


def _boxes_in(window: Window, boxes: np.ndarray, size: int) -> np.ndarray:
    """(N, 4) xyxy boxes of the image, cut at the window, in pixels of a network's input of that size."""
    scale = np.array([size / window.width, size / window.height] * 2)
    placed = ((boxes - np.array([window.left, window.top] * 2)) * scale).clip(0, size)
    if window.mirrored:
        placed[:, [0, 2]] = size - placed[:, [2, 0]]
    return placed
