"""Box algebra against sets of pixels, explicit loops and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolact.boxes import (
    box_area,
    box_iou,
    crop_mask,
    cxcywh_to_xyxy,
    decode,
    encode,
    intersection,
    pixel_bounds,
    xyxy_to_cxcywh,
)

GridBox = tuple[int, int, int, int]
SIDE = 9


@st.composite
def grid_boxes(draw: st.DrawFn) -> GridBox:
    left, right = sorted(draw(st.tuples(st.integers(0, SIDE), st.integers(0, SIDE))))
    top, bottom = sorted(draw(st.tuples(st.integers(0, SIDE), st.integers(0, SIDE))))
    return left, top, right, bottom


def pixels(box: GridBox) -> set[tuple[int, int]]:
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def quotient(numerator: int, denominator: int) -> float:
    """As IEEE single precision divides, 0 / 0 included."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.float32(numerator) / np.float32(denominator))


def tensor(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(st.lists(grid_boxes(), min_size=1, max_size=4), st.lists(grid_boxes(), min_size=1, max_size=4))
def test_overlaps_count_pixels(first: list[GridBox], second: list[GridBox]) -> None:
    pairs = [[(pixels(a), pixels(b)) for b in second] for a in first]
    shared = [[len(a & b) for a, b in row] for row in pairs]
    iou = [[quotient(len(a & b), len(a | b)) for a, b in row] for row in pairs]

    a, b = tensor(first), tensor(second)
    assert intersection(a, b).tolist() == shared
    assert box_area(a).tolist() == [len(pixels(box)) for box in first]
    np.testing.assert_array_equal(box_iou(a, b).numpy(), np.array(iou, dtype=np.float32))


def test_overlaps_keep_leading_dimensions_apart() -> None:
    first = tensor([[[0, 0, 2, 2]], [[0, 0, 4, 4]]])  # (2, 1, 4)
    second = tensor([[[1, 0, 3, 2], [5, 5, 6, 6]], [[0, 0, 4, 2], [0, 0, 4, 4]]])  # (2, 2, 4)
    assert box_iou(first, second).tolist() == [[[pytest.approx(2 / 6), 0.0]], [[0.5, 1.0]]]


def test_a_box_without_area_has_no_overlap_and_two_of_them_give_nan() -> None:
    point, square = tensor([[2, 2, 2, 2]]), tensor([[0, 0, 4, 4]])
    assert box_iou(point, square).item() == 0
    assert math.isnan(box_iou(point, point).item())


def test_iou_of_no_boxes_has_no_rows() -> None:
    assert box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_conversions_of_one_box() -> None:
    corners = tensor([[0.1, 0.2, 0.5, 1.0]])
    torch.testing.assert_close(xyxy_to_cxcywh(corners), tensor([[0.3, 0.6, 0.4, 0.8]]))
    torch.testing.assert_close(cxcywh_to_xyxy(tensor([[0.3, 0.6, 0.4, 0.8]])), corners)


def test_offsets_of_one_box() -> None:
    """Centre moves by half the anchor's width: 0.5 / 0.1 = 5; width doubles: ln 2 / 0.2."""
    anchor = tensor([[0.5, 0.5, 0.2, 0.4]])
    box = tensor([[0.4, 0.3, 0.8, 0.7]])
    expected = tensor([[5, 0, math.log(2) / 0.2, 0]])
    torch.testing.assert_close(encode(box, anchor), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decode(expected, anchor), box)


def test_decoding_does_not_clip() -> None:
    box = decode(tensor([[-20, 0, 0, 10]]), tensor([[0.1, 0.5, 0.2, 0.4]]))
    half = 0.2 * math.exp(2)
    torch.testing.assert_close(box, tensor([[-0.4, 0.5 - half, -0.2, 0.5 + half]]))


coordinates = st.floats(-0.5, 1.5)
sides = st.floats(1e-3, 2)


@settings(max_examples=60, deadline=None)
@given(st.tuples(coordinates, coordinates, sides, sides), st.tuples(coordinates, coordinates, sides, sides))
def test_decoding_undoes_encoding(box: tuple[float, ...], anchor: tuple[float, ...]) -> None:
    corners = cxcywh_to_xyxy(torch.tensor([box], dtype=torch.float64))
    anchors = torch.tensor([anchor], dtype=torch.float64)
    torch.testing.assert_close(decode(encode(corners, anchors), anchors), corners, atol=1e-9, rtol=1e-9)


def bounds(first: float, second: float, size: int, padding: float) -> tuple[float, float]:
    low, high = min(first, second) * size - padding, max(first, second) * size + padding
    return max(low, 0.0), min(high, float(size))


@settings(max_examples=60, deadline=None)
@given(coordinates, coordinates, st.integers(1, 40), st.sampled_from([0, 1, 2.5]))
def test_bounds_are_ordered_padded_and_bounded(first: float, second: float, size: int, padding: float) -> None:
    low, high = pixel_bounds(
        torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64), size, padding
    )
    assert (low.item(), high.item()) == bounds(first, second, size, padding)


def test_bounds_of_a_box_beyond_the_image_are_empty() -> None:
    low, high = pixel_bounds(tensor([1.5, -2.0]), tensor([2.0, -1.5]), 10, 1)
    assert low.tolist() == [14, 0]
    assert high.tolist() == [10, -14]


def test_crop_keeps_the_box_and_one_pixel_around_it() -> None:
    kept = crop_mask(tensor([[0.25, 0.5, 0.5, 0.75]]), height=8, width=8)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[3:7, 1:5] = True  # the box itself is rows 4 to 5 and columns 2 to 3
    assert torch.equal(kept, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([0, 1]),
)
def test_crop_tests_every_pixel(boxes: list[tuple[float, ...]], height: int, width: int, padding: int) -> None:
    expected = []
    for x1, y1, x2, y2 in boxes:
        left, right = bounds(x1, x2, width, padding)
        top, bottom = bounds(y1, y2, height, padding)
        expected.append([[left <= c < right and top <= r < bottom for c in range(width)] for r in range(height)])
    kept = crop_mask(torch.tensor(boxes, dtype=torch.float64), height, width, padding)
    assert kept.tolist() == expected


def test_crop_of_no_boxes() -> None:
    assert crop_mask(torch.zeros(0, 4), 3, 5).shape == (0, 3, 5)
