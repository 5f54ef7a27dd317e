"""Settings that are ``auto``."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_networks import tiny_config
from tests.yolact.engine.runs import small_params, trainer_on
from yolact.engine.automatic import automatic_epochs, loader_processes, resolve
from yolact.models.published import PUBLISHED_MODELS


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
        resolved = resolve(settings, tiny_config(backbone_weights=weights), images)
    assert (resolved.freeze, resolved.epochs) == (chosen, 4)
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


def test_given_values_stay_and_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = small_params(freeze="none", epochs=4).train
    with caplog.at_level(logging.INFO):
        assert resolve(settings, tiny_config(), 10) == settings
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
