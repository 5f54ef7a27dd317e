"""Detections in standard formats: COCO results, VOC annotations, drawings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from yolact.formats.mask_files import read_mask
from yolact.formats.voc_files import read_annotation
from yolact.inference.detections import VOC_MAX_OBJECTS, Detections
from yolact.masks import InstanceMasks
from yolact.palette import voc_palette
from yolact.visualize import MIN_SIDE, draw_detections

NAMES = ("cat", "dog", "person")


def random_detections(count: int, height: int, width: int, seed: int = 0) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    return Detections.from_masks(
        boxes=corners.reshape(count, 4),
        scores=scores,
        labels=torch.randint(0, 3, (count,), generator=generator),
        masks=torch.rand(count, height, width, generator=generator) > 0.6,
        mask_scores=scores * torch.rand(count, generator=generator),
        class_names=NAMES,
    )


def squares(boxes: list[list[float]], height: int, width: int, labels: list[int] | None = None) -> Detections:
    """Objects that fill their boxes, best first."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[round(top) : round(bottom), round(left) : round(right)] = True
    return Detections.from_masks(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.5, len(boxes)),
        torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
        masks,
        class_names=NAMES,
    )


def assert_equal(first: Detections, second: Detections) -> None:
    torch.testing.assert_close(first.boxes, second.boxes)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.mask_scores, second.mask_scores)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.masks, second.masks)
    assert first.class_names == second.class_names


def test_polygons_are_in_image_pixels_whatever_the_size_of_the_masks() -> None:
    found = squares([[1, 2, 4, 6]], height=10, width=8)
    [[polygon]] = found.polygons()
    assert polygon.tolist() == [[1, 2], [4, 2], [4, 6], [1, 6]]
    [[polygon]] = dataclasses.replace(found, image_size=(30, 16)).polygons()
    assert polygon.tolist() == [[2, 6], [8, 6], [8, 18], [2, 18]]
    assert polygon.dtype == np.float32
    assert squares([], height=10, width=8).polygons() == []


# --- making and choosing --------------------------------------------------------------------------------------------


def test_masks_have_their_boxes_scores_unless_they_have_their_own() -> None:
    boxes, scores, masks = torch.zeros(2, 4), torch.tensor([0.9, 0.4]), torch.ones(2, 3, 5)
    found = Detections.from_masks(boxes, scores, torch.tensor([0, 1]), masks)
    assert torch.equal(found.mask_scores, scores)
    assert found.class_names == ()
    own = Detections.from_masks(boxes, scores, torch.tensor([0, 1]), masks, mask_scores=torch.tensor([0.1, 0.2]))
    assert own.mask_scores.tolist() == pytest.approx([0.1, 0.2])
    assert torch.equal(own.scores, scores)


def test_full_size_masks_are_built_at_each_access() -> None:
    found = random_detections(2, 4, 5)
    before = found.masks.clone()
    found.masks[:] = True
    assert torch.equal(found.masks, before)


@pytest.mark.parametrize(
    "rows", [torch.tensor([True, False, False, True]), torch.tensor([2, 0]), torch.tensor([], dtype=torch.int64)]
)
def test_indexing_selects_from_every_field(rows: Tensor) -> None:
    found = random_detections(4, 6, 7)
    chosen = found[rows]
    assert len(chosen) == len(found.scores[rows])
    for name in ("boxes", "scores", "labels", "mask_scores", "masks"):
        assert torch.equal(getattr(chosen, name), getattr(found, name)[rows])
    assert chosen.class_names == NAMES


def test_above_keeps_higher_scores_and_uses_the_box_score() -> None:
    found = squares([[0, 0, 2, 2]] * 3, 4, 4)  # 0.9, 0.7 and 0.5
    found.mask_scores = torch.tensor([0.1, 0.95, 0.95])
    assert found.above(0.5).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(found.above(0.9)) == 0
    assert len(found.above(0.0)) == 3


