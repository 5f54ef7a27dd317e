"""Gradient accumulation: a batch in several micro-batches, with the gradients of the whole batch.

The loss divides the terms of a micro-batch by that micro-batch's positive anchors or images. To make their sum the loss
of the whole batch, each term is multiplied by the micro-batch's share of the batch's positives or images. Which anchors
are positive depends on the targets alone, so it is known before the network runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from yolact.data.loader import Batch
from yolact.distributed import World
from yolact.losses.matcher import Matches
from yolact.losses.terms import Normaliser


@dataclass(frozen=True)
class MicroBatch:
    """Part of a batch, with its share of the loss."""

    batch: Batch
    matches: Matches
    priorities: Tensor
    """(B, A) float32, see `YolactLoss.forward`."""
    shares: Mapping[Normaliser, Tensor | float]
    """Its share of each normaliser of the global batch, 0 to 1."""


def split_batch(batch: Batch, matches: Matches, priorities: Tensor, count: int, world: World) -> list[MicroBatch]:
    """Divide a batch into consecutive micro-batches, as equal as possible.

    Args:
        batch: this process's, on its device.
        matches: the matches of its targets.
        priorities: (B, A) float32, for its images.
        count: number of micro-batches, the same in every process and at most the images of any process.
    """
    if count == 1:
        return [MicroBatch(batch, matches, priorities, {"positives": 1.0, "images": 1.0})]
    size = len(batch.image_ids)
    bounds = [(size * i // count, size * (i + 1) // count) for i in range(count)]
    per_image = (matches.classes > 0).sum(dim=1)  # (B,)
    shares = [torch.stack([per_image[a:b].sum(), per_image.new_full((), b - a)]) for a, b in bounds]
    sums = torch.stack(shares).float()
    if world.size > 1:
        dist.all_reduce(sums)
    positives, images = sums.unbind(dim=1)  # (count,) each
    positives = positives.clamp(min=1) / positives.sum().clamp(min=1)  # a loss never divides by less than 1
    images = images / images.sum()
    return [
        MicroBatch(
            Batch(batch.images[a:b], batch.targets.rows(a, b), batch.image_ids[a:b]),
            _rows(matches, a, b, first_object=sum(batch.targets.counts[:a])),
            priorities[a:b],
            {"positives": positives[i], "images": images[i]},
        )
        for i, (a, b) in enumerate(bounds)
    ]


def _rows(matches: Matches, start: int, stop: int, first_object: int) -> Matches:
    """The matches of the images ``start`` to ``stop``, whose objects begin at row ``first_object`` of the targets."""
    objects = matches.objects[start:stop] - first_object
    return Matches(matches.classes[start:stop], objects.clamp(min=0))  # images without objects have row 0 everywhere
