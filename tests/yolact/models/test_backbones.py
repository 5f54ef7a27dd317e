"""Backbones: layers against the papers' tables, deformable convolution against its formula in plain loops."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet

from tests.small_networks import tiny_config
from yolact.models.backbones.base import build_backbone
from yolact.models.backbones.darknet import Darknet, DarknetBlock
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.backbones.resnet import BasicBlock, Bottleneck, BottleneckResNet
from yolact.models.published import PUBLISHED_MODELS

pytestmark = pytest.mark.usefixtures("one_thread")


def shapes_of(backbone: nn.Module, height: int = 64, width: int = 96) -> list[tuple[int, ...]]:
    """Shapes of C3, C4 and C5 for one image; the backbone is on the device `meta`."""
    return [tuple(feature.shape[1:]) for feature in backbone(torch.empty(1, 3, height, width, device="meta"))]


# --- ResNets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (128, 256, 512)),
        ("resnet34", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("resnet101", (512, 1024, 2048)),
        ("darknet53", (256, 512, 1024)),
    ],
)
def test_backbones_return_c3_to_c5_at_strides_8_16_and_32(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(tiny_config(backbone=name, backbone_blocks=None))
    assert backbone.channels == channels
    assert shapes_of(backbone) == [(c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)]
    assert shapes_of(backbone, 65, 95) == [(channels[0], 9, 12), (channels[1], 5, 6), (channels[2], 3, 3)]


@pytest.mark.parametrize(
    ("name", "blocks", "kind"),
    [
        ("resnet18", [2, 2, 2, 2], BasicBlock),
        ("resnet34", [3, 4, 6, 3], BasicBlock),
        ("resnet50", [3, 4, 6, 3], Bottleneck),
        ("resnet101", [3, 4, 23, 3], Bottleneck),
    ],
)
def test_resnets_have_the_blocks_of_their_paper(name: str, blocks: list[int], kind: type[nn.Module]) -> None:
    """He et al. 2016, table 1."""
    with torch.device("meta"):
        backbone = build_backbone(tiny_config(backbone=name, backbone_blocks=None))
    assert [len(stage) for stage in backbone.layers] == blocks
    assert all(isinstance(block, kind) for stage in backbone.layers for block in stage)


@pytest.mark.parametrize(
    ("name", "block"), [("resnet18", resnet.BasicBlock), ("resnet50", resnet.Bottleneck)], ids=["basic", "bottleneck"]
)
def test_resnets_compute_and_start_as_torchvisions(name: str, block: Any) -> None:
    torch.manual_seed(0)
    theirs = resnet.ResNet(block, [2, 1, 2, 1])
    ours = build_backbone(tiny_config(backbone=name, backbone_blocks=[2, 1, 2, 1]))
    state = {
        re.sub(r"^layer(\d)", lambda found: f"layers.{int(found[1]) - 1}", key): value
        for key, value in theirs.state_dict().items()
        if not key.startswith("fc.")
    }
    for key, value in ours.state_dict().items():
        if value.dim() == 4:
            assert value.std() == pytest.approx(state[key].std().item(), rel=0.1), key
            assert abs(value.mean()) < 0.1 * value.std(), key
        else:
            assert torch.equal(value, state[key]), key
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 70, 98)
    features = [theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))]
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        features.append(stage(features[-1]))
    for found, expected in zip(ours(x), features[2:], strict=True):  # both in training mode
        torch.testing.assert_close(found, expected)


def test_the_number_of_blocks_can_be_chosen() -> None:
    with torch.device("meta"):
        resnet = build_backbone(tiny_config(backbone="resnet50", backbone_blocks=[1, 3, 2, 1]))
        darknet = build_backbone(tiny_config(backbone="darknet53", backbone_blocks=[2, 1, 1, 3, 1]))
    assert [len(stage) for stage in resnet.layers] == [1, 3, 2, 1]
    assert [len(stage) - 1 for stage in darknet.layers] == [2, 1, 1, 3, 1]  # the first of each stage halves the size
    assert shapes_of(resnet)[2] == (2048, 2, 3)
    assert shapes_of(darknet)[2] == (1024, 2, 3)


# --- Darknet ------------------------------------------------------------------------------------------------------


def darknet_stage(channels: int, blocks: int) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of the stage's convolutions."""
    return [(channels, 3, 2)] + blocks * [(channels // 2, 1, 1), (channels, 3, 1)]


def test_darknet_has_the_convolutions_of_its_paper() -> None:
    """Redmon and Farhadi 2018, table 1: 52 convolutions; the 53rd layer of the name classifies."""
    expected = [(32, 3, 1)]
    for channels, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        expected += darknet_stage(channels, blocks)
    with torch.device("meta"):
        backbone = Darknet((1, 2, 8, 8, 4))
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions] == expected
    assert len(convolutions) == 52
    assert all(conv.bias is None and conv.padding[0] == conv.kernel_size[0] // 2 for conv in convolutions)


def test_a_darknet_block_adds_two_leaky_convolutions_to_its_input() -> None:
    """A single pixel, so only the kernels' centres matter.

    1x1: 3 - 5 = -2, leaky -0.2. 3x3: -2 and 2, leaky -0.2 and 2. Sums 2.8 and -3: they are not clipped.
    """
    block = DarknetBlock(2).eval()
    with torch.no_grad():
        block.conv1[0].weight.copy_(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
        block.conv2[0].weight.fill_(7)
        block.conv2[0].weight[:, 0, 1, 1] = torch.tensor([10.0, -10.0])
        found = block(torch.tensor([3.0, -5.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([2.8, -3.0]), atol=1e-4, rtol=0)


def test_a_new_darknet_keeps_the_scale_of_its_input() -> None:
    """Otherwise its deepest features would vanish or explode, and it could not be trained from scratch."""
    torch.manual_seed(0)
    backbone = Darknet((1, 1, 1, 1, 1))
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 64, 64))
    assert all(0.1 < feature.std() < 10 for feature in features)


# --- deformable convolution ---------------------------------------------------------------------------------------


def bilinear(plane: list[list[float]], row: float, column: float) -> float:
    """The value of ``plane`` between its pixels; zero outside it."""
    top, left = math.floor(row), math.floor(column)
    value = 0.0
    for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= y < len(plane) and 0 <= x < len(plane[0]):
            value += plane[y][x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return value


def plain_deformable(layer: DeformableConv2d, image: Tensor) -> Tensor:
    """Zhu et al. 2019, equation 1, written out for one (C, H, W) image, in double precision."""
    offset_conv = layer.conv_offset_mask
    predicted = F.conv2d(
        image.double()[None], offset_conv.weight.double(), offset_conv.bias.double(), layer.stride, padding=1
    )[0].tolist()
    planes, weight, bias = image.double().tolist(), layer.weight.double().tolist(), layer.bias.double().tolist()
    height, width = len(predicted[0]), len(predicted[0][0])
    output = torch.empty(len(weight), height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            sampled = []  # per kernel point, per input channel
            for point in range(9):
                y = row * layer.stride - 1 + point // 3 + predicted[2 * point][row][column]
                x = column * layer.stride - 1 + point % 3 + predicted[2 * point + 1][row][column]
                modulation = 1 / (1 + math.exp(-predicted[18 + point][row][column]))
                sampled.append([modulation * bilinear(plane, y, x) for plane in planes])
            for channel, kernel in enumerate(weight):
                output[channel, row, column] = bias[channel] + sum(
                    kernel[source][point // 3][point % 3] * sampled[point][source]
                    for point in range(9)
                    for source in range(len(planes))
                )
    return output


def deformable(stride: int, offset_scale: float) -> DeformableConv2d:
    generator = torch.Generator().manual_seed(7)
    layer = DeformableConv2d(3, 4, stride)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for parameter in layer.conv_offset_mask.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * offset_scale)
    return layer


def random_image(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize(("stride", "shape"), [(1, (5, 6)), (2, (5, 6)), (2, (6, 7))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_deformable_convolution_is_its_formula(
    stride: int, shape: tuple[int, int], memory_format: torch.memory_format
) -> None:
    layer, image = deformable(stride, 0.3).to(memory_format=memory_format), random_image(*shape)
    offsets = layer.conv_offset_mask(image[None])[:, :18]
    assert offsets.abs().max() > 2  # points then fall between pixels and outside the image
    with torch.no_grad():
        found = layer(image[None].contiguous(memory_format=memory_format))[0]
    assert found.shape == (4, -(-shape[0] // stride), -(-shape[1] // stride))
    torch.testing.assert_close(found.double(), plain_deformable(layer, image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_starts_as_half_of_the_plain_one(stride: int) -> None:
    layer = DeformableConv2d(3, 4, stride)
    assert not layer.bias.any()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2, 3, 0]))
        image = random_image(6, 7)[None]
        plain = F.conv2d(image, layer.weight, None, stride, padding=1)
        torch.testing.assert_close(layer(image), plain / 2 + layer.bias.view(4, 1, 1), atol=1e-5, rtol=1e-5)


def test_deformable_convolution_works_in_a_network_of_half_precision() -> None:
    layer, image = deformable(2, 0.05), random_image(6, 7)[None]
    with torch.no_grad():
        expected = layer(image)
        found = layer.bfloat16()(image.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.2, rtol=0.05)


PUBLISHED_DEFORMABLE = {
    "yolact_base": [],
    "yolact_darknet53": [],
    "yolact_plus_base": ["1.0", "1.3", "2.0", "2.3", "2.6", "2.9", "2.12", "2.15", "2.18", "2.21", "3.0"],
    "yolact_plus_resnet50": [f"1.{b}" for b in range(4)] + [f"2.{b}" for b in range(6)] + [f"3.{b}" for b in range(3)],
}
"""Stage and block; the published code asks for 11 of them with ResNet-101 and for 13 with ResNet-50."""


@pytest.mark.parametrize("name", PUBLISHED_DEFORMABLE)
def test_deformable_convolutions_are_where_the_published_networks_have_them(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(PUBLISHED_MODELS[name].model)
    found = [key for key, module in backbone.named_modules() if isinstance(module, DeformableConv2d)]
    assert found == [f"layers.{place}.conv2" for place in PUBLISHED_DEFORMABLE[name]]


def test_a_deformable_convolution_keeps_the_stride_of_the_one_it_replaces() -> None:
    with torch.device("meta"):
        backbone = BottleneckResNet([2, 2, 2, 2], [[1], [0, 1], [0], []])
        strides = {
            key: module.stride for key, module in backbone.named_modules() if isinstance(module, DeformableConv2d)
        }
        assert shapes_of(backbone) == [(512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    assert strides == {"layers.0.1.conv2": 1, "layers.1.0.conv2": 2, "layers.1.1.conv2": 1, "layers.2.0.conv2": 2}
