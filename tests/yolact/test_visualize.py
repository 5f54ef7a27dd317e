"""What drawing changes in an image, and what it leaves alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from yolact.inference.detections import Detections
from yolact.visualize import (
    MIN_SIDE,
    contact_sheet,
    draw_detections,
    draw_ground_truth,
    instance_color,
    readable_on,
    side_by_side,
)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def detections(boxes: list[list[int]], height: int, width: int, scores: list[float] | None = None) -> Detections:
    """Objects that fill their boxes."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Detections.from_masks(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores or [0.9] * len(boxes)),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        masks=masks,
    )


def test_a_large_image_without_detections_is_unchanged():
    image = noise(480, 700)
    assert np.array_equal(draw_detections(image, detections([], 480, 700), ["cat"]), image)


def test_a_small_image_is_only_enlarged_and_keeps_its_shape():
    image = noise(80, 160)
    drawn = draw_detections(image, detections([], 80, 160), ["cat"])
    assert drawn.shape == (MIN_SIDE // 2, MIN_SIDE, 3)
    expected = Image.fromarray(image).resize((MIN_SIDE, MIN_SIDE // 2), Image.Resampling.BICUBIC)
    assert np.array_equal(drawn, np.asarray(expected))


def test_only_the_object_its_outline_and_its_label_change():
    image = noise(600, 800)
    drawn = draw_detections(image, detections([[300, 250, 420, 400]], 600, 800), ["cat"])
    changed = (drawn != image).any(axis=2)
    near = np.zeros_like(changed)
    near[220:406, 294:426] = True  # the box, a margin for its line, and the label on top of it
    assert not changed[~near].any()
    assert changed[252:398, 302:418].mean() > 0.9


def test_the_inside_is_translucent_and_in_the_colour_of_the_instance():
    image = np.full((600, 800, 3), 100, dtype=np.uint8)
    drawn = draw_detections(image, detections([[300, 250, 420, 400]], 600, 800), ["cat"])
    inside = drawn[325, 360].astype(float)
    expected = 100 + 0.45 * (np.array(instance_color(0)) - 100)
    assert inside == pytest.approx(expected, abs=1)
    on_edge = drawn[325, 300:302].astype(float).mean(axis=0)
    assert np.abs(on_edge - instance_color(0)).max() < 40


def test_the_best_detection_is_on_top():
    image = np.full((600, 800, 3), 100, dtype=np.uint8)
    both = detections([[300, 250, 420, 400], [200, 200, 500, 500]], 600, 800, scores=[0.9, 0.4])
    drawn = draw_detections(image, both, ["cat"]).astype(float)
    second = 100 + 0.45 * (np.array(instance_color(1)) - 100)
    assert drawn[450, 250] == pytest.approx(second, abs=1)
    assert drawn[325, 360] == pytest.approx(second + 0.45 * (np.array(instance_color(0)) - second), abs=2)


def test_detections_not_above_the_threshold_are_not_drawn():
    image = noise(600, 800)
    found = detections([[300, 250, 420, 400], [10, 10, 80, 80]], 600, 800, scores=[0.9, 0.3])
    with_both = draw_detections(image, found, ["cat"])
    with_one = draw_detections(image, found.above(0.5), ["cat"])
    assert not np.array_equal(with_both[:100, :100], image[:100, :100])
    assert np.array_equal(with_one[:100, :100], image[:100, :100])
    assert np.array_equal(draw_detections(image, found.above(0.9), ["cat"]), image)


def test_drawing_is_repeatable_and_does_not_modify_its_input():
    image = noise(300, 400)
    before = image.copy()
    found = detections([[30, 25, 120, 200], [100, 80, 380, 290]], 300, 400)
    first = draw_detections(image, found, ["cat"])
    assert np.array_equal(first, draw_detections(image, found, ["cat"]))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "box", [[0, 0, 400, 300], [0, 0, 3, 3], [397, 297, 400, 300], [0, 290, 400, 300], [10, 10, 10, 10]]
)
def test_boxes_at_the_border_and_empty_ones_are_drawn_without_failure(box):
    drawn = draw_detections(noise(300, 400), detections([box], 300, 400), ["a rather long name of a class"])
    assert drawn.shape == (480, 640, 3)


def test_ground_truth_is_drawn_like_detections_but_for_the_label():
    image = noise(600, 800)
    found = detections([[300, 250, 420, 400]], 600, 800)
    true = draw_ground_truth(image, found.boxes, [0], found.masks.numpy().astype(np.uint8), ["cat"], crowd=[True])
    predicted = draw_detections(image, found, ["cat"])
    assert np.array_equal(true[252:], predicted[252:])
    assert not np.array_equal(true, predicted)


def test_the_first_twelve_colours_differ_clearly():
    colors = [np.array(instance_color(index), dtype=float) for index in range(12)]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors, 2))
    assert nearest > 60


