"""Input that keeps the image's aspect ratio: where pixels, boxes and masks are in the input and back in the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from tests.small_networks import tiny_config
from yolact.boxes import encode
from yolact.crop import Crop, View, filled_share
from yolact.data.augment import Sample, augment, crop_targets, render
from yolact.inference import postprocess
from yolact.inference.postprocess import Candidates, enlarge_masks, to_image_frame
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_AUGMENTATION
from yolact.structures import RawOutputs
from yolact.transforms import IMAGENET, normalize, to_padded_square, to_square

MEAN = (123.68, 116.78, 103.94)
SIZE = 64
GRID = 16
"""Side of the prototypes of a network with an input of 64 pixels."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Yolact:
    torch.manual_seed(0)
    return Yolact(tiny_config(keep_aspect_ratio=True), 3).eval()


def predictor_of(model: Yolact, **options: Any) -> Predictor:
    return Predictor(model, ["a", "b", "c"], **options)


def image_with(height: int, width: int, box: tuple[int, int, int, int]) -> Sample:
    """A black image with a white rectangle as its only object."""
    left, top, right, bottom = box
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return Sample(
        image=np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2),
        boxes=np.array([box], dtype=np.float64),
        labels=np.array([1]),
        masks=[coco_mask.encode(np.asfortranarray(mask))],
        crowd=np.array([False]),
    )


def squared_view(height: int, width: int, size: int, *, mirrored: bool = False) -> View:
    """A complete image in a square input."""
    return View.of(Crop(0, 0, width, height, mirrored).squared(), height, width, size)


def channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


