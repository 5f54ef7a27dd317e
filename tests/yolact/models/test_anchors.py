"""Anchors against a loop over rows, columns, scales and ratios."""

from __future__ import annotations

import math

import pytest
import torch

from tests.small_networks import tiny_config
from yolact.models.anchors import AnchorCache, config_anchors, level_anchors, pyramid_anchors
from yolact.models.yolact import Yolact

PUBLISHED_LEVELS = [(69, 69), (35, 35), (18, 18), (9, 9), (5, 5)]
RATIOS = [1, 0.5, 2]


@pytest.mark.parametrize("square", [False, True])
def test_order_is_row_column_scale_ratio(square: bool) -> None:
    height, width, scales, size = 3, 2, [10.0, 16.0], 64
    expected = []
    for row in range(height):
        for column in range(width):
            for scale in scales:
                for ratio in RATIOS:
                    box_width = scale * ratio**0.5 / size
                    box_height = box_width if square else scale / ratio**0.5 / size
                    expected.append([(column + 0.5) / width, (row + 0.5) / height, box_width, box_height])
    anchors = level_anchors(height, width, scales, RATIOS, size, square)
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors, torch.tensor(expected), atol=0, rtol=1e-7)


def test_ratios_keep_the_area_and_are_width_over_height() -> None:
    wide = level_anchors(1, 1, [30], [2], 100, square=False)[0]
    assert (wide[2] / wide[3]).item() == pytest.approx(2)
    assert (wide[2] * wide[3]).item() == pytest.approx(0.3 * 0.3)


def test_square_anchors_have_three_sides_on_p3_as_published() -> None:
    """24, 17 and 34 pixels at 550."""
    sides = level_anchors(1, 1, [24], RATIOS, 550, square=True)[:, 2:] * 550
    assert sides[:, 0].tolist() == sides[:, 1].tolist()
    assert sides[:, 0].tolist() == pytest.approx([24, 24 / math.sqrt(2), 24 * math.sqrt(2)])


def test_anchors_are_not_clipped() -> None:
    corner = level_anchors(4, 4, [100], [1], 100, square=False)[0]
    torch.testing.assert_close(corner, torch.tensor([0.125, 0.125, 1, 1]))


def test_published_pyramid_has_19248_anchors_p3_first() -> None:
    scales = [[24], [48], [96], [192], [384]]
    anchors = pyramid_anchors(PUBLISHED_LEVELS, scales, RATIOS, 550, square=True)
    assert anchors.shape == (19248, 4)
    start = 0
    for (height, width), [scale] in zip(PUBLISHED_LEVELS, scales, strict=True):
        level = anchors[start : start + 3 * height * width]
        assert level[0, 2].item() == pytest.approx(scale / 550)
        assert level[0, 0].item() == pytest.approx(0.5 / width)
        start += len(level)
    assert start == len(anchors)


def test_levels_and_scales_must_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        pyramid_anchors([(2, 2), (1, 1)], [[24]], RATIOS, 550, square=True)


def test_anchors_are_cached_per_input_shape() -> None:
    anchors, device = AnchorCache(tiny_config()), torch.device("cpu")
    small, wide = Yolact.level_sizes(64, 64), Yolact.level_sizes(64, 96)
    assert anchors(small, device) is anchors(small, device)
    assert torch.equal(anchors(wide, device), config_anchors(tiny_config(), wide))
    assert torch.equal(anchors(small, device), config_anchors(tiny_config(), small))
