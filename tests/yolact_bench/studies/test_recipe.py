"""`yolact_bench.studies.recipe`: its settings are valid, and its table is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pycocotools import mask as coco_mask

from yolact.errors import SettingsError
from yolact_bench.studies import recipe
from yolact_ops.settings.presets import choose


@pytest.fixture(autouse=True)
def in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def test_every_ingredient_is_valid_and_changes_the_preset() -> None:
    own = choose("sample-cpu")
    for name, overrides in recipe.INGREDIENTS.items():
        assert choose("sample-cpu", overrides=overrides).train != own.train, name
        assert choose("sample-cpu", overrides=overrides).model == own.model


def test_the_modern_preset_has_every_ingredient_but_the_candidates(repository: Path) -> None:
    modern = yaml.safe_load((repository / "conf" / "modern.yaml").read_text())
    assert list(modern) == ["train"]  # it suits any network
    for name, overrides in recipe.INGREDIENTS.items():
        same = choose("voc2012-r50+modern", overrides=overrides) == choose("voc2012-r50+modern")
        assert same == (name not in recipe.CANDIDATES), name


def test_names_are_checked_and_the_preset_s_own_recipe_comes_first() -> None:
    assert recipe.chosen("") == ["own", *recipe.INGREDIENTS, "modern"]
    assert recipe.chosen("dice, modern") == ["own", "dice", "modern"]
    with pytest.raises(SettingsError, match="no ingredient 'dise'; there are: copy_paste"):
        recipe.chosen("dise")


def detection(score: float, box: list[float]) -> dict[str, Any]:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"image_id": 1, "category_id": 1, "score": score, "bbox": box, "segmentation": corners_rle(corners)}


def corners_rle(corners: list[float]) -> dict[str, Any]:
    rle: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects([corners], 50, 50))
    return rle | {"counts": rle["counts"].decode()}


def test_the_gain_is_that_over_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    truth = {
        "images": [{"id": 1, "width": 50, "height": 50, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400, "bbox": [5, 5, 20, 20]}
            | {"segmentation": detection(1, [5, 5, 20, 20])["segmentation"]}
        ],
    }
    common = {"losses": [9.0, 4.0], "seconds_per_epoch": 2.0}
    metrics = {"mask_AP": 0.0, "mask_AP50": 0.0, "box_AP": 0.0}
    results = {
        "own": common | {"metrics": metrics, "detections": []},
        "dice": common | {"metrics": metrics | {"mask_AP": 1.0}, "detections": [detection(0.9, [5, 5, 20, 20])]},
    }
    rows = recipe.summarise(results, truth)
    assert rows[0]["gain"] is None
    assert rows[1]["gain"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    json.dumps(rows)
    recipe.show(rows)
    assert "+100.0" in capsys.readouterr().out
