"""Resizing against scipy's interpolation, normalisation against hand calculation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor

from yolact import transforms
from yolact.transforms import (
    IMAGENET,
    UNIT_RANGE,
    aspect_ratio_size,
    normalize,
    resize_masks,
    resize_planes_like_opencv,
    to_square,
)


def channels_first(image: np.ndarray) -> Tensor:
    return torch.tensor(image.transpose(2, 0, 1))


def resize_with_scipy(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with half-pixel centres: output pixel j reads the image at (j + 0.5) * W / size - 0.5; (3, S, S)."""
    height, width = image.shape[:2]
    rows = (np.arange(size) + 0.5) * height / size - 0.5
    columns = (np.arange(size) + 0.5) * width / size - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    planes = image.astype(np.float64).transpose(2, 0, 1)
    return np.stack([map_coordinates(plane, grid, order=1, mode="nearest") for plane in planes])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), st.integers(0, 9))
def test_any_image_becomes_a_square_as_scipy_interpolates_it(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = to_square(channels_first(image), size)
    assert square.dtype == torch.float32
    np.testing.assert_allclose(square.numpy(), resize_with_scipy(image, size), atol=2e-3)


def test_resizing_does_not_round() -> None:
    image = channels_first(np.array([[[0, 10, 20], [1, 20, 20]]], dtype=np.uint8))  # 1 x 2 pixels
    expected = [[0, 0.25, 0.75, 1], [10, 12.5, 17.5, 20], [20, 20, 20, 20]]
    assert to_square(image, 4)[:, 0].tolist() == expected
    assert to_square(image, 4)[:, 3].tolist() == expected


def test_a_image_of_the_right_size_stays_as_it_is() -> None:
    image = channels_first(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert torch.equal(to_square(image, 9), image.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalisation_takes_rgb_from_0_to_255(dtype: torch.dtype) -> None:
    images = torch.tensor([0, 128, 255], dtype=dtype).view(1, 3, 1, 1)
    normal = normalize(images, IMAGENET)
    assert normal.dtype == torch.float32
    by_hand = [(0 - 123.68) / 58.40, (128 - 116.78) / 57.12, (255 - 103.94) / 57.38]
    assert normal.flatten().tolist() == pytest.approx(by_hand, rel=1e-6)


def test_normalisation_is_the_usual_one_on_another_scale() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    usual = (images / 255 - mean) / std  # of ImageNet, as torchvision documents it
    assert (normalize(images, IMAGENET) - usual).abs().max() < 0.01


def test_the_constants_are_brought_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each time makes the host wait."""
    images = torch.rand(2, 3, 4, 5) * 255
    first = normalize(images, IMAGENET)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalize(images, IMAGENET), first)


@pytest.mark.parametrize("before", ["inference", "export"])
def test_what_was_normalised_before_does_not_matter(before: str) -> None:
    """Tensors of an exporter have no values, those of inference no gradients."""

    class Network(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return normalize(images, IMAGENET)

    transforms._new_per_channel.cache_clear()
    images = torch.full((1, 3, 2, 2), 100.0)
    if before == "export":
        torch.export.export(Network(), (images,))
    else:
        with torch.inference_mode():
            normalize(images, IMAGENET)
    images.requires_grad_()
    normal = normalize(images, IMAGENET)
    normal.sum().backward()
    assert normal[0, :, 0, 0].tolist() == pytest.approx([-0.405479, -0.293767, -0.068665], abs=1e-5)
    assert images.grad is not None
    assert images.grad[0, :, 0, 0].tolist() == pytest.approx([1 / 58.40, 1 / 57.12, 1 / 57.38])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_darknet_takes_values_from_0_to_1(dtype: torch.dtype) -> None:
    images = torch.tensor([0, 51, 255], dtype=dtype).view(1, 3, 1, 1)
    normal = normalize(images, UNIT_RANGE)
    assert normal.dtype == torch.float32
    assert normal.flatten().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize(
    ("image", "expected"),
    [((550, 550), (550, 550)), ((400, 100), (1100, 275)), ((100, 400), (275, 1100)), ((640, 480), (635, 476))],
)
def test_a_size_of_equal_area_keeps_the_aspect_ratio(image: tuple[int, int], expected: tuple[int, int]) -> None:
    """By hand: sqrt(400 / 100) = 2; sqrt(640 / 480) = 1.1547, and 550 times and over it are 635.1 and 476.3."""
    assert aspect_ratio_size(*image, 550) == expected


@pytest.mark.parametrize("size", [(300, 200), (137, 137), (550, 550)])
def test_a_thin_mask_is_resized_with_one_rounding(size: tuple[int, int]) -> None:
    """torch's own uint8 resizing rounds after each axis, which makes thin diagonals up to a quarter thicker."""
    thin = np.zeros((1, 375, 500), np.uint8)
    for column in range(3, 370):
        thin[0, column - 1 : column + 2, column] = 1
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(thin)[None].double(), size=size, mode="bilinear", align_corners=False
    )[0]
    found = torch.from_numpy(resize_masks(thin, size))
    decided = (expected - 0.5).abs() > 1e-4
    assert torch.equal((found > 0)[decided], (expected > 0.5)[decided])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_a_resized_mask_has_the_pixels_of_one_half_and_more(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    """In fractions, so that no rounding can decide; half-pixel centres, the edge's samples beyond the edge."""
    mask = (np.random.default_rng(seed).random((1, height, width)) < 0.5).astype(np.uint8)
    found = resize_masks(mask, (rows, columns))
    assert found.shape == (1, rows, columns)
    assert found.dtype == np.uint8
    for row in {0, rows // 3, rows // 2, rows - 1}:
        for column in {0, columns // 3, columns // 2, columns - 1}:
            y = min(max(Fraction(2 * row + 1, 2 * rows) * height - Fraction(1, 2), Fraction(0)), Fraction(height - 1))
            x = min(
                max(Fraction(2 * column + 1, 2 * columns) * width - Fraction(1, 2), Fraction(0)), Fraction(width - 1)
            )
            value = sum(
                (1 - abs(y - i)) * (1 - abs(x - j)) * int(mask[0, i, j])
                for i in {int(y), min(int(y) + 1, height - 1)}
                for j in {int(x), min(int(x) + 1, width - 1)}
            )
            assert found[0, row, column] == (value >= Fraction(1, 2))


def test_no_masks_are_resized_to_no_masks() -> None:
    assert resize_masks(np.zeros((0, 5, 6), dtype=np.uint8), (3, 4)).shape == (0, 3, 4)


def opencv_pixel(samples: list[list[int]], across: float, down: float) -> int:
    """One pixel between 2 x 2 samples in OpenCV's whole numbers; ``across`` and ``down`` are multiples of 1/2048."""
    right, below = int(across * 2048), int(down * 2048)
    upper, lower = (row[0] * (2048 - right) + row[1] * right for row in samples)
    return (((2048 - below) * (upper // 16) // 65536) + (below * (lower // 16) // 65536) + 2) // 4


@pytest.mark.parametrize("samples", [[[0, 1], [1, 1]], [[1, 0], [0, 0]], [[0, 1], [1, 0]], [[255, 13], [7, 200]]])
def test_opencv_truncates_each_rows_share_of_a_pixel(samples: list[list[int]]) -> None:
    """2 x 2 samples to 8 x 8: pixels lie 0.0625, 0.1875 ... from a sample, and at the edges on the samples."""
    found = resize_planes_like_opencv(torch.tensor([samples], dtype=torch.uint8), (8, 8))[0]
    assert found.dtype == torch.uint8
    shares = [0, 0, 0.125, 0.375, 0.625, 0.875, 0, 0]
    for row in range(2, 6):
        for column in range(2, 6):
            assert found[row, column] == opencv_pixel(samples, shares[column], shares[row])
    corners = [found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]]
    assert corners == [samples[0][0], samples[0][1], samples[1][0], samples[1][1]]


def test_opencv_loses_pixels_of_a_mask_that_one_rounding_keeps() -> None:
    """3/8 across and down the rows share 0.23 and 0.38 of a pixel; truncated to quarters these are 0 and 1."""
    mask = torch.tensor([[[0, 1], [1, 1]]], dtype=torch.uint8)
    exact = torch.from_numpy(resize_masks(mask.numpy(), (8, 8)))[0]
    opencv = resize_planes_like_opencv(mask, (8, 8))[0]
    assert (exact[3, 3], opencv[3, 3]) == (1, 0)
    assert (opencv <= exact).all()
