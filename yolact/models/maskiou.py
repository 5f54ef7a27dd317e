"""Mask re-scoring of YOLACT++: how well does each mask fit (YOLACT++ paper, "Fast Mask Re-Scoring Network")?"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

CHANNELS = (1, 8, 16, 32, 64, 128)
"""Channels of the mask and of the five convolutions, as published."""


class MaskIouNet(nn.Module):
    """Five unpadded stride-2 convolutions and a 1x1 to the classes, ReLU after each; then the maximum over the grid.

    The published network's key names, ``maskiou_net.0`` to ``maskiou_net.10``, are kept.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels in itertools.pairwise(CHANNELS):
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(CHANNELS[-1], num_classes, 1), nn.ReLU(inplace=True)]
        self.maskiou_net = nn.Sequential(*layers)

    def forward(self, masks: Tensor) -> Tensor:
        """Predict the IoU of soft, cropped masks with the true ones.

        Args:
            masks: (N, Hp, Wp), 0 to 1, at the prototypes' resolution, at least 63 x 63.

        Returns:
            (N, C), one IoU for each class that the mask could have; 0 or more, not bounded by 1.
        """
        return self.maskiou_net(masks[:, None]).amax(dim=(2, 3))
