"""Augmentation: pixels, boxes and masks stay together for any crop."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact.crop import Crop, View
from yolact.data.augment import Sample, augment, crop_targets, draw_crop, render
from yolact.data.colors import ColorChange, change_colors
from yolact.data.target_masks import Grids
from yolact.settings import PUBLISHED_AUGMENTATION, AugmentConfig
from yolact.structures import Targets
from yolact.transforms import to_square

OFF = PUBLISHED_AUGMENTATION.model_dump() | dict.fromkeys(("photometric", "expand", "random_crop", "mirror"), False)
CLASSES = 6
MEAN = (124, 117, 104)
"""The mean colour (123.68, 116.78, 103.94), rounded."""


def switches(**on: Any) -> AugmentConfig:
    return AugmentConfig(**(OFF | on))


def sample_of(height: int, width: int, *boxes: tuple[int, int, int, int], crowd: tuple[int, ...] = ()) -> Sample:
    """An image with filled rectangles as objects; object k has the label k."""
    masks = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return Sample(
        image=np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.arange(len(boxes)),
        masks=[coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        crowd=np.isin(np.arange(len(boxes)), crowd),
    )


def view_of(sample: Sample, crop: Crop, size: int) -> View:
    height, width = sample.image.shape[:2]
    return View.of(crop, height, width, size)


def seen_through(sample: Sample, crop: Crop, size: int) -> tuple[torch.Tensor, Targets]:
    """The network's input and its targets."""
    view = view_of(sample, crop, size)
    return render(sample.image, view), crop_targets(sample, view, CLASSES)


def varied(sample: Sample, config: AugmentConfig, size: int, seed: int) -> tuple[torch.Tensor, Targets]:
    return augment(sample, config, size, CLASSES, np.random.default_rng(seed))


