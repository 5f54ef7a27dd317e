"""The loss terms that the published network does not have, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from tests.loss_inputs import batch_for, batch_of, losses_of, objects_of, published_loss
from tests.yolact.losses.test_criterion import PUBLISHED, first_come, matches_of, scene, two_objects
from yolact.boxes import encode
from yolact.losses.criterion import YolactLoss
from yolact.losses.masks import dice_loss, mask_samples
from yolact.losses.terms import box_iou_loss, classification_loss, iou_costs, predicted_iou

ANCHORS = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2]])
TRUTH = [0.2, 0.2, 0.6, 0.6]
PREDICTED = torch.tensor([0.4, 0.2, 0.8, 0.4])


def one_pair(predicted: torch.Tensor = PREDICTED) -> tuple:
    """Encoded boxes of two anchors, of which the first takes the only object, and what the losses read."""
    targets = batch_of([objects_of([TRUTH], [0], torch.ones(1, 8, 8))], 1, (8, 8))
    encoded = encode(predicted[None], ANCHORS[:1])
    encoded = torch.cat([encoded, torch.full((1, 4), 500.0)])[None].requires_grad_()  # the second would overflow
    return encoded, ANCHORS, matches_of([[1, 0]], [[0, 0]]), targets


def by_hand(kind: str) -> float:
    """The two boxes share 0.2 x 0.2; union 0.16 + 0.08 - 0.04; both lie in 0.6 x 0.4; centres 0.2 and 0.1 apart."""
    iou = 0.04 / 0.2
    if kind == "giou":
        return 1 - (iou - (0.24 - 0.2) / 0.24)
    distance = (0.2**2 + 0.1**2) / (0.6**2 + 0.4**2)
    if kind == "diou":
        return 1 - iou + distance
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    return 1 - iou + distance + aspect * aspect / (1 - iou + aspect)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_of_two_boxes_by_hand(kind: str) -> None:
    encoded, *rest = one_pair()
    loss = box_iou_loss(encoded, *rest, kind)
    assert loss.item() == pytest.approx(by_hand(kind), abs=1e-5)
    loss.backward()
    assert encoded.grad[0, 0].isfinite().all()
    assert encoded.grad[0, 0].any()
    assert encoded.grad[0, 1].tolist() == [0, 0, 0, 0]  # finite, although the box is not


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_of_a_perfect_box_and_of_no_objects_are_zero(kind: str) -> None:
    encoded, *rest = one_pair(torch.tensor(TRUTH))
    assert box_iou_loss(encoded, *rest, kind).item() == pytest.approx(0, abs=1e-5)
    nothing = batch_of([objects_of([], [], torch.zeros(0, 8, 8))], 1, (8, 8))
    assert box_iou_loss(encoded, ANCHORS, matches_of([[0, 0]], [[0, 0]]), nothing, kind).item() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_iou_losses_and_their_gradients_are_torchvision_s(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 9, 2, 2, generator=generator, dtype=torch.float64).sort(dim=2).values
    boxes, truth = corners.flatten(2).requires_grad_().unbind()
    for kind, name in (("giou", "generalized"), ("diou", "distance"), ("ciou", "complete")):
        found, expected = iou_costs(boxes, truth, kind), getattr(ops, f"{name}_box_iou_loss")(boxes, truth)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        ours, theirs = (torch.autograd.grad(x.sum(), boxes, retain_graph=True)[0] for x in (found, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_the_predicted_iou_is_that_of_positives_without_gradient() -> None:
    encoded, *rest = one_pair()
    found = predicted_iou(encoded, *rest)
    assert found[0].tolist() == pytest.approx([0.2, 0], abs=1e-6)
    assert not found.requires_grad


def test_scores_learn_the_quality_and_background_the_rest() -> None:
    """A positive of class 2 with quality 0.3, its three hardest negatives by ratio 3; probabilities by softmax."""
    logits = torch.tensor([[[0.1, 0.7, 1.2], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [0.5, 0.0, 1.0], [9.0, 0.0, 0.0]]])
    classes = torch.tensor([[2, 0, 0, -1, 0]])
    quality = torch.tensor([[0.3, 0.9, 0.9, 0.9, 0.9]])
    logs = logits.log_softmax(dim=2)[0]
    expected = -(0.3 * logs[0, 2] + 0.7 * logs[0, 0] + logs[1, 0] + logs[2, 0] + logs[4, 0])
    assert classification_loss(logits, classes, 3, quality).item() == pytest.approx(expected.item(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999))
def test_with_quality_one_the_classification_is_the_published_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 12, 4, generator=generator)
    classes = torch.randint(-1, 4, (2, 12), generator=generator)
    published = classification_loss(logits, classes, 3).item()
    assert classification_loss(logits, classes, 3, torch.ones(2, 12)).item() == pytest.approx(published, rel=1e-5)


def test_dice_of_one_mask_by_hand() -> None:
    """The object fills the left half of 4 x 4 pixels; its box has a margin of 1, so 12 pixels are in the crop.

    With all probabilities 0.5: 2 (8 / 2) + 1 over 12 / 2 + 8 + 1.
    """
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1
    targets = batch_of([objects_of([[0, 0, 0.5, 1]], [0], mask)], 1, (4, 4))
    matches = matches_of([[1, 1]], [[0, 0]])
    prototypes, coefficients = torch.zeros(1, 4, 4, 3), torch.ones(1, 2, 3)
    alone = mask_samples(prototypes, coefficients, matches, targets, first_come(matches), 1)
    assert dice_loss(alone).item() == pytest.approx(2 * (1 - 9 / 15))  # one mask stands for both
    both = mask_samples(prototypes, coefficients, matches, targets, first_come(matches), 2)
    assert dice_loss(both).item() == pytest.approx(2 * (1 - 9 / 15))


def test_doubled_masks_are_the_assembled_ones_enlarged_before_the_sigmoid() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(1, 5, 5, 3, generator=generator)
    coefficients = torch.randn(1, 1, 3, generator=generator)
    targets = batch_of([objects_of([[0, 0, 1, 1]], [0], torch.ones(1, 40, 40))], 1, (10, 10))
    matches = matches_of([[1]], [[0]])
    samples = mask_samples(prototypes, coefficients, matches, targets, first_come(matches), 1, upsampling=2)
    plain = torch.einsum("hwk,k->hw", prototypes[0], coefficients[0, 0])
    expected = F.interpolate(plain[None, None], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(samples.logits, expected)
    assert samples.truth.shape == samples.inside.shape == (1, 1, 10, 10)


def test_every_switch_changes_its_own_term_only() -> None:
    outputs = scene([two_objects()], side=16)
    targets = batch_for(outputs, [two_objects()])
    torch.manual_seed(0)
    before = losses_of(YolactLoss(PUBLISHED), outputs, targets).terms
    for setting, value, term in (
        ("class_targets", "iou", "classification"),
        ("box", "giou", "box"),
        ("box", "ciou", "box"),
        ("mask_dice", 2.0, "mask"),
    ):
        torch.manual_seed(0)
        after = losses_of(YolactLoss(published_loss(**{setting: value})), outputs, targets).terms
        assert [name for name in before if not torch.equal(before[name], after[name])] == [term], setting
        assert after[term].isfinite()


def test_wrong_values_name_what_is_allowed() -> None:
    for setting in ("assignment", "class_targets", "box", "mask_upsampling"):
        with pytest.raises(ValueError, match=setting):
            published_loss(**{setting: "other"})
