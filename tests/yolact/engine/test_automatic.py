"""Settings that training chooses by its images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_networks import tiny_config
from tests.yolact.engine.runs import small_params, trainer_on
from yolact.boxes import box_iou, cxcywh_to_xyxy
from yolact.data.coco import CocoInstances
from yolact.data.columns import CocoImage, CocoObject, Columns, Rows
from yolact.data.image_store import LooseImages
from yolact.engine.automatic import ENOUGH_OBJECTS, automatic_epochs, loader_processes, resolve, resolve_train
from yolact.errors import SettingsError
from yolact.models.anchors import config_anchors
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact_ops.settings.params import parse_params


def test_automatic_epochs_are_the_published_ones_for_the_published_data_sets() -> None:
    for name in ("yolact_resnet50_pascal", "yolact_base"):
        published = PUBLISHED_MODELS[name]
        assert automatic_epochs(tiny_config(), published.train_images)[0] == published.epochs


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_fewer_images_get_more_epochs_but_not_more_steps(few: int, many: int) -> None:
    few, many = sorted((few, many))
    most, least = (automatic_epochs(tiny_config(backbone_weights="none"), images)[0] for images in (few, many))
    assert most >= least >= 1
    assert (most - 0.5) * few <= (least + 0.5) * many


@pytest.mark.parametrize(
    ("weights", "images", "epochs"), [("imagenet", 999, 80), ("imagenet", 1000, 203), ("none", 193, 319)]
)
def test_few_images_get_80_epochs_with_pretrained_weights(weights: str, images: int, epochs: int) -> None:
    """113 (1000 / 8498)^-0.274 = 203, and 319 for 193 images."""
    assert automatic_epochs(tiny_config(backbone_weights=weights), images)[0] == epochs


@pytest.mark.parametrize(
    ("weights", "images", "chosen", "reason"),
    [
        ("imagenet", 999, "stage2", "with 999 training images (fewer than 1000)"),
        ("imagenet", 1000, "none", "there are 1000 training images"),
        ("none", 10, "none", "there are no pretrained weights to keep"),
    ],
)
def test_early_layers_are_frozen_with_few_images_and_pretrained_weights(
    weights: str, images: int, chosen: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_params(freeze="auto", epochs=4).train
    with caplog.at_level(logging.INFO):
        resolved = resolve_train(settings, tiny_config(backbone_weights=weights), images)
    assert (resolved.freeze, resolved.epochs) == (chosen, 4)
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


def test_given_values_stay_and_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = small_params(freeze="none", epochs=4).train
    with caplog.at_level(logging.INFO):
        assert resolve_train(settings, tiny_config(), 10) == settings
    assert not caplog.messages


def test_a_trainer_chooses_by_the_number_of_its_images_and_keeps_the_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = trainer_on("cpu", tmp_path, epochs="auto", freeze="auto", model={"backbone_weights": "imagenet"})
    epochs, _ = automatic_epochs(trainer.params.model, 8)
    assert trainer.total_steps == epochs * 8 / 2
    trained = [name for name, parameter in trainer.model.backbone.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"2", "3"}  # the third and fourth stage, of four
    assert sum(f"train.epochs: auto: {epochs} epochs for 8 training images" in line for line in caplog.messages) == 1
    saved = trainer._state(finished=False).settings["train"]
    assert (saved["epochs"], saved["freeze"]) == (epochs, "stage2")


def thin_objects(count: int) -> CocoInstances:
    """One image with ``count`` objects, four times as tall as wide, which anchors of `tiny_config` do not cover."""
    rng = np.random.default_rng(0)
    rows = []
    for left, top, width in zip(*rng.uniform(0, 200, (2, count)), rng.uniform(100, 200, count), strict=True):
        rows.append(CocoObject(0, (left, top, left + width, top + 4 * width), False, []))
    rows_of_image = Rows([Columns.of([CocoImage(1, "1.jpg", 1000, 1000)], [rows])])
    return CocoInstances.of_rows(rows_of_image, [(1, "thing")], LooseImages(Path("images")), Path())


def recall_by_all_pairs(data: CocoInstances, model: ModelConfig) -> float:
    """Share of the objects that an anchor overlaps by half, every box against every anchor."""
    boxes = torch.tensor([item.box for item in data.objects[1]]) / 1000
    anchors = config_anchors(model, Yolact.level_sizes(model.image_size, model.image_size))
    return float((box_iou(boxes, cxcywh_to_xyxy(anchors)).max(dim=1).values >= 0.5).double().mean())


def test_fitted_anchors_cover_the_training_objects(caplog: pytest.LogCaptureFixture) -> None:
    params = small_params(fit_anchors=True)
    data = thin_objects(ENOUGH_OBJECTS)
    with caplog.at_level(logging.INFO):
        chosen = resolve(params, data)
    before, after = (recall_by_all_pairs(data, model) for model in (params.model, chosen.model))
    assert before < 0.5
    assert after > 0.8
    scales, ratios = chosen.model.anchor_scales, chosen.model.anchor_ratios
    assert caplog.messages == [
        f"train.fit_anchors: anchor_scales {scales} and anchor_ratios {ratios}: "
        f"an anchor overlaps {after:.0%} of 100 training objects by half, before {before:.0%}"
    ]
    assert [len(scales) for scales in chosen.model.anchor_scales] == [1] * 5
    kept = chosen.model.model_dump(exclude={"anchor_scales", "anchor_ratios"})
    assert kept == params.model.model_dump(exclude={"anchor_scales", "anchor_ratios"})
    assert parse_params(chosen.model_dump(mode="json", by_alias=True)) == chosen
    assert resolve(chosen, data) == chosen


@pytest.mark.parametrize(
    ("objects", "initial_weights", "reason"),
    [
        (ENOUGH_OBJECTS - 1, "none", "with 99 training objects (fewer than 100)"),
        (ENOUGH_OBJECTS, "start", "model.initial_weights was trained with its own"),
    ],
)
def test_anchors_stay_with_few_objects_and_with_initial_weights(
    objects: int, initial_weights: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    params = small_params(model={"initial_weights": initial_weights}, fit_anchors=True)
    with caplog.at_level(logging.INFO):
        chosen = resolve(params, thin_objects(objects))
    assert chosen == params.model_copy(update={"train": params.train.model_copy(update={"fit_anchors": False})})
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


def test_a_trainer_does_not_take_a_network_whose_anchors_should_have_been_fitted(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"train\.fit_anchors: .*before you make it: .*resolve\(params, data\)"):
        trainer_on("cpu", tmp_path, fit_anchors=True)


@pytest.mark.parametrize(
    ("cores", "threads", "processes", "workers"),
    [
        (1, 1, None, 1),
        (2, 2, None, 2),
        (16, 16, None, 8),
        (16, 4, None, 4),
        (4, 8, None, 4),
        (16, 1, 4, 4),
        (2, 1, 4, 1),
    ],
)
def test_loader_processes_follow_the_cores(
    cores: int, threads: int, processes: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact.engine.automatic.usable_cpus", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loader_processes("auto") == workers
    assert (loader_processes(0), loader_processes(20)) == (0, 20)
