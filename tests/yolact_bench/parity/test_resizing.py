"""Resizing of masks against exact fractions and OpenCV's integer arithmetic, computed by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_bench.parity.resizing import aspect_ratio_size, resize_masks, resize_planes_like_opencv


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
    """In fractions, without rounding; half-pixel centres, edge samples repeated beyond the edge."""
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


def test_no_masks_resize_to_no_masks() -> None:
    assert resize_masks(np.zeros((0, 5, 6), dtype=np.uint8), (3, 4)).shape == (0, 3, 4)


def opencv_pixel(samples: list[list[int]], across: float, down: float) -> int:
    """One pixel between 2 x 2 samples in OpenCV's integer arithmetic; ``across`` and ``down`` are multiples of
    1/2048."""
    right, below = int(across * 2048), int(down * 2048)
    upper, lower = (row[0] * (2048 - right) + row[1] * right for row in samples)
    return (((2048 - below) * (upper // 16) // 65536) + (below * (lower // 16) // 65536) + 2) // 4


@pytest.mark.parametrize("samples", [[[0, 1], [1, 1]], [[1, 0], [0, 0]], [[0, 1], [1, 0]], [[255, 13], [7, 200]]])
def test_opencv_truncates_each_rows_share_of_a_pixel(samples: list[list[int]]) -> None:
    """2 x 2 samples to 8 x 8: pixels are 0.0625, 0.1875 ... from a sample, and at the edges on the samples."""
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