def pixels_in(image: np.ndarray, crop: Crop, size: int) -> torch.Tensor:
    """The expected result of `render`, in float32 and not rounded: (3, size, size)."""
    pixels = torch.tensor([123.68, 116.78, 103.94]).view(3, 1, 1).repeat(1, size, size)
    height, width = image.shape[:2]
    left, right = max(crop.left, 0), min(crop.left + crop.width, width)
    top, bottom = max(crop.top, 0), min(crop.top + crop.height, height)
    x0, x1 = (round((x - crop.left) * size / crop.width) for x in (left, right))
    y0, y1 = (round((y - crop.top) * size / crop.height) for y in (top, bottom))
    if left < right and top < bottom and x0 < x1 and y0 < y1:
        source = torch.tensor(image[top:bottom, left:right]).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(source, size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
        pixels[:, y0:y1, x0:x1] = resized[0]
    return pixels.flip(-1) if crop.mirrored else pixels


def tight_box(mask: torch.Tensor) -> list[int]:
    """The smallest xyxy rectangle around the pixels of a mask."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@st.composite
def rectangles(draw: st.DrawFn, height: int, width: int) -> tuple[int, int, int, int]:
    left, top = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    return left, top, draw(st.integers(left + 2, width)), draw(st.integers(top + 2, height))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Sample, Crop]:
    """An image with up to six objects, and a crop inside it, across its border, around it or outside it."""
    height, width = draw(st.integers(2, 60)), draw(st.integers(2, 60))
    boxes = draw(st.lists(rectangles(height, width), max_size=6))
    crop = Crop(
        left=draw(st.integers(-width, width)),
        top=draw(st.integers(-height, height)),
        width=draw(st.integers(1, 2 * width)),
        height=draw(st.integers(1, 2 * height)),
        mirrored=draw(st.booleans()),
    )
    return sample_of(height, width, *boxes), crop


@settings(max_examples=300, deadline=None)
@given(scenes(), st.integers(16, 96))
def test_boxes_fit_the_masks_in_every_crop(scene: tuple[Sample, Crop], size: int) -> None:
    sample, crop = scene
    pixels, targets = seen_through(sample, crop, size)
    grids, count = Grids.of_input(size), len(targets.labels)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.uint8
    assert targets.boxes.dtype == torch.float32
    assert targets.masks.shape == (count, grids.masks, grids.masks)
    assert targets.semantic.shape == (1, CLASSES, grids.semantic, grids.semantic)
    assert targets.masks.dtype == targets.semantic.dtype == torch.uint8
    assert targets.counts == [count]
    assert targets.images.tolist() == [0] * count
    assert targets.masks.max() <= 1 if count else True
    assert ((targets.boxes >= 0) & (targets.boxes <= 1)).all()
    sides = (targets.boxes[:, 2:] - targets.boxes[:, :2]) * size
    assert (sides > 1 - 1e-4).all()
    for box, mask, side in zip(targets.boxes * grids.masks, targets.masks, sides, strict=True):
        if side.min() * grids.masks / size >= 2:  # a smaller one can fall between the pixels that are sampled
            assert tight_box(mask) == pytest.approx(box.tolist(), abs=1.01)


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(16, 64))
def test_objects_are_kept_by_their_centre_and_their_size(scene: tuple[Sample, Crop], size: int) -> None:
    sample, crop = scene
    kept = []
    for label, (left, top, right, bottom) in enumerate(sample.boxes.astype(int).tolist()):
        inside = 2 * crop.left < left + right < 2 * (crop.left + crop.width) and 2 * crop.top < top + bottom < 2 * (
            crop.top + crop.height
        )
        width = min(right, crop.left + crop.width) - max(left, crop.left)
        height = min(bottom, crop.top + crop.height) - max(top, crop.top)
        assume(width * size != crop.width and height * size != crop.height)  # exactly 1 pixel: rounding decides
        if inside and width * size > crop.width and height * size > crop.height:
            kept.append(label)
    _, targets = seen_through(sample, crop, size)
    assert targets.labels.tolist() == kept


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(16, 64))
def test_mirroring_is_the_last_step(scene: tuple[Sample, Crop], size: int) -> None:
    sample, crop = scene
    plain, mirrored = (
        seen_through(sample, Crop(crop.left, crop.top, crop.width, crop.height, flag), size) for flag in (False, True)
    )
    assert np.array_equal(mirrored[0].numpy(), plain[0].numpy()[:, :, ::-1])
    left, top, right, bottom = plain[1].boxes.T
    assert torch.allclose(mirrored[1].boxes, torch.stack([1 - right, top, 1 - left, bottom], dim=1), atol=1e-6)
    assert torch.equal(mirrored[1].labels, plain[1].labels)


@pytest.mark.parametrize("mirrored", [False, True])
def test_every_pixel_lands_where_the_crop_says(mirrored: bool) -> None:
    """A crop of 3 x 5 pixels, one row of it above the image, on 45 x 45: blocks of 15 x 9 pixels."""
    sample = sample_of(8, 7, (2, 1, 4, 3))
    pixels, targets = seen_through(sample, Crop(2, -1, 3, 5, mirrored), 45)
    blocks = pixels[:, 4::9, 7::15].permute(1, 2, 0).numpy()  # the blocks' centres: (5, 3, 3)
    expected = np.concatenate([np.full((1, 3, 3), MEAN), sample.image[0:4, 2:5]])
    assert blocks.tolist() == (expected[:, ::-1] if mirrored else expected).tolist()
    box = [15, 18, 45, 36] if mirrored else [0, 18, 30, 36]
    assert (targets.boxes * 45).round().tolist() == [box]
    # Cells of 45 / 12 pixels; a cell belongs to the object where its centre does.
    assert tight_box(targets.masks[0]) == ([4, 5, 12, 10] if mirrored else [0, 5, 8, 10])


def test_the_area_outside_the_image_has_the_mean_colour() -> None:
    sample = sample_of(4, 4, (0, 0, 4, 4))
    pixels, targets = seen_through(sample, Crop(-4, -8, 16, 16), 32)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[16:24, 8:16] = False
    assert set(map(tuple, pixels[:, outside].T.tolist())) == {MEAN}
    assert tight_box(targets.masks[0]) == [2, 4, 4, 6]  # of 8 x 8 cells
    assert targets.masks.sum() == 4


def test_a_crop_outside_the_image_has_only_the_mean_colour() -> None:
    sample = sample_of(4, 4, (0, 0, 4, 4))
    pixels, targets = seen_through(sample, Crop(4, 0, 4, 4), 16)
    assert set(map(tuple, pixels.flatten(1).T.tolist())) == {MEAN}
    assert len(targets.labels) == 0


def test_a_centre_on_the_border_of_the_crop_is_outside() -> None:
    sample = sample_of(20, 20, (0, 0, 10, 10), (1, 0, 11, 10), (4, 4, 8, 8), crowd=(1,))
    _, targets = seen_through(sample, Crop(5, 0, 10, 20), 40)
    assert targets.labels.tolist() == [1, 2]
    assert targets.crowd.tolist() == [True, False]
    assert (targets.boxes * 40).tolist() == [[0, 0, 24, 20], [0, 8, 12, 16]]


def test_objects_narrower_or_lower_than_a_pixel_are_dropped() -> None:
    boxes = [(0, 0, 9, 50), (0, 0, 50, 9), (0, 0, 10, 10), (0, 0, 11, 11)]
    sample = sample_of(100, 100, *boxes)
    _, targets = seen_through(sample, Crop(0, 0, 100, 100), 10)
    assert targets.labels.tolist() == [2, 3]
    assert len(targets.masks) == len(targets.crowd) == len(targets.boxes) == 2


@pytest.mark.parametrize("seed", range(8))
def test_an_image_without_objects_is_augmented_too(seed: int) -> None:
    sample = sample_of(30, 40)
    everything = switches(photometric=True, expand=True, random_crop=True, mirror=True)
    pixels, targets = varied(sample, everything, 32, seed)
    assert pixels.shape == (3, 32, 32)
    assert targets.boxes.shape == (0, 4)
    assert targets.labels.shape == (0,)
    assert targets.masks.shape == (0, 8, 8)
    assert not targets.semantic.any()
    assert targets.counts == [0]
    assert targets.crowd.shape == (0,)
    assert targets.labels.dtype == torch.int64
    assert targets.crowd.dtype == torch.bool


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(16, 64), st.integers(0, 999))
def test_with_all_augmentations_off_the_image_is_only_resized(scene: tuple[Sample, Crop], size: int, seed: int) -> None:
    sample, _ = scene
    pixels, targets = varied(sample, switches(), size, seed)
    expected = to_square(torch.tensor(sample.image).permute(2, 0, 1), size)
    assert (pixels.float() - expected).abs().max() <= 1.01  # rounded after each axis
    height, width = sample.image.shape[:2]
    large = [box for box in sample.boxes if (box[2] - box[0]) * size > width and (box[3] - box[1]) * size > height]
    assume(len(large) == len(sample.boxes))
    relative = sample.boxes / [width, height, width, height]
    np.testing.assert_allclose(targets.boxes.numpy(), relative, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(scenes(), st.integers(16, 64))
def test_pixels_are_within_a_level_of_exact_resizing(scene: tuple[Sample, Crop], size: int) -> None:
    sample, crop = scene
    difference = render(sample.image, view_of(sample, crop, size)) - pixels_in(sample.image, crop, size)
    assert difference.abs().max() <= 1.01
    assert difference.mean().abs() < 0.5  # neither brighter nor darker


@pytest.mark.parametrize("size", [20, 300])
def test_colours_change_before_or_after_resizing_whichever_has_fewer_pixels(size: int) -> None:
    sample = sample_of(60, 80)
    areas = []

    def recolor(planes: np.ndarray) -> np.ndarray:
        areas.append(planes.shape)
        return 255 - planes

    crop = Crop(-10, 10, 100, 40)
    pixels = render(sample.image, view_of(sample, crop, size), recolor)
    assert areas == [(3, 40, 80)] if size == 300 else [(3, 20, 16)]
    assert (pixels - pixels_in(255 - sample.image, crop, size))[:, :, size // 10 : -size // 10].abs().max() <= 1.01
    assert pixels[:, 0, 0].tolist() == list(MEAN)


def test_colours_before_or_after_resizing_look_the_same() -> None:
    """On an image as smooth as real ones, at half size: the mean difference is far below a level."""
    rows, columns = np.mgrid[0:120, 0:160] / 20
    image = np.stack([np.sin(rows + columns), np.cos(rows), np.sin(2 * columns)], axis=-1)
    image = (127.5 + 90 * image).astype(np.uint8)
    recolor = partial(change_colors, change=ColorChange(12, 1.2, True, 0.8, 15))
    before = np.ascontiguousarray(recolor(image.transpose(2, 0, 1).copy()).transpose(1, 2, 0))
    view = View.of(Crop(0, 0, 160, 120), 120, 160, 70)
    difference = render(before, view).float() - render(image, view, recolor).float()
    assert difference.abs().mean() < 0.7
    assert difference.mean().abs() < 0.2


def test_augmenting_does_not_change_the_stored_image() -> None:
    sample = sample_of(40, 40, (5, 5, 30, 30))
    before = [sample.image.copy(), sample.boxes.copy()]
    for array in (sample.image, sample.boxes):
        array.setflags(write=False)
    everything = switches(photometric=True, expand=True, random_crop=True, mirror=True)
    for seed in range(20):
        varied(sample, everything, 32, seed)
    for array, copy in zip((sample.image, sample.boxes), before, strict=True):
        assert np.array_equal(array, copy)


# --- Which crops are drawn


def crops(sample: Sample, config: AugmentConfig, count: int) -> list[Crop]:
    rng = np.random.default_rng(20)
    return [draw_crop(sample, config, rng) for _ in range(count)]


def near(probability: float, count: int) -> object:
    """Within four standard deviations of the expected share of ``count`` draws."""
    return pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / count))


def test_one_crop_mode_in_six_keeps_the_whole_image() -> None:
    sample = sample_of(90, 120, (50, 40, 70, 50))
    drawn = crops(sample, switches(random_crop=True), 6000)
    whole = [crop == Crop(0, 0, 120, 90) for crop in drawn]
    assert np.mean(whole) == near(1 / 6, 6000)
    for crop in drawn:
        assert crop.left >= 0
        assert crop.top >= 0
        assert crop.left + crop.width <= 120
        assert crop.top + crop.height <= 90
        assert crop.left < 60 < crop.left + crop.width
        assert crop.top < 45 < crop.top + crop.height
        assert not crop.mirrored
    smaller = [crop for crop, is_whole in zip(drawn, whole, strict=True) if not is_whole]
    for side, full in (("width", 120), ("height", 90)):
        shares = np.array([getattr(crop, side) for crop in smaller]) / full
        assert shares.min() > 0.3 - 1 / full
        assert shares.min() < 0.45
        assert shares.max() > 0.95
    ratios = [crop.height / crop.width for crop in smaller]
    assert min(ratios) > 0.5 * 0.95  # whole pixels
    assert max(ratios) < 2 * 1.05
    assert min(ratios) < 0.55
    assert max(ratios) > 1.6


def test_crops_reach_every_corner_of_the_image() -> None:
    sample = sample_of(100, 100, (0, 0, 20, 20), (80, 0, 100, 20), (0, 80, 20, 100), (80, 80, 100, 100))
    small = [crop for crop in crops(sample, switches(random_crop=True), 2000) if crop.width < 60]
    for x in (4, 95):
        for y in (4, 95):
            assert any(w.left <= x < w.left + w.width and w.top <= y < w.top + w.height for w in small)


def test_a_crop_contains_the_centre_of_an_object_that_is_not_a_crowd() -> None:
    sample = sample_of(100, 100, (0, 0, 100, 30), (60, 60, 90, 90), crowd=(0,))
    for crop in crops(sample, switches(random_crop=True), 300):
        assert crop.left < 75 < crop.left + crop.width
        assert crop.top < 75 < crop.top + crop.height


@pytest.mark.parametrize("crowd", [(), (0,)])
def test_without_an_object_to_keep_the_image_is_not_cropped(crowd: tuple[int, ...]) -> None:
    sample = sample_of(50, 60, (10, 10, 20, 20), crowd=crowd) if crowd else sample_of(50, 60)
    assert set(crops(sample, switches(random_crop=True), 30)) == {Crop(0, 0, 60, 50)}


def test_half_of_the_images_are_expanded_up_to_four_times() -> None:
    sample = sample_of(90, 120, (0, 0, 10, 10))
    drawn = crops(sample, switches(expand=True), 2000)
    expanded = [crop for crop in drawn if crop.width > 120 or crop.height > 90]
    assert len(expanded) / 2000 == near(0.5, 2000)
    for crop in expanded:
        assert -crop.left >= 0
        assert -crop.top >= 0
        assert crop.left + crop.width >= 120  # the image is on the canvas, whole
        assert crop.top + crop.height >= 90
        assert crop.height / 90 == pytest.approx(crop.width / 120, abs=1 / 90)
    ratios = np.array([crop.width / 120 for crop in expanded])
    assert ratios.max() <= 4
    assert ratios.mean() == pytest.approx(2.5, abs=5 * math.sqrt(9 / 12 / 1000))
    places = np.array([-crop.left / (crop.width - 120) for crop in expanded if crop.width > 200])
    assert places.mean() == pytest.approx(0.5, abs=0.06)


def test_half_of_the_images_are_mirrored() -> None:
    drawn = crops(sample_of(20, 20, (0, 0, 9, 9)), switches(mirror=True), 2000)
    assert np.mean([crop.mirrored for crop in drawn]) == near(0.5, 2000)
    assert {(crop.left, crop.top, crop.width, crop.height) for crop in drawn} == {(0, 0, 20, 20)}


def test_crops_are_cut_from_the_expanded_canvas() -> None:
    sample = sample_of(90, 120, (50, 40, 70, 50))
    drawn = crops(sample, switches(expand=True, random_crop=True), 600)
    assert any(crop.left < 0 and crop.left + crop.width < 120 for crop in drawn)
    assert any(crop.left > 0 for crop in drawn)
    assert all(crop.left < 60 < crop.left + crop.width for crop in drawn)


# --- Colours


@pytest.mark.parametrize("photometric", [False, True])
def test_colours_change_only_if_enabled(photometric: bool) -> None:
    sample = sample_of(32, 32, (4, 4, 28, 28))
    plain = torch.tensor(sample.image).permute(2, 0, 1)
    variants = [varied(sample, switches(photometric=photometric), 32, seed)[0] for seed in range(12)]
    assert any(not torch.equal(variant, plain) for variant in variants) == photometric
