"""Weights on disk: nothing changes on the way, and every fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models as torchvision_models
from torchvision.models import WeightsEnum

from yolact.config import ModelConfig
from yolact.errors import WeightsError
from yolact.models.weights import DESCRIPTION_FILE, WEIGHTS_FILE, load_backbone_weights, load_model, save_model
from yolact.models.yolact import Yolact

CLASSES = ["cat", "dog"]


def tiny(backbone_weights: str = "none", backbone: str = "resnet18") -> Yolact:
    torch.manual_seed(3)
    config = ModelConfig.model_validate(
        {
            "backbone": backbone,
            "backbone_weights": backbone_weights,
            "image_size": 64,
            "fpn_channels": 4,
            "num_prototypes": 2,
            "anchor_scales": [[8], [16], [24], [40], [60]],
            "anchor_ratios": [1, 0.5],
            "square_anchors": False,
        }
    )
    return Yolact(config, len(CLASSES))


@pytest.fixture(scope="module")
def model() -> Yolact:
    model = tiny()
    for key, value in model.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
        elif "num_batches" in key:
            value.fill_(7)
    return model


@pytest.fixture(scope="module")
def saved(model: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; tests must not change it."""
    directory = tmp_path_factory.mktemp("models") / "deep" / "er"
    save_model(model, CLASSES, directory)
    return directory


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Path:
    """A model to be damaged: its description is a copy, its weights are a link."""
    (tmp_path / DESCRIPTION_FILE).write_bytes((saved / DESCRIPTION_FILE).read_bytes())
    (tmp_path / WEIGHTS_FILE).symlink_to(saved / WEIGHTS_FILE)
    return tmp_path


# --- our own format -----------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_bit_by_bit(model: Yolact, saved: Path) -> None:
    loaded, classes = load_model(saved)
    assert classes == CLASSES
    assert loaded.config == model.config
    assert loaded.num_classes == 2
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_only_the_two_files_are_left(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted([WEIGHTS_FILE, DESCRIPTION_FILE])


def test_the_description_is_plain_json(saved: Path) -> None:
    description = json.loads((saved / DESCRIPTION_FILE).read_text())
    assert description["format"] == 1
    assert description["classes"] == CLASSES
    assert description["model"]["backbone"] == "resnet18"


def test_a_model_in_channels_last_order_is_saved_alike(tmp_path: Path) -> None:
    model = tiny().to(memory_format=torch.channels_last)
    save_model(model, CLASSES, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.state_dict()["proto_net.0.weight"], model.state_dict()["proto_net.0.weight"])


@pytest.mark.parametrize("name", [WEIGHTS_FILE, DESCRIPTION_FILE])
def test_a_missing_file_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}: no such file"):
        load_model(damaged)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize("classes", ["cat", [], None, ["cat", 3]])
def test_classes_that_are_no_list_of_names_are_refused(damaged: Path, classes: Any) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda description: description.update(classes=classes))
    with pytest.raises(WeightsError, match="classes must be a list of names"):
        load_model(damaged)


def test_weights_cut_short_are_refused(saved: Path, damaged: Path) -> None:
    whole = (saved / WEIGHTS_FILE).read_bytes()
    (damaged / WEIGHTS_FILE).unlink()
    for length in (0, 5, 1000, len(whole) - 1):
        (damaged / WEIGHTS_FILE).write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=f"{WEIGHTS_FILE}: not a safetensors file, or cut short"):
            load_model(damaged)


@pytest.mark.parametrize("content", [b"", b'{"format": 1,', b"\xff\xfe\x00"])
def test_a_description_that_is_not_json_is_refused(damaged: Path, content: bytes) -> None:
    (damaged / DESCRIPTION_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{DESCRIPTION_FILE}: not JSON"):
        load_model(damaged)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1, "classes": []}'])
def test_a_description_that_lacks_keys_is_refused(damaged: Path, content: str) -> None:
    (damaged / DESCRIPTION_FILE).write_text(content)
    with pytest.raises(WeightsError, match="needs the keys format, classes and model"):
        load_model(damaged)


def test_another_format_version_is_refused(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d.update(format=2))
    with pytest.raises(WeightsError, match="format 2 is not known here; this version reads 1"):
        load_model(damaged)


def test_an_unknown_setting_in_the_description_is_refused(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["model"].update(dilation=2))
    with pytest.raises(WeightsError, match=r"(?s)not a model of this version.*dilation"):
        load_model(damaged)


def test_weights_of_another_network_are_refused_with_their_names(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["model"].update(backbone="resnet34"))
    with pytest.raises(WeightsError, match=r"(?s)does not fit model\.json.*backbone\.layers\.0\.2\.conv1\.weight"):
        load_model(damaged)


