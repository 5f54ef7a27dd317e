"""The network's shapes, parameters, modes and wiring."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.loss_inputs import batch_for, losses_of, objects_of, published_loss
from tests.small_networks import tiny_config
from yolact.losses.criterion import YolactLoss
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.fpn import FPN
from yolact.models.head import PredictionHead
from yolact.models.protonet import Protonet
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed: int = 0, **changes: object) -> Yolact:
    torch.manual_seed(seed)
    return Yolact(tiny_config(**changes), 3)


def image_batch(batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- complete networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "cells"), [(64, [8, 4, 2, 1, 1]), (70, [9, 5, 3, 2, 1]), (100, [13, 7, 4, 2, 1])])
def test_every_input_size_gives_one_prediction_per_anchor(size: int, cells: list[int]) -> None:
    network = tiny(image_size=size).eval()
    with torch.no_grad():
        outputs = network(image_batch(2, size))
    count = 3 * sum(side * side for side in cells)
    assert outputs.boxes.shape == (2, count, 4)
    assert outputs.class_logits.shape == (2, count, 4)
    assert outputs.mask_coefficients.shape == (2, count, 4)
    assert outputs.anchors.shape == (count, 4)
    assert outputs.prototypes.shape == (2, 2 * cells[0], 2 * cells[0], 4)


@pytest.mark.parametrize("scales", [[[8, 12], [16, 20], [24, 30], [40, 50], [60, 64]]])
def test_several_scales_per_level_widen_the_head(scales: list[list[float]]) -> None:
    outputs = tiny(anchor_scales=scales).eval()(image_batch(1))
    assert outputs.boxes.shape[1] == outputs.anchors.shape[0] == 6 * (64 + 16 + 4 + 1 + 1)


def test_ranges_of_the_outputs() -> None:
    outputs = tiny()(image_batch())
    assert outputs.mask_coefficients.abs().max() <= 1
    assert outputs.mask_coefficients.min() < 0
    assert outputs.prototypes.min() >= 0
    assert outputs.class_logits.min() < 0


def test_semantic_logits_exist_in_training_only() -> None:
    network = tiny()
    assert network.train()(image_batch()).semantic_logits.shape == (2, 3, 8, 8)
    assert network.eval()(image_batch()).semantic_logits is None


def test_images_of_a_batch_are_independent_in_evaluation() -> None:
    network = tiny().eval()
    images = image_batch(3)
    with torch.no_grad():
        together, alone = network(images), network(images[1:2])
    torch.testing.assert_close(together.boxes[1:2], alone.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.prototypes[1:2], alone.prototypes, atol=1e-5, rtol=1e-4)


def test_anchors_are_cached_per_shape_and_are_not_weights() -> None:
    network = tiny().eval()
    with torch.no_grad():
        first = network(image_batch(1)).anchors
        other = network(image_batch(1, 96)).anchors
        again = network(image_batch(1)).anchors
    assert again is first
    assert len(other) > len(first)
    assert not any("anchor" in key for key in network.state_dict())


def test_channels_last_computes_the_same() -> None:
    network = tiny().eval()
    with torch.no_grad():
        plain = network(image_batch())
        network.to(memory_format=torch.channels_last)
        turned = network(image_batch().contiguous(memory_format=torch.channels_last))
    for name in ("boxes", "class_logits", "mask_coefficients", "prototypes"):
        torch.testing.assert_close(getattr(turned, name), getattr(plain, name), atol=1e-5, rtol=1e-4)


# --- start values ---------------------------------------------------------------------------------------------------


def test_new_layers_start_with_xavier_weights_and_zero_biases() -> None:
    """Glorot and Bengio 2010, equation 16: uniform within the root of 6 / (fan in + fan out)."""
    network = tiny(fpn_channels=32, mask_rescoring=True, image_size=249)
    count = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
            area = module.kernel_size[0] * module.kernel_size[1]
            bound = math.sqrt(6 / (area * (module.in_channels + module.out_channels)))
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
            assert not module.bias.any(), name
            count += 1
    assert count == 3 + 3 + 2 + 5 + 4 + 1 + 6  # laterals, smoothing, downsampling, protonet, head, semantic, re-scoring


def test_deformable_convolutions_start_without_offsets_and_with_even_modulation() -> None:
    network = tiny(backbone="resnet50", deformable_blocks=[[], [0], [], [0]])
    layers = [module for module in network.modules() if isinstance(module, DeformableConv2d)]
    assert len(layers) == 2
    for layer in layers:
        assert not any(parameter.any() for parameter in layer.conv_offset_mask.parameters())
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * layer.weight.shape[0])), rel=0.05)


def test_mask_rescoring_exists_if_enabled() -> None:
    assert tiny().maskiou_net is None
    network = tiny(mask_rescoring=True, image_size=249)
    assert network.maskiou_net is not None
    assert {key for key in network.state_dict() if "maskiou" in key} == {
        f"maskiou_net.maskiou_net.{layer}.{kind}" for layer in range(0, 12, 2) for kind in ("weight", "bias")
    }


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = tiny(4).state_dict(), tiny(4).state_dict(), tiny(5).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fpn.lat_layers.0.weight"], other["fpn.lat_layers.0.weight"])


# --- batch norm -------------------------------------------------------------------------------------------------------


def statistics(network: Yolact) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items() if "running" in key or "tracked" in key}


def training_step(network: Yolact) -> None:
    outputs = network(image_batch())
    (outputs.class_logits.square().sum() + outputs.semantic_logits.sum() + outputs.prototypes.sum()).backward()


def norms(network: Yolact) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("switched", [True, False], ids=["after train()", "as constructed"])
@pytest.mark.parametrize(
    ("backbone", "pretrained", "count"),
    [
        ("resnet18", {"backbone_weights": "imagenet"}, 1 + 4 * 2 + 3),
        ("resnet18", {"initial_weights": "models"}, 1 + 4 * 2 + 3),
        ("darknet53", {"backbone_weights": "darknet53.pth", "backbone_blocks": [1] * 5}, 1 + 5 * 3),
    ],
)
def test_batch_norm_of_a_pretrained_backbone_is_frozen(
    backbone: str, pretrained: dict[str, object], count: int, switched: bool
) -> None:
    network = tiny(backbone=backbone, **pretrained)
    if switched:
        network.eval().train()
    assert network.training
    before = statistics(network)
    training_step(network)
    after = statistics(network)
    assert len(norms(network)) == count
    assert len(before) == 3 * count
    assert all(torch.equal(before[key], after[key]) for key in before)
    for norm in norms(network):
        assert norm.weight.grad is None
        assert norm.bias.grad is None
    convolutions = [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    assert all(convolution.weight.grad.abs().sum() > 0 for convolution in convolutions)  # they do learn


def test_batch_norm_of_a_backbone_from_scratch_is_trained() -> None:
    network = tiny(backbone_weights="none").train()
    before = statistics(network)
    training_step(network)
    after = statistics(network)
    assert not any(torch.equal(before[key], after[key]) for key in before)
    assert all(norm.weight.grad is not None for norm in norms(network))


def test_evaluation_does_not_change_batch_norm_statistics() -> None:
    network = tiny(backbone_weights="none").eval()
    before = statistics(network)
    with torch.no_grad():
        network(image_batch())
    assert all(torch.equal(before[key], value) for key, value in statistics(network).items())


def test_only_the_backbone_has_batch_norm() -> None:
    names = [name for name, module in tiny().named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(name.startswith("backbone.") for name in names)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_only_p3_to_p5_end_in_relu() -> None:
    torch.manual_seed(0)
    fpn = FPN((4, 6, 8), 5)
    with torch.no_grad():
        pyramid = fpn([torch.randn(1, 4, 16, 16), torch.randn(1, 6, 8, 8), torch.randn(1, 8, 4, 4)])
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert all(level.min() >= 0 for level in pyramid[:3])
    assert all(level.min() < 0 for level in pyramid[3:])
    torch.testing.assert_close(pyramid[3], fpn.downsample_layers[0](pyramid[2]))
    torch.testing.assert_close(pyramid[4], fpn.downsample_layers[1](pyramid[3]))


def pass_through(conv: nn.Conv2d) -> None:
    """Make a one-channel convolution copy its input (its centre pixel)."""
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, :, middle, middle] = 1
        conv.bias.zero_()


def test_the_pyramid_adds_from_deep_to_shallow_before_relu() -> None:
    """C5 = -1, C4 = 3, C3 = -5: sums -1, 2, -3. With ReLU'd sums P3 would be the same, so P4 decides: 2, not 3."""
    fpn = FPN((1, 1, 1), 1)
    for conv in (*fpn.lat_layers, *fpn.pred_layers, *fpn.downsample_layers):
        pass_through(conv)
    with torch.no_grad():
        pyramid = fpn([torch.full((1, 1, 8, 8), -5.0), torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 2, 2), -1.0)])
    assert [level.unique().tolist() for level in pyramid] == [[0], [2], [0], [0], [0]]


