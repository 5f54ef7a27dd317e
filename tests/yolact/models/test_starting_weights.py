"""Initial weights: a backbone's, or every fitting layer of another network; every misfit is named."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import ResNet18_Weights

from tests.small_networks import tiny_config
from yolact.errors import WeightsError
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.starting_weights import (
    InitialWeights,
    load_backbone_weights,
    load_initial_weights,
    load_starting_weights,
)
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["cat", "dog"]
DARKNET: dict[str, Any] = {"backbone": "darknet53", "backbone_blocks": [1, 1, 1, 1, 1]}


def network(classes: int = 2, **settings: object) -> Yolact:
    torch.manual_seed(3)
    return Yolact(tiny_config(**settings), classes)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


# --- a whole network ----------------------------------------------------------------------------------------------


def other_numbers(model: Yolact) -> Yolact:
    """Weights that no new network has."""
    generator = torch.Generator().manual_seed(9)
    for name, tensor in model.state_dict().items():
        if "num_batches" in name:
            tensor.fill_(11)
        else:
            tensor.uniform_(0.1, 0.9, generator=generator)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes; tests must not change it."""
    folder = tmp_path_factory.mktemp("start")
    save_model(other_numbers(network()), CLASSES, folder)
    return folder


def start(folder: Path, classes: list[str], **settings: object) -> tuple[Yolact, dict[str, Tensor], InitialWeights]:
    """A network that started from ``folder``, its weights before, and the report."""
    model = network(len(classes), initial_weights=str(folder), **settings)
    before = copied(model.state_dict())
    return model, before, load_initial_weights(model, classes)


def assert_taken(model: Yolact, before: dict[str, Tensor], folder: Path, again: set[str]) -> None:
    """All tensors equal the file's, except those of the layers ``again``, which are unchanged."""
    file = load_file(folder / WEIGHTS_FILE)
    for name, tensor in model.state_dict().items():
        kept = name.rpartition(".")[0] in again
        assert torch.equal(tensor, (before if kept else file)[name]), name


