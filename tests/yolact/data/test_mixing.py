"""Mosaic and copy-paste: pixels, boxes and masks of several images stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.yolact.data.test_augment import CLASSES, MEAN, sample_of, scenes, switches, view_of
from yolact.crop import Crop, View
from yolact.data.augment import Sample, augment, crop_targets, draw_crop, render
from yolact.data.mixing import (
    MIN_VISIBLE,
    Partners,
    Scene,
    draw_mosaic,
    draw_partners,
    mix,
    paste,
    see,
)
from yolact.data.target_masks import masks_in_input
from yolact.masks import InstanceMasks

SIZE = 48


def scene_of(level: int, *boxes: tuple[int, int, int, int], label: int = 0, crowd: tuple[int, ...] = ()) -> Scene:
    """A scene of one grey level; its objects are filled rectangles."""
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    masks[list(crowd)] = 0
    return Scene(
        torch.full((3, SIZE, SIZE), level, dtype=torch.uint8),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.full(len(boxes), label),
        InstanceMasks.from_tensor(masks),
        np.isin(np.arange(len(boxes)), crowd),
    )


# --- An image at the input's size


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(16, 64))
def test_a_mask_at_the_input_s_size_is_its_image_resized_and_rounded(scene: tuple[Sample, Crop], size: int) -> None:
    sample, crop = scene
    view = view_of(sample, crop, size)
    found = masks_in_input(sample.masks, view).to_tensor().numpy()
    expected = np.zeros((len(sample.masks), size, size), dtype=bool)
    if view.part is not None:
        part = view.part
        for mask, rle in zip(expected, sample.masks, strict=True):
            source = torch.from_numpy(coco_mask.decode(rle)[part.source_rows, part.source_columns].copy())[None, None]
            resized = torch.nn.functional.interpolate(source.double(), part.shape, mode="bilinear", align_corners=False)
            mask[part.target_rows, part.target_columns] = resized[0, 0].numpy() >= 0.5 - 1e-9
    assert np.array_equal(found, expected[:, :, ::-1] if crop.mirrored else expected)


@settings(max_examples=40, deadline=None)
@given(scenes(), st.integers(16, 64), st.sampled_from([1, 2]))
def test_an_image_with_nothing_pasted_has_the_pixels_and_targets_of_the_image_alone(
    scene: tuple[Sample, Crop], size: int, upsampling: int
) -> None:
    sample, _ = scene
    config = switches(photometric=True, expand=True, random_crop=True, mirror=True)
    pixels, alone = augment(sample, config, size, CLASSES, np.random.default_rng(3), mask_upsampling=upsampling)
    found, mixed = mix(
        sample, [], sample_of(20, 30), config, size, CLASSES, np.random.default_rng(3), mask_upsampling=upsampling
    )
    assert torch.equal(found, pixels)
    for name, value in vars(alone).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(mixed, name), value), name
    assert alone.masks.shape[1] == 2 * -(-size // 8) * upsampling


# --- Copy-paste


def test_pasted_objects_have_their_pixels_and_hide_what_is_behind_them() -> None:
    base = scene_of(10, (0, 0, 20, 20), (30, 30, 40, 40), label=1)
    source = scene_of(200, (10, 0, 44, 20), (0, 24, 8, 32), label=2)
    result = paste(base, source, np.array([True, False]))
    assert result.labels.tolist() == [1, 1, 2]
    assert result.boxes.tolist() == [[0, 0, 10, 20], [30, 30, 40, 40], [10, 0, 44, 20]]
    assert [int(mask.sum()) for mask in result.masks.to_tensor()] == [10 * 20, 100, 34 * 20]
    expected = torch.full((SIZE, SIZE), 10, dtype=torch.uint8)
    expected[0:20, 10:44] = 200
    assert torch.equal(result.pixels, expected.expand(3, -1, -1))
    assert base.boxes.tolist()[0] == [0, 0, 20, 20]  # unchanged


@pytest.mark.parametrize(("covered", "kept"), [(17, True), (18, True), (19, False), (20, False)])
def test_an_object_of_which_too_little_remains_is_dropped(covered: int, kept: bool) -> None:
    assert MIN_VISIBLE == 0.1  # of 20 columns: 2 have to remain
    base = scene_of(10, (0, 0, 20, 10))
    result = paste(base, scene_of(20, (0, 0, covered, 10), label=3), np.array([True]))
    assert result.labels.tolist() == ([0, 3] if kept else [3])


def test_crowd_regions_are_neither_pasted_nor_hidden() -> None:
    base = scene_of(10, (0, 0, 20, 20), crowd=(0,))
    result = paste(base, scene_of(20, (0, 0, 20, 20), (30, 0, 40, 9), crowd=(1,)), np.array([True, True]))
    assert result.crowd.tolist() == [True, False]
    assert result.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 20, 20]]


@settings(max_examples=40, deadline=None)
@given(scenes(), scenes(), st.integers(0, 99))
def test_pasting_keeps_masks_apart_and_boxes_tight(
    base: tuple[Sample, Crop], source: tuple[Sample, Crop], seed: int
) -> None:
    below, above = (see(sample, view_of(sample, crop, SIZE)) for sample, crop in (base, source))
    chosen = np.random.default_rng(seed).random(len(above.labels)) < 0.5
    result = paste(below, above, chosen)
    masks = result.masks.to_tensor()
    seen = above.masks.to_tensor()[torch.from_numpy(chosen)]
    pasted = len([mask for mask in seen if mask.any()])
    kept = len(result.labels) - pasted
    cover = seen.any(dim=0)
    assert not (masks[:kept] & cover).any()
    assert torch.equal(result.pixels[:, cover], above.pixels[:, cover])
    assert torch.equal(result.pixels[:, ~cover], below.pixels[:, ~cover])
    before = {tuple(box) for box in below.boxes.tolist()}
    for mask, box in zip(masks[:kept], result.boxes[:kept].tolist(), strict=True):
        if tuple(box) not in before:
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            assert box == [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


# --- Mosaic


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_four_images_of_a_mosaic_meet_in_a_point(mirror: bool, keep_aspect_ratio: bool) -> None:
    samples = []
    for level in range(4):
        sample = sample_of(40 + 10 * level, 60, (0, 0, 60, 40 + 10 * level))
        sample.image[:] = 50 * (level + 1)
        sample.labels[:] = level
        samples.append(sample)
    flipped = objects = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = draw_mosaic(samples, switches(mirror=mirror), SIZE, rng, keep_aspect_ratio=keep_aspect_ratio)
        grey = scene.pixels[0]
        assert torch.equal(torch.unique(grey[grey != MEAN[0]]), torch.tensor([50, 100, 150, 200], dtype=torch.uint8))
        masks = scene.masks.to_tensor()
        for label, mask, box in zip(scene.labels.tolist(), masks, scene.boxes, strict=True):
            assert torch.equal(mask, grey == 50 * (label + 1))  # where its centre is visible, the whole quadrant
            left, top, right, bottom = np.rint(box).astype(int)
            assert mask[top:bottom, left:right].float().mean() > 0.9
        objects += len(scene.labels)
        columns = [float((grey == 50 * (level + 1)).nonzero()[:, 1].float().mean()) for level in range(4)]
        flipped += columns[0] > columns[1]
        assert (columns[2] > columns[3]) == (columns[0] > columns[1])
    assert 0 < flipped < 20 if mirror else flipped == 0
    assert objects > 30


def test_a_mosaic_s_scale_and_position_are_those_of_its_pixels() -> None:
    """In images whose colours are coordinates, each object's box in the mosaic is where its colours are."""
    rows, columns = np.mgrid[0:80, 0:80]
    image = np.stack([columns * 3, rows * 3, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    sample = sample_of(80, 80, (20, 30, 60, 70))
    sample.image[:] = image
    for seed in range(10):
        scene = draw_mosaic([sample] * 4, switches(), 160, np.random.default_rng(seed))
        for mask, box in zip(scene.masks.to_tensor(), scene.boxes, strict=True):
            x, y = (scene.pixels[channel][mask].float() / 3 for channel in (0, 1))
            assert x.min() >= 18.5
            assert x.max() <= 60.5
            assert y.min() >= 28.5
            assert y.max() <= 70.5
            inside = np.rint(box).astype(int)
            assert int(mask.sum()) == pytest.approx((inside[2] - inside[0]) * (inside[3] - inside[1]), rel=0.12)


# --- Draws


def test_what_is_off_takes_no_random_number() -> None:
    rng, untouched = np.random.default_rng(4), np.random.default_rng(4)
    assert draw_partners(switches(), 10, rng, mosaic=True) == Partners()
    assert draw_partners(switches(mosaic=1.0), 10, rng, mosaic=False) == Partners()
    assert rng.random() == untouched.random()


def test_partners_are_drawn_with_the_given_probabilities() -> None:
    rng = np.random.default_rng(5)
    drawn = [draw_partners(switches(mosaic=0.25, copy_paste=0.5), 7, rng, mosaic=True) for _ in range(2000)]
    assert np.mean([len(partners.mosaic) == 3 for partners in drawn]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([partners.pasted is not None for partners in drawn]) == pytest.approx(0.5, abs=0.045)
    assert {index for partners in drawn for index in partners.mosaic} == set(range(7))


# --- Large-scale jitter


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 999))
def test_large_scale_jitter_crops_large_images_and_pads_small_ones(height: int, width: int, seed: int) -> None:
    crop = draw_crop(sample_of(height, width), switches(scale_jitter=[0.1, 2.0]), np.random.default_rng(seed))
    scale = np.random.default_rng(seed).uniform(0.1, 2.0)
    assert (crop.width, crop.height) == (max(round(width / scale), 1), max(round(height / scale), 1))
    for low, extent, image in ((crop.left, crop.width, width), (crop.top, crop.height, height)):
        inside, around = low >= 0 and low + extent <= image, low <= 0 and low + extent >= image
        assert inside or around


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
def test_jittered_images_have_their_pixels_and_boxes_at_the_scale(scale: float) -> None:
    """Colours are coordinates: a step of an image pixel is ``scale`` times as long in the input as without jitter."""
    rows, columns = np.mgrid[0:64, 0:64]
    sample = sample_of(64, 64, (24, 24, 40, 40))
    sample.image[:] = np.stack([columns * 2, rows * 2, np.full_like(rows, 255)], axis=-1)
    view = view_of(sample, draw_crop(sample, switches(scale_jitter=[scale, scale]), np.random.default_rng(1)), 64)
    pixels, targets = render(sample.image, view), crop_targets(sample, view, CLASSES)
    shown = pixels[2] == 255
    middle = pixels[0][shown.nonzero()[len(shown.nonzero()) // 2][0]][shown.any(dim=0)].float() / 2
    assert np.median(np.diff(middle.numpy())) == pytest.approx(1 / scale, abs=0.5)
    for left, top, right, bottom in (targets.boxes * 64).tolist():
        assert right - left <= 16 * scale + 1e-4
        assert bottom - top <= 16 * scale + 1e-4
        x, y = min(int((left + right) / 2), 63), min(int((top + bottom) / 2), 63)
        expected = (left / scale + view.crop.left + right / scale + view.crop.left) / 2
        assert pixels[0, y, x] / 2 == pytest.approx(expected, abs=1 / scale + 1)


def test_with_the_aspect_ratio_kept_jitter_scales_the_longer_side() -> None:
    sample = sample_of(20, 60)
    crop = draw_crop(sample, switches(scale_jitter=[0.5, 0.5]), np.random.default_rng(0)).squared()
    assert (crop.width, crop.height) == (120, 120)
    assert View.of(crop, 20, 60, 60).part is not None