def test_another_number_of_classes_is_refused_with_the_shapes(damaged: Path) -> None:
    edit(damaged / DESCRIPTION_FILE, lambda d: d["classes"].append("cow"))
    with pytest.raises(WeightsError, match=r"(?s)does not fit model\.json.*semantic_seg_conv\.weight"):
        load_model(damaged)


def test_a_failed_save_leaves_the_old_model(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (damaged / WEIGHTS_FILE).read_bytes()

    def full_disk(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("yolact.models.weights.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(tiny(), CLASSES, damaged)
    assert (damaged / WEIGHTS_FILE).read_bytes() == before
    assert sorted(path.name for path in damaged.iterdir()) == sorted([WEIGHTS_FILE, DESCRIPTION_FILE])


# --- what a backbone starts from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """torchvision's own ResNet-18 with weights that are nobody's default."""
    torch.manual_seed(8)
    network = torchvision_models.resnet18(weights=None).eval()
    for key, value in network.state_dict().items():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    return network


def torchvision_features(network: Any, images: Tensor) -> Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def assert_computes_the_same(model: Yolact, classifier: torch.nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        c5 = model.eval().backbone(images)[2]
        torch.testing.assert_close(c5, torchvision_features(classifier, images))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_torchvision_file_is_taken(classifier: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(classifier.state_dict(), path)
    else:
        save_file(classifier.state_dict(), path)
    model = tiny(str(path))
    head = model.prediction_layers[0].bbox_layer.weight.clone()
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)
    assert torch.equal(model.prediction_layers[0].bbox_layer.weight, head)  # the rest keeps its start


def test_an_old_torchvision_file_without_batch_counters_is_taken(classifier: torch.nn.Module, tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1, resnet50-19c8e357.pth among them, have no ``num_batches_tracked``."""
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in classifier.state_dict().items() if "num_batches_tracked" not in k}, path)
    model = tiny(str(path))
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)


def light_state_dict(name: str) -> dict[str, Tensor]:
    """Right names and shapes; each tensor is one number, repeated."""
    with torch.device("meta"):
        network = getattr(torchvision_models, name)(weights=None)
    return {key: torch.zeros(()).expand(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("file_of", "backbone", "named"),
    [
        ("resnet34", "resnet18", r"has unknown keys: layers\.0\.2\.bn1\.bias"),
        ("resnet18", "resnet34", r"lacks: layers\.0\.2\.bn1\.bias"),
        (
            "resnet50",
            "resnet34",
            r"has unknown keys: .*; has other shapes: layers\.0\.0\.conv1\.weight \(64, 64, 1, 1\)",
        ),
        ("resnet101", "resnet50", r"has unknown keys: layers\.2\.10\.bn1\.bias"),
    ],
)
def test_weights_of_another_backbone_are_refused(file_of: str, backbone: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(light_state_dict(file_of), path)
    model = tiny(str(path), backbone)
    before = model.backbone.conv1.weight.clone()
    with pytest.raises(WeightsError, match=rf"weights\.pth: is not a torchvision {backbone}: {named}"):
        load_backbone_weights(model)
    assert torch.equal(model.backbone.conv1.weight, before)


class Dangerous:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a weights file was run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "holds no plain state_dict"),
        ([torch.zeros(1)], "holds no plain state_dict"),
        ({"conv1.weight": Dangerous()}, "not a readable state_dict"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=rf"weights\.pth: {message}"):
        load_backbone_weights(tiny(str(tmp_path / "weights.pth")))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(WeightsError, match=f"model.backbone_weights: .*{name}: no such file"):
        load_backbone_weights(tiny(str(path)))
    path.write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=f"{name}: not a readable state_dict"):
        load_backbone_weights(tiny(str(path)))


def test_none_leaves_the_backbone_alone() -> None:
    model = tiny("none")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone_weights(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_imagenet_takes_torchvisions_checked_weights(
    classifier: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append((str(self), kwargs))
        return classifier.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", download)
    model = tiny("imagenet")
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)
    [(name, settings)] = asked
    assert name == "ResNet18_Weights.IMAGENET1K_V1"
    assert settings["check_hash"] is True


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError('invalid hash value (expected "f3", got "00")')]
)
def test_a_failed_download_says_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: WeightsEnum, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", download)
    with pytest.raises(
        WeightsError, match=r"resnet18 could not be downloaded .*(no route|invalid hash).*name the file"
    ):
        load_backbone_weights(tiny("imagenet"))
