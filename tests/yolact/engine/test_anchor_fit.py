"""Anchors against boxes: coverage equals a brute-force count, and suggestions recover the generating shapes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from tests.small_networks import tiny_config
from yolact.boxes import box_iou, cxcywh_to_xyxy
from yolact.data.coco import CocoInstances
from yolact.data.columns import CocoImage, CocoObject, Columns, Rows
from yolact.data.image_store import LooseImages
from yolact.engine.anchor_fit import SIZES, AnchorReport, anchors_advice, dataset_boxes, fit_anchors, measure_anchors
from yolact.errors import DataError
from yolact.models.anchors import config_anchors
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact_cli import anchors as command


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


def test_a_box_equal_to_an_anchor_is_fully_covered() -> None:
    config = tiny_config()
    x, y, w, h = config_anchors(config, Yolact.level_sizes(64, 64))[40].tolist()
    found = measure_anchors(torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]]), config)
    assert found.all.recall == 1
    assert found.all.mean_iou == pytest.approx(1, abs=1e-5)


def data_of(boxes: torch.Tensor, side: int = 1000) -> CocoInstances:
    """A data set with one image of ``side`` x ``side`` pixels that has these (N, 4) xyxy relative boxes."""
    rows = (boxes.double() * side).tolist()
    objects = [CocoObject(0, (left, top, right, bottom), False, []) for left, top, right, bottom in rows]
    rows = Rows([Columns.of([CocoImage(1, "1.jpg", side, side)], [objects])])
    return CocoInstances.of_rows(rows, [(1, "thing")], LooseImages(Path("images")), Path())


def boxes_of(sizes: np.ndarray, centers: np.ndarray) -> torch.Tensor:
    """(N, 4) xyxy, moved inside the image if they extend beyond it."""
    low = np.clip(centers - sizes / 2, 0, 1 - sizes)
    return torch.tensor(np.concatenate([low, low + sizes], axis=1)).float()


def over_all_pairs(boxes: torch.Tensor, report: AnchorReport, config: ModelConfig) -> tuple[float, float]:
    """Recall and mean IoU of the suggested anchors, every box against every anchor."""
    fit = report.suggested
    changes = {"anchor_scales": fit.scales, "anchor_ratios": fit.ratios, "square_anchors": fit.square}
    config = config.model_validate(config.model_dump() | changes)
    anchors = config_anchors(config, Yolact.level_sizes(config.image_size, config.image_size))
    iou = box_iou(boxes, cxcywh_to_xyxy(anchors)).max(dim=1).values
    return float((iou >= 0.5).double().mean()), float(iou.mean())


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [64, 90, 138])
def test_the_nearest_anchors_overlap_as_much_as_any(square: bool, size: int) -> None:
    """Grids that divide the input evenly and grids that do not; anchors in shapes of their own or all square."""
    config = tiny_config(image_size=size, square_anchors=square)
    boxes = random_boxes(300, seed=3)
    anchors = config_anchors(config, Yolact.level_sizes(size, size))
    iou = box_iou(boxes, cxcywh_to_xyxy(anchors)).max(dim=1).values
    found = measure_anchors(boxes, config).all
    assert found.mean_iou == pytest.approx(float(iou.mean()), rel=1e-5)
    assert found.recall == pytest.approx(float((iou >= 0.5).double().mean()), abs=1e-9)


def test_the_shapes_that_generated_the_boxes_are_recovered() -> None:
    scales, ratios = [9.0, 16.0, 27.0, 40.0, 55.0], [0.4, 1.0, 2.2]
    rng = np.random.default_rng(0)
    shapes = [(s * r**0.5, s / r**0.5) for s in scales for r in ratios for _ in range(30)]
    sizes = np.array(shapes) * rng.normal(1, 0.01, (len(shapes), 2)) / 128
    cells = np.repeat([16, 8, 4, 2, 1], 90)[:, None]  # each scale in the middle of its own level's cells
    inside = np.where(cells > 4, rng.integers(1, np.maximum(cells - 1, 2), (450, 2)), rng.integers(0, cells, (450, 2)))
    centers = (inside + 0.5) / cells
    boxes = boxes_of(sizes, centers)
    found = fit_anchors(data_of(boxes), tiny_config(image_size=128, anchor_ratios=[0.7, 1, 1.5])).suggested
    assert found.all.recall == 1
    assert [level[0] for level in found.scales] == pytest.approx(scales, rel=0.03)
    assert found.ratios == pytest.approx(ratios, rel=0.03)


@pytest.mark.parametrize("count", [1, 3, 400])
def test_a_suggestion_keeps_the_heads_structure_and_reports_its_true_coverage(count: int) -> None:
    config = tiny_config(image_size=128, anchor_scales=[[10, 12]] * 5, anchor_ratios=[1, 0.5])
    boxes = random_boxes(count, seed=1)
    report = fit_anchors(data_of(boxes), config)
    found = report.suggested
    assert [len(level) for level in found.scales] == [2] * 5
    assert len(found.ratios) == 2
    flat = list(itertools.chain(*found.scales))
    assert flat == sorted(flat)
    assert over_all_pairs(boxes, report, config) == pytest.approx((found.all.recall, found.all.mean_iou), rel=1e-4)
    assert found.all.mean_iou > report.present.all.mean_iou


def large_boxes(rng: np.random.Generator) -> torch.Tensor:
    sizes = np.exp(rng.uniform(np.log(0.3), np.log(0.95), (400, 2)))
    return boxes_of(sizes, rng.uniform(0, 1, (400, 2)))


def tiny_boxes(rng: np.random.Generator) -> torch.Tensor:
    sizes = np.exp(rng.normal(np.log(0.05), 0.3, (400, 2)))
    return boxes_of(sizes, rng.uniform(0, 1, (400, 2)))


def mixed_boxes(rng: np.random.Generator) -> torch.Tensor:
    sizes = np.exp(rng.uniform(np.log(0.06), np.log(0.9), (400, 1)) + rng.normal(0, 0.3, (400, 2))).clip(max=1)
    return boxes_of(sizes, rng.uniform(0, 1, (400, 2)))


@pytest.mark.parametrize("kind", [large_boxes, tiny_boxes, mixed_boxes])
@pytest.mark.parametrize("scales", [[[8], [16], [32], [64], [128]], [[14], [28], [52], [80], [110]]])
def test_a_suggestion_is_never_worse_than_the_present_anchors(kind: Any, scales: list[list[float]]) -> None:
    config = tiny_config(image_size=128, anchor_scales=scales)
    report = fit_anchors(data_of(kind(np.random.default_rng(5))), config)
    assert report.suggested.all.recall >= report.present.all.recall
    assert report.suggested.all.mean_iou >= report.present.all.mean_iou


@pytest.mark.parametrize("kind", [large_boxes, tiny_boxes, mixed_boxes])
def test_the_suggested_anchors_recall_about_as_many_boxes_as_the_best_of_many_random_ones(kind: Any) -> None:
    """Even though the present anchors recall almost none: clusters of shapes that ignore the cells miss most tiny
    boxes."""
    boxes = kind(np.random.default_rng(0))
    config = tiny_config(image_size=128, anchor_scales=[[2], [2.1], [2.2], [2.3], [2.4]])
    report = fit_anchors(data_of(boxes), config)
    rng = np.random.default_rng(1)
    recalls = []
    for _ in range(200):
        scales, ratios = np.exp(rng.uniform(np.log(3), np.log(120), (5, 1))), np.exp(rng.uniform(-1, 1, 3))
        choice = {"anchor_scales": np.sort(scales, axis=0).tolist(), "anchor_ratios": ratios.tolist()}
        recalls.append(measure_anchors(boxes, config.model_copy(update=choice)).all.recall)
    assert report.present.all.recall <= 0.01
    assert report.suggested.all.recall >= max(recalls) - 0.01


def test_good_anchors_are_kept() -> None:
    """A suggestion, used as the present choice, is hardly improved upon."""
    data = data_of(mixed_boxes(np.random.default_rng(2)))
    config = tiny_config(image_size=128)
    first = fit_anchors(data, config).suggested
    again = fit_anchors(data, config.model_copy(update={"anchor_scales": first.scales, "anchor_ratios": first.ratios}))
    assert again.present.all == first.all
    assert again.suggested.all.recall >= first.all.recall


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


def test_boxes_are_those_of_the_resized_image_without_crowd_regions(data: Path) -> None:
    boxes = dataset_boxes(CocoInstances.load(data / "train.json", data / "images"), keep_aspect_ratio=False)
    assert boxes.tolist() == [pytest.approx([0.1, 0.1, 0.6, 0.5]), pytest.approx([0.025, 0.05, 0.075, 0.15])]


def test_boxes_of_an_image_that_keeps_its_aspect_ratio_are_relative_to_its_longer_side(data: Path) -> None:
    """200 x 100 pixels in a square of 200."""
    boxes = dataset_boxes(CocoInstances.load(data / "train.json", data / "images"), keep_aspect_ratio=True)
    assert boxes.tolist() == [pytest.approx([0.1, 0.05, 0.6, 0.25]), pytest.approx([0.025, 0.025, 0.075, 0.075])]


def test_anchors_are_measured_on_boxes_as_the_network_sees_them(data: Path) -> None:
    loaded = CocoInstances.load(data / "train.json", data / "images")
    for keep in (True, False):
        config = tiny_config(keep_aspect_ratio=keep)
        report = fit_anchors(loaded, config)
        assert report.keep_aspect_ratio == keep
        assert report.present == measure_anchors(dataset_boxes(loaded, keep_aspect_ratio=keep), config)
    kept, stretched = (
        measure_anchors(dataset_boxes(loaded, keep_aspect_ratio=keep), tiny_config()) for keep in (True, False)
    )
    assert kept != stretched


def test_data_without_objects_is_rejected(data: Path) -> None:
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
    (data / "train").mkdir()
    (data / "train.json").rename(data / "train" / "train.json")
    command.run(data, data / "params.yaml", as_json=False)
    shown = capsys.readouterr().out
    assert "2 of 2 boxes, images resized to 128 x 128 px" in shown
    assert "anchor_scales: [[" in shown
    command.run(data / "train" / "train.json", data / "params.yaml", as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["suggested"]["all"]["mean_iou"] > report["present"]["all"]["mean_iou"]
    assert report["present"]["by_size"]["large"] == {"boxes": 0, "recall": None, "mean_iou": None}


def shown_for(boxes: torch.Tensor, config: ModelConfig, capsys: pytest.CaptureFixture[str]) -> str:
    command.print_report(fit_anchors(data_of(boxes), config), Console(width=160, highlight=False))
    return " ".join(capsys.readouterr().out.split())


def test_low_recall_is_reported_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    boxes = tiny_boxes(np.random.default_rng(0))
    shown = shown_for(boxes, tiny_config(image_size=128), capsys)
    assert re.search(r"leave \d+% of the boxes without an anchor of IoU 0.5 or more \(\d+ small\)", shown)
    assert "a larger model.image_size" in shown
    assert "add scales per level to model.anchor_scales" in shown


def test_anchors_that_fit_give_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(image_size=128)
    anchors = cxcywh_to_xyxy(config_anchors(config, Yolact.level_sizes(128, 128)))
    boxes = anchors[(anchors >= 0).all(dim=1) & (anchors <= 1).all(dim=1)]
    shown = shown_for(boxes, config, capsys)
    assert "No anchors with as many scales and ratios fit clearly better than the present ones" in shown
    assert "anchor_scales:" not in shown
    assert "leave" not in shown


@pytest.mark.parametrize(("small", "warned"), [(4, False), (6, True)])
def test_a_training_whose_anchors_miss_many_objects_is_warned(small: int, warned: bool) -> None:
    """Squares of 24 px equal an anchor at each cell of P5's centre; squares of 1 px have an IoU of at most 1 / 64."""
    config = tiny_config(anchor_scales=[[8], [16], [24], [40], [60]], anchor_ratios=[1])
    center = (0.5 + 1 / 4) if Yolact.level_sizes(64, 64)[2][0] == 2 else 0.5
    sides = torch.tensor([24.0] * (100 - small) + [1.0] * small)[:, None] / 64
    boxes = torch.cat([center - sides / 2, center - sides / 2, center + sides / 2, center + sides / 2], dim=1)
    advice = anchors_advice(data_of(boxes), config, positive_iou=0.5)
    assert (advice is not None) == warned
    if advice is not None:
        assert f"miss {small} of 100 objects ({small}%)" in advice
        assert "yolact anchors" in advice
    assert anchors_advice(data_of(boxes[:0]), config, positive_iou=0.5) is None
