"""Random changes of training photos: the SSD chain that YOLACT trains with (SSD section 2.2, published code).

The order and the probabilities are the published ones. Two things differ on purpose: pixels stay uint8, so
values are clipped to 0..255, and expand, crop, mirror and resize are worked out as one window first, so that
each pixel is resampled once. The published test for a crop's smallest overlap never rejects anything; it is left
out, which leaves one mode in six that keeps the whole photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from yolact.config import AugmentConfig
from yolact.data.transforms import MEAN_RGB, resize_planes

CROP_TRIES = 50
MIN_SIDE = 1.0
"""Objects narrower or lower than this many network pixels are dropped: their mask loss would be divided by nothing."""


@dataclass
class ImageTargets:
    """What is true of one training image, in the frame of the network input."""

    boxes: Tensor
    """(N, 4) float32, xyxy, relative to the image (0 to 1)."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    masks: Tensor
    """(N, S, S) uint8, 0 or 1."""
    crowd: Tensor
    """(N,) bool; crowd regions only make anchors neutral."""


@dataclass
class Sample:
    """A photo and its objects, as stored."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy, pixels."""
    labels: np.ndarray
    """(N,) int64."""
    masks: np.ndarray
    """(N, H, W) uint8, 0 or 1."""
    crowd: np.ndarray
    """(N,) bool."""


@dataclass(frozen=True)
class Window:
    """The part of the plane that becomes the network's input, in photo pixels; it may reach beyond the photo."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False


def augment(sample: Sample, config: AugmentConfig, size: int, rng: np.random.Generator) -> tuple[Tensor, ImageTargets]:
    """Draw a random variant of a photo.

    Returns:
        (3, size, size) uint8 RGB and its targets. Objects whose centre is outside the window are gone.
    """
    image = distort_colors(sample.image, rng) if config.photometric else sample.image
    window = draw_window(sample, config, rng)
    return crop_and_resize(image, sample, window, size)


def distort_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an (H, W, 3) uint8 RGB photo, each with probability 0.5."""
    levels = np.arange(256, dtype=np.float32)
    if rng.random() < 0.5:
        image = _lookup(image, levels + rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = levels * rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    hue = rng.uniform(-18, 18) if rng.random() < 0.5 else None
    if contrast is not None and contrast_first:
        image = _lookup(image, contrast)
    if saturation is not None or hue is not None:
        image = _shift_hue_and_saturation(image, hue or 0.0, saturation or 1.0)
    if contrast is not None and not contrast_first:
        image = _lookup(image, contrast)
    return image


def _lookup(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table.round().clip(0, 255).astype(np.uint8)[image]


def _shift_hue_and_saturation(image: np.ndarray, degrees: float, factor: float) -> np.ndarray:
    levels = np.arange(256)
    hue = (levels + round(degrees * 256 / 360)) % 256
    saturation = (levels * factor).round().clip(0, 255)
    tables = np.concatenate([hue, saturation, levels]).astype(np.uint8)
    return np.asarray(Image.fromarray(image).convert("HSV").point(list(tables)).convert("RGB"))


def draw_window(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Window:
    """Choose the part of the photo, or of a larger canvas around it, that the network will see."""
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
        if _inside(centers, crop).any():
            return crop
    return canvas


def _inside(centers: np.ndarray, window: Window) -> np.ndarray:
    """Which of (N, 2) points lie strictly inside the window; (N,) bool."""
    low = np.array([window.left, window.top])
    high = low + [window.width, window.height]
    return np.asarray(((centers > low) & (centers < high)).all(axis=1))


def crop_and_resize(
    image: np.ndarray,
    sample: Sample,
    window: Window,
    size: int,
    resize_masks: Callable[[Tensor, tuple[int, int]], Tensor] = resize_planes,
) -> tuple[Tensor, ImageTargets]:
    """Resize the window's content to the network's input; what lies outside the photo is filled with the mean colour.

    Args:
        image: (H, W, 3) uint8 RGB, the sample's photo with its final colours.
        resize_masks: `resize_planes`, or `resize_planes_like_opencv` for masks that equal the published ones.

    Returns:
        (3, size, size) uint8 and the targets of the objects whose centre is inside the window.
    """
    pixels = (resize_window(image, window, size) + 0.5).to(torch.uint8)
    kept = _inside((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2, window)
    masks = torch.zeros((int(kept.sum()), size, size), dtype=torch.uint8)
    part = _visible_part(window, image.shape[0], image.shape[1], size)
    if part is not None and len(masks):
        rows, columns = part.source_slices
        masks[:, *part.target_slices] = resize_masks(torch.tensor(sample.masks[kept][:, rows, columns]), part.shape)

    scale = np.array([size / window.width, size / window.height] * 2)
    boxes = (sample.boxes[kept] - np.array([window.left, window.top] * 2)) * scale
    boxes = boxes.clip(0, size)
    if window.mirrored:
        masks = masks.flip(-1)
        boxes[:, [0, 2]] = size - boxes[:, [2, 0]]
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
    return pixels, ImageTargets(
        boxes=torch.from_numpy(boxes[large] / size).float(),
        labels=torch.from_numpy(sample.labels[kept][large]),
        masks=masks[torch.from_numpy(large)],
        crowd=torch.from_numpy(sample.crowd[kept][large]),
    )


def resize_window(image: np.ndarray, window: Window, size: int) -> Tensor:
    """The window's content as the network's input, before it is rounded.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (3, size, size) float32, 0 to 255; the mean colour where there is no photo.
    """
    pixels = torch.tensor(MEAN_RGB).view(3, 1, 1).repeat(1, size, size)
    part = _visible_part(window, image.shape[0], image.shape[1], size)
    if part is not None:
        source = torch.tensor(image[part.source_slices]).permute(2, 0, 1).float()
        pixels[:, *part.target_slices] = F.interpolate(
            source[None], size=part.shape, mode="bilinear", align_corners=False
        )[0]
    return pixels.flip(-1) if window.mirrored else pixels


@dataclass(frozen=True)
class _VisiblePart:
    """The photo's pixels inside a window, and where they go in the network's input."""

    source_slices: tuple[slice, slice]
    target_left: int
    target_top: int
    target_right: int
    target_bottom: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in the network's input."""
        return self.target_bottom - self.target_top, self.target_right - self.target_left

    @property
    def target_slices(self) -> tuple[slice, slice]:
        return slice(self.target_top, self.target_bottom), slice(self.target_left, self.target_right)


def _visible_part(window: Window, height: int, width: int, size: int) -> _VisiblePart | None:
    left, right = max(window.left, 0), min(window.left + window.width, width)
    top, bottom = max(window.top, 0), min(window.top + window.height, height)
    if left >= right or top >= bottom:
        return None
    part = _VisiblePart(
        source_slices=(slice(top, bottom), slice(left, right)),
        target_left=round((left - window.left) * size / window.width),
        target_top=round((top - window.top) * size / window.height),
        target_right=round((right - window.left) * size / window.width),
        target_bottom=round((bottom - window.top) * size / window.height),
    )
    empty = part.target_left >= part.target_right or part.target_top >= part.target_bottom
    return None if empty else part