def test_a_network_of_the_same_kind_loads_all_saved_weights(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, before, report = start(saved, CLASSES)
    assert_taken(model, before, saved, set())
    assert (report.reinitialised, report.unused) == ([], [])
    assert [record.levelname for record in caplog.records] == ["INFO"]
    layers = len({name.rpartition(".")[0] for name in before})
    assert caplog.messages == [f"model.initial_weights: {layers} of {layers} layers loaded from {saved}"]


def test_other_classes_keep_all_but_the_class_layers_bit_for_bit(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three anchors per cell: 3 * (2 + 1) class channels become 3 * (5 + 1)."""
    caplog.set_level(logging.INFO)
    model, before, report = start(saved, list("abcde"))
    assert_taken(model, before, saved, {"prediction_layers.0.conf_layer", "semantic_seg_conv"})
    assert sorted(report.reinitialised) == [
        "prediction_layers.0.conf_layer (9 -> 18 channels)",
        "semantic_seg_conv (2 -> 5 channels)",
    ]
    assert report.unused == []
    assert any(
        message.startswith("reinitialised: ") and all(item in message for item in report.reinitialised)
        for message in caplog.messages
    )
    assert not any(record.levelname == "WARNING" for record in caplog.records)


def test_as_many_classes_with_other_names_are_loaded_with_a_warning(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, before, _ = start(saved, ["cat", "horse"])
    assert_taken(model, before, saved, set())
    assert caplog.messages == [
        f"model.initial_weights: {saved} also has 2 classes, but 1 with other names: its weights for 'dog' initialise "
        "those for 'horse'"
    ]


def test_other_anchors_are_reported(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(saved, CLASSES, square_anchors=True, image_size=96, keep_aspect_ratio=True)
    expected = "was trained with other image_size, keep_aspect_ratio, square_anchors"
    assert caplog.messages == [f"model.initial_weights: {saved} {expected}"]


def test_modules_that_one_side_lacks_are_named_once(saved: Path) -> None:
    model, before, report = start(saved, CLASSES, backbone_blocks=[1, 2, 1, 1], image_size=256, mask_rescoring=True)
    assert sorted(report.reinitialised) == ["backbone.layers.1.1 (not in the file)", "maskiou_net (not in the file)"]
    again = {name.rpartition(".")[0] for name in before if name.startswith(("backbone.layers.1.1.", "maskiou_net."))}
    assert_taken(model, before, saved, again)


def test_modules_of_the_file_that_the_network_lacks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    larger = network(backbone_blocks=[1, 3, 1, 2], image_size=256, mask_rescoring=True)
    save_model(larger, CLASSES, tmp_path)
    _, _, report = start(tmp_path, CLASSES)
    modules = ["backbone.layers.1.1", "backbone.layers.1.2", "backbone.layers.3.1", "maskiou_net"]
    assert report.unused == modules
    assert f"not in this network, ignored: {', '.join(modules)}" in caplog.messages


def test_a_layer_with_a_misfitting_tensor_is_skipped_as_a_whole(saved: Path) -> None:
    """The last convolution's bias of 8 channels would fit, its weight of other inputs does not."""
    model, before, report = start(saved, CLASSES, fpn_channels=16)
    again = {item.partition(" ")[0] for item in report.reinitialised}
    assert "prediction_layers.0.bbox_layer" in again
    assert_taken(model, before, saved, again)
    assert "prediction_layers.0.bbox_layer (8 -> 16 input channels)" in report.reinitialised
    assert "fpn.lat_layers.0 (8 -> 16 channels)" in report.reinitialised
    assert "fpn.pred_layers.0 ((8, 8, 3, 3) -> (16, 16, 3, 3))" in report.reinitialised


def test_deformable_convolutions_start_from_plain_ones(tmp_path: Path) -> None:
    plain = other_numbers(network(backbone="resnet50"))
    save_model(plain, CLASSES, tmp_path)
    chosen = [[], [0], [], [0]]
    model, before, report = start(tmp_path, CLASSES, backbone="resnet50", deformable_blocks=chosen)
    assert sorted(report.reinitialised) == [
        "backbone.layers.1.0.conv2.bias (not in the file)",
        "backbone.layers.1.0.conv2.conv_offset_mask (not in the file)",
        "backbone.layers.3.0.conv2.bias (not in the file)",
        "backbone.layers.3.0.conv2.conv_offset_mask (not in the file)",
    ]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict().get(name, before[name])), name


def test_batch_counters_may_be_missing(saved: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in load_file(saved / WEIGHTS_FILE).items() if "num_batches" not in name}
    save_file(kept, tmp_path / WEIGHTS_FILE)
    (tmp_path / DESCRIPTION_FILE).write_bytes((saved / DESCRIPTION_FILE).read_bytes())
    _, _, report = start(tmp_path, CLASSES)
    assert report.reinitialised == []


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"backbone": "resnet50"}, "resnet50"),
        (DARKNET, "darknet53"),
    ],
)
def test_a_backbone_of_another_family_is_rejected(saved: Path, settings: dict[str, Any], theirs: str) -> None:
    model = network(initial_weights=str(saved), **settings)
    before = copied(model.state_dict())
    with pytest.raises(WeightsError) as refused:
        load_initial_weights(model, CLASSES)
    assert str(refused.value) == (
        f"model.initial_weights: {saved}: its backbone (resnet18) does not match this network's ({theirs}); copy the "
        "settings of section model from its model.json"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_file_without_any_fitting_layer_is_rejected(saved: Path, tmp_path: Path) -> None:
    save_file({"something.else": torch.zeros(3)}, tmp_path / WEIGHTS_FILE)
    (tmp_path / DESCRIPTION_FILE).write_bytes((saved / DESCRIPTION_FILE).read_bytes())
    with pytest.raises(WeightsError, match="does not match this network's"):
        start(tmp_path, CLASSES)


def test_a_folder_without_a_model_is_named_with_the_setting(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"^model\.initial_weights: {tmp_path}/model\.json: no such file\."):
        start(tmp_path, CLASSES)
    (tmp_path / DESCRIPTION_FILE).write_bytes((saved / DESCRIPTION_FILE).read_bytes())
    with pytest.raises(WeightsError, match=rf"^model\.initial_weights: {tmp_path}/model\.safetensors: no such file\."):
        start(tmp_path, CLASSES)


def test_a_whole_network_takes_precedence_over_a_backbone(saved: Path) -> None:
    model = network(initial_weights=str(saved), backbone_weights="nowhere.pth")
    load_starting_weights(model, CLASSES)
    assert torch.equal(model.backbone.conv1.weight, load_file(saved / WEIGHTS_FILE)["backbone.conv1.weight"])
    with pytest.raises(WeightsError, match=r"^model\.backbone_weights: nowhere\.pth: no such file\. It may be none, "):
        load_starting_weights(network(backbone_weights="nowhere.pth"), CLASSES)


def test_a_network_that_starts_from_another_has_frozen_batch_norm(saved: Path) -> None:
    norms = [m for m in network(initial_weights=str(saved)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)


# --- a backbone ---------------------------------------------------------------------------------------------------


def tiny(backbone_weights: str = "none", backbone: str = "resnet18") -> Yolact:
    """A small network with all blocks of its backbone."""
    return network(backbone_weights=backbone_weights, backbone=backbone, backbone_blocks=None)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    """torchvision's ResNet-18 with non-default weights."""
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
def test_a_torchvision_file_is_loaded(classifier: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(classifier.state_dict(), path)
    else:
        save_file(classifier.state_dict(), path)
    model = tiny(str(path))
    head = model.prediction_layers[0].bbox_layer.weight.clone()
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)
    assert torch.equal(model.prediction_layers[0].bbox_layer.weight, head)  # the rest keeps its initial values


def test_an_old_torchvision_file_without_batch_counters_is_loaded(classifier: torch.nn.Module, tmp_path: Path) -> None:
    """Files from before PyTorch 0.4.1, resnet50-19c8e357.pth among them, have no ``num_batches_tracked``."""
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in classifier.state_dict().items() if "num_batches_tracked" not in k}, path)
    model = tiny(str(path))
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)


