"""Anchors against boxes: coverage equals a brute-force count, and suggestions find what the boxes were made from."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cli import anchors as command
from tests.helpers import tiny_config
from yolact.anchor_fit import SIZES, dataset_boxes, fit_anchors, measure_anchors, shape_iou, suggest_anchors
from yolact.data.coco import CocoInstances
from yolact.errors import DataError
from yolact.models.anchors import config_anchors
from yolact.models.yolact import Yolact


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 0.7, (count, 2))
    return torch.tensor(np.concatenate([low, low + generator.uniform(0.02, 0.9, (count, 2))], axis=1)).float()


def iou_by_hand(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_coverage_equals_a_count_over_all_pairs() -> None:
    config = tiny_config(image_size=128, anchor_scales=[[12, 16], [24, 30], [48, 60], [80, 90], [120, 128]])
    boxes = random_boxes(150)
    levels = Yolact.level_sizes(128, 128)
    anchors = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in config_anchors(config, levels).tolist()]
    level_of = list(itertools.chain(*([k] * (h * w * 6) for k, (h, w) in enumerate(levels))))
    best = []
    for box in boxes.tolist():
        overlaps = [iou_by_hand(box, anchor) for anchor in anchors]
        best.append((max(overlaps), level_of[overlaps.index(max(overlaps))], (box[2] - box[0]) * (box[3] - box[1])))

    found = measure_anchors(boxes, config)
    assert found.all.boxes == 150
    assert found.all.recall == pytest.approx(np.mean([iou >= 0.5 for iou, _, _ in best]))
    assert found.all.mean_iou == pytest.approx(np.mean([iou for iou, _, _ in best]), rel=1e-5)
    for name, (low, high) in SIZES.items():
        group = [iou for iou, _, area in best if low <= area * 128**2 < high]
        assert found.by_size[name].boxes == len(group)
        if group:
            assert found.by_size[name].mean_iou == pytest.approx(np.mean(group), rel=1e-5)
    for level in range(5):
        group = [iou for iou, number, _ in best if number == level]
        assert (
            abs(found.by_level[f"P{level + 3}"].boxes - len(group)) <= 1
        )  # two levels may be as good but for rounding
    assert sum(coverage.boxes for coverage in found.by_level.values()) == 150


def test_a_box_on_an_anchor_is_covered_wholly() -> None:
    config = tiny_config()
    x, y, w, h = config_anchors(config, Yolact.level_sizes(64, 64))[40].tolist()
    found = measure_anchors(torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]]), config)
    assert found.all.recall == 1
    assert found.all.mean_iou == pytest.approx(1, abs=1e-5)


def test_shapes_overlap_as_centred_boxes_do() -> None:
    sizes = np.array([[10.0, 20.0], [30.0, 5.0]])
    found = shape_iou(sizes, np.log([10.0, 20.0]), np.log([0.5, 1.0, 2.0]))
    for n, (width, height) in enumerate(sizes):
        for k, (scale, ratio) in enumerate(itertools.product([10, 20], [0.5, 1, 2])):
            w, h = scale * ratio**0.5, scale / ratio**0.5
            expected = iou_by_hand([-width / 2, -height / 2, width / 2, height / 2], [-w / 2, -h / 2, w / 2, h / 2])
            assert found[n, k] == pytest.approx(expected)


def test_the_shapes_that_boxes_were_made_from_are_found_again() -> None:
    scales, ratios = [9.0, 16.0, 27.0, 40.0, 55.0], [0.4, 1.0, 2.2]
    rng = np.random.default_rng(0)
    shapes = [(s * r**0.5, s / r**0.5) for s in scales for r in ratios for _ in range(30)]
    sizes = np.array(shapes) * rng.normal(1, 0.01, (len(shapes), 2)) / 128
    boxes = torch.tensor(np.concatenate([np.full_like(sizes, 0.3), 0.3 + sizes], axis=1)).float()
    found, found_ratios = suggest_anchors(boxes, tiny_config(image_size=128))
    assert [level[0] for level in found] == pytest.approx(scales, rel=0.03)
    assert found_ratios == pytest.approx(ratios, rel=0.03)


@pytest.mark.parametrize("count", [1, 3, 400])
def test_a_suggestion_has_the_structure_of_the_head_and_fits_the_shapes_no_worse(count: int) -> None:
    config = tiny_config(image_size=128, anchor_scales=[[10, 12]] * 5, anchor_ratios=[1, 0.5])
    boxes = random_boxes(count, seed=1)
    scales, ratios = suggest_anchors(boxes, config)
    assert [len(level) for level in scales] == [2] * 5
    assert len(ratios) == 2
    flat = list(itertools.chain(*scales))
    assert flat == sorted(flat)
    sizes = ((boxes[:, 2:] - boxes[:, :2]) * 128).double().numpy()
    present = shape_iou(sizes, np.log([10.0, 12.0]), np.log([1, 0.5])).max(axis=1).mean()
    assert shape_iou(sizes, np.log(flat), np.log(ratios)).max(axis=1).mean() > present
    config.model_validate(config.model_dump() | {"anchor_scales": scales, "anchor_ratios": ratios})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {"categories": [{"id": 1, "name": "thing"}]}
    tree["images"] = [{"id": 1, "file_name": "1.jpg", "width": 200, "height": 100}]
    boxes = [([20, 10, 100, 40], 0), ([0, 0, 200, 100], 1), ([5, 5, 10, 10], 0)]
    tree["annotations"] = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd, "segmentation": [[0, 0, 9, 0, 9, 9]]}
        for n, (box, crowd) in enumerate(boxes, start=1)
    ]
    (tmp_path / "train.json").write_text(json.dumps(tree))
    return tmp_path


def test_boxes_are_those_of_the_resized_photo_without_crowd_regions(data: Path) -> None:
    boxes = dataset_boxes(CocoInstances.load(data / "train.json", data / "images"), keep_aspect_ratio=False)
    assert boxes.tolist() == [pytest.approx([0.1, 0.1, 0.6, 0.5]), pytest.approx([0.025, 0.05, 0.075, 0.15])]


def test_boxes_of_a_photo_that_keeps_its_aspect_ratio_are_relative_to_its_longer_side(data: Path) -> None:
    """200 x 100 pixels in a square of 200."""
    boxes = dataset_boxes(CocoInstances.load(data / "train.json", data / "images"), keep_aspect_ratio=True)
    assert boxes.tolist() == [pytest.approx([0.1, 0.05, 0.6, 0.25]), pytest.approx([0.025, 0.025, 0.075, 0.075])]


def test_anchors_are_measured_on_boxes_as_the_network_sees_them(data: Path) -> None:
    """The boxes are 100 x 40 and 10 x 10 of 200 x 100 pixels: 32 x 12.8 and 3.2 x 3.2 at 64 px, or twice as high."""
    loaded = CocoInstances.load(data / "train.json", data / "images")
    kept, stretched = (fit_anchors(loaded, tiny_config(keep_aspect_ratio=keep)) for keep in (True, False))
    assert (kept.keep_aspect_ratio, stretched.keep_aspect_ratio) == (True, False)
    assert kept.suggested.scales[0] == pytest.approx([3.2], abs=0.06)
    assert kept.suggested.scales[-1] == pytest.approx([(32 * 12.8) ** 0.5], abs=0.06)
    assert stretched.suggested.scales[-1] == pytest.approx([(32 * 25.6) ** 0.5], abs=0.06)


def test_data_without_objects_is_refused(data: Path) -> None:
    tree = json.loads((data / "train.json").read_text()) | {"annotations": []}
    (data / "train.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="no object"):
        fit_anchors(CocoInstances.load(data / "train.json", data / "images"), tiny_config())


def test_the_command_prints_a_table_or_json(
    data: Path, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["model"] |= {"anchor_scales": [[4], [5], [6], [7], [8]], "anchor_ratios": [8, 9]}
    (data / "params.yaml").write_text(yaml.safe_dump(params))
    command.run(data, data / "params.yaml", as_json=False)
    shown = capsys.readouterr().out
    assert "2 of 2 boxes, photos resized to 128 x 128 px" in shown
    assert "anchor_scales: [[" in shown
    command.run(data / "train.json", data / "params.yaml", as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["suggested"]["all"]["mean_iou"] > report["present"]["all"]["mean_iou"]
    assert report["present"]["by_size"]["large"] == {"boxes": 0, "recall": None, "mean_iou": None}