# --- on the way in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "filled"), [(40, 80, (32, 64)), (80, 40, (64, 32)), (50, 50, (64, 64)), (30, 200, (10, 64))]
)
def test_the_longer_side_is_the_inputs_and_the_rest_to_the_right_or_below_has_the_mean_colour(
    height: int, width: int, filled: tuple[int, int]
) -> None:
    """30 * 64 / 200 = 9.6 rows, rounded."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = to_padded_square(channels_first(image), SIZE)
    rows, columns = filled
    assert square.shape == (3, SIZE, SIZE)
    assert square.dtype == torch.float32
    for plane, level in zip(square, MEAN, strict=True):
        padding = torch.cat([plane[rows:].flatten(), plane[:rows, columns:].flatten()])
        torch.testing.assert_close(padding, torch.full((SIZE**2 - rows * columns,), level))
    stretched = torch.nn.functional.interpolate(channels_first(image)[None].float(), size=filled, mode="bilinear")[0]
    assert torch.equal(square[:, :rows, :columns], stretched)


def test_a_square_image_is_the_same_without_the_setting() -> None:
    image = channels_first(np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8))
    assert torch.equal(to_padded_square(image, SIZE), to_square(image, SIZE))


@pytest.mark.parametrize(("height", "width"), [(1, 500), (500, 1)])
def test_an_image_too_narrow_to_be_visible_does_not_fail(model: Yolact, height: int, width: int) -> None:
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    square = to_padded_square(channels_first(image), SIZE)
    assert square.flatten(1).std(dim=1).max() == 0
    sample = image_with(height, width, (0, 0, width, height))
    assert (render(sample.image, squared_view(height, width, SIZE)).float() - square).abs().max() <= 0.5
    for resolution in ("image", "prototypes", 7):
        found = predictor_of(model, mask_resolution=resolution).predict(image)
        assert len(found.masks) == len(found)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 64), st.booleans(), st.integers(0, 99))
def test_training_and_inference_see_the_same(height: int, width: int, size: int, mirrored: bool, seed: int) -> None:
    """A mirrored crop is the mirrored image in the same corner."""
    side = max(height, width)
    # What ends at half a pixel is rounded the other way when it is counted from the other end.
    assume(not mirrored or 2 * width * size % (2 * side) != side)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    trained = render(image, squared_view(height, width, size, mirrored=mirrored))
    seen = to_padded_square(channels_first(image[:, ::-1] if mirrored else image), size)
    assert (trained.float() - seen).abs().max() <= 1.01  # training rounds to whole levels after each axis


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 80), st.integers(1, 80), st.booleans(), st.integers(1, 9)
)
def test_a_squared_crop_is_the_smallest_square_that_starts_with_the_crop(
    left: int, top: int, width: int, height: int, mirrored: bool, scale: int
) -> None:
    crop = Crop(left, top, width, height, mirrored)
    square = crop.squared()
    assert square.width == square.height == max(width, height)
    assert square.mirrored == mirrored
    assert square.top == top
    first, wanted = (w.left + w.width if mirrored else w.left for w in (square, crop))  # the network's left edge
    assert first == wanted
    assert square.left <= left
    assert square.left + square.width >= left + width
    assert square.squared() == square
    times = Crop(left * scale, top * scale, width * scale, height * scale, mirrored).squared()
    assert (times.left, times.top, times.width) == tuple(scale * v for v in (square.left, square.top, square.width))


def test_training_keeps_the_aspect_ratio_of_whatever_crop_is_drawn() -> None:
    """A fully visible square stays a square."""
    sample = image_with(60, 120, (30, 20, 50, 40))
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for keep in (True, False):
        for seed in range(60):
            rng = np.random.default_rng(seed)
            _, targets = augment(sample, PUBLISHED_AUGMENTATION, 256, 3, rng, keep_aspect_ratio=keep)
            for left, top, right, bottom in targets.boxes.tolist():
                if min(left, top) > 0 and max(right, bottom) < 1:
                    ratios[keep].append((right - left) / (bottom - top))
    assert len(ratios[True]) > 20
    assert ratios[True] == pytest.approx([1] * len(ratios[True]), abs=1e-3)
    assert max(abs(ratio - 1) for ratio in ratios[False]) > 0.3


@pytest.mark.parametrize("mirrored", [False, True])
def test_targets_match_the_object_in_the_input(mirrored: bool) -> None:
    """100 x 200 pixels at 200: rows 40 to 80 and columns 20 to 120 are where they are in the image."""
    sample = image_with(100, 200, (20, 40, 120, 80))
    view = squared_view(100, 200, 200, mirrored=mirrored)
    pixels = render(sample.image, view)
    targets = crop_targets(sample, view, 3)
    left, right = (80, 180) if mirrored else (20, 120)
    assert targets.boxes.tolist() == [pytest.approx([left / 200, 0.2, right / 200, 0.4])]
    assert (pixels[0, 40:80, left:right] == 255).all()
    assert (pixels[0] == 255).sum() == 40 * 100
    [mask] = targets.masks  # 50 x 50 cells of 4 pixels
    assert mask[10:20, left // 4 : right // 4].all()
    assert mask.sum() == 10 * 25
    assert targets.semantic[0, 1, 13:].sum() == 0  # below the image


# --- and back out -------------------------------------------------------------------------------------------------


ROUNDED_OFF = 6
"""Pixels that interpolation takes from each corner of a rectangle whose cells are 8 x 8 pixels: the shares of white are
9, 11, 13 and 15 sixteenths by row and by column, and of their 16 products 6 are one half or less."""


def outputs_for(model: Yolact, square: Tensor, box: Tensor) -> RawOutputs:
    """Raw outputs of a network that finds one object of class 1, in ``box``, wherever the input is white.

    Args:
        square: (3, S, S) input, 0 to 255.
        box: (4,) xyxy, relative to the input.
    """
    anchors = model(torch.zeros(1, 3, SIZE, SIZE)).anchors
    logits = torch.full((1, len(anchors), 4), -20.0)
    logits[:, :, 0] = 20.0
    logits[0, 0] = torch.tensor([-20.0, -20.0, 20.0, -20.0])
    white = torch.nn.functional.avg_pool2d(square[:1], SIZE // GRID)[0] / 255 - 0.5  # (GRID, GRID), over 0 where white
    return RawOutputs(
        boxes=encode(box, anchors)[None],
        class_logits=logits,
        mask_coefficients=torch.ones(1, len(anchors), 1),
        prototypes=white[None, :, :, None],
        anchors=anchors,
        semantic_logits=None,
    )


IMAGES = [
    (64, 128, (16, 8, 80, 40)),  # wide
    (128, 64, (8, 16, 40, 80)),  # tall
    (128, 128, (32, 16, 96, 80)),
    (64, 128, (96, 32, 128, 64)),  # in the corner that the padding begins at
]
"""Height, width and rectangle, so that each cell of the prototypes, 8 image pixels, is wholly white or wholly not."""


def found_again(model: Yolact, images: list[tuple[int, int, tuple[int, int, int, int]]], **options: Any) -> list[Any]:
    """The detections in a batch, by a network that finds the white objects."""
    predictor = predictor_of(model, **options)
    arrays = [channels_first(image_with(*image).image) for image in images]
    inputs = predictor.preprocess(arrays)
    squares = [to_padded_square(pixels, SIZE) for pixels in arrays]
    assert torch.equal(inputs, normalize(torch.stack(squares), IMAGENET))
    single = []
    for square in squares:
        rows, columns = (square[0] == 255).nonzero().unbind(1)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        single.append(outputs_for(model, square, torch.stack(edges) / SIZE))
    together = RawOutputs(
        boxes=torch.cat([one.boxes for one in single]),
        class_logits=torch.cat([one.class_logits for one in single]),
        mask_coefficients=torch.cat([one.mask_coefficients for one in single]),
        prototypes=torch.cat([one.prototypes for one in single]),
        anchors=single[0].anchors,
        semantic_logits=None,
    )
    return predictor.postprocess(together, [image[:2] for image in images])


def test_detections_in_the_input_are_mapped_to_the_object_in_each_image(model: Yolact) -> None:
    for found, (height, width, box) in zip(found_again(model, IMAGES), IMAGES, strict=True):
        left, top, right, bottom = box
        assert len(found) == 1
        assert found.labels.tolist() == [1]
        torch.testing.assert_close(found.boxes, torch.tensor([box], dtype=torch.float32), atol=1e-3, rtol=0)
        assert found.masks.shape == (1, height, width)
        assert found.image_size == (height, width)
        expected = torch.zeros(height, width, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert not (found.masks[0] & ~expected).any()
        assert (expected & ~found.masks[0]).sum() <= 4 * ROUNDED_OFF


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ("image", [(64, 128), (128, 64), (128, 128), (64, 128)]),
        ("prototypes", [(8, 16), (16, 8), (16, 16), (8, 16)]),
        (32, [(16, 32), (32, 16), (32, 32), (16, 32)]),
    ],
)
def test_masks_of_every_resolution_show_the_image_and_nothing_else(
    model: Yolact, resolution: Any, sizes: list[tuple[int, int]]
) -> None:
    all_found = found_again(model, IMAGES, mask_resolution=resolution)
    for found, size, (_, width, box) in zip(all_found, sizes, IMAGES, strict=True):
        assert found.masks.shape == (1, *size)
        shrink = width / size[1]
        left, top, right, bottom = (round(edge / shrink) for edge in box)
        expected = torch.zeros(size, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert (found.masks[0] != expected).sum() <= (0 if shrink == 8 else 4 * ROUNDED_OFF)
        torch.testing.assert_close(found.boxes, torch.tensor([box], dtype=torch.float32), atol=1e-3, rtol=0)


def test_images_of_a_batch_give_the_same_detections_as_alone(model: Yolact) -> None:
    together = found_again(model, IMAGES)
    for found, image in zip(together, IMAGES, strict=True):
        [alone] = found_again(model, [image])
        assert torch.equal(found.boxes, alone.boxes)
        assert torch.equal(found.masks, alone.masks)


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 120), st.integers(40, 120), st.data())
def test_a_network_that_returns_its_targets_finds_the_object(height: int, width: int, draw: st.DataObject) -> None:
    """The training targets at an input of 128 pixels, used as network outputs, give the object in the image."""
    left, top = draw.draw(st.integers(0, width - 20)), draw.draw(st.integers(0, height - 20))
    right, bottom = draw.draw(st.integers(left + 20, width)), draw.draw(st.integers(top + 20, height))
    sample = image_with(height, width, (left, top, right, bottom))
    targets = crop_targets(sample, squared_view(height, width, 128), 3)
    prototypes = targets.masks[0].float()[:, :, None] - 0.5  # (32, 32, 1)
    candidates = Candidates(targets.boxes, torch.tensor([0.9]), targets.labels, torch.ones(1, 1))
    found = to_image_frame(candidates, prototypes, height, width, DEFAULT_DETECTION, share=filled_share(height, width))
    torch.testing.assert_close(found.boxes, torch.tensor(sample.boxes).float(), atol=1e-3, rtol=0)
    expected = torch.from_numpy(coco_mask.decode(sample.masks)[:, :, 0] != 0)
    assert not (found.masks[0] & ~expected).any()
    cell = max(height, width) / 32  # a prototype pixel in image pixels
    lost_edge = 2 * cell * (right - left + bottom - top)  # each edge may be a cell off
    assert (expected & ~found.masks[0]).sum() <= lost_edge


def candidates_of(boxes: list[list[float]]) -> Candidates:
    count = len(boxes)
    return Candidates(torch.tensor(boxes), torch.linspace(0.9, 0.5, count), torch.arange(count), torch.ones(count, 1))


@pytest.mark.parametrize("integer", [False, True])
def test_boxes_are_clipped_to_the_image_and_those_in_the_padding_are_dropped(integer: bool) -> None:
    """An image of 40 x 100 pixels in a square of 100; the second box is below it."""
    boxes = [[0.505, 0.105, 0.905, 0.905], [0.105, 0.505, 0.205, 0.605], [0.105, 0.205, 0.205, 0.305]]
    found = to_image_frame(
        candidates_of(boxes),
        torch.ones(4, 4, 1),
        40,
        100,
        DEFAULT_DETECTION.replace(integer_boxes=integer),
        share=filled_share(40, 100),
    )
    expected = [[50.5, 10.5, 90.5, 40], [10.5, 20.5, 20.5, 30.5]]
    exact = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(found.boxes, exact.floor() if integer else exact)
    assert found.labels.tolist() == [0, 2]
    assert found.masks.shape == (2, 40, 100)
    assert found.masks[0, 11:40, 51:90].all()
    assert found.masks[0].sum() <= 30 * 41


@pytest.mark.parametrize("crop_first", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(("height", "width"), [(37, 90), (90, 37), (90, 90), (1, 90)])
def test_masks_are_those_of_the_square_cut_to_the_image(
    height: int, width: int, on_gpu: bool, crop_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_gpu:
        monkeypatch.setattr(postprocess, "_cut_windows", postprocess._cut_whole)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(12, 9, 9, generator=generator)
    low = torch.rand(12, 2, generator=generator) * torch.linspace(0, 0.6, 12)[:, None]
    boxes = torch.cat([low, low + 0.1 + torch.rand(12, 2, generator=generator) * 0.4], dim=1)
    side = max(height, width)
    whole = enlarge_masks(logits, boxes, side, side, crop_first=crop_first).to_tensor()[:, :height, :width]
    share = filled_share(height, width)
    cut = enlarge_masks(logits, boxes, height, width, crop_first=crop_first, share=share).to_tensor()
    assert cut.shape == (12, height, width)
    assert (cut != whole).sum() <= 2  # rounding may decide a pixel on the very edge
    assert whole.any()
