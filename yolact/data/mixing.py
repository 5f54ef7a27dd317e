"""Training images made of several: mosaic (Bochkovskiy et al. 2020) and copy-paste (Ghiasi et al. 2021).

All images are first seen at the size of the network's input, each with colours and a crop of its own, and then
combined there. The other images are drawn from the sample's own random stream, so that neither the number of loader
processes nor a resumed epoch changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolact.crop import Crop, View
from yolact.data.augment import (
    MIN_SIDE,
    Sample,
    crop_targets,
    draw_recolor,
    draw_view,
    render,
    visible_objects,
)
from yolact.data.target_masks import NOTHING, masks_in_input
from yolact.masks import InstanceMasks
from yolact.settings import AugmentConfig
from yolact.structures import Targets
from yolact.transforms import MEAN_RGB

PASTED = 0.5
"""Probability with which each object of the other image is pasted: a random subset (Ghiasi et al. 2021, section 3)."""

MIN_VISIBLE = 0.1
"""Objects of which a smaller share of the pixels remains visible are dropped."""

MOSAIC_CENTRE = (0.25, 0.75)
"""Range of the point where the four images meet, as a fraction of the input's side."""

MOSAIC_SCALE = (0.5, 1.0)
"""Range of the images' size in a mosaic, as a factor of their size without augmentation. Of larger images a quadrant
often shows only a part whose object's centre is outside, and which then has no target."""


@dataclass(frozen=True)
class Partners:
    """The other images of a sample, by their index in the data set."""

    mosaic: tuple[int, ...] = ()
    """Three, or none."""
    pasted: int | None = None
    """The image whose objects are pasted."""

    @property
    def images(self) -> list[int]:
        """All of them, the pasted one last."""
        return [*self.mosaic, *([] if self.pasted is None else [self.pasted])]


def draw_partners(config: AugmentConfig, images: int, rng: np.random.Generator, *, mosaic: bool) -> Partners:
    """Choose the other images; takes no random number for what the settings switch off.

    Args:
        images: number of images in the data set.
        mosaic: whether the epoch has mosaics, see `AugmentConfig.mosaic_until`.
    """
    tiles: tuple[int, ...] = ()
    pasted = None
    if mosaic and config.mosaic and rng.random() < config.mosaic:
        tiles = tuple(rng.integers(images, size=3).tolist())
    if config.copy_paste and rng.random() < config.copy_paste:
        pasted = int(rng.integers(images))
    return Partners(tiles, pasted)


@dataclass
class Scene:
    """An image and its objects at the size of the network's input, S."""

    pixels: Tensor
    """(3, S, S) uint8 RGB."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy, pixels."""
    labels: np.ndarray
    """(N,) int64."""
    masks: InstanceMasks
    """N masks; those of crowd regions are empty."""
    crowd: np.ndarray
    """(N,) bool."""


def mix(
    sample: Sample,
    tiles: Sequence[Sample],
    source: Sample | None,
    config: AugmentConfig,
    size: int,
    num_classes: int,
    rng: np.random.Generator,
    *,
    keep_aspect_ratio: bool = False,
    mask_upsampling: int = 1,
) -> tuple[Tensor, Targets]:
    """Augment an image together with others; the results are those of `yolact.data.augment.augment`.

    Args:
        tiles: three images that form a mosaic with the first, or none.
        source: the image whose objects are pasted, or None.
    """

    def drawn(image: Sample) -> Scene:
        recolor = draw_recolor(config, rng)
        return see(image, draw_view(image, config, size, rng, keep_aspect_ratio=keep_aspect_ratio), recolor)

    if tiles:
        scene = draw_mosaic([sample, *tiles], config, size, rng, keep_aspect_ratio=keep_aspect_ratio)
    else:
        scene = drawn(sample)
    if source is not None:
        other = drawn(source)
        scene = paste(scene, other, rng.random(len(other.labels)) < PASTED)
    whole = View.of(Crop(0, 0, size, size), size, size, size)
    flat = Sample(np.zeros((0, 0, 3), np.uint8), scene.boxes, scene.labels, scene.masks.to_rle(), scene.crowd)
    return scene.pixels, crop_targets(flat, whole, num_classes, mask_upsampling)


def see(sample: Sample, view: View, recolor: Callable[[np.ndarray], np.ndarray] = lambda planes: planes) -> Scene:
    """An image through a crop, see `render` and `visible_objects`.

    Raises:
        ValueError: a mask cannot be decoded.
    """
    kept, boxes = visible_objects(sample, view)
    rows = np.flatnonzero(kept & ~sample.crowd).tolist()
    seen = masks_in_input([sample.masks[row] for row in rows], view)
    windows = dict(zip(rows, zip(seen.corners, seen.crops, strict=True), strict=True))
    chosen = [windows.get(row, NOTHING) for row in np.flatnonzero(kept).tolist()]
    masks = InstanceMasks(view.size, view.size, [corner for corner, _ in chosen], [window for _, window in chosen])
    return Scene(render(sample.image, view, recolor), boxes[kept], sample.labels[kept], masks, sample.crowd[kept])


