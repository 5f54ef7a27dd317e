"""The eight published configurations: their sizes, and, if the published fixtures are available, keys and anchors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.models.published import PUBLISHED_MODELS, every, scaled, thirds
from yolact.models.yolact import Yolact
from yolact.settings import PUBLISHED_DETECTION
from yolact_ops.settings.params import load_params, parse_params

PARAMETERS = {
    "yolact_base": 50_157_071,
    "yolact_im400": 50_157_071,
    "yolact_im700": 50_157_071,
    "yolact_resnet50": 31_164_943,
    "yolact_darknet53": 47_783_087,
    "yolact_resnet50_pascal": 30_734_623,
    "yolact_plus_base": 52_571_142,
    "yolact_plus_resnet50": 33_766_460,
}


def without_memory(name: str) -> Yolact:
    """A published network without storage."""
    published = PUBLISHED_MODELS[name]
    with torch.device("meta"):
        return Yolact(published.model, len(published.classes))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        base[key] = merged(base[key], value) if isinstance(value, dict) else value
    return base


def test_all_published_configurations_are_listed_under_their_names() -> None:
    assert list(PUBLISHED_MODELS) == list(PARAMETERS)
    assert all(published.name == name for name, published in PUBLISHED_MODELS.items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    assert sum(parameter.numel() for parameter in without_memory(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "anchors", "prototypes"),
    [
        ("yolact_base", 19_248, 138),
        ("yolact_im400", 10_077, 100),
        ("yolact_im700", 30_963, 176),
        ("yolact_resnet50", 19_248, 138),
        ("yolact_darknet53", 19_248, 138),
        ("yolact_resnet50_pascal", 19_248, 138),
        ("yolact_plus_base", 57_744, 138),
        ("yolact_plus_resnet50", 57_744, 138),
    ],
)
def test_the_outputs_have_the_published_sizes(name: str, anchors: int, prototypes: int) -> None:
    network = without_memory(name)
    classes, size = network.num_classes, network.config.image_size
    outputs = network(torch.empty(1, 3, size, size, device="meta"))
    assert outputs.boxes.shape == (1, anchors, 4)
    assert outputs.class_logits.shape == (1, anchors, classes + 1)
    assert outputs.mask_coefficients.shape == (1, anchors, 32)
    assert outputs.anchors.shape == (anchors, 4)
    assert outputs.prototypes.shape == (1, prototypes, prototypes, 32)
    assert outputs.semantic_logits is not None
    assert outputs.semantic_logits.shape == (1, classes, prototypes // 2, prototypes // 2)
    assert (network.maskiou_net is not None) == ("plus" in name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_and_shapes_are_those_of_published_weights(name: str, reference_fixtures: Path) -> None:
    expected = json.loads((reference_fixtures / "state_dict_shapes.json").read_text())[name]
    found = {key: list(value.shape) for key, value in without_memory(name).state_dict().items()}
    assert found == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_anchors_are_the_published_ones(name: str, reference_fixtures: Path) -> None:
    expected = json.loads((reference_fixtures / "anchors.json").read_text())[name]
    config = PUBLISHED_MODELS[name].model
    assert config.anchor_scales == expected["pred_scales"]
    assert [config.anchor_ratios] == expected["pred_aspect_ratios"][0]
    assert (config.square_anchors, config.image_size) == (expected["use_square_anchors"], expected["max_size"])
    network = without_memory(name)
    anchors = network.anchors(network.level_sizes(config.image_size, config.image_size), torch.device("cpu")).double()
    assert len(anchors) == expected["num_priors"]
    assert anchors.sum(dim=0).tolist() == pytest.approx(expected["column_sums"], rel=1e-7)
    assert anchors.square().sum(dim=0).tolist() == pytest.approx(expected["column_sums_of_squares"], rel=1e-7)


def test_scales_of_other_image_sizes_are_truncated() -> None:
    """24 * 400 / 550 = 17.45; 48 * 700 / 550 = 61.09; 96 * 700 / 550 = 122.18."""
    assert scaled((24, 48, 96, 192, 384), 400) == [[17], [34], [69], [139], [279]]
    assert scaled((24, 48, 96, 192, 384), 700) == [[30], [61], [122], [244], [488]]


def test_thirds_of_an_octave_are_not_rounded() -> None:
    [scales] = thirds([24])
    assert scales == pytest.approx([24, 30.2381, 38.0976], abs=1e-4)
    assert scales[1] ** 3 == pytest.approx(24**3 * 2)


def test_intervals_count_from_the_first_block_of_a_stage() -> None:
    assert every(3, [3, 4, 7, 1]) == [[], [0, 3], [0, 3, 6], [0]]
    assert every(2, [3, 2], first_stage=0) == [[0, 2], [0]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_configuration_is_valid_settings(name: str, repository: Path) -> None:
    published = PUBLISHED_MODELS[name]
    base = load_params(repository / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)
    params = parse_params(merged(copy.deepcopy(base), published.settings()))
    assert params.model == published.model
    assert params.evaluate.detect == PUBLISHED_DETECTION
    assert params.train.loss.max_masks_per_image == (300 if name == "yolact_im700" else 100)


@pytest.mark.parametrize(
    ("name", "epochs", "milestones"),
    [
        ("yolact_plus_base", 55, [0.35, 0.75, 0.875, 0.9375]),  # 800,000 steps of 8 out of 117,266 images
        ("yolact_resnet50_pascal", 113, [0.5, 0.8333]),  # 120,000 steps of 8 out of 8,498
    ],
)
def test_published_schedules_are_converted_from_steps_to_epochs(
    name: str, epochs: int, milestones: list[float]
) -> None:
    train = PUBLISHED_MODELS[name].settings()["train"]
    assert (train["epochs"], train["lr_milestones"]) == (epochs, milestones)


def test_classes_are_those_of_the_data_sets() -> None:
    """Ascending category ids of COCO (1 person, 2 bicycle ... 90 toothbrush); the order of VOC's own list."""
    coco, voc = PUBLISHED_MODELS["yolact_base"].classes, PUBLISHED_MODELS["yolact_resnet50_pascal"].classes
    assert len(set(coco)) == 80
    assert (coco[0], coco[11], coco[24], coco[79]) == ("person", "stop sign", "backpack", "toothbrush")
    assert len(set(voc)) == 20
    assert (voc[0], voc[14], voc[19]) == ("aeroplane", "person", "tvmonitor")
