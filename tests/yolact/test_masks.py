"""Masks stored as windows, against full-size masks and pycocotools' run lengths of them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor

from yolact.masks import InstanceMasks, exact_polygons, joined_outline

SIDES = st.integers(1, 9)


def whole_masks(count: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[np.ndarray]:
    """(N, H, W) bool of any size, with runs of any kind: pixels are drawn in rows, so that full ones are common."""

    def fill(shape: tuple[int, int, int]) -> st.SearchStrategy[np.ndarray]:
        noise = hnp.arrays(bool, shape)
        columns = hnp.arrays(bool, (shape[0], 1, shape[2])).map(lambda line: np.broadcast_to(line, shape))
        rows = hnp.arrays(bool, (shape[0], shape[1], 1)).map(lambda line: np.broadcast_to(line, shape))
        return st.one_of(noise, columns, rows, st.tuples(columns, noise).map(lambda pair: pair[0] & pair[1]))

    return st.tuples(count or st.integers(0, 3), SIDES, SIDES).flatmap(fill)


@st.composite
def windows(draw: st.DrawFn) -> InstanceMasks:
    """Masks whose windows are anywhere, and may contain empty lines or no pixels."""
    height, width = draw(SIDES), draw(SIDES)
    corners, crops = [], []
    for _ in range(draw(st.integers(1, 3))):
        top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
        if draw(st.booleans()):
            top, rows = 0, height  # runs may continue in the next column
        else:
            rows = draw(st.integers(0, height - top))
        columns = draw(st.integers(0, width - left))
        corners.append((top, left))
        crops.append(draw(hnp.arrays(bool, (rows, columns), elements=st.sampled_from([True, True, False]))))
    return InstanceMasks(height, width, corners, crops)


def placed(masks: InstanceMasks) -> np.ndarray:
    """(N, H, W) bool: each crop's pixels, one by one, at its corner."""
    whole = np.zeros((len(masks.crops), masks.height, masks.width), dtype=bool)
    for index, ((top, left), crop) in enumerate(zip(masks.corners, masks.crops, strict=True)):
        for row, column in zip(*np.nonzero(crop), strict=True):
            whole[index, top + row, left + column] = True
    return whole


def pycocotools_rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@settings(deadline=None)
@given(whole_masks())
def test_full_size_masks_are_restored_unchanged(whole: np.ndarray) -> None:
    masks = InstanceMasks.from_tensor(torch.from_numpy(whole.copy()))
    assert (len(masks), masks.height, masks.width) == whole.shape
    back = masks.to_tensor()
    assert back.dtype == torch.bool
    assert back.shape == whole.shape
    np.testing.assert_array_equal(back.numpy(), whole)


@settings(deadline=None)
@given(windows())
def test_a_crop_is_placed_at_its_corner(masks: InstanceMasks) -> None:
    np.testing.assert_array_equal(masks.to_tensor().numpy(), placed(masks))


@settings(max_examples=400, deadline=None)
@given(windows())
def test_run_lengths_of_windows_equal_those_of_pycocotools_for_full_size_masks(masks: InstanceMasks) -> None:
    assert masks.to_rle() == [pycocotools_rle(mask) for mask in placed(masks)]


@settings(max_examples=100, deadline=None)
@given(windows(), st.integers(0, 100))
def test_run_lengths_in_chunks_are_the_same(masks: InstanceMasks, at_once: int) -> None:
    with mock.patch("yolact.masks.PIXELS_AT_ONCE", at_once):
        assert masks.to_rle() == [pycocotools_rle(mask) for mask in placed(masks)]


@settings(max_examples=200, deadline=None)
@given(whole_masks())
def test_run_lengths_of_full_size_masks_equal_those_of_pycocotools(whole: np.ndarray) -> None:
    assert InstanceMasks.from_tensor(torch.from_numpy(whole.copy())).to_rle() == [
        pycocotools_rle(mask) for mask in whole
    ]


