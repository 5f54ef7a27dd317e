"""`yolact_bench.studies.recipe`: its settings are valid, and its table is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask
from scipy import stats

from yolact.errors import SettingsError
from yolact_bench.studies import recipe
from yolact_ops.settings.presets import choose


@pytest.fixture(autouse=True)
def in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def test_the_modern_preset_is_its_parts(repository: Path) -> None:
    """All parts, and no candidate."""
    modern = yaml.safe_load((repository / "conf" / "modern.yaml").read_text())
    assert list(modern) == ["train"]  # it suits any network
    parts = [override for overrides in recipe.PARTS.values() for override in overrides]
    assert choose("voc2012-r50+modern") == choose("voc2012-r50", overrides=parts)
    for name, overrides in recipe.CANDIDATES.items():
        assert choose("voc2012-r50+modern", overrides=overrides) != choose("voc2012-r50+modern"), name


def test_a_training_without_a_part_has_the_published_values() -> None:
    """Also of a part that the network's preset has, too."""
    modern, base = choose("lite0-320+modern").train, choose("base").train
    without = recipe.settings("-scale_jitter", "lite0-320", []).train
    assert without.augment.scale_jitter == base.augment.scale_jitter != modern.augment.scale_jitter
    assert without.augment.random_crop == base.augment.random_crop != modern.augment.random_crop
    assert without.loss == modern.loss
    sgd = recipe.settings("-adamw", "lite0-320", []).train
    assert (sgd.optimizer, sgd.lr) == (base.optimizer, base.lr) != (modern.optimizer, modern.lr)
    for name in recipe.PARTS:
        assert recipe.settings(f"-{name}", "lite0-320", []) != choose("lite0-320+modern"), name


def test_the_published_training_has_the_presets_network_alone() -> None:
    published, preset = recipe.settings("published", "lite0-320", ["train.epochs=3"]), choose("lite0-320")
    assert published.model == preset.model
    assert published.train == choose("base", overrides=["train.epochs=3"]).train


def test_the_training_from_random_weights_reads_none() -> None:
    params = recipe.settings("scratch", "lite0-320", ["train.epochs=3"])
    assert (params.model.backbone_weights, params.train.freeze, params.train.epochs) == ("none", "none", 3)


def test_names_are_checked_and_the_modern_recipe_comes_first() -> None:
    assert recipe.chosen("")[:2] == ["modern", "-copy_paste"]
    assert recipe.chosen("-dice, own") == ["modern", "-dice", "own"]
    with pytest.raises(SettingsError, match="no training '-dise'; there are: modern, -copy_paste"):
        recipe.chosen("-dise")


def test_a_training_is_not_repeated_and_stays_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"preset": "smoke", "epochs": 1, "work": tmp_path, "overrides": ["train.layer_decay=1"]}
    recipe.main(only="own", **options)
    rows = json.loads((tmp_path / "recipe.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["modern", "own"]

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(recipe, "_trained", fail)
    recipe.main(only="modern", **options)
    assert json.loads((tmp_path / "recipe.json").read_text())["rows"] == rows
    with pytest.raises(AssertionError, match="trained again"):
        recipe.main(only="modern", **options | {"epochs": 2})


def detection(score: float, box: list[float]) -> dict[str, Any]:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"image_id": 1, "category_id": 1, "score": score, "bbox": box, "segmentation": corners_rle(corners)}


def corners_rle(corners: list[float]) -> dict[str, Any]:
    rle: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects([corners], 50, 50))
    return rle | {"counts": rle["counts"].decode()}


