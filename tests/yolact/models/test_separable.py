"""Light heads: separable convolutions, and other numbers of convolutions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small_networks import tiny_config
from tests.yolact.networks import assert_outputs_close, images, trained_like
from yolact.inference.export import export_onnx
from yolact.inference.network import InferenceNetwork
from yolact.models.complexity import count_flops, measure_complexity
from yolact.models.file_names import DESCRIPTION_FILE
from yolact.models.head import PredictionHead
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.separable import SeparableConv2d
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact

LIGHT: dict[str, object] = {"separable_convs": True, "head_convs": 2, "protonet_convs": 1}


def names_outside_the_backbone(model: Yolact) -> list[str]:
    return [name for name in model.state_dict() if not name.startswith("backbone.")]


@pytest.fixture
def layer() -> SeparableConv2d:
    torch.manual_seed(0)
    layer = SeparableConv2d(3)
    for tensor in (*layer.parameters(), layer.norm.running_mean, layer.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return layer


# --- the published heads --------------------------------------------------------------------------------------------


def test_the_published_heads_keep_their_names() -> None:
    pyramid = (("lat", 3), ("pred", 3), ("downsample", 2))
    layers = [f"fpn.{kind}_layers.{n}" for kind, count in pyramid for n in range(count)]
    layers += [f"proto_net.{n}" for n in (0, 2, 4, 8, 10)]
    layers += [f"prediction_layers.0.{name}" for name in ("upfeature.0", "bbox_layer", "conf_layer", "mask_layer")]
    layers += ["semantic_seg_conv"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert names_outside_the_backbone(Yolact(tiny_config(), 2)) == expected


def test_the_published_network_draws_the_same_weights_as_before_there_were_light_heads() -> None:
    """SHA-256 of names and weights of the ResNet-50 for PASCAL with seed 0, computed before."""
    torch.manual_seed(0)
    config = PUBLISHED_MODELS["yolact_resnet50_pascal"].model.model_copy(update={"image_size": 256})
    digest = hashlib.sha256()
    for name, tensor in Yolact(config, 5).state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest().startswith("390d07ef1b20dc75")


def test_models_saved_before_there_were_light_heads_have_the_published_ones(tmp_path: Path) -> None:
    save_model(Yolact(tiny_config(), 1), ["a"], tmp_path)
    file = tmp_path / DESCRIPTION_FILE
    description = json.loads(file.read_text(encoding="utf-8"))
    for name in LIGHT:
        del description["model"][name]
    file.write_text(json.dumps(description), encoding="utf-8")
    assert load_model(tmp_path)[0].config == tiny_config()


# --- separable convolutions -------------------------------------------------------------------------------------------


def test_a_separable_convolution_is_a_sum_over_shifts_then_over_channels(layer: SeparableConv2d) -> None:
    x = torch.randn(2, 3, 5, 4)
    padded = F.pad(x, (1, 1, 1, 1))
    kernels, mix = layer.depthwise.weight[:, 0], layer.pointwise.weight[:, :, 0, 0]
    alone = sum(kernels[:, i, j, None, None] * padded[:, :, i : i + 5, j : j + 4] for i in range(3) for j in range(3))
    mixed = torch.einsum("oi,bihw->bohw", mix, alone)
    norm = layer.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (mixed - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)


def test_in_evaluation_levels_are_independent(layer: SeparableConv2d) -> None:
    levels = [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 2, 3), torch.randn(2, 3, 1, 1)]
    layer.eval()
    for found, level in zip(layer.over_levels(levels), levels, strict=True):
        torch.testing.assert_close(found, layer(level))


def test_in_training_batch_norm_has_the_statistics_of_all_levels_together(layer: SeparableConv2d) -> None:
    levels = [torch.randn(2, 3, 4, 6), 5 + 2 * torch.randn(2, 3, 2, 3)]
    before = [layer.pointwise(layer.depthwise(level)) for level in levels]
    cells = torch.cat([level.transpose(0, 1).flatten(1) for level in before], dim=1)  # (channels, cells of the batch)
    mean, variance = cells.mean(dim=1), cells.var(dim=1, unbiased=False)
    found = layer.train().over_levels(levels)
    for one, level in zip(found, before, strict=True):
        normal = (level - mean[:, None, None]) / (variance + layer.norm.eps).sqrt()[:, None, None]
        expected = normal * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-4)


def test_each_channels_kernel_is_drawn_as_a_convolution_of_one_channel() -> None:
    """Glorot and Bengio 2010, equation 16, for 9 inputs and 9 outputs: uniform within the root of 6 / 18."""
    torch.manual_seed(0)
    weight = Yolact(tiny_config(fpn_channels=64, **LIGHT), 2).fpn.pred_layers[0].depthwise.weight
    bound = (6 / 18) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_settings_choose_the_convolutions() -> None:
    model = Yolact(tiny_config(head_convs=3, protonet_convs=0), 2)
    names = names_outside_the_backbone(model)
    assert [name for name in names if name.startswith(("proto", "pred")) and name.endswith(".weight")] == [
        *(f"proto_net.{n}.weight" for n in (2, 4)),
        *(f"prediction_layers.0.upfeature.{n}.weight" for n in (0, 2, 4)),
        *(f"prediction_layers.0.{name}_layer.weight" for name in ("bbox", "conf", "mask")),
    ]


def test_separable_heads_have_1x1_outputs() -> None:
    head = PredictionHead(8, 3, num_classes=2, num_prototypes=4, separable=True)
    assert [conv.kernel_size for conv in (head.bbox_layer, head.conf_layer, head.mask_layer)] == [(1, 1)] * 3


def light_costs(side: int, channels: int) -> Iterator[int]:
    """Multiplications of each layer outside a ResNet-18 with the settings `LIGHT`, by hand."""
    cells = [((side + 2**level - 1) // 2**level) ** 2 for level in range(8)]
    separable = 9 * channels + channels**2
    yield from (cells[level] * channels * deep for level, deep in ((3, 128), (4, 256), (5, 512)))
    yield from (cells[level] * separable for level in (3, 4, 5))
    yield from (cells[level] * 9 * channels**2 for level in (6, 7))
    yield cells[3] * separable
    yield 4 * cells[3] * (separable + channels * 4)
    yield from (cells[level] * (2 * separable + channels * 3 * (4 + 3 + 4)) for level in range(3, 8))


def test_the_cost_is_that_of_every_layer_by_hand() -> None:
    config = tiny_config(image_size=128, fpn_channels=16, **LIGHT)
    measured = measure_complexity(config, 2)
    assert measured.flops - measured.backbone_flops == 2 * sum(light_costs(128, 16))
    assert measured.flops == count_flops(Yolact(config, 2))


def test_the_backbones_batch_norm_is_frozen_and_the_heads_is_not() -> None:
    model = Yolact(tiny_config(backbone_weights="imagenet", **LIGHT), 2).train()
    assert model.config.trains_batch_norm
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    trained = {name for name, norm in norms.items() if norm.training and norm.weight.requires_grad}
    assert trained == {name for name in norms if not name.startswith("backbone.")}
    assert len(trained) == 3 + 2 + 2  # pyramid, protonet, head


@pytest.mark.parametrize(("separable", "weights", "trains"), [(False, "imagenet", False), (False, "none", True)])
def test_plain_heads_train_batch_norm_only_from_scratch(separable: bool, weights: str, trains: bool) -> None:
    assert tiny_config(separable_convs=separable, backbone_weights=weights).trains_batch_norm == trains


def test_a_training_step_at_batch_size_1_works_in_the_smallest_network() -> None:
    """P6 and P7 have one cell each: batch norm of one of them alone would have nothing to compute with."""
    model = Yolact(tiny_config(**LIGHT), 2).train()
    outputs = model(images(2))
    (outputs.class_logits.sum() + outputs.boxes.sum() + outputs.prototypes.sum()).backward()
    model.backbone.eval()
    outputs = model(images(1))
    assert outputs.class_logits.isfinite().all()


def outputs_of(model: Yolact, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model.tensors(x)[:4]


def test_saving_and_loading_keeps_the_network(tmp_path: Path) -> None:
    model = trained_like("separable")
    save_model(model, ["a", "b", "c"], tmp_path)
    loaded = load_model(tmp_path)[0]
    assert loaded.config == model.config
    assert_outputs_close(outputs_of(loaded, images(1)), outputs_of(model, images(1)), 0)


def test_an_exported_file_computes_the_networks_outputs(tmp_path: Path) -> None:
    exported = export_onnx(trained_like("separable"), ["a", "b", "c"], tmp_path / "model.onnx")
    assert exported.errors is not None
    assert max(exported.errors.values()) < 1e-4


def test_the_inference_network_does_not_change_with_the_batch() -> None:
    model = trained_like("separable")
    network = InferenceNetwork(model)
    found = network(images(3))
    tensors = (found.boxes, found.class_logits, found.mask_coefficients, found.prototypes)
    assert_outputs_close(tensors, outputs_of(model, images(3)), 2e-5)
