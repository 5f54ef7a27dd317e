"""Settings of networks small enough for tests."""

from __future__ import annotations

from yolact.settings import ModelConfig


def tiny_config(**changes: object) -> ModelConfig:
    """A network that runs in milliseconds: from scratch, one block per stage, 64 px, three anchors per cell."""
    settings: dict[str, object] = {
        "backbone": "resnet18",
        "backbone_blocks": [1, 1, 1, 1],
        "deformable_blocks": [],
        "backbone_weights": "none",
        "initial_weights": "none",
        "image_size": 64,
        "keep_aspect_ratio": False,
        "fpn_channels": 8,
        "separable_convs": False,
        "head_convs": 1,
        "protonet_convs": 3,
        "num_prototypes": 4,
        "anchor_scales": [[8], [16], [24], [40], [60]],
        "anchor_ratios": [1, 0.5, 2],
        "square_anchors": False,
        "mask_rescoring": False,
    }
    return ModelConfig.model_validate(settings | changes)
