"""Small networks of every kind, with weights that do not hide errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.small_networks import tiny_config
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.yolact import Yolact

VARIANTS: dict[str, dict[str, object]] = {
    "basic blocks": {"backbone_blocks": [2, 1, 2, 1]},
    "bottlenecks": {"backbone": "resnet50", "backbone_blocks": [2, 1, 2, 1]},
    "deformable": {
        "backbone": "resnet101",
        "backbone_blocks": [1, 2, 2, 1],
        "deformable_blocks": [[], [0, 1], [1], [0]],
    },
    "darknet": {"backbone": "darknet53", "backbone_blocks": [1, 2, 1, 1, 1]},
    "wide": {"fpn_channels": 192},
    "separable": {"separable_convs": True, "head_convs": 2, "protonet_convs": 1},
    "deep head": {"head_convs": 2, "protonet_convs": 0},
}
"""Changes of `tiny_config`. Blocks with and without a convolution in their shortcut are in each of the ResNets."""


def trained_like(variant: str, num_classes: int = 3, **changes: object) -> Yolact:
    """A network in evaluation mode with everything random, as in a trained one: batch norm statistics, biases,
    offsets."""
    torch.manual_seed(0)
    model = Yolact(tiny_config(**VARIANTS[variant] | changes), num_classes).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.2)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, DeformableConv2d):
                module.bias.normal_(0, 0.1)
                module.conv_offset_mask.weight.normal_(0, 0.02)
    return model


def images(batch: int, height: int = 64, width: int = 64) -> Tensor:
    """(B, 3, height, width), like normalised images."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_outputs_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Each tensor's largest error is at most ``tolerance`` of its largest value."""
    for name, one, other in zip(("boxes", "classes", "coefficients", "prototypes"), found, expected, strict=True):
        assert one.shape == other.shape, name
        assert other.abs().max() > 0.01, name
        error = (one.double() - other.double()).abs().max() / other.double().abs().max()
        assert error <= tolerance, f"{name}: {error}"
