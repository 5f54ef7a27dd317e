"""The network: backbone, feature pyramid, protonet and shared head wired together (paper section 3)."""

from __future__ import annotations

from torch import Tensor, nn

from yolact.models.anchors import AnchorCache
from yolact.models.backbones.base import build_backbone
from yolact.models.fpn import FPN
from yolact.models.head import PredictionHead
from yolact.models.maskiou import MaskIouNet
from yolact.models.protonet import Protonet
from yolact.settings import PYRAMID_LEVELS, ModelConfig
from yolact.structures import RawOutputs


class Yolact(nn.Module):
    """YOLACT. Parameter names are those of the published weights.

    Args:
        config: see `ModelConfig`. Weights are not loaded here, see `yolact.models.starting_weights`.
        num_classes: classes without background.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        channels, separable = config.fpn_channels, config.separable_convs
        self.backbone = build_backbone(config)
        self.fpn = FPN(self.backbone.channels, channels, separable)
        self.proto_net = Protonet(channels, config.num_prototypes, config.protonet_convs, separable)
        head = PredictionHead(
            channels, config.anchors_per_cell, num_classes, config.num_prototypes, config.head_convs, separable
        )
        self.prediction_layers = nn.ModuleList([head])
        self.semantic_seg_conv = nn.Conv2d(channels, num_classes, 1)
        self.maskiou_net = MaskIouNet(num_classes) if config.mask_rescoring else None
        self.anchors = AnchorCache(config)
        self._initialise()
        self.train()

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases outside the backbone, as published; the backbone keeps its own.

        Each group of a depthwise convolution is drawn as a convolution by itself.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                for group in module.weight.detach().chunk(module.groups):
                    nn.init.xavier_uniform_(group)
                if module.bias is not None:
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

    @staticmethod
    def level_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Cells (height, width) of P3 to P7 for an input of that size: every stride-2 layer halves, rounding up."""
        sizes = []
        for level in range(3, 3 + PYRAMID_LEVELS):
            sizes.append((-(-height // 2**level), -(-width // 2**level)))
        return tuple(sizes)

    def tensors(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Encoded boxes, class logits, mask coefficients, prototypes (see `RawOutputs`) and P3 (B, channels, h, w)."""
        pyramid = self.fpn(self.backbone(images))
        boxes, class_logits, mask_coefficients = self.prediction_layers[0](pyramid)
        return boxes, class_logits, mask_coefficients, self.proto_net(pyramid[0]), pyramid[0]

    def forward(self, images: Tensor) -> RawOutputs:
        """Run the network on (B, 3, S, S) normalised images, see `yolact.transforms.normalize`.

        The semantic branch, which only helps training (paper section 5), runs only in training mode.
        """
        boxes, class_logits, mask_coefficients, prototypes, p3 = self.tensors(images)
        return RawOutputs(
            boxes=boxes,
            class_logits=class_logits,
            mask_coefficients=mask_coefficients,
            prototypes=prototypes,
            anchors=self.anchors(self.level_sizes(*images.shape[-2:]), images.device),
            semantic_logits=self.semantic_seg_conv(p3) if self.training else None,
        )