# --- COCO -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "height", "width"), [(1, 5, 9), (7, 33, 20), (3, 1, 1)])
def test_coco_rows_have_the_same_masks_boxes_and_scores(count: int, height: int, width: int) -> None:
    found = random_detections(count, height, width)
    rows = json.loads(json.dumps(found.to_coco(42, [3, 5, 90])))
    assert len(rows) == count
    for index, row in enumerate(rows):
        assert set(row) == {"image_id", "category_id", "bbox", "score", "mask_score", "segmentation"}
        decoded = coco_mask.decode(row["segmentation"])
        assert np.array_equal(decoded.astype(bool), found.masks[index].numpy())
        x0, y0, x1, y1 = found.boxes[index].tolist()
        assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert row["score"] == found.scores[index].item()
        assert row["mask_score"] == found.mask_scores[index].item()
        assert row["category_id"] == [3, 5, 90][found.labels[index]]
        assert row["image_id"] == 42


def test_category_ids_count_from_1_when_none_are_given() -> None:
    found = squares([[0, 0, 2, 2]] * 3, 4, 4, labels=[2, 0, 1])
    assert [row["category_id"] for row in found.to_coco(1)] == [3, 1, 2]


def test_category_ids_are_those_of_the_model_when_none_are_given() -> None:
    found = dataclasses.replace(squares([[0, 0, 2, 2]] * 3, 4, 4, labels=[2, 0, 1]), category_ids=(0, 5, 90))
    assert [row["category_id"] for row in found[1:].to_coco(1)] == [0, 5]
    assert [row["category_id"] for row in found.to_coco(1, [7, 8, 9])] == [9, 7, 8]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_coco_rows_are_read_back(count: int, height: int, width: int, seed: int) -> None:
    found = random_detections(count, height, width, seed)
    rows = json.loads(json.dumps(found.to_coco(1, [3, 5, 90])))
    back = Detections.from_coco(rows[::-1], [3, 5, 90], height, width, NAMES)  # in any order
    assert_equal(back, found)


def test_making_coco_rows_does_not_modify_the_detections() -> None:
    found = random_detections(3, 5, 6)
    before = found.boxes.clone()
    found.to_coco(1)
    assert torch.equal(found.boxes, before)


def test_rows_of_other_programs_have_no_mask_score() -> None:
    [row] = squares([[0, 0, 2, 2]], 4, 4).to_coco(1)
    del row["mask_score"]
    found = Detections.from_coco([row], [1], 4, 4)
    assert torch.equal(found.mask_scores, found.scores)
    assert found.class_names == ()


def test_no_detections_become_no_rows_and_back() -> None:
    assert random_detections(0, 4, 6).to_coco(1, [1]) == []
    back = Detections.from_coco([], [1], 4, 6)
    assert len(back) == 0
    assert back.boxes.shape == (0, 4)
    assert back.masks.shape == (0, 4, 6)


def test_a_row_with_an_unknown_category_is_rejected() -> None:
    rows = squares([[0, 0, 2, 2]], 4, 4).to_coco(1, [7])
    with pytest.raises(KeyError, match="7"):
        Detections.from_coco(rows, [1, 2], 4, 4)


# --- VOC --------------------------------------------------------------------------------------------------------


def test_a_pixel_of_several_masks_belongs_to_the_best_one() -> None:
    found = squares([[1, 1, 4, 3], [0, 0, 3, 2], [3, 2, 6, 4]], 4, 6, labels=[2, 0, 1])
    voc = found.to_voc("image.jpg")
    assert voc.segmentation_object.dtype == voc.segmentation_class.dtype == np.uint8
    assert voc.segmentation_object.tolist() == [
        [2, 2, 2, 0, 0, 0],
        [2, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 3, 3],
        [0, 0, 0, 3, 3, 3],
    ]
    assert voc.segmentation_class.tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 3, 3, 3, 0, 0],
        [0, 3, 3, 3, 2, 2],
        [0, 0, 0, 2, 2, 2],
    ]