def test_later_colours_are_all_different():
    assert len({instance_color(index) for index in range(100)}) == 100


def test_other_pixel_formats_are_rejected():
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        draw_detections(np.zeros((5, 5), dtype=np.uint8), detections([], 5, 5), [])
    with pytest.raises(ValueError, match="float"):
        draw_detections(np.zeros((5, 5, 3)), detections([], 5, 5), [])


def test_side_by_side_contains_every_drawing():
    left, right = noise(100, 150), noise(120, 80)[::-1]
    sheet = side_by_side([left, right], ["one", "two"])
    strip = sheet.shape[0] - 120
    assert np.array_equal(sheet[strip : strip + 100, :150], left)
    assert np.array_equal(sheet[strip:, -80:], right)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_contact_sheet_has_as_many_rows_as_needed(count, rows):
    sheet = contact_sheet([np.zeros((50, 100, 3), dtype=np.uint8)] * count, columns=3, cell_width=200)
    assert sheet.shape == (rows * 100 + (rows + 1) * 12, min(count, 3) * 212 + 12, 3)
    assert (sheet == 0).all(axis=2).sum() == count * 100 * 200


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """WCAG 2.2's contrast ratio."""
    luminances = []
    for color in (a, b):
        part = np.array(color) / 255
        linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(luminances) / min(luminances)


def test_labels_have_the_contrast_that_wcag_asks_of_text():
    for index in range(300):
        color = instance_color(index)
        ratio = contrast(color, readable_on(color))
        assert ratio >= 4.2
        assert ratio == max(contrast(color, ink) for ink in ((20, 20, 20), (255, 255, 255)))


def test_an_object_keeps_the_colour_of_its_class_wherever_it_is_ranked():
    image = np.full((600, 800, 3), 100, dtype=np.uint8)
    both = detections([[300, 250, 420, 400], [600, 200, 700, 500]], 600, 800)
    both.labels = torch.tensor([4, 1])
    drawn = draw_detections(image, both, list("abcde"), color_by="class").astype(float)
    swapped = draw_detections(image, both[torch.tensor([1, 0])], list("abcde"), color_by="class").astype(float)
    expected = 100 + 0.45 * (np.array(instance_color(4)) - 100)
    assert drawn[325, 360] == pytest.approx(expected, abs=1)
    assert swapped[325, 360] == pytest.approx(expected, abs=1)


def test_a_frame_of_a_video_keeps_its_size():
    image = noise(80, 160)
    assert draw_detections(image, detections([[10, 10, 50, 50]], 80, 160), ["cat"], enlarge=False).shape == image.shape


def test_an_object_shows_on_a_background_of_its_own_colour():
    image = np.full((600, 800, 3), instance_color(0), dtype=np.uint8)
    drawn = draw_detections(image, detections([[300, 250, 420, 400]], 600, 800), ["cat"]).astype(int)
    edge = np.abs(drawn - image).max(axis=2)[300:350, 290:310].max(axis=1)
    assert (edge > 60).all()
