"""Deformable convolution, for YOLACT++.

torchvision is imported only when one is built: that takes longer than PyTorch's own import, and about 170 MiB.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact.models.backbones.base import draw_weights


class DeformableConv2d(nn.Module):
    """A modulated deformable 3x3 convolution (Zhu et al. 2019), as in the published YOLACT++.

    Each of the nine sampling points is moved by a predicted offset and weighted by a predicted modulation. Both start
    from zero weights, so the layer starts as half of the plain convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        from torchvision.ops import deform_conv2d  # in forward it would be too late for exporters

        self.sample = deform_conv2d
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 27, 3, stride=stride, padding=1)
        draw_weights(self.weight, mode="fan_out", nonlinearity="relu")  # as in the ResNets
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        predicted = self.conv_offset_mask(x)
        # Offsets are dy0, dx0, dy1, dx1, ... over the kernel's points in row-major order.
        offsets, modulation = predicted[:, :18], predicted[:, 18:].sigmoid()
        # In float32 whatever the network's precision: not every device supports sampling in others.
        tensors = [tensor.float() for tensor in (x, offsets, self.weight, self.bias)]
        out: Tensor = self.sample(*tensors, self.stride, padding=1, mask=modulation.float())
        return out.to(x.dtype)
