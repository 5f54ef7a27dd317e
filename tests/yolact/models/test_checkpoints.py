"""Published checkpoints: the network is inferred from names and shapes, values are unchanged, errors are named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.small_networks import tiny_config
from yolact.class_names import COCO_CLASSES, VOC_CLASSES
from yolact.errors import DataError, SettingsError, WeightsError
from yolact.models.checkpoints import import_checkpoint, infer_model_config, read_class_names, without_unused
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]
TINY: dict[str, Any] = {
    "image_size": 64,
    "anchor_scales": [[8], [16], [24], [40], [60]],
    "anchor_ratios": [1, 0.5, 2],
    "square_anchors": False,
}
"""What the weights of `tests.small_networks.tiny_config` do not tell."""


def shapes(config: ModelConfig, num_classes: int) -> State:
    """The state of a network, without values."""
    with torch.device("meta"):
        return Yolact(config, num_classes).state_dict()


def tiny_state(classes: int = 2, **settings: object) -> State:
    torch.manual_seed(4)
    state = Yolact(tiny_config(**settings), classes).state_dict()
    for name, tensor in state.items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
        elif "num_batches" in name:
            tensor.fill_(5)
    return state


def published_shapes(name: str) -> State:
    published = PUBLISHED_MODELS[name]
    return shapes(published.model, len(published.classes))


@pytest.fixture(scope="module")
def state() -> State:
    """State of a small network with two classes; tests modify copies of it."""
    return tiny_state()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(WeightsError) as refused:
        import_checkpoint(path, **(TINY | arguments))
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def refusal_of(state: State, path: Path, **arguments: Any) -> str:
    torch.save(state, path)
    return refusal(path, **arguments)


# --- which network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_each_published_configuration_is_known_by_its_shapes_and_file_name(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = infer_model_config(published_shapes(name), name_hint=f"{name}_54_800000.pth")
    assert config == PUBLISHED_MODELS[name].model
    assert caplog.messages == []


@pytest.mark.parametrize("name", [name for name in PUBLISHED_MODELS if name not in ("yolact_im400", "yolact_im700")])
def test_shapes_alone_determine_all_but_the_image_size(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """yolact_base, yolact_im400 and yolact_im700 have the same; the one with 550 px is taken, with a warning."""
    assert infer_model_config(published_shapes(name)) == PUBLISHED_MODELS[name].model
    expected = (
        "the weights do not determine the anchors and the image size, taken from yolact_base: yolact_base, "
        "yolact_im400, yolact_im700 have the same keys and shapes. If that is wrong, give the published configuration "
        "(--model NAME) or the image size (--image-size N)"
    )
    assert caplog.messages == ([expected] if name == "yolact_base" else [])


@pytest.mark.parametrize(("name", "size"), [("yolact_base", 550), ("yolact_im400", 400), ("yolact_im700", 700)])
def test_the_image_size_or_the_model_can_be_given(name: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    state = published_shapes("yolact_base")
    assert infer_model_config(state, image_size=size) == PUBLISHED_MODELS[name].model
    assert infer_model_config(state, model=name) == PUBLISHED_MODELS[name].model
    assert infer_model_config(state, model=name, name_hint="yolact_im700_1_2.pth") == PUBLISHED_MODELS[name].model
    assert caplog.messages == []


def test_names_that_only_start_like_a_published_one_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    config = infer_model_config(published_shapes("yolact_base"), name_hint="yolact_im700x_1_2.pth")
    assert config.image_size == 550
    assert len(caplog.messages) == 1


def test_a_name_of_another_network_is_ignored() -> None:
    config = infer_model_config(published_shapes("yolact_darknet53"), name_hint="yolact_im700_1_2.pth")
    assert config == PUBLISHED_MODELS["yolact_darknet53"].model


@pytest.mark.parametrize(
    ("hint", "model", "like", "why"),
    [
        ("mine.pth", None, "yolact_resnet50", "it has the same network, though 80 classes and not 5"),
        ("yolact_resnet50_pascal_mine_1_2.pth", None, "yolact_resnet50_pascal", "the file is named like it, though it"),
        (
            "mine.pth",
            "yolact_resnet50_pascal",
            "yolact_resnet50_pascal",
            "5 classes, not the 20 of yolact_resnet50_pascal",
        ),
    ],
)
def test_another_number_of_classes_keeps_the_anchors_of_the_network(
    hint: str, model: str | None, like: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = shapes(PUBLISHED_MODELS["yolact_resnet50"].model, 5)
    assert infer_model_config(state, name_hint=hint, model=model) == PUBLISHED_MODELS[like].model
    (message,) = caplog.messages
    assert why in message


def test_anchor_scales_change_with_the_image_size() -> None:
    """Truncated to whole pixels: 24 * 400 / 550 = 17.45; 32 * 300 / 550 = 17.45; 24 * 250 / 550 = 10.9."""

    def scales(name: str, size: int, model: str | None = None) -> list[list[float]]:
        return infer_model_config(published_shapes(name), image_size=size, model=model).anchor_scales

    assert scales("yolact_resnet50", 400) == [[17], [34], [69], [139], [279]]
    assert scales("yolact_base", 400, "yolact_im700") == [[17], [34], [69], [139], [279]]
    assert scales("yolact_resnet50_pascal", 300) == [[17], [34], [69], [139], [279]]
    assert scales("yolact_plus_resnet50", 250)[0] == pytest.approx([10, 10 * 2 ** (1 / 3), 10 * 2 ** (2 / 3)])


@pytest.mark.parametrize(
    ("settings", "like"),
    [
        ({"backbone": "resnet18", "backbone_blocks": None}, "yolact_base"),
        ({"backbone": "resnet34", "backbone_blocks": None}, "yolact_base"),
        ({"backbone": "resnet18", "backbone_blocks": [1, 2, 1, 3]}, "yolact_base"),
        ({"backbone": "resnet50", "backbone_blocks": [1, 1, 1, 1]}, "yolact_base"),
        ({"backbone": "resnet50", "backbone_blocks": [2, 1, 11, 1], "deformable_blocks": [[1], [], [0, 10], []]}, None),
        ({"backbone": "darknet53", "backbone_blocks": [2, 1, 1, 3, 1]}, "yolact_base"),
        ({"backbone": "resnet101", "backbone_blocks": None, "num_prototypes": 7}, "yolact_base"),
    ],
)
def test_unpublished_networks_are_inferred_too(
    settings: dict[str, Any], like: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    per_cell: dict[str, Any] = {} if like else {"anchor_scales": [[8, 9, 10]] * 5, "mask_rescoring": True}
    built = tiny_config(**settings, **per_cell, image_size=256)
    found = infer_model_config(shapes(built, 7), image_size=256)
    anchors = PUBLISHED_MODELS[like or "yolact_plus_base"].model
    assert (found.square_anchors, found.anchor_ratios) == (anchors.square_anchors, anchors.anchor_ratios)
    assert found.anchors_per_cell == built.anchors_per_cell
    inferred = {"image_size", "backbone", "backbone_blocks", "deformable_blocks", "fpn_channels", "num_prototypes"}
    inferred |= {"mask_rescoring"}
    assert found.model_dump(include=inferred) == built.model_dump(include=inferred)
    (message,) = caplog.messages
    assert f"taken from {like or 'yolact_plus_base'}: no published configuration has this network" in message
    assert "If that is wrong, give the anchors (arguments of import_checkpoint in Python)" in message


def test_an_unnamed_depth_is_a_resnet50_or_resnet18_with_blocks_and_a_named_one_is_not() -> None:
    bottlenecks = infer_model_config(shapes(tiny_config(backbone="resnet101"), 2), **TINY)
    assert (bottlenecks.backbone, bottlenecks.backbone_blocks) == ("resnet50", [1, 1, 1, 1])
    basic = infer_model_config(shapes(tiny_config(backbone="resnet18", backbone_blocks=[3, 4, 6, 3]), 2), **TINY)
    assert (basic.backbone, basic.backbone_blocks) == ("resnet34", None)


def test_anchors_can_be_given_for_any_network_and_nothing_is_assumed(caplog: pytest.LogCaptureFixture) -> None:
    built = tiny_config(anchor_scales=[[8, 12]] * 5, anchor_ratios=[1, 2, 3, 4, 5], square_anchors=True)
    given = {"image_size": 64, "anchor_scales": [[8, 12]] * 5, "anchor_ratios": [1, 2, 3, 4, 5], "square_anchors": True}
    found = infer_model_config(shapes(built, 2), **given)
    assert found == built.model_copy(update={"backbone_weights": "imagenet"})
    assert caplog.messages == []


def test_some_of_the_anchors_can_be_given() -> None:
    found = infer_model_config(published_shapes("yolact_resnet50"), square_anchors=False, image_size=400)
    expected = {"square_anchors": False, "image_size": 400, "anchor_scales": [[17], [34], [69], [139], [279]]}
    assert found == PUBLISHED_MODELS["yolact_resnet50"].model.model_copy(update=expected)


def test_tensor_values_are_not_read(state: State) -> None:
    empty = {name: torch.full_like(tensor, 99) for name, tensor in state.items()}
    assert infer_model_config(empty, **TINY) == infer_model_config(state, **TINY)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "differences"),
    [
        (
            "yolact_base",
            "backbone resnet18, not resnet101; blocks [1, 1, 1, 1], not [3, 4, 23, 3]; fpn_channels 8, not 256",
        ),
        ("yolact_plus_resnet50", "not [[], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2]]"),
        ("yolact_plus_resnet50", "anchors_per_cell 3, not 9; mask_rescoring False, not True"),
    ],
)
def test_a_model_that_contradicts_the_shapes_is_rejected_with_the_differences(
    state: State, path: Path, model: str, differences: str
) -> None:
    message = refusal_of(state, path, model=model)
    assert message.startswith(f"is not {model}: ")
    assert differences in message


def test_an_unknown_model_is_rejected(state: State, path: Path) -> None:
    torch.save(state, path)
    with pytest.raises(SettingsError, match="no published configuration 'yolact_bas'; did you mean 'yolact_base'"):
        import_checkpoint(path, model="yolact_bas")


def test_a_network_of_another_kind_is_rejected(path: Path) -> None:
    from torchvision.models import resnet18

    with torch.device("meta"):
        names = resnet18().state_dict()
    message = refusal_of({name: torch.zeros(1) for name in names}, path)
    assert message == (
        "is not a YOLACT: no key starts with fpn., proto_net., prediction_layers., semantic_seg_conv.; its keys are "
        "conv1.weight, bn1.weight, bn1.bias and 119 more. To load a backbone's weights, use the setting "
        "model.backbone_weights"
    )


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["semantic_seg_conv.bias"], "lacks 1 key: semantic_seg_conv.bias"),
        (
            ["semantic_seg_conv.weight", "semantic_seg_conv.bias"],
            "lacks 2 keys: semantic_seg_conv.weight, semantic_seg",
        ),
        (
            ["prediction_layers."],
            "lacks 8 keys: prediction_layers.0.upfeature.0.weight, prediction_layers.0.upfeature.0.",
        ),
        (["proto_net.10."], "lacks 2 keys: proto_net.10.weight, proto_net.10.bias"),
        (["backbone.layers.2.0.conv2.", "backbone.layers.2.0.bn2."], "lacks 5 keys: backbone.layers.2.0.conv2.weight"),
        (["backbone."], "lacks 60 keys: backbone.conv1.weight, backbone.bn1.weight, backbone.bn1.bias and 57 more"),
    ],
)
def test_missing_keys_are_counted_and_named(state: State, path: Path, dropped: list[str], message: str) -> None:
    """The counter among batch norm's five tensors is optional, so a norm counts for four."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(dropped))}
    assert refusal_of(kept, path).startswith(message)