def light_state_dict(name: str) -> dict[str, Tensor]:
    """A state_dict with the right names and shapes; each tensor is a single repeated number."""
    with torch.device("meta"):
        network = getattr(torchvision_models, name)(weights=None)
    return {key: torch.zeros(()).expand(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("file_of", "backbone", "named"),
    [
        ("resnet34", "resnet18", r"has unknown keys: layers\.0\.2\.conv1\.weight"),
        ("resnet18", "resnet34", r"lacks: layers\.0\.2\.conv1\.weight"),
        (
            "resnet50",
            "resnet34",
            r"has unknown keys: .*; has other shapes: layers\.0\.0\.conv1\.weight \(64, 64, 1, 1\)",
        ),
        ("resnet101", "resnet50", r"has unknown keys: layers\.2\.6\.conv1\.weight"),
    ],
)
def test_weights_of_another_backbone_are_rejected(file_of: str, backbone: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(light_state_dict(file_of), path)
    model = tiny(str(path), backbone)
    before = model.backbone.conv1.weight.clone()
    with pytest.raises(WeightsError, match=rf"weights\.pth: does not fit {backbone}: {named}"):
        load_backbone_weights(model)
    assert torch.equal(model.backbone.conv1.weight, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights at all", "is not a file of PyTorch weights; it is text"),
        (b"PK\x03\x04", "is truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_setting(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(WeightsError, match=r"^model\.backbone_weights: .*weights\.pth: no such file$"):
        load_backbone_weights(tiny(str(path)))
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"^model\.backbone_weights: .*weights\.pth: {message}"):
        load_backbone_weights(tiny(str(path)))


def backbone_file(model: Yolact, path: Path, **changes: Tensor) -> dict[str, Tensor]:
    """Save the weights of a network's backbone under its own names."""
    state = copied(model.backbone.state_dict()) | changes
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet18"},
        DARKNET,
        {"backbone": "resnet50", "deformable_blocks": [[], [0], [], [0]]},
    ],
)
def test_a_file_with_the_backbones_own_names_is_loaded(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "backbone.pth"
    state = backbone_file(other_numbers(network(**settings)), path)
    model = network(backbone_weights=str(path), **settings)
    load_backbone_weights(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.backbone.state_dict().items())


def test_a_darknet_file_without_batch_counters_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "darknet53.pth"
    state = other_numbers(network(**DARKNET)).backbone.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)
    model = network(backbone_weights=str(path), **DARKNET)
    load_backbone_weights(model)
    assert torch.equal(model.backbone.layers[4][0][0].weight, state["layers.4.0.0.weight"])
    assert model.backbone.layers[4][0][1].num_batches_tracked == 0


def test_deformable_convolutions_take_the_weights_of_plain_ones_and_start_as_half_of_them(tmp_path: Path) -> None:
    """A plain ResNet under torchvision's names; without offsets the modulation is sigmoid(0)."""
    torch.manual_seed(8)
    plain = torchvision_models.ResNet(torchvision_models.resnet.Bottleneck, [1, 1, 1, 1]).eval()
    path = tmp_path / "resnet.pth"
    torch.save(plain.state_dict(), path)
    model = network(backbone="resnet50", deformable_blocks=[[], [0], [], [0]], backbone_weights=str(path))
    load_backbone_weights(model)
    for stage, source in ((1, plain.layer2[0].conv2), (3, plain.layer4[0].conv2)):
        layer = model.backbone.layers[stage][0].conv2
        assert isinstance(layer, DeformableConv2d)
        assert torch.equal(layer.weight, source.weight)
        assert not any(parameter.any() for parameter in [layer.bias, *layer.conv_offset_mask.parameters()])
        images = torch.randn(1, source.in_channels, 6, 6)
        with torch.no_grad():
            torch.testing.assert_close(layer(images), source(images) / 2, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.backbone.layers[2][0].conv2.weight, plain.layer3[0].conv2.weight)


def test_a_deformable_file_that_lacks_a_layer_is_rejected(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backbone": "resnet50", "deformable_blocks": [[], [0], [], [0]]}
    state = network(**settings).backbone.state_dict()
    del state["layers.3.0.conv2.bias"]
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(WeightsError, match=r"does not fit resnet50: lacks: layers\.3\.0\.conv2\.bias$"):
        load_backbone_weights(network(backbone_weights=str(tmp_path / "backbone.pth"), **settings))


def test_a_deformable_file_does_not_fit_a_plain_backbone(tmp_path: Path) -> None:
    path = tmp_path / "backbone.pth"
    backbone_file(network(backbone="resnet50", deformable_blocks=[[], [0], [], []]), path)
    with pytest.raises(WeightsError, match=r"has unknown keys: layers\.1\.0\.conv2\.bias"):
        load_backbone_weights(network(backbone="resnet50", backbone_weights=str(path)))


def test_there_is_no_imagenet_darknet() -> None:
    with pytest.raises(WeightsError) as refused:
        load_backbone_weights(network(**DARKNET, backbone_weights="imagenet"))
    assert str(refused.value) == (
        "model.backbone_weights: imagenet: torchvision has no darknet53; name a file, such as the darknet53.pth of the "
        "published YOLACT, or set it to none"
    )


def test_imagenet_weights_are_not_downloaded_for_another_depth(hub: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        load_backbone_weights(network(backbone_weights="imagenet"))
    assert str(refused.value) == (
        "model.backbone_weights: imagenet: is for the resnet18 of blocks [2, 2, 2, 2], not [1, 1, 1, 1]; "
        "name a file or set it to none"
    )


def test_none_keeps_the_random_backbone() -> None:
    model = tiny("none")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone_weights(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's empty folder of files, on a machine without internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def refuse(*_: object, **__: object) -> None:
    raise URLError("no route to host")


def put_classifier(classifier: torch.nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of torchvision's ResNet-18 with its hash in its name, which torchvision then names as its own."""
    torch.save(classifier.state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    path = (folder / "new.pth").rename(folder / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"https://example.invalid/{path.name}")
    return path


def test_imagenet_loads_torchvisions_file_from_its_folder(
    classifier: torch.nn.Module, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_classifier(classifier, hub, monkeypatch)
    model = tiny("imagenet")
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)


def test_a_file_that_is_missing_there_is_downloaded_and_verified(
    classifier: torch.nn.Module, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    served = put_classifier(classifier, tmp_path, monkeypatch)
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", served.as_uri())
    hub.rmdir()
    model = tiny("imagenet")
    load_backbone_weights(model)
    assert_computes_the_same(model, classifier)
    [kept] = hub.iterdir()
    kept.unlink()
    served.write_bytes(served.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=r"imagenet: file://\S+ could not be .*invalid hash value"):
        load_backbone_weights(tiny("imagenet"))
    assert not list(hub.iterdir())


def test_a_failed_download_says_what_to_do(hub: Path) -> None:
    with pytest.raises(
        WeightsError,
        match=r"imagenet: https://\S+/resnet18-f37072fd\.pth could not be .*no route.* copy it into .*"
        r"checkpoints .*TORCH_HOME.* model\.backbone_weights=FILE",
    ):
        load_backbone_weights(tiny("imagenet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>sign in</html>", "is not a file of PyTorch weights; it is a web page or XML"),
        (b"", "is empty"),
        (b"\x01\x02garbage", "is not a file of PyTorch weights; it is of an unknown type"),
    ],
)
def test_a_damaged_file_in_torchvisions_folder_is_named(content: bytes, message: str, hub: Path) -> None:
    (hub / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(
        WeightsError,
        match=rf"^model\.backbone_weights: imagenet: \S+/resnet18-f37072fd\.pth: {message}.* Remove it, and it is "
        "downloaded again",
    ) as refused:
        load_backbone_weights(tiny("imagenet"))
    assert "weights_only" not in str(refused.value)


def test_a_readable_file_with_another_hash_than_in_its_name_is_refused(
    classifier: torch.nn.Module, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_classifier(classifier, hub, monkeypatch)
    torch.save(classifier.state_dict() | {"fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(WeightsError, match=rf"{path}: is damaged or another .*: its SHA-256 begins with \w{{8}}, not"):
        load_backbone_weights(tiny("imagenet"))


def test_newer_weights_are_torchvisions_second_version(hub: Path) -> None:
    newer = {"backbone": "resnet50", "backbone_blocks": None, "backbone_weights": "imagenet-v2"}
    with pytest.raises(WeightsError, match=r"imagenet-v2: https://\S+/resnet50-11ad3fa6\.pth"):
        load_backbone_weights(network(**newer))
    with pytest.raises(WeightsError, match="imagenet-v2: torchvision has no second version for resnet18; use imagenet"):
        load_backbone_weights(network(**newer | {"backbone": "resnet18"}))
