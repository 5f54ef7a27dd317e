"""Outlines and bitmaps in COCO's forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from pycocotools import mask as mask_utils

from yolact.formats.outlines import ellipse, number, placed_mask, with_holes

SIDES = st.floats(0, 30).map(lambda side: round(side, 2))


def decoded(polygon: list[float], width: int = 30, height: int = 20) -> np.ndarray:
    rle = mask_utils.merge(mask_utils.frPyObjects([polygon], height, width))
    return np.asarray(mask_utils.decode(rle), dtype=bool)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(SIDES, min_size=6, max_size=10).filter(lambda p: len(p) % 2 == 0), min_size=1, max_size=4))
def test_holes_are_the_pixels_in_an_even_number_of_outlines(outlines: list[list[float]]) -> None:
    wanted = np.logical_xor.reduce([decoded(outline) for outline in outlines])
    assert np.array_equal(decoded(with_holes(outlines[0], outlines[1:])), wanted)


@settings(deadline=None, max_examples=100)
@given(
    pixels=np_st.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    left=st.integers(-7, 9),
    top=st.integers(-7, 9),
)
def test_a_placed_mask_is_the_mask_in_its_frame(pixels: np.ndarray, left: int, top: int) -> None:
    wide = np.zeros((24, 26), dtype=bool)  # with room for what is outside the frame of 8 x 6
    wide[top + 8 : top + 8 + pixels.shape[0], left + 8 : left + 8 + pixels.shape[1]] = pixels
    wanted = wide[8 : 8 + 6, 8 : 8 + 8]
    found = placed_mask(pixels, left, top, (8, 6))
    assert all(run > 0 for run in found["counts"][1:])
    assert np.array_equal(mask_utils.decode(mask_utils.frPyObjects(found, 6, 8)).astype(bool), wanted)


@pytest.mark.parametrize(("rx", "ry"), [(0.4, 0.3), (5, 2), (300, 200), (5000, 5000)])
def test_an_ellipse_has_its_area(rx: float, ry: float) -> None:
    around = np.reshape(ellipse(10, 20, rx, ry, 0.3), (-1, 2))
    x, y = around.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert len(around) <= 720
    assert area == pytest.approx(np.pi * rx * ry, rel=0.05 if rx < 10 else 0.001)
    assert around.mean(axis=0) == pytest.approx([10, 20])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, -1e308, 10**400, None, "1", True, [], {}])
def test_values_of_any_kind_give_polygons(value: object) -> None:
    assert len(ellipse(number(value), 1, number(value), 2, number(value))) <= 2 * 720