def test_the_deepest_level_comes_first_in_the_pyramids_keys() -> None:
    weights = FPN((4, 6, 8), 5).state_dict()
    assert [weights[f"lat_layers.{i}.weight"].shape[1] for i in range(3)] == [8, 6, 4]


def test_head_lists_cells_by_row_then_anchors_then_numbers() -> None:
    head = PredictionHead(1, anchors_per_cell=2, num_classes=2, num_prototypes=3)
    pass_through(head.upfeature[0])
    for conv in (head.bbox_layer, head.conf_layer, head.mask_layer):
        pass_through(conv)  # every output channel is the cell's value ...
        with torch.no_grad():
            conv.bias.copy_(torch.arange(conv.out_channels) / 100)  # ... plus its own number
    cells = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])
    with torch.no_grad():
        predictions = head([cells])
    for output, size in ((predictions.boxes, 4), (predictions.class_logits, 3)):
        expected = [
            [cell + (anchor * size + k) / 100 for k in range(size)] for cell in range(1, 7) for anchor in range(2)
        ]
        torch.testing.assert_close(output[0], torch.tensor(expected))
    expected = [
        [math.tanh(cell + (anchor * 3 + k) / 100) for k in range(3)] for cell in range(1, 7) for anchor in range(2)
    ]
    torch.testing.assert_close(predictions.mask_coefficients[0], torch.tensor(expected))


def test_protonet_doubles_the_size_and_ends_in_relu() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        prototypes = Protonet(6, 4)(torch.randn(2, 6, 5, 7))
    assert prototypes.shape == (2, 10, 14, 4)
    assert prototypes.min() == 0


# --- training and inference in one process ----------------------------------------------------------------------------


def test_training_continues_after_inference_mode() -> None:
    """Anchors cached during inference must not break the next training step."""
    network = tiny()
    with torch.inference_mode():
        network.eval()(image_batch(1))
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    objects = objects_of([[10 / 64, 10 / 64, 40 / 64, 40 / 64]], [1], masks)
    outputs = network.train()(image_batch(1))
    losses_of(YolactLoss(published_loss()), outputs, batch_for(outputs, [objects])).total.backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
