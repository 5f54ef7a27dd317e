"""The table of loss terms and its weights; an external term."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.loss_inputs import batch_for, losses_of, published_loss
from tests.yolact.losses.dice import DICE
from tests.yolact.losses.loss_processes import ANCHORS, FIELDS, SIDE, objects
from yolact.errors import SettingsError
from yolact.losses.criterion import Losses, YolactLoss
from yolact.losses.terms import LOSS_TERMS
from yolact.structures import RawOutputs

WEIGHTS = published_loss().weights


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_TERMS, "dice", DICE)


def leaves() -> RawOutputs:
    generator = torch.Generator().manual_seed(0)
    arrays = {
        "boxes": torch.randn(2, ANCHORS, 4, generator=generator),
        "class_logits": torch.randn(2, ANCHORS, 4, generator=generator),
        "mask_coefficients": torch.randn(2, ANCHORS, 5, generator=generator),
        "prototypes": torch.rand(2, SIDE, SIDE, 5, generator=generator),
        "semantic_logits": torch.randn(2, 3, SIDE // 2, SIDE // 2, generator=generator),
    }
    anchors = torch.rand(ANCHORS, 4, generator=generator) * 0.5 + 0.2
    return RawOutputs(**{name: tensor.requires_grad_() for name, tensor in arrays.items()}, anchors=anchors)


def compute(weights: dict[str, float], outputs: RawOutputs) -> Losses:
    images = [objects(3, seed=0), objects(2, seed=1)]
    priorities = torch.zeros(2, ANCHORS)
    return losses_of(YolactLoss(published_loss(weights=weights)), outputs, batch_for(outputs, images), None, priorities)


def gradients(loss: Tensor, outputs: RawOutputs) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, [getattr(outputs, name) for name in FIELDS], materialize_grads=True)
    return dict(zip(FIELDS, found, strict=True))


def test_a_term_from_outside_adds_its_weighted_value_and_gradients_to_the_total(
    dice: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = leaves()
    losses = compute(WEIGHTS | {"dice": 4.0}, outputs)
    alone = compute(dict.fromkeys(WEIGHTS, 0.0) | {"dice": 1.0}, outputs)
    monkeypatch.delitem(LOSS_TERMS, "dice")
    before = compute(WEIGHTS, outputs)

    term = losses.terms["dice"]
    assert 0 < term.item() < 1
    assert alone.total.item() == term.item()
    assert {name: value.item() for name, value in losses.terms.items() if name != "dice"} == {
        name: value.item() for name, value in before.terms.items()
    }
    assert losses.total.item() == pytest.approx(before.total.item() + 4 * term.item(), rel=1e-6)
    found, added, published = (gradients(each.total, outputs) for each in (losses, alone, before))
    for name in FIELDS:
        torch.testing.assert_close(found[name], published[name] + 4 * added[name], msg=name)
    assert {name for name in FIELDS if added[name].any()} == {"mask_coefficients", "prototypes"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS | {"dise": 1.0}, "train.loss.weights.dise: unknown loss term; did you mean 'dice'?"),
        (WEIGHTS | {"x": 1.0}, "train.loss.weights.x: unknown loss term; the terms are: classification, box, mask"),
        (WEIGHTS, "train.loss.weights.dice: missing; every loss term needs a weight"),
    ],
)
def test_weights_that_do_not_match_the_terms_are_rejected(dice: None, weights: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        YolactLoss(published_loss(weights=weights))
