"""The published code's box and mask algebra against sets of pixels and hand calculations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.yolact.test_boxes import GridBox, grid_boxes, pixels, quotient, tensor
from yolact_bench.boxes import (
    integer_pixel_bounds,
    intersection_over_first,
    mask_intersection,
    mask_intersection_over_first,
    mask_iou,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(grid_boxes(), min_size=1, max_size=4), st.lists(grid_boxes(), min_size=1, max_size=4))
def test_shares_of_the_first_boxes_count_pixels(first: list[GridBox], second: list[GridBox]) -> None:
    expected = [[quotient(len(pixels(a) & pixels(b)), len(pixels(a))) for b in second] for a in first]
    found = intersection_over_first(tensor(first), tensor(second))
    np.testing.assert_array_equal(found.numpy(), np.array(expected, dtype=np.float32))


def test_bounds_in_whole_pixels_are_truncated_before_padding() -> None:
    """Of 10 pixels: 1.9 and 5.9 become 1 and 5, -0.5 becomes 0; padding comes after."""
    first, second = tensor([0.19, 0.59, -0.05, 1.5]), tensor([0.59, 0.19, 0.95, 2.0])
    low, high = integer_pixel_bounds(first, second, 10, 1)
    assert low.dtype == high.dtype == torch.int64
    assert low.tolist() == [0, 0, 0, 14]
    assert high.tolist() == [6, 6, 10, 10]
    assert integer_pixel_bounds(first, second, 10, 0)[0].tolist() == [1, 1, 0, 15]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_are_compared_as_sets_of_pixels(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((4, 5, 6)) < 0.4, rng.random((3, 5, 6)) < 0.6
    sets_a, sets_b = ([set(np.flatnonzero(mask).tolist()) for mask in masks] for masks in (a, b))
    masks_a, masks_b = torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype)
    assert mask_intersection(masks_a, masks_b).tolist() == [[len(x & y) for y in sets_b] for x in sets_a]
    iou = [[len(x & y) / len(x | y) for y in sets_b] for x in sets_a]
    np.testing.assert_allclose(mask_iou(masks_a, masks_b).numpy(), iou, rtol=1e-6)
    share = [[len(x & y) / len(x) for y in sets_b] for x in sets_a]
    np.testing.assert_allclose(mask_intersection_over_first(masks_a, masks_b).numpy(), share, rtol=1e-6)


def test_two_empty_masks_have_no_iou() -> None:
    empty, full = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    assert mask_iou(empty, empty).isnan().all()
    assert mask_iou(empty, full).item() == 0
