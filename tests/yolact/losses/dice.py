"""An external loss term, as in docs/extending.md."""

from __future__ import annotations

from torch import Tensor

from yolact.losses.terms import LossContext, LossTerm


def dice_loss(context: LossContext) -> Tensor:
    """1 minus the Dice coefficient of each positive's mask and the true one (Milletari et al. 2016), summed."""
    masks, truth = context.masks.masks(), context.masks.truth
    shared = (masks * truth).sum(dim=(2, 3))  # (B, P)
    dice = (2 * shared + 1) / (masks.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    return ((1 - dice) * context.masks.filled * context.masks.scale).sum()


DICE = LossTerm(dice_loss, normaliser="positives")
