"""Colours: against colorsys pixel by pixel, by hand, and how often each change is applied."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact.data import colors
from yolact.data.colors import ColorChange, change_colors, draw_colors

COLOURS = np.random.default_rng(3).integers(0, 256, (3, 12, 12), dtype=np.uint8)
EXTREMES = np.array(np.meshgrid([0, 1, 128, 254, 255], [0, 1, 128, 254, 255], [0, 1, 128, 254, 255]), np.uint8)
"""Greys, pure colours and the edges between sectors of hue; (3, 5, 5, 5)."""


def with_colorsys(planes: np.ndarray, change: ColorChange) -> np.ndarray:
    """SSD section 2.2 and the published code, pixel by pixel in floats."""
    pixels = (planes.reshape(3, -1).T.astype(float) + change.brightness).clip(0, 255)
    if change.contrast_first:
        pixels = (pixels * change.contrast).clip(0, 255)
    for pixel in pixels:
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        pixel[:] = colorsys.hsv_to_rgb((h + change.hue / 360) % 1, min(s * change.saturation, 1), v)
        pixel *= 255
    if not change.contrast_first:
        pixels = (pixels * change.contrast).clip(0, 255)
    return pixels.T.reshape(planes.shape)


changes = st.builds(
    ColorChange,
    brightness=st.one_of(st.just(0.0), st.floats(-32, 32)),
    contrast=st.one_of(st.just(1.0), st.floats(0.5, 1.5)),
    contrast_first=st.booleans(),
    saturation=st.one_of(st.just(1.0), st.floats(0.5, 1.5)),
    hue=st.one_of(st.just(0.0), st.floats(-18, 18)),
)


@settings(max_examples=80, deadline=None)
@given(changes)
def test_colours_match_an_independent_float_version_rounded_once(change: ColorChange) -> None:
    for planes in (COLOURS, EXTREMES.reshape(3, 5, 25)):
        found = change_colors(planes, change)
        assert found.shape == planes.shape
        assert found.dtype == np.uint8
        assert np.abs(found - with_colorsys(planes, change)).max() <= 0.5 + 1e-3


def test_images_are_changed_in_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    change = ColorChange(10, 1.2, False, 1.3, -7)
    whole = change_colors(COLOURS, change)
    monkeypatch.setattr(colors, "BLOCK", 5)
    assert np.array_equal(change_colors(COLOURS, change), whole)


@settings(max_examples=30, deadline=None)
@given(changes)
def test_the_stored_image_is_not_modified(change: ColorChange) -> None:
    planes = COLOURS.copy()
    planes.setflags(write=False)
    change_colors(planes, change)
    assert np.array_equal(planes, COLOURS)


def changed(pixel: list[int], **change: float | bool) -> list[int]:
    planes = np.array(pixel, dtype=np.uint8).reshape(3, 1, 1)
    return [int(level) for level in change_colors(planes, ColorChange(**change)).flatten()]  # type: ignore[arg-type]


def test_colour_changes_by_hand() -> None:
    assert changed([10, 20, 30]) == [10, 20, 30]
    assert changed([10, 20, 240], brightness=32) == [42, 52, 255]
    assert changed([10, 32, 240], brightness=-32) == [0, 0, 208]
    assert changed([10, 20, 240], contrast=1.5) == [15, 30, 255]
    assert changed([10, 20, 240], contrast=0.5, contrast_first=False) == [5, 10, 120]
    assert changed([10, 20, 240], brightness=32, contrast=1.5) == [63, 78, 255]
    assert changed([90, 90, 90], saturation=1.5, hue=18) == [90, 90, 90]
    assert changed([200, 100, 100], saturation=0.5) == [200, 150, 150]
    assert changed([200, 100, 100], saturation=1.5) == [200, 50, 50]
    assert changed([200, 20, 20], saturation=1.5) == [200, 0, 0]
    assert changed([200, 100, 100], hue=18) == [200, 130, 100]  # 18 of 60 degrees
    assert changed([200, 100, 100], hue=-18) == [200, 100, 130]
    assert changed([100, 200, 190], hue=18) == [100, 180, 200]  # past cyan


class Script:
    """A fake random generator: returns the given decisions in order (True: apply) and the end of every range."""

    def __init__(self, *coins: bool) -> None:
        self.coins = list(coins)

    def random(self) -> float:
        return 0.0 if self.coins.pop(0) else 0.99

    def uniform(self, low: float, high: float) -> float:
        return high


@pytest.mark.parametrize(
    ("coins", "expected"),
    [
        ((False, False, False, False, False), ColorChange(contrast_first=False)),
        ((True, True, False, False, False), ColorChange(brightness=32, contrast_first=True)),
        ((False, False, True, False, False), ColorChange(contrast=1.5, contrast_first=False)),
        ((False, True, False, True, False), ColorChange(saturation=1.5)),
        ((False, True, False, False, True), ColorChange(hue=18)),
    ],
)
def test_each_change_is_drawn_separately(coins: tuple[bool, ...], expected: ColorChange) -> None:
    assert draw_colors(Script(*coins)) == expected  # type: ignore[arg-type]


def test_each_change_happens_half_the_time_and_fills_its_range() -> None:
    rng = np.random.default_rng(5)
    drawn = [draw_colors(rng) for _ in range(3000)]

    def share(happens: Callable[[ColorChange], bool]) -> float:
        return sum(map(happens, drawn)) / len(drawn)

    four_deviations = 4 * math.sqrt(0.25 / len(drawn))
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -18, 18),
    ):
        values = np.array([getattr(change, name) for change in drawn])
        values = values[values != neutral]
        assert len(values) / len(drawn) == pytest.approx(0.5, abs=four_deviations)
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert share(lambda change: change.contrast_first) == pytest.approx(0.5, abs=four_deviations)
