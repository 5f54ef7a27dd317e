"""The network: backbone, feature pyramid, protonet and shared head wired together (paper section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact.config import ModelConfig
from yolact.models.anchors import pyramid_anchors
from yolact.models.backbone import RESNETS, ResNetBackbone
from yolact.models.fpn import FPN
from yolact.models.head import PredictionHead
from yolact.models.protonet import Protonet
from yolact.structures import RawOutputs


class Yolact(nn.Module):
    """YOLACT. Parameter names are those of the published weights.

    Args:
        config: see `ModelConfig`. Backbone weights are not loaded here, see `yolact.models.weights`.
        num_classes: classes without background.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        channels = config.fpn_channels
        self.backbone = ResNetBackbone(RESNETS[config.backbone])
        self.fpn = FPN(self.backbone.channels, channels)
        self.proto_net = Protonet(channels, config.num_prototypes)
        self.prediction_layers = nn.ModuleList(
            [PredictionHead(channels, config.anchors_per_cell, num_classes, config.num_prototypes)]
        )
        self.semantic_seg_conv = nn.Conv2d(channels, num_classes, 1)
        self._anchors: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._initialise()
        self.train()

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases outside the backbone, as published; the backbone keeps its own."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> Yolact:
        """Switch to training or evaluation; batch norm of a pretrained backbone stays frozen in both."""
        super().train(mode)
        if self.config.pretrained:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
                    module.requires_grad_(False)
        return self

    def anchors(self, level_sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
        """Anchors (A, 4) cxcywh, relative, float32, for levels of (height, width) cells; made once per shape."""
        known = self._anchors.get(level_sizes)
        if known is None or known.device != device:
            config = self.config
            known = pyramid_anchors(
                level_sizes, config.anchor_scales, config.anchor_ratios, config.image_size, config.square_anchors
            ).to(device)
            self._anchors[level_sizes] = known
        return known

    def forward(self, images: Tensor) -> RawOutputs:
        """Run the network on (B, 3, S, S) normalised images, see `yolact.data.transforms.normalize`.

        The semantic branch, which only helps training (paper section 5), runs in training mode alone.
        """
        pyramid = self.fpn(self.backbone(images))
        head = self.prediction_layers[0]
        levels = [head(level) for level in pyramid]
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in pyramid)
        return RawOutputs(
            boxes=torch.cat([level.boxes for level in levels], dim=1),
            class_logits=torch.cat([level.class_logits for level in levels], dim=1),
            mask_coefficients=torch.cat([level.mask_coefficients for level in levels], dim=1),
            prototypes=self.proto_net(pyramid[0]),
            anchors=self.anchors(sizes, images.device),
            semantic_logits=self.semantic_seg_conv(pyramid[0]) if self.training else None,
        )