def test_a_gap_between_blocks_is_found(path: Path) -> None:
    state = tiny_state(backbone_blocks=[1, 3, 1, 1])
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.layers.1.1.")}
    assert refusal_of(kept, path).startswith("lacks 10 keys: backbone.layers.1.1.conv1.weight")


def test_unknown_keys_are_counted_and_named(state: State, path: Path) -> None:
    extra = {"maskiou.weight": torch.zeros(1), "backbone.layers.0.9999.conv1.weight": torch.zeros(1)}
    message = refusal_of(state | extra, path)
    assert message.startswith("lacks 10 keys: backbone.layers.0.1.conv1.weight")  # as two blocks, one of them invalid
    unknown = "; has 2 unknown keys: maskiou.weight, backbone.layers.0.9999.conv1.weight"
    assert message.endswith(f"{unknown}. Use the complete file, as published")
    message = refusal_of(state | {"a": torch.zeros(1)}, path)
    assert message == "has 1 unknown key: a. Use the complete file, as published"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("semantic_seg_conv.bias", (5,), "semantic_seg_conv.bias is (5,), but the others need (2,)"),
        (
            "prediction_layers.0.conf_layer.weight",
            (12, 8, 3, 3),
            "prediction_layers.0.conf_layer.weight is (12, 8, 3, 3), but the others need (9, 8, 3, 3)",
        ),
        (
            "prediction_layers.0.bbox_layer.bias",
            (),
            "prediction_layers.0.bbox_layer.bias is (), but the others need (12,)",
        ),
        (
            "backbone.conv1.weight",
            (64, 3, 5, 5),
            "backbone.conv1.weight is (64, 3, 5, 5), but the others need (64, 3, 7",
        ),
    ],
)
def test_shapes_that_contradict_each_other_are_named(
    state: State, path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    found = refusal_of(state | {name: torch.zeros(shape)}, path)
    assert found.startswith(f"has shapes that contradict each other: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_with_non_finite_values_are_named(state: State, path: Path, value: float) -> None:
    broken = state["fpn.pred_layers.1.bias"].clone()
    broken[3] = value
    assert refusal_of(state | {"fpn.pred_layers.1.bias": broken}, path) == (
        "has numbers that are not finite (NaN or infinity) in fpn.pred_layers.1.bias"
    )


def test_anchors_that_do_not_match_the_number_per_cell_are_rejected(state: State, path: Path) -> None:
    message = refusal_of(state, path, anchor_ratios=[1, 2])
    assert message == "has 3 anchors per cell; the scales and ratios given make 2"


def test_an_unpublished_number_of_anchors_requires_explicit_anchors(path: Path) -> None:
    state = tiny_state(anchor_ratios=[1, 2])
    assert refusal_of(state, path, anchor_ratios=None) == (
        "has 2 anchors per cell, unlike any published configuration; give image_size, anchor_scales, anchor_ratios and "
        "square_anchors to yolact.models.checkpoints.import_checkpoint in Python"
    )
    assert import_checkpoint(path, **(TINY | {"anchor_ratios": [1, 2]})).network.config.anchor_ratios == [1, 2]


def test_an_image_size_invalid_for_the_network_is_rejected(path: Path) -> None:
    with torch.device("meta"):
        names = Yolact(tiny_config(mask_rescoring=True, image_size=250), 2).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in names.items()}
    assert refusal_of(state, path, image_size=248) == (
        "does not give a valid network: Value error, mask_rescoring needs an image_size of at least 249"
    )
    assert "image_size Input should be greater than or equal to 64" in refusal_of(state, path, image_size=8)


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    assert refusal(path) == "no such file"
    path.write_bytes(b"<html>")
    assert refusal(path).startswith("is not a file of PyTorch weights; it is a web page")


def test_a_model_of_this_project_needs_no_import(tmp_path: Path) -> None:
    save_model(Yolact(tiny_config(), 2), ["cat", "dog"], tmp_path)
    assert refusal(tmp_path / "model.safetensors") == (
        f"already is a model of this project; use the folder {tmp_path} directly"
    )


# --- the network with its weights ---------------------------------------------------------------------------------


def outputs(network: Yolact, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(network.eval().tensors(images))[:4]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_values_are_unchanged_by_the_import_and_by_our_own_format(state: State, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    imported = import_checkpoint(path, **TINY)
    save_model(imported.network, imported.classes, tmp_path / "model")
    loaded, classes = load_model(tmp_path / "model")
    assert (loaded.config, classes) == (imported.network.config, imported.classes)
    assert not imported.network.training
    for network in (imported.network, loaded):
        found = network.state_dict()
        assert list(found) == list(state)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in state.items())
    original = Yolact(tiny_config(), 2)
    original.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    assert all(map(torch.equal, outputs(loaded, images), outputs(original, images)))


def test_half_precision_becomes_float32_and_counters_may_be_missing(state: State, path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in state.items() if "num_batches" not in name}
    torch.save(halves, path)
    found = import_checkpoint(path, **TINY).network.state_dict()
    assert all(torch.equal(found[name], half.float()) for name, half in halves.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in state.items())
    assert all(found[name] == 0 for name in found if "num_batches" in name)


def test_tensors_that_share_memory_are_separated(state: State, path: Path, tmp_path: Path) -> None:
    flat = torch.arange(16.0)
    shared = {
        "fpn.pred_layers.0.bias": flat[:8],
        "fpn.pred_layers.1.bias": flat[8:],
        "fpn.pred_layers.2.bias": flat[:8],
    }
    torch.save(state | shared, path)
    imported = import_checkpoint(path, **TINY)
    save_model(imported.network, imported.classes, tmp_path / "model")
    loaded = load_model(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shared.items())


def test_keys_that_version_1_saved_and_never_used_are_left_out(state: State, path: Path) -> None:
    legacy = {
        "backbone.layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3),
        "backbone.layer4.0.bn2.running_mean": torch.zeros(512),
        "fpn.downsample_layers.2.weight": torch.full((8, 8, 3, 3), float("nan")),
        "fpn.downsample_layers.10.bias": torch.zeros(8),
    }
    torch.save(legacy | state, path)
    imported = import_checkpoint(path, **TINY)
    assert imported.dropped == list(legacy)
    found = imported.network.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_only_those_keys_are_left_out(state: State) -> None:
    odd = {"backbone.layers.0.0.x": 1, "fpn.downsample_layers.1.x": 2, "fpn.downsample_layers.x": 3}
    kept, dropped = without_unused(odd)  # type: ignore[arg-type]
    assert (kept, dropped) == (odd, [])
    assert without_unused(state) == (state, [])
    other = {"backbone.layer1.0.weight": 1}  # of a backbone that is not a published ResNet
    assert without_unused(other) == (other, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "names"),
    [(80, list(COCO_CLASSES)), (20, list(VOC_CLASSES)), (3, ["class_1", "class_2", "class_3"])],
)
def test_class_names_are_those_of_the_data_set_with_as_many_classes(path: Path, number: int, names: list[str]) -> None:
    torch.save(tiny_state(number), path)
    assert import_checkpoint(path, **TINY).classes == names


def test_class_names_can_be_given_and_must_match_the_number_of_classes(state: State, path: Path) -> None:
    torch.save(state, path)
    assert import_checkpoint(path, classes=["cat", "dog"], **TINY).classes == ["cat", "dog"]
    assert refusal(path, classes=["cat"]) == "has 2 classes, but 1 class names are given"


def test_a_published_configuration_is_recognised_in_the_result(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network instead of the published one."""
    torch.save(tiny_state(5), path)
    assert import_checkpoint(path, **TINY).published is None
    small = PUBLISHED_MODELS["yolact_base"]
    config = tiny_config(backbone_weights="imagenet")
    monkeypatch.setitem(PUBLISHED_MODELS, "small", type(small)(**(vars(small) | {"name": "small", "model": config})))
    imported = import_checkpoint(path, model="small")
    assert (imported.published, imported.network.num_classes) == ("small", 5)


# --- class names --------------------------------------------------------------------------------------------------


def test_class_names_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat\r\n  traffic light \n\nZürich\n".encode())
    assert read_class_names(path) == ["cat", "traffic light", "Zürich"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"\xff\xfe\x00", "is not UTF-8 text: "),
        (b"cat\ndog\ncat\n", "has duplicate names: cat"),
    ],
)
def test_an_invalid_file_of_class_names_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "classes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_class_names(path)
    assert str(refused.value).startswith(f"{path}: {message}")


# --- against the published implementation -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("base_138", 138), ("plus_250", 250)])
def test_an_imported_network_computes_the_published_outputs(
    name: str, size: int, reference_fixtures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with np.load(reference_fixtures / f"{name}.npz") as arrays:
        state = {key.removeprefix("sd/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
        images = torch.from_numpy(arrays["input"]).float()
        expected = [torch.from_numpy(arrays[f"train/{key}"]).float() for key in ("loc", "conf", "mask", "proto")]
        anchors = torch.from_numpy(arrays["train/priors"])
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    imported = import_checkpoint(path, image_size=size)
    assert imported.network.config.backbone_blocks == [1, 1, 1, 1]
    assert imported.classes == list(VOC_CLASSES)
    save_model(imported.network, imported.classes, tmp_path / "model")
    network, _ = load_model(tmp_path / "model")
    for ours, theirs in zip(outputs(network, images), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    torch.testing.assert_close(network.anchors(network.level_sizes(size, size), torch.device("cpu")), anchors)
