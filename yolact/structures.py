"""Dataclasses of tensors that the packages exchange.

Letters used in shapes everywhere: B images in a batch, A anchors, C classes (without background),
K prototypes, N objects of a batch, or objects or detections of one image, S side of the square network input, H and W
height and width of an image, Hp and Wp those of the prototypes, H3 and W3 those of P3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Targets:
    """Ground truth of a batch: N objects in all, image after image, crowd regions included."""

    boxes: Tensor
    """(N, 4) float32, xyxy, relative to the image (0 to 1)."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    crowd: Tensor
    """(N,) bool; crowd regions only make anchors ignored."""
    images: Tensor
    """(N,) int64, ascending: which image of the batch each object belongs to."""
    masks: Tensor
    """(N, Hp, Wp) uint8, 0 or 1, at the prototypes' resolution; crowd rows are there but never read."""
    semantic: Tensor
    """(B, C, H3, W3) uint8, 0 or 1: the union of each class's masks, crowd regions left out, at P3's resolution."""
    counts: list[int]
    """Objects (crowd regions included) per image; on the host, so shapes are known without a GPU sync."""

    def to(self, device: torch.device | str) -> Targets:
        """A copy on a device; asynchronous from page-locked memory."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Targets:
        """A copy in page-locked memory."""
        return self._with(Tensor.pin_memory)

    def rows(self, start: int, stop: int) -> Targets:
        """The images ``start`` to ``stop`` as a batch of their own, without copying them."""
        objects = slice(sum(self.counts[:start]), sum(self.counts[:stop]))
        return Targets(
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            crowd=self.crowd[objects],
            images=self.images[objects] - start,
            masks=self.masks[objects],
            semantic=self.semantic[start:stop],
            counts=self.counts[start:stop],
        )

    @staticmethod
    def cat(batches: Sequence[Targets]) -> Targets:
        """The images of several batches, one batch after the other."""
        counts = [count for targets in batches for count in targets.counts]
        return Targets(
            boxes=torch.cat([targets.boxes for targets in batches]),
            labels=torch.cat([targets.labels for targets in batches]),
            crowd=torch.cat([targets.crowd for targets in batches]),
            images=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
            masks=torch.cat([targets.masks for targets in batches]),
            semantic=torch.cat([targets.semantic for targets in batches]),
            counts=counts,
        )

    def _with(self, change: Callable[[Tensor], Tensor]) -> Targets:
        return Targets(
            boxes=change(self.boxes),
            labels=change(self.labels),
            crowd=change(self.crowd),
            images=change(self.images),
            masks=change(self.masks),
            semantic=change(self.semantic),
            counts=self.counts,
        )


def targets_from_masks(
    boxes: list[Tensor],
    labels: list[Tensor],
    masks: list[Tensor],
    crowd: list[Tensor],
    num_classes: int,
    mask_size: tuple[int, int],
    semantic_size: tuple[int, int],
) -> Targets:
    """The targets of a batch from masks at the input's size; each list has one tensor per image.

    Args:
        boxes: (n, 4) xyxy, relative.
        labels: (n,), 0 to C - 1; arbitrary for crowd regions.
        masks: (n, S, S) uint8, 0 or 1.
        crowd: (n,) bool.
        num_classes: C.
        mask_size: Hp and Wp.
        semantic_size: H3 and W3.
    """
    counts = [len(rows) for rows in boxes]
    semantic = torch.zeros(len(counts), num_classes, *semantic_size, dtype=torch.uint8)
    for image, rows in enumerate(masks):
        kept = ~crowd[image]
        for label, mask in zip(labels[image][kept].tolist(), downsample_masks(rows[kept], *semantic_size), strict=True):
            semantic[image, label] |= mask
    return Targets(
        boxes=torch.cat(boxes).reshape(-1, 4).float(),
        labels=torch.cat(labels).long(),
        crowd=torch.cat(crowd),
        images=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)),
        masks=torch.cat([downsample_masks(rows, *mask_size) for rows in masks]),
        semantic=semantic,
        counts=counts,
    )


def downsample_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Reduce (n, S, S) 0/1 masks bilinearly (no antialiasing, as published); (n, height, width) uint8, 0 or 1."""
    reduced = masks.new_zeros((len(masks), height, width), dtype=torch.uint8)
    for row, mask in enumerate(masks):  # one by one: as float32, the masks of a crowd would fill the memory
        values = F.interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)
        reduced[row] = values[0, 0] > 0.5
    return reduced


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