@settings(deadline=None)
@given(whole_masks())
def test_run_lengths_are_read_back(whole: np.ndarray) -> None:
    _, height, width = whole.shape
    back = InstanceMasks.from_rle([pycocotools_rle(mask) for mask in whole], height, width)
    assert (back.height, back.width) == (height, width)
    np.testing.assert_array_equal(back.to_tensor().numpy(), whole)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_memory_order_of_a_crop_does_not_matter(order: Any) -> None:
    crop = np.random.default_rng(0).random((30, 20)) > 0.5
    masks = InstanceMasks(50, 40, [(7, 11)], [np.array(crop, order=order)])
    assert masks.to_rle() == [pycocotools_rle(placed(masks)[0])]


def test_a_large_mask_of_long_runs_is_encoded_as_pycocotools_does() -> None:
    """Runs of more than 2^15 pixels, over many columns."""
    crop = np.ones((3000, 40), dtype=bool)
    crop[1500, 20] = False
    masks = InstanceMasks(3000, 70, [(0, 15)], [crop])
    assert masks.to_rle() == [pycocotools_rle(placed(masks)[0])]


@pytest.mark.parametrize(
    ("crop", "corner", "counts"),
    [
        (np.zeros((0, 0), bool), (0, 0), [12]),
        (np.zeros((0, 3), bool), (2, 1), [12]),
        (np.zeros((3, 4), bool), (0, 0), [12]),
        (np.ones((3, 4), bool), (0, 0), [0, 12]),
        (np.ones((1, 1), bool), (0, 0), [0, 1, 11]),
        (np.ones((1, 1), bool), (2, 3), [11, 1]),
        (np.ones((3, 2), bool), (0, 1), [3, 6, 3]),  # two full columns are one run
        (np.array([[1, 1], [0, 0], [0, 0]], bool), (0, 1), [3, 1, 2, 1, 5]),
        (np.array([[0, 1], [0, 1], [1, 0]], bool), (0, 0), [2, 3, 7]),  # from one column's foot into the next one
        (np.array([[0, 1], [1, 0]], bool), (0, 0), [1, 1, 1, 1, 8]),  # the window ends before the foot
    ],
)
def test_runs_go_down_the_columns(crop: np.ndarray, corner: tuple[int, int], counts: list[int]) -> None:
    """An image of 3 rows and 4 columns; counts worked out by hand: zeros, ones, zeros, ..."""
    [rle] = InstanceMasks(3, 4, [corner], [crop]).to_rle()
    assert rle["size"] == [3, 4]
    expected = coco_mask.frPyObjects({"size": [3, 4], "counts": counts}, 3, 4)
    assert rle["counts"] == expected["counts"].decode("ascii")


@pytest.mark.parametrize("pixel", [False, True])
def test_an_image_of_one_pixel(pixel: bool) -> None:
    whole = torch.tensor([[[pixel]]])
    masks = InstanceMasks.from_tensor(whole)
    assert masks.to_rle() == [pycocotools_rle(whole[0].numpy())]
    assert torch.equal(masks.to_tensor(), whole)


def test_an_image_without_pixels() -> None:
    whole = torch.zeros(1, 0, 5, dtype=torch.bool)
    assert InstanceMasks.from_tensor(whole).to_rle() == [pycocotools_rle(whole[0].numpy())]


def test_no_masks() -> None:
    for masks in (InstanceMasks(5, 7, [], []), InstanceMasks.from_rle([], 5, 7)):
        assert len(masks) == 0
        assert masks.to_rle() == []
        assert masks.to_tensor().shape == (0, 5, 7)
        assert masks.to_tensor().dtype == torch.bool


def test_a_mask_is_stored_as_the_smallest_window_around_it() -> None:
    whole = torch.zeros(2, 100, 80, dtype=torch.bool)
    whole[0, 20:25, 30:33] = True
    masks = InstanceMasks.from_tensor(whole)
    assert masks.corners == [(20, 30), (0, 0)]
    assert [crop.shape for crop in masks.crops] == [(5, 3), (0, 0)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_nonzero_pixels_are_inside(dtype: torch.dtype) -> None:
    whole = torch.tensor([[[0, 1, 0], [3, 0, 0]]]).to(dtype)
    assert torch.equal(InstanceMasks.from_tensor(whole).to_tensor(), whole != 0)


def test_windows_are_copies_of_the_full_size_masks() -> None:
    whole = torch.ones(1, 3, 3, dtype=torch.bool)
    masks = InstanceMasks.from_tensor(whole)
    whole[:] = False
    assert masks.to_tensor().all()


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([True, False, True, False]),
        torch.tensor([3, 0]),
        torch.tensor([1, 1]),
        torch.tensor([-1]),
        torch.tensor([], dtype=torch.int64),
        torch.zeros(4, dtype=torch.bool),
    ],
)
def test_masks_are_indexed_like_the_rows_of_a_tensor(rows: Tensor) -> None:
    whole = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    chosen = InstanceMasks.from_tensor(whole)[rows]
    assert len(chosen) == len(whole[rows])
    assert torch.equal(chosen.to_tensor(), whole[rows])


