"""Count a network's parameters and the floating-point operations of its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolact.backbone_registry import BackboneSpec
from yolact.models.backbones.base import build_registered
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig

SAMPLING_FLOPS = 8
"""Operations per bilinearly sampled and modulated value: four products, three sums, one product."""


@dataclass(frozen=True)
class Complexity:
    """Size and cost of one network at its own input size."""

    parameters: int
    flops: int
    """For the forward pass of one image, see `count_flops`."""
    backbone_flops: int
    """Those of ``flops`` that are the backbone's."""
    rescoring_flops: int
    """For re-scoring one mask (YOLACT++), which runs only on detections and is not part of ``flops``; 0 without it."""
    anchors: int
    prototypes: tuple[int, int, int]
    """Height, width and number."""


def measure_complexity(config: ModelConfig, num_classes: int) -> Complexity:
    """Size and cost of the network that ``config`` describes; no weights are allocated.

    Args:
        config: the network.
        num_classes: classes without background.
    """
    model = build_on_meta(config, num_classes)
    outputs, flops = _run(model, config.image_size, config.image_size)
    _, backbone_flops = _run(model.backbone, config.image_size, config.image_size)
    _, height, width, number = outputs.prototypes.shape
    return Complexity(
        parameters=count_parameters(model),
        flops=flops,
        backbone_flops=backbone_flops,
        rescoring_flops=_count_rescoring(model, height, width),
        anchors=outputs.boxes.shape[1],
        prototypes=(height, width, number),
    )


def measure_backbone(spec: BackboneSpec, sizes: Sequence[int]) -> tuple[int, list[int]]:
    """Parameters of a registered backbone, and its operations (see `count_flops`) at square inputs of these sizes.

    Raises:
        SettingsError: its class cannot be imported, or a library that it needs is not installed.
    """
    with torch.device("meta"):
        backbone = build_registered(spec, spec.blocks).eval()
    flops = []
    for size in sizes:
        with torch.no_grad(), _flop_counter() as counter:
            backbone(torch.empty(1, 3, size, size, device="meta"))
        flops.append(counter.get_total_flops())
    return count_parameters(backbone), flops


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included; batch norm's running statistics are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: Yolact, height: int | None = None, width: int | None = None) -> int:
    """Floating-point operations of the forward pass of one image in evaluation mode, without the semantic branch.

    Counted are convolutions, with a multiply-add as two operations, and the bilinear sampling of deformable ones
    (`SAMPLING_FLOPS` per value). Not counted are biases, batch norm, activations, pooling, upsampling, and everything
    after the network: NMS, masks and their re-scoring. The model itself is neither run nor changed.

    Args:
        model: a network on any device; only its configuration is read.
        height: input height, pixels; the configured size by default.
        width: input width, pixels; likewise.
    """
    size = model.config.image_size
    return _run(build_on_meta(model.config, model.num_classes), height or size, width or size)[1]


def build_on_meta(config: ModelConfig, num_classes: int) -> Yolact:
    """A network without storage (device "meta"), in evaluation mode."""
    with torch.device("meta"):
        return Yolact(config, num_classes).eval()


def _run(model: nn.Module, height: int, width: int) -> tuple[Any, int]:
    counter = _flop_counter()
    with torch.no_grad(), counter:
        outputs = model(torch.empty(1, 3, height, width, device="meta"))
    return outputs, counter.get_total_flops()


def _count_rescoring(model: Yolact, height: int, width: int) -> int:
    if model.maskiou_net is None:
        return 0
    counter = _flop_counter()
    with torch.no_grad(), counter:
        model.maskiou_net(torch.empty(1, height, width, device="meta"))
    return counter.get_total_flops()


def _flop_counter() -> FlopCounterMode:
    import torchvision.ops  # noqa: F401  # registers the operation with PyTorch

    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _count_deformable_convolution}
    )


def _count_deformable_convolution(
    input_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size
) -> int:
    """One ``torchvision::deform_conv2d``: sampling its inputs, then the products of a plain convolution.

    The plain convolution that predicts offsets and modulation is counted separately.
    """
    batch, out_channels, height, width = out_shape
    in_channels_of_group, kernel_height, kernel_width = weight_shape[1:]
    points = batch * height * width * kernel_height * kernel_width
    return points * (SAMPLING_FLOPS * input_shape[1] + 2 * in_channels_of_group * out_channels)
