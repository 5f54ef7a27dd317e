"""The bundles of tensors that pass between the parts of the project.

Letters used in shapes everywhere: B images in a batch, A anchors, C classes (without background),
K prototypes, N objects or detections of one image, S side of the square network input, H and W height and
width of an image, Hp and Wp those of the prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Targets:
    """What is true of one training image, in the frame of the network input."""

    boxes: Tensor
    """(N, 4) float32, xyxy, relative to the image (0 to 1)."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    masks: Tensor
    """(N, S, S) uint8, 0 or 1."""
    crowd: Tensor
    """(N,) bool; crowd regions only make anchors neutral."""

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            masks=self.masks.to(device, non_blocking=True),
            crowd=self.crowd.to(device, non_blocking=True),
        )


@dataclass
class RawOutputs:
    """What the network returns for a batch, before any decoding."""

    boxes: Tensor
    """(B, A, 4) encoded offsets from the anchors, see `yolact.boxes.decode`."""
    class_logits: Tensor
    """(B, A, C + 1), background first."""
    mask_coefficients: Tensor
    """(B, A, K), -1 to 1."""
    prototypes: Tensor
    """(B, Hp, Wp, K), 0 or more."""
    anchors: Tensor
    """(A, 4) cxcywh, relative to the image."""
    semantic_logits: Tensor | None
    """(B, C, H3, W3) at P3's resolution; None outside training."""