@pytest.mark.parametrize("rows", [torch.tensor([4]), torch.tensor([True, False])])
def test_indices_out_of_range_are_rejected(rows: Tensor) -> None:
    with pytest.raises(IndexError):
        InstanceMasks.from_tensor(torch.ones(4, 2, 2))[rows]


def test_run_lengths_may_be_modified_one_by_one() -> None:
    first, second = InstanceMasks.from_tensor(torch.ones(2, 3, 4)).to_rle()
    first["size"][0] = 99
    assert second["size"] == [3, 4]


# --- Polygons


def even_odd(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The number of polygons that contain each pixel's centre: crossings of a ray to the right, one edge after the
    other."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    total = np.zeros((height, width), dtype=int)
    for polygon in polygons:
        crossings = np.zeros((height, width), dtype=int)
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            assert (x1 == x2) != (y1 == y2)
            crossings += (x1 == x2) & (x1 > x) & (min(y1, y2) < y) & (y < max(y1, y2))
        total += crossings % 2
    return total


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_polygons_restore_the_mask_with_its_holes_filled(mask: np.ndarray) -> None:
    height, width = mask.shape
    filled = ndimage.binary_fill_holes(mask, structure=np.ones((3, 3)))
    masks = InstanceMasks.from_tensor(torch.from_numpy(mask)[None])
    [polygons] = masks.to_polygons()
    counts = even_odd(polygons, height, width)
    assert np.array_equal(counts > 0, filled)
    _, number = ndimage.label(mask)  # an edge in common
    assert len(polygons) == number
    if polygons:
        rles = coco_mask.frPyObjects([polygon.ravel().astype(float).tolist() for polygon in polygons], height, width)
        assert np.array_equal(coco_mask.decode(coco_mask.merge(rles)) > 0, filled)


def test_a_contour_by_hand() -> None:
    """An L of three pixels at (2, 1), and a pixel that touches its corner."""
    mask = torch.zeros(1, 5, 6)
    mask[0, 1, 2] = mask[0, 2, 2] = mask[0, 2, 3] = mask[0, 3, 4] = 1
    [polygons] = InstanceMasks.from_tensor(mask).to_polygons()
    assert [polygon.tolist() for polygon in polygons] == [
        [[2, 1], [3, 1], [3, 2], [4, 2], [4, 3], [2, 3]],
        [[4, 3], [5, 3], [5, 4], [4, 4]],
    ]
    assert all(polygon.dtype == np.float32 for polygon in polygons)


def test_a_mask_without_pixels_has_no_polygon() -> None:
    assert InstanceMasks.from_tensor(torch.zeros(2, 4, 4)).to_polygons() == [[], []]


@given(whole_masks(st.integers(1, 1)))
def test_exact_polygons_and_joined_outlines_rasterise_to_the_mask(whole: np.ndarray) -> None:
    [mask] = whole
    for polygons in (exact_polygons(mask), [joined_outline(mask)] if mask.any() else []):
        if not mask.any():
            assert polygons == []
            continue
        flat = [polygon.reshape(-1).tolist() for polygon in polygons]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *mask.shape)))
        assert np.array_equal(drawn, mask)


def test_polygons_are_one_per_part_without_holes_and_one_with_them() -> None:
    mask = np.zeros((9, 20), dtype=bool)
    mask[1:8, 1:8] = mask[2:6, 12:18] = True
    assert [len(polygon) for polygon in exact_polygons(mask)] == [4, 4]
    mask[3:5, 3:5] = False
    assert len(exact_polygons(mask)) == 1
