"""A batch in several passes (gradient accumulation), with the gradients that it has in one.

The loss terms of a pass are divided by that pass's positive anchors and images. To make the sum over the passes the
loss of the whole batch, each pass's terms are weighted: the semantic term by its share of the images, all others by
its share of the positives. Which anchors are positive depends on the targets alone, so it is known before the first
pass. Which of an image's positives enter the mask loss, where there are too many, is drawn for the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from yolact.data.loader import Batch
from yolact.engine.distributed import World
from yolact.losses.criterion import Losses
from yolact.losses.matcher import match
from yolact.settings import LossConfig
from yolact.structures import Targets


@dataclass(frozen=True)
class Part:
    """One pass's images of a batch, and the weights of its loss terms."""

    batch: Batch
    priorities: Tensor
    """(B, A) float32 of its images, see `YolactLoss`."""
    positives: Tensor | float
    """Share of the global batch's positive anchors, 0 to 1."""
    images: Tensor | float
    """Share of the global batch's images, 0 to 1."""

    def weighted(self, losses: Losses) -> Losses:
        """The pass's share in the loss terms of the batch."""
        return Losses(
            classification=losses.classification * self.positives,
            box=losses.box * self.positives,
            mask=losses.mask * self.positives,
            semantic=losses.semantic * self.images,
            mask_iou=None if losses.mask_iou is None else losses.mask_iou * self.positives,
        )


def split_batch(
    batch: Batch, priorities: Tensor, passes: int, anchors: Tensor, config: LossConfig, world: World
) -> list[Part]:
    """Divide a batch into consecutive parts, as equal as they can be.

    Args:
        batch: this process's, on its device.
        priorities: (B, A) float32, of its images.
        passes: number of parts, the same in every process; not more than any process has images.
        anchors: (A, 4) cxcywh, relative.
    """
    if passes == 1:
        return [Part(batch, priorities, 1.0, 1.0)]
    count = len(batch.image_ids)
    bounds = [(count * i // passes, count * (i + 1) // passes) for i in range(passes)]
    per_image = positives_of(batch, anchors, config)  # (B,)
    shares = [torch.stack([per_image[a:b].sum(), per_image.new_full((), b - a)]) for a, b in bounds]
    sums = torch.stack(shares).float()
    if world.size > 1:
        dist.all_reduce(sums)
    positives, images = sums.unbind(dim=1)  # (passes,) each
    positives = positives.clamp(min=1) / positives.sum().clamp(min=1)  # a loss never divides by less than 1
    images = images / images.sum()
    return [Part(rows(batch, a, b), priorities[a:b], positives[i], images[i]) for i, (a, b) in enumerate(bounds)]


def positives_of(batch: Batch, anchors: Tensor, config: LossConfig) -> Tensor:
    """Positive anchors of each image; (B,) int64."""
    matches = match(batch.targets, anchors, config.positive_iou, config.negative_iou, config.crowd_overlap)
    return (matches.classes > 0).sum(dim=1)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """The images ``start`` to ``stop`` of a batch, without copying them."""
    targets = batch.targets
    objects = slice(sum(targets.counts[:start]), sum(targets.counts[:stop]))
    part = Targets(
        boxes=targets.boxes[objects],
        labels=targets.labels[objects],
        crowd=targets.crowd[objects],
        images=targets.images[objects] - start,
        masks=targets.masks[objects],
        semantic=targets.semantic[start:stop],
        counts=targets.counts[start:stop],
    )
    return Batch(batch.images[start:stop], part, batch.image_ids[start:stop])