@pytest.mark.parametrize("category", [None, "cat"])
def test_the_difference_is_that_from_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, category: str | None
) -> None:
    truth = {
        "images": [{"id": 1, "width": 50, "height": 50, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": number, "iscrowd": 0, "area": 400, "bbox": [5, 5, 20, 20]}
            | {"segmentation": detection(1, [5, 5, 20, 20])["segmentation"]}
            for number in (1, 2)
        ],
    }
    common = {"losses": [9.0, 4.0], "seconds_per_epoch": 2.0}
    found = common | {"detections": [detection(0.9, [5, 5, 20, 20])]}
    missed = common | {"detections": []}
    first, second, *others = recipe.summarise(
        {
            "modern": {0: missed, 1: missed},
            "-dice": {0: found, 1: missed},
            "own": {0: found},
            "scratch": {2: found},
        },
        truth,
        category,
    )
    assert (first["mask_AP50"], first["gains"]) == (0, {})
    # one of two seeds finds the only cat, and no dog
    half = 0.5 if category else 0.25
    assert second["seeds"] == pytest.approx([2 * half, 0])
    assert [second[key] for key in ("mask_AP50", "mask_AP", "box_AP50")] == [pytest.approx(half)] * 3
    assert second["gains"] == {"mask_AP50": [pytest.approx(half)] * 3, "mask_AP": [pytest.approx(half)] * 3}
    # Student's table, one degree of freedom: 12.7062; the differences are 2 * half and 0, their standard error half
    bounds = [pytest.approx(half - 12.7062 * half, abs=1e-4), pytest.approx(half + 12.7062 * half, abs=1e-4)]
    assert second["over_seeds"] == {"mask_AP50": bounds, "mask_AP": bounds}
    own, scratch = others
    assert (own["gains"]["mask_AP50"], own["over_seeds"]) == ([pytest.approx(2 * half)] * 3, {})  # of seed 0 alone
    assert (scratch["gains"], scratch["over_seeds"]) == ({}, {})
    json.dumps([first, second, *others])
    monkeypatch.setenv("COLUMNS", "250")
    recipe.show([first, second, *others], category)
    printed = capsys.readouterr().out
    assert f"+{100 * half:.1f} (+{100 * half:.1f} to +{100 * half:.1f})" in printed
    assert f"({100 * (half - 12.7062 * half):+.1f} to {100 * (half + 12.7062 * half):+.1f})" in printed


def of_draws(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(J, 1 + draws) of (J, N) differences in each image, of which the metric is the mean."""
    return np.concatenate([values.mean(axis=1)[:, None], values @ weights.T / values.shape[1]], axis=1)


@pytest.mark.parametrize("spread", [0.3, 0.0])
def test_the_interval_over_seeds_is_that_of_a_two_way_analysis_of_variance(spread: float) -> None:
    """The metric is a mean over images: then mean squares of seeds, images and the rest give the same interval."""
    random = np.random.default_rng(0)
    seeds, images = 3, 60
    values = 1 + random.normal(0, 0.7, images) + random.normal(0, 0.5, (seeds, images))
    values += spread * np.array([[-1.0], [0.5], [0.5]]) - (0 if spread else values.mean(axis=1, keepdims=True) - 1)
    by_seed, by_image, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    of_seeds = images * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    of_images = seeds * ((by_image - mean) ** 2).sum() / (images - 1)
    rest = ((values - by_seed[:, None] - by_image + mean) ** 2).sum() / ((seeds - 1) * (images - 1))
    assert (of_seeds > rest) == bool(spread)  # with 0 the seeds agree by chance, more than the rest lets expect
    of_seeds = max(of_seeds, rest)
    together = of_seeds + of_images - rest
    freedom = together**2 / (of_seeds**2 / (seeds - 1))  # Satterthwaite's, of the seeds alone
    expected = stats.t.interval(0.95, freedom, mean, (together / (seeds * images)) ** 0.5)
    weights = random.multinomial(images, np.full(images, 1 / images), size=40000)
    found = recipe.interval_over_seeds(of_draws(values, weights))
    assert sum(found) / 2 == pytest.approx(mean)
    # the bootstrap divides by N instead of N - 1, and is random
    assert np.diff(found) == pytest.approx(np.diff(expected), rel=0.02)


def test_the_interval_over_seeds_covers_the_truth_as_often_as_it_says() -> None:
    """Of 1,500 experiments with three seeds, 95 %; the bootstrap over the images alone far fewer."""
    random = np.random.default_rng(1)
    seeds, images, experiments = 3, 40, 1500
    weights = random.multinomial(images, np.full(images, 1 / images), size=400)
    covered = over_images = 0
    for _ in range(experiments):
        values = (
            random.normal(0, 0.12, (seeds, 1)) + random.normal(0, 0.5, images) + random.normal(0, 0.5, (seeds, images))
        )
        drawn = of_draws(values, weights)
        low, high = recipe.interval_over_seeds(drawn)
        covered += low < 0 < high
        low, high = np.percentile(drawn.mean(axis=0)[1:], [2.5, 97.5])
        over_images += low < 0 < high
    assert 0.93 < covered / experiments < 0.985
    assert over_images / experiments < 0.9


def test_an_unknown_category_is_named() -> None:
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    with pytest.raises(SettingsError, match="--category: no class 'cow'; there are: cat"):
        recipe.summarise({}, truth, "cow")
