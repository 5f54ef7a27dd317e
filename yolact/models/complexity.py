"""How large and how costly a network is: parameters, and floating-point operations of its forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact.structures import RawOutputs

SAMPLING_FLOPS = 8
"""Operations for one bilinearly sampled and modulated value: four products, three sums, one product."""


@dataclass(frozen=True)
class Complexity:
    """Size and cost of one network at its own input size."""

    parameters: int
    flops: int
    """Of the forward pass of one image, see `count_flops`."""
    rescoring_flops: int
    """Of re-scoring one mask (YOLACT++), which runs for detections only and is not in ``flops``; 0 without it."""
    anchors: int
    prototypes: tuple[int, int, int]
    """Height, width and number."""


def measure_complexity(config: ModelConfig, num_classes: int) -> Complexity:
    """Size and cost of the network that ``config`` describes; no weights are made.

    Args:
        config: the network.
        num_classes: classes without background.
    """
    model = build_on_meta(config, num_classes)
    outputs, flops = _run(model, config.image_size, config.image_size)
    _, height, width, number = outputs.prototypes.shape
    return Complexity(
        parameters=count_parameters(model),
        flops=flops,
        rescoring_flops=_count_rescoring(model, height, width),
        anchors=outputs.boxes.shape[1],
        prototypes=(height, width, number),
    )


def count_parameters(model: nn.Module) -> int:
    """Numbers in ``model`` that are learned or were; the statistics of batch norm do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: Yolact, height: int | None = None, width: int | None = None) -> int:
    """Floating-point operations of the forward pass of one image in evaluation mode, so without the semantic branch.

    Counted are the convolutions, a multiply-add as two, and the bilinear sampling of deformable ones (`SAMPLING_FLOPS`
    a value). Not counted are biases, batch norm, activations, pooling, the enlarging in the pyramid and the protonet,
    and all that follows the network: NMS, masks and their re-scoring. The model itself is not run or changed.

    Args:
        model: a network on any device; its configuration is what counts.
        height: of the input, pixels; the configured size by default.
        width: likewise.
    """
    size = model.config.image_size
    return _run(build_on_meta(model.config, model.num_classes), height or size, width or size)[1]


def build_on_meta(config: ModelConfig, num_classes: int) -> Yolact:
    """A network of shapes without storage, in evaluation mode."""
    with torch.device("meta"):
        return Yolact(config, num_classes).eval()


def _run(model: Yolact, height: int, width: int) -> tuple[RawOutputs, int]:
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
    import torchvision.ops  # noqa: F401  # makes the operation known to PyTorch

    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _count_deformable_convolution}
    )


def _count_deformable_convolution(
    input_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size
) -> int:
    """One ``torchvision::deform_conv2d``: sampling its inputs, then the products of an ordinary convolution.

    The offsets and modulations come from an ordinary convolution of its own.
    """
    batch, out_channels, height, width = out_shape
    in_channels_of_group, kernel_height, kernel_width = weight_shape[1:]
    points = batch * height * width * kernel_height * kernel_width
    return points * (SAMPLING_FLOPS * input_shape[1] + 2 * in_channels_of_group * out_channels)
