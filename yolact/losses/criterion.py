"""The training loss of YOLACT and YOLACT++: the weighted sum of the terms in `LOSS_TERMS`.

All terms are computed for the whole batch at once and without waiting for the GPU: no shape depends on a value computed
there. With several processes, the normalisers are those of their common batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from yolact.losses.matcher import Matches, match, match_atss
from yolact.losses.terms import LOSS_TERMS, LossContext, Normaliser, check_weights
from yolact.models.maskiou import MaskIouNet
from yolact.settings import LossConfig
from yolact.structures import RawOutputs, Targets


@dataclass(frozen=True)
class Losses:
    """The loss terms of a batch by name, normalised, in the order of `LOSS_TERMS`; each a float32 scalar."""

    terms: dict[str, Tensor]
    """Unweighted, for logs: comparable between runs with different weights."""
    weighted: dict[str, Tensor]
    """Multiplied by their weights."""

    @property
    def total(self) -> Tensor:
        """What training minimises: the sum of the weighted terms."""
        first, *others = self.weighted.values()
        return sum(others, start=first)

    def scaled(self, factors: Mapping[Normaliser, Tensor | float]) -> Losses:
        """Each term times the factor of its normaliser."""
        terms, weighted = (
            {name: term * factors[LOSS_TERMS[name].normaliser] for name, term in by_name.items()}
            for by_name in (self.terms, self.weighted)
        )
        return Losses(terms, weighted)


class YolactLoss(nn.Module):
    """The loss of a batch, or of one process's share of it.

    Each term is divided by the number of positive anchors (at least 1) or of images in the whole batch, see
    `LOSS_TERMS`. In distributed training, these numbers are summed over all processes and divided by ``world_size``:
    the mean of the processes' gradients, which `torch.nn.parallel.DistributedDataParallel` computes, then equals the
    gradient of the whole batch in one process, and the mean of their terms equals that batch's term. All processes must
    call the loss equally often.

    Args:
        config: weights and thresholds.
        world_size: processes that share each batch.

    Raises:
        SettingsError: the weights are not those of `LOSS_TERMS`.
    """

    def __init__(self, config: LossConfig, world_size: int = 1) -> None:
        super().__init__()
        check_weights(config.weights)
        self.config = config
        self.world_size = world_size

    def match(self, targets: Targets, anchors: Tensor, cells: Sequence[int] = ()) -> Matches:
        """Match the (A, 4) anchors with each image's objects, as the settings say.

        Args:
            cells: number of cells of each level; read with ``assignment: atss``.
        """
        config = self.config
        if config.assignment == "atss":
            return match_atss(targets, anchors, cells, config.crowd_overlap)
        return match(targets, anchors, config.positive_iou, config.negative_iou, config.crowd_overlap)

    def forward(
        self,
        outputs: RawOutputs,
        targets: Targets,
        matches: Matches,
        priorities: Tensor,
        maskiou_net: MaskIouNet | None = None,
    ) -> Losses:
        """Compute the terms in float32.

        Args:
            outputs: outputs of a network in training mode, any floating dtype.
            targets: the batch's targets, on the outputs' device.
            matches: matches of these targets with the outputs' anchors, see `match`.
            priorities: (B, A) float32, see `random_priorities`; if an image has more positives than the mask loss
                takes, those with the highest priority are used.
            maskiou_net: the network's mask re-scoring, if it has one; it is trained only through this argument.
        """
        assert outputs.semantic_logits is not None, "the loss needs a network in training mode"
        normalisers = batch_sizes(matches.classes, self.world_size)
        terms: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        with torch.autocast(outputs.boxes.device.type, enabled=False):
            context = LossContext(_in_float32(outputs), targets, matches, priorities, maskiou_net, self.config)
            for name, term in LOSS_TERMS.items():
                value = term.function(context)
                if value is not None:
                    normaliser = normalisers[term.normaliser]
                    terms[name] = value / normaliser
                    weighted[name] = self.config.weights[name] * value / normaliser
        return Losses(terms, weighted)


def _in_float32(outputs: RawOutputs) -> RawOutputs:
    assert outputs.semantic_logits is not None
    return replace(
        outputs,
        boxes=outputs.boxes.float(),
        class_logits=outputs.class_logits.float(),
        mask_coefficients=outputs.mask_coefficients.float(),
        prototypes=outputs.prototypes.float(),
        semantic_logits=outputs.semantic_logits.float(),
    )


def batch_sizes(classes: Tensor, world_size: int) -> dict[Normaliser, Tensor]:
    """The normalisers: positive anchors (at least 1) and images of the whole batch, each over ``world_size``; float32.

    Args:
        classes: (B, A) `Matches.classes` of this process's share.
    """
    positives = (classes > 0).sum()
    sizes = torch.stack([positives, torch.full_like(positives, len(classes))])
    if world_size > 1:
        dist.all_reduce(sizes)
    positives, images = (sizes.clamp(min=1) / world_size).unbind()
    return {"positives": positives, "images": images}


def random_priorities(images: int, anchors: int, device: torch.device) -> Tensor:
    """(images, anchors) float32 random numbers, 0 to 1, on the device.

    They are drawn on the device from a seed that PyTorch's CPU generator draws, so that generator's state reproduces
    them. Draw once for the whole batch and slice rows for its parts: then neither micro-batches nor processes change
    which masks are chosen.
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(images, anchors, generator=generator, device=device)