def test_voc_files_are_read_back_by_the_voc_reader(tmp_path: Path) -> None:
    found = squares([[10, 5, 30, 20], [0, 0, 8.4, 6.6]], 40, 50, labels=[2, 0])
    voc = found.to_voc("2007_000032.jpg")
    voc.save(tmp_path)
    annotation = read_annotation(tmp_path, "Annotations/2007_000032.xml")
    assert annotation is not None
    assert annotation.size == (50, 40)
    assert [item.box for item in annotation.objects] == [(10, 5, 30, 20), (0, 0, 8, 7)]
    assert [item.name for item in annotation.objects] == ["person", "cat"]
    for kind, expected in (
        ("SegmentationObject", voc.segmentation_object),
        ("SegmentationClass", voc.segmentation_class),
    ):
        assert np.array_equal(read_mask(tmp_path, f"{kind}/2007_000032.png"), expected)
        with Image.open(tmp_path / kind / "2007_000032.png") as image:
            assert image.mode == "P"
            palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
            assert np.array_equal(palette, voc_palette()[: len(palette)])
            assert len(palette) > 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "2007_000032.png",
        "2007_000032.png",
        "2007_000032.xml",
    ]


def test_voc_xml_counts_whole_pixels_from_1_and_has_scores_and_sizes() -> None:
    root = ElementTree.fromstring(squares([[0, 0, 1, 1], [9.6, 19.4, 30, 20]], 20, 30).to_voc("a b.png").xml)
    assert root.findtext("filename") == "a b.png"
    assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["30", "20", "3"]
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[int(item.findtext(f"bndbox/{side}") or 0) for side in sides] for item in root.findall("object")]
    assert boxes == [[1, 1, 1, 1], [11, 20, 30, 20]]
    assert [float(item.findtext("score") or 0) for item in root.findall("object")] == pytest.approx([0.9, 0.5])


@settings(deadline=None)
@given(
    st.tuples(st.floats(0, 7), st.floats(0, 7)).map(sorted),
    st.tuples(st.floats(0, 5), st.floats(0, 5)).map(sorted),
)
def test_voc_boxes_hold_at_least_one_pixel_of_the_image(horizontal: list[float], vertical: list[float]) -> None:
    (left, right), (top, bottom) = horizontal, vertical
    empty = InstanceMasks(5, 7, [(0, 0)], [np.zeros((0, 0), dtype=bool)])
    box, score = torch.tensor([[left, top, right, bottom]]), torch.tensor([0.9])
    found = Detections(box, score, torch.tensor([0]), empty, score, NAMES)
    root = ElementTree.fromstring(found.to_voc("x.jpg").xml)
    for low, high, size, ends in ((left, right, 7, ("xmin", "xmax")), (top, bottom, 5, ("ymin", "ymax"))):
        first, last = (int(root.findtext(f"object/bndbox/{end}") or 0) for end in ends)
        assert 1 <= first <= last <= size
        assert abs(first - 1 - low) <= 1
        assert abs(last - high) <= 1.5


def test_names_that_xml_must_escape_are_kept() -> None:
    found = squares([[0, 0, 1, 1]], 2, 2)
    found.class_names = ("<b>cat & dog</b>",)
    assert ElementTree.fromstring(found.to_voc("x.jpg").xml).findtext("object/name") == "<b>cat & dog</b>"


def test_no_detections_become_an_annotation_without_objects(tmp_path: Path) -> None:
    found = squares([], 3, 4)
    found.class_names = ()
    voc = found.to_voc("none.jpg")
    assert voc.segmentation_object.tolist() == voc.segmentation_class.tolist() == [[0] * 4] * 3
    voc.save(tmp_path)
    annotation = read_annotation(tmp_path, "Annotations/none.xml")
    assert annotation is not None
    assert annotation.objects == ()
    assert read_mask(tmp_path, "SegmentationClass/none.png").shape == (3, 4)