def paste(scene: Scene, source: Scene, chosen: np.ndarray) -> Scene:
    """Paste objects on an image: their pixels and masks, without blending.

    The pasted objects hide what is behind them: hidden pixels leave the masks, whose boxes then become tight, and
    objects of which less than `MIN_VISIBLE` remains are dropped. Crowd regions are neither pasted nor changed.

    Args:
        chosen: (N,) bool, of the source's objects.
    """
    chosen = chosen & ~source.crowd & np.array([bool(crop.any()) for crop in source.masks.crops], dtype=bool)
    cover = np.zeros(scene.pixels.shape[1:], dtype=bool)
    pasted = source.masks[torch.from_numpy(chosen)]
    for (top, left), crop in zip(pasted.corners, pasted.crops, strict=True):
        cover[top : top + crop.shape[0], left : left + crop.shape[1]] |= crop
    boxes, kept, crops = scene.boxes.copy(), np.ones(len(scene.labels), dtype=bool), []
    for row, ((top, left), crop) in enumerate(zip(scene.masks.corners, scene.masks.crops, strict=True)):
        rest = crop & ~cover[top : top + crop.shape[0], left : left + crop.shape[1]]
        before, after = int(crop.sum()), int(rest.sum())
        if after < before:
            kept[row] = after >= max(MIN_VISIBLE * before, 1)
            if kept[row]:
                boxes[row] = _tight_box(rest, top, left)
        crops.append(rest)
    remaining = InstanceMasks(scene.masks.height, scene.masks.width, scene.masks.corners, crops)
    below = Scene(scene.pixels, boxes[kept], scene.labels[kept], remaining[torch.from_numpy(kept)], scene.crowd[kept])
    above = Scene(source.pixels, source.boxes[chosen], source.labels[chosen], pasted, source.crowd[chosen])
    pixels = torch.where(torch.from_numpy(cover), above.pixels, below.pixels)
    return _joined(pixels, [below, above])


def draw_mosaic(
    samples: Sequence[Sample],
    config: AugmentConfig,
    size: int,
    rng: np.random.Generator,
    *,
    keep_aspect_ratio: bool = False,
) -> Scene:
    """Four images in the quadrants of the input, whose corners meet at a random point; each keeps its corner there.

    All have the same random size, as a factor of their size without augmentation; what an image does not fill has the
    mean colour. All or none are mirrored.
    """
    scale = rng.uniform(*MOSAIC_SCALE)
    centre = rng.uniform(*MOSAIC_CENTRE, size=2)
    mirrored = bool(config.mirror and rng.random() < 0.5)
    pixels = torch.tensor(MEAN_RGB).round().to(torch.uint8).view(3, 1, 1).repeat(1, size, size)
    meeting = [round(float(fraction) * size) for fraction in centre]
    scenes = []
    for number, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        sides = (max(height, width),) * 2 if keep_aspect_ratio else (width, height)
        seen = [max(round(side / scale), 1) for side in sides]
        after = (bool(number % 2), number >= 2)  # right of the point, below it
        start = [
            (0 if beyond else extent) - round(float(fraction) * side)
            for beyond, extent, fraction, side in zip(after, (width, height), centre, seen, strict=True)
        ]
        view = View.of(Crop(start[0], start[1], seen[0], seen[1], mirrored), height, width, size)
        columns, rows = (slice(at, size) if beyond else slice(0, at) for at, beyond in zip(meeting, after, strict=True))
        if mirrored:
            columns = slice(size - columns.stop, size - columns.start)
        scene = see(sample, view, draw_recolor(config, rng))
        pixels[:, rows, columns] = scene.pixels[:, rows, columns]
        scenes.append(_cut(scene, rows, columns))
    return _joined(pixels, scenes)


def _cut(scene: Scene, rows: slice, columns: slice) -> Scene:
    """Only what is inside a rectangle of the input; objects that become too small are dropped."""
    low, high = np.array([columns.start, rows.start] * 2), np.array([columns.stop, rows.stop] * 2)
    boxes = scene.boxes.clip(low, high)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
    corners, crops = [], []
    for (top, left), crop in zip(scene.masks.corners, scene.masks.crops, strict=True):
        above, before = max(rows.start - top, 0), max(columns.start - left, 0)
        crop = crop[above : max(rows.stop - top, 0), before : max(columns.stop - left, 0)]
        corner, crop = ((top + above, left + before), crop) if crop.size else NOTHING
        corners.append(corner)
        crops.append(crop)
    masks = InstanceMasks(scene.masks.height, scene.masks.width, corners, crops)[torch.from_numpy(kept)]
    return Scene(scene.pixels, boxes[kept], scene.labels[kept], masks, scene.crowd[kept])


def _joined(pixels: Tensor, scenes: Sequence[Scene]) -> Scene:
    """The objects of all scenes, with other pixels."""
    side = pixels.shape[1]
    return Scene(
        pixels,
        np.concatenate([scene.boxes for scene in scenes]),
        np.concatenate([scene.labels for scene in scenes]),
        InstanceMasks(
            side,
            side,
            [corner for scene in scenes for corner in scene.masks.corners],
            [crop for scene in scenes for crop in scene.masks.crops],
        ),
        np.concatenate([scene.crowd for scene in scenes]),
    )


def _tight_box(mask: np.ndarray, top: int, left: int) -> tuple[int, int, int, int]:
    """The smallest xyxy rectangle around the pixels of a window at ``top`` and ``left``; there must be one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1
