"""Small settings that several rooms' tests build on."""

from __future__ import annotations

from yolact.config import LossConfig, ModelConfig


def tiny_config(**changes: object) -> ModelConfig:
    """A network that runs in milliseconds: from scratch, a block a stage, 64 px, three anchors in each cell."""
    settings: dict[str, object] = {
        "backbone": "resnet18",
        "backbone_blocks": [1, 1, 1, 1],
        "deformable_blocks": [],
        "backbone_weights": "none",
        "initial_weights": "none",
        "image_size": 64,
        "fpn_channels": 8,
        "num_prototypes": 4,
        "anchor_scales": [[8], [16], [24], [40], [60]],
        "anchor_ratios": [1, 0.5, 2],
        "square_anchors": False,
        "mask_rescoring": False,
    }
    return ModelConfig.model_validate(settings | changes)


def published_loss(**changes: object) -> LossConfig:
    """The published weights and thresholds of the loss."""
    settings: dict[str, object] = {
        "class_weight": 1.0,
        "box_weight": 1.5,
        "mask_weight": 6.125,
        "semantic_weight": 1.0,
        "mask_iou_weight": 25.0,
        "mask_iou_min_area": 25,
        "positive_iou": 0.5,
        "negative_iou": 0.4,
        "crowd_overlap": 0.7,
        "negatives_per_positive": 3,
        "max_masks_per_image": 100,
    }
    return LossConfig.model_validate(settings | changes)