def test_segmentation_indices_end_at_254() -> None:
    """One pixel each; the last three of 257 are only in the XML."""
    count = VOC_MAX_OBJECTS + 3
    corners = [(index // 20, index % 20) for index in range(count)]
    masks = InstanceMasks(20, 20, corners, [np.ones((1, 1), dtype=bool)] * count)
    scores = torch.linspace(0.9, 0.1, count)
    found = Detections(torch.ones(count, 4), scores, torch.zeros(count, dtype=torch.int64), masks, scores, NAMES)
    voc = found.to_voc("many.jpg")
    assert voc.segmentation_object.ravel()[:count].tolist() == [*range(1, 255), 0, 0, 0]
    assert voc.segmentation_class.sum() == 254
    assert len(ElementTree.fromstring(voc.xml).findall("object")) == count


def test_voc_needs_names() -> None:
    found = squares([[0, 0, 1, 1]], 2, 2)
    found.class_names = ()
    with pytest.raises(ValueError, match="to_voc needs class names: set class_names"):
        found.to_voc("x.jpg")


def test_voc_has_indices_for_254_classes() -> None:
    names = tuple(f"class{label}" for label in range(300))
    for label in (253, 254):
        found = squares([[0, 0, 1, 1]], 2, 2, labels=[label])
        found.class_names = names
        if label == 253:
            assert found.to_voc("x.jpg").segmentation_class[0, 0] == 254
        else:
            with pytest.raises(ValueError, match="label 254 has no index; VOC has indices for 254 classes"):
                found.to_voc("x.jpg")


# --- pictures ---------------------------------------------------------------------------------------------------


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_plot_draws_the_detections_over_the_image() -> None:
    image = noise(500, 700)
    before = image.copy()
    found = squares([[300, 250, 420, 400]], 500, 700)
    picture = found.plot(image)
    assert picture.shape == (500, 700, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, draw_detections(image, found, NAMES))
    assert (picture[300:350, 320:400] != image[300:350, 320:400]).any()
    assert np.array_equal(picture[:100, :100], image[:100, :100])
    assert np.array_equal(image, before)


def test_without_detections_a_large_image_is_unchanged_and_a_small_one_enlarged() -> None:
    image = noise(500, 700)
    assert np.array_equal(squares([], 500, 700).plot(image), image)
    assert squares([], 80, 160).plot(noise(80, 160)).shape == (MIN_SIDE // 2, MIN_SIDE, 3)


def test_an_image_may_have_any_form_that_predict_takes(tmp_path: Path) -> None:
    image = noise(500, 700)
    found = squares([[300, 250, 420, 400]], 500, 700)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = found.plot(image)
    for form in (torch.from_numpy(image).permute(2, 0, 1), path, str(path)):
        assert np.array_equal(found.plot(form), expected)


def test_only_scores_above_the_minimum_are_drawn() -> None:
    image = noise(500, 700)
    found = squares([[300, 250, 420, 400], [10, 10, 90, 90]], 500, 700)  # 0.9 and 0.5
    assert np.array_equal(found.plot(image, min_score=0.5), found[torch.tensor([0])].plot(image))
    assert not np.array_equal(found.plot(image, min_score=0.49), found.plot(image, min_score=0.5))
    assert np.array_equal(found.plot(image, min_score=0.95), image)


def test_classes_without_names_are_numbered() -> None:
    image = noise(500, 700)
    found = squares([[300, 250, 420, 400], [10, 10, 90, 90]], 500, 700, labels=[2, 0])
    found.class_names = ()
    assert np.array_equal(found.plot(image), draw_detections(image, found, ["class 1", "class 2", "class 3"]))


def test_masks_of_another_resolution_are_drawn_at_the_right_position() -> None:
    image = np.full((480, 640, 3), 100, dtype=np.uint8)
    found = squares([[320, 120, 480, 360]], 480, 640)
    found.instance_masks = squares([[80, 30, 120, 90]], 120, 160).instance_masks  # a quarter
    picture = found.plot(image)
    assert picture.shape == image.shape
    changed = (picture != image).any(axis=2)
    assert changed[130:350, 330:470].all()
    assert not changed[:, :300].any()
    assert not changed[380:].any()


def test_detections_can_be_sliced_picked_and_iterated() -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[1, 1:3, 2] = True
    found = Detections.from_masks(torch.rand(3, 4), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 0, 1]), masks)
    assert found[:2].labels.tolist() == [2, 0]
    assert found[-1].labels.tolist() == [1]
    assert [one.labels.tolist() for one in found] == [[2], [0], [1]]
    assert torch.equal(found[1].masks[0], masks[1])
    with pytest.raises(IndexError):
        found[3]
