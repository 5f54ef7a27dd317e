"""Every loss term against plain Python floats."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.loss_inputs import (
    PUBLISHED_WEIGHTS,
    ImageObjects,
    batch_for,
    batch_of,
    losses_of,
    objects_of,
    published_loss,
)
from yolact.losses import masks as masks_module
from yolact.losses.criterion import Losses, YolactLoss, random_priorities
from yolact.losses.masks import (
    MaskIouSamples,
    MaskSamples,
    mask_iou_loss,
    mask_iou_samples,
    mask_loss,
    mask_samples,
)
from yolact.losses.matcher import Matches
from yolact.losses.terms import box_loss, classification_loss, semantic_loss
from yolact.models.maskiou import MaskIouNet
from yolact.settings import LossConfig
from yolact.structures import RawOutputs, Targets, downsample_masks

PUBLISHED = published_loss()


def matches_of(classes: list[list[int]], objects: list[list[int]]) -> Matches:
    return Matches(torch.tensor(classes), torch.tensor(objects))


def first_come(matches: Matches) -> Tensor:
    """Priorities in the anchors' order."""
    return -torch.arange(matches.classes.shape[1], dtype=torch.float32).expand(matches.classes.shape)


def samples_of_one(prototypes: Tensor, coefficients: Tensor, objects: ImageObjects) -> MaskSamples:
    """Samples of one image with one anchor, which takes its only object."""
    matches = matches_of([[1]], [[0]])
    targets = batch_of([objects], 1, (prototypes.shape[1], prototypes.shape[2]))
    return mask_samples(prototypes, coefficients, matches, targets, first_come(matches), 100)


def no_objects(side: int = 8) -> ImageObjects:
    return objects_of([], [], torch.zeros(0, side, side))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# --- classification ---------------------------------------------------------------------------------------------


def test_classification_of_one_positive_and_its_hardest_negative() -> None:
    """Probabilities are quarters: the positive costs ln 4/3, the hard background ln 4, the easy one is left out."""
    logits = torch.tensor([[[0, math.log(3)], [0, math.log(3)], [math.log(3), 0]]])
    loss = classification_loss(logits, torch.tensor([[1, 0, 0]]), negatives_per_positive=1)
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)


def plain_classification(logits: list[list[list[float]]], classes: list[list[int]], ratio: int) -> float:
    total = 0.0
    for rows, roles in zip(logits, classes, strict=True):
        costs = [
            math.log(sum(math.exp(v) for v in row)) - row[max(role, 0)] for row, role in zip(rows, roles, strict=True)
        ]
        positives = sum(role > 0 for role in roles)
        hardness = [cost if role == 0 else 0.0 for cost, role in zip(costs, roles, strict=True)]
        ranked = sorted(range(len(roles)), key=lambda a: -hardness[a])
        quota = min(ratio * positives, len(roles) - 1)
        total += sum(costs[a] for a in ranked[:quota] if roles[a] == 0)
        total += sum(cost for cost, role in zip(costs, roles, strict=True) if role > 0)
    return total


@pytest.mark.parametrize("seed", range(8))
def test_classification_takes_the_hardest_background_anchors(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 14, 4, generator=generator, dtype=torch.float64) * 3
    classes = torch.randint(-1, 4, (3, 14), generator=generator)
    classes[classes > 1] *= torch.rand(classes[classes > 1].shape, generator=generator) < 0.3
    classes[2] = classes[2].clamp(max=0)  # an image without positives
    expected = plain_classification(logits.tolist(), classes.tolist(), ratio=1 + seed % 3)
    assert classification_loss(logits, classes, 1 + seed % 3).item() == pytest.approx(expected, rel=1e-9)


def trained_anchors(classes: list[int], ratio: int) -> list[bool]:
    """Which anchors of one image get a gradient; the first background anchor is the hardest, the last the easiest."""
    logits = torch.stack([torch.zeros(len(classes)), -torch.arange(float(len(classes)))], dim=1)[None].requires_grad_()
    classification_loss(logits, torch.tensor([classes]), ratio).backward()
    return (logits.grad[0].abs().sum(dim=1) > 0).tolist()


def test_background_anchors_are_taken_hardest_first() -> None:
    assert trained_anchors([0, 0, 1, 0, 0], ratio=1) == [True, False, True, False, False]
    assert trained_anchors([0, 0, 1, 0, 0], ratio=3) == [True, True, True, True, False]


def test_all_background_anchors_are_taken_if_there_are_too_few() -> None:
    assert trained_anchors([0, 0, 1], ratio=3) == [True, True, True]


def test_an_image_without_positives_takes_no_negatives() -> None:
    assert trained_anchors([0, 0, -1], ratio=3) == [False, False, False]


def test_every_positive_is_taken() -> None:
    assert trained_anchors([1, 1, 1, 0], ratio=1) == [True, True, True, True]


def test_ignored_anchors_do_not_affect_the_classification() -> None:
    logits = torch.tensor([[[0.0, 9.0], [0.0, 1.0], [0.0, 0.5]]], requires_grad=True)
    classification_loss(logits, torch.tensor([[-1, 1, 0]]), 3).backward()
    assert logits.grad[0, 0].abs().sum() == 0
    assert (logits.grad[0, 1:].abs().sum(dim=1) > 0).all()


# --- boxes ------------------------------------------------------------------------------------------------------


def test_box_loss_is_smooth_l1_of_the_offsets() -> None:
    """True offsets (5, 0, ln 2 / 0.2, 0), see test_boxes; predictions 0, 0.5, 0 and 0."""
    anchors = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.4]])
    target = objects_of([[0, 0, 1, 1], [0.4, 0.3, 0.8, 0.7]], [0, 0], torch.zeros(2, 8, 8))
    predicted = torch.tensor([[[7.0, 7, 7, 7], [0, 0.5, 0, 0]]])
    loss = box_loss(predicted, anchors, matches_of([[0, 1]], [[0, 1]]), batch_of([target], 1, (8, 8)))
    expected = (5 - 0.5) + 0.5 * 0.5**2 + (math.log(2) / 0.2 - 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_box_loss_finds_the_objects_of_each_image() -> None:
    """Rows count through the batch, crowd regions among them; a crowd region without area does no harm."""
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    first = objects_of([[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]], [0, -1], torch.zeros(2, 8, 8), crowd=[False, True])
    second = objects_of([[0.4, 0.3, 0.6, 0.7]], [2], torch.zeros(1, 8, 8))
    predicted = torch.zeros(2, 1, 4, requires_grad=True)
    targets = batch_of([first, second], 3, (8, 8))
    loss = box_loss(predicted, anchors, matches_of([[0], [3]], [[1], [2]]), targets)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert predicted.grad.abs().max() < 1e-6


# --- masks ------------------------------------------------------------------------------------------------------


def plain_mask_cost(
    prototypes: list[list[list[float]]], coefficients: list[float], truth: list[list[int]], box: list[float]
) -> float:
    """Cross-entropy of one instance, divided by its box's area in prototype pixels."""
    height, width = len(prototypes), len(prototypes[0])
    left, right = max(box[0] * width - 1, 0), min(box[2] * width + 1, width)
    top, bottom = max(box[1] * height - 1, 0), min(box[3] * height + 1, height)
    cost = 0.0
    for row, column in itertools.product(range(height), range(width)):
        inside = left <= column < right and top <= row < bottom
        logit = sum(p * c for p, c in zip(prototypes[row][column], coefficients, strict=True))
        if inside:
            cost -= math.log(sigmoid(logit if truth[row][column] else -logit))
        elif truth[row][column]:
            cost += 100
    return cost / ((box[2] - box[0]) * width * (box[3] - box[1]) * height)


def test_mask_loss_is_cross_entropy_in_the_crop_over_the_box_area() -> None:
    """Prototypes of zeros give probability one half: 36 pixels in the padded window of a 4 x 4 box, ln 2 each."""
    truth = torch.zeros(1, 8, 8)
    truth[0, 2:6, 2:6] = 1
    target = objects_of([[0.25, 0.25, 0.75, 0.75]], [0], truth)
    loss = mask_loss(samples_of_one(torch.zeros(1, 8, 8, 1), torch.ones(1, 1, 1), target))
    assert loss.item() == pytest.approx(36 * math.log(2) / 16, rel=1e-6)


def test_a_true_pixel_outside_the_crop_costs_100() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[0, 2:6, 2:6] = 1
    truth[0, 0, 0] = 1
    target = objects_of([[0.25, 0.25, 0.75, 0.75]], [0], truth)
    loss = mask_loss(samples_of_one(torch.zeros(1, 8, 8, 1), torch.ones(1, 1, 1), target))
    assert loss.item() == pytest.approx((36 * math.log(2) + 100) / 16, rel=1e-6)


MaskScene = tuple[Tensor, Tensor, Matches, Targets]


@pytest.fixture
def mask_scene() -> MaskScene:
    """Two images with prototypes 6 high and 8 wide; masks are given at that size, so they are not reduced."""
    generator = torch.Generator().manual_seed(5)
    prototypes = torch.rand(2, 6, 8, 3, generator=generator) * 2
    coefficients = torch.rand(2, 7, 3, generator=generator) * 2 - 1
    masks = (torch.rand(3, 6, 8, generator=generator) < 0.4).to(torch.uint8)
    first = objects_of([[0.1, 0.2, 0.6, 0.7], [0.5, 0.0, 1.0, 0.4]], [0, 1], masks[:2])
    second = objects_of([[0.0, 0.1, 0.9, 0.9]], [1], masks[2:])
    matches = matches_of(
        [[1, 0, 2, 1, -1, 2, 1], [0, 2, 0, 0, 0, 0, 0]], [[0, 0, 1, 0, 1, 1, 0], [0, 2, 0, 0, 0, 0, 0]]
    )
    return prototypes, coefficients, matches, batch_of([first, second], 2, (6, 8))


def plain_mask_costs(scene: MaskScene) -> list[list[float]]:
    """One cost per positive, per image."""
    prototypes, coefficients, matches, targets = scene
    return [
        [
            plain_mask_cost(
                prototypes[image].tolist(),
                coefficients[image, a].tolist(),
                targets.masks[row].tolist(),
                targets.boxes[row].tolist(),
            )
            for a, (role, row) in enumerate(zip(classes, objects, strict=True))
            if role > 0
        ]
        for image, (classes, objects) in enumerate(zip(matches.classes.tolist(), matches.objects.tolist(), strict=True))
    ]


def sampled(scene: MaskScene, max_masks: int, priorities: Tensor | None = None) -> MaskSamples:
    _, _, matches, _ = scene
    return mask_samples(*scene, first_come(matches) if priorities is None else priorities, max_masks)


def test_mask_loss_sums_over_positives_and_images(mask_scene: MaskScene) -> None:
    expected = sum(sum(costs) for costs in plain_mask_costs(mask_scene))
    assert mask_loss(sampled(mask_scene, 100)).item() == pytest.approx(expected, rel=1e-5)


def test_sampled_masks_have_the_highest_priorities_and_are_scaled_up_to_the_image(
    mask_scene: MaskScene,
) -> None:
    """The first image's positives are anchors 0, 2, 3, 5 and 6; the second image has only one and keeps it."""
    priorities = torch.tensor([[0.5, 9.0, 0.1, 0.9, 9.0, 0.2, 0.8], [0.0] * 7])
    first, second = plain_mask_costs(mask_scene)
    expected = (first[2] + first[4]) * 5 / 2 + sum(second)
    assert mask_loss(sampled(mask_scene, 2, priorities)).item() == pytest.approx(expected, rel=1e-5)


def test_masks_are_chosen_at_random_and_evenly() -> None:
    """Each of 40 anchors is among the 10 highest in a quarter of 400 draws: 100 times, within 5 standard deviations."""
    torch.manual_seed(0)
    counts = torch.zeros(40)
    for _ in range(400):
        counts[random_priorities(1, 40, torch.device("cpu")).topk(10).indices] += 1
    assert counts.sum() == 4000
    assert ((counts - 100).abs() < 5 * math.sqrt(400 * 0.25 * 0.75)).all()


def test_the_state_of_pytorchs_generator_decides_which_masks_are_chosen() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (random_priorities(2, 5, torch.device("cpu")) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(random_priorities(2, 5, torch.device("cpu")), first)
    assert torch.equal(random_priorities(2, 5, torch.device("cpu")), second)


@pytest.mark.parametrize("value", [-40.0, -20.0, -3.0, 0.0, 2.0, 15.0, 20.0, 200.0])
def test_cost_and_gradient_of_a_pixel_are_those_of_pytorchs_cross_entropy(value: float) -> None:
    """Where the sigmoid is saturated too: 0 or 100, and no gradient."""
    pixels = torch.full((1, 1, 2, 4), value, requires_grad=True)
    truth = torch.tensor([[[[0, 1, 0, 1], [1, 0, 1, 0]]]], dtype=torch.uint8)
    inside = torch.tensor([[[[True, True, False, False], [True, True, False, False]]]])
    samples = MaskSamples(
        logits=pixels,
        truth=truth,
        inside=inside,
        boxes=torch.tensor([[[0.0, 0.0, 0.25, 0.5]]]),  # an area of one pixel
        labels=torch.zeros(1, 1, dtype=torch.int64),
        filled=torch.ones(1, 1, dtype=torch.bool),
        scale=torch.ones(1, 1),
    )
    loss = mask_loss(samples)
    reference = F.binary_cross_entropy(torch.sigmoid(pixels) * inside, truth.float(), reduction="sum")
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    [found] = torch.autograd.grad(loss, pixels)
    [expected] = torch.autograd.grad(reference, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_masks_are_reduced_by_averaging_and_need_more_than_half() -> None:
    """At half the size, bilinear interpolation with half-pixel centres is the mean of 2 x 2 pixels."""
    mask = torch.tensor(
        [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.uint8
    )
    assert downsample_masks(mask[None], 2, 3).tolist() == [[[1, 0, 0], [1, 0, 0]]]


def test_no_masks_reduce_to_no_masks() -> None:
    assert downsample_masks(torch.zeros(0, 8, 8, dtype=torch.uint8), 4, 4).shape == (0, 4, 4)


def test_mask_loss_trains_prototypes_inside_the_crop_only() -> None:
    truth = torch.ones(1, 8, 8)
    target = objects_of([[0.25, 0.25, 0.75, 0.75]], [0], truth)
    prototypes = torch.zeros(1, 8, 8, 1, requires_grad=True)
    mask_loss(samples_of_one(prototypes, torch.ones(1, 1, 1), target)).backward()
    learns = torch.zeros(8, 8, dtype=torch.bool)
    learns[1:7, 1:7] = True
    assert torch.equal(prototypes.grad[0, :, :, 0] != 0, learns)


def test_slots_hold_the_positives_of_each_image(mask_scene: MaskScene) -> None:
    samples, (_, _, _, targets) = sampled(mask_scene, 100), mask_scene
    assert samples.filled.tolist() == [[True] * 5, [True] + [False] * 4]
    rows = [0, 1, 0, 1, 0]  # anchors 0, 2, 3, 5 and 6 take objects 0, 1, 0, 1 and 0
    assert samples.labels[0].tolist() == rows
    assert torch.equal(samples.boxes[0], targets.boxes[rows])
    assert torch.equal(samples.truth[0], targets.masks[rows])
    assert samples.labels[1, 0] == 1
    assert torch.equal(samples.truth[1, 0], targets.masks[2])
    assert samples.scale.tolist() == [[1], [1]]
    assert sampled(mask_scene, 2).scale.tolist() == [[5 / 2], [1]]


def test_empty_slots_change_neither_loss_nor_gradients(mask_scene: MaskScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU there are always as many slots as the maximum number of masks."""
    prototypes, coefficients, matches, targets = mask_scene

    def gradients() -> list[Tensor]:
        scene = (prototypes.clone().requires_grad_(), coefficients.clone().requires_grad_())
        loss = mask_loss(mask_samples(*scene, matches, targets, first_come(matches), 7))
        return [loss, *torch.autograd.grad(loss, scene)]

    expected = gradients()
    monkeypatch.setattr(masks_module, "_slots", lambda counts, targets, max_masks: max_masks)
    for found, value in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6)


def test_an_image_without_positives_has_no_samples() -> None:
    matches = matches_of([[0, -1]], [[0, 0]])
    targets = batch_of([no_objects()], 1, (6, 8))
    samples = mask_samples(torch.ones(1, 6, 8, 3), torch.ones(1, 2, 3), matches, targets, first_come(matches), 9)
    assert samples.logits.shape == samples.truth.shape == (1, 0, 6, 8)
    assert mask_loss(samples).item() == 0


# --- mask re-scoring --------------------------------------------------------------------------------------------


def rectangle(rows: int, columns: int, inside: float = 1.0) -> Tensor:
    """A rectangle in the upper left corner of 8 x 8 pixels."""
    mask = torch.zeros(8, 8)
    mask[:rows, :columns] = inside
    return mask


def samples_of(pairs: list[tuple[Tensor, Tensor]], labels: list[int], filled: list[bool] | None = None) -> MaskSamples:
    """One image's predicted and true masks; boxes and scales do not matter for re-scoring."""
    predicted, truth = (torch.stack(masks)[None] for masks in zip(*pairs, strict=True))
    return MaskSamples(
        logits=torch.logit(predicted),
        truth=truth.to(torch.uint8),
        inside=torch.ones_like(predicted, dtype=torch.bool),
        boxes=torch.zeros(1, len(labels), 4),
        labels=torch.tensor([labels]),
        filled=torch.tensor([filled or [True] * len(labels)]),
        scale=torch.ones(1, 1),
    )


def test_the_measured_iou_is_that_of_the_binarised_mask() -> None:
    """20 of 32 pixels; half of the pixels, where the others are exactly 0.5; and none."""
    half = torch.cat([rectangle(4, 8)[:4] * 0.51, rectangle(4, 8)[:4] * 0.5])
    pairs = [
        (rectangle(4, 5, 0.6), rectangle(4, 8)),
        (half, rectangle(8, 8)),
        (rectangle(4, 8, 0.4), rectangle(4, 8)),
    ]
    samples = mask_iou_samples(samples_of(pairs, [2, 0, 1]), min_area=25)
    assert samples.ious.tolist() == pytest.approx([20 / 32, 32 / 64, 0])
    assert samples.labels.tolist() == [2, 0, 1]
    assert torch.allclose(samples.masks[1], half)  # soft, not the binarised one


def test_objects_of_at_most_the_minimum_area_do_not_train_the_rescoring() -> None:
    sides = [(5, 5), (4, 7), (5, 8), (3, 8)]  # 25, 28, 40 and 24 pixels
    image = samples_of([(rectangle(8, 8), rectangle(*side)) for side in sides], [0, 1, 2, 3])
    assert mask_iou_samples(image, min_area=25).chosen.tolist() == [False, True, True, False]
    assert mask_iou_samples(image, min_area=0).chosen.tolist() == [True] * 4


def test_empty_slots_do_not_train_the_rescoring() -> None:
    image = samples_of([(rectangle(8, 8), rectangle(8, 8))] * 2, [0, 1], filled=[True, False])
    assert mask_iou_samples(image, min_area=0).chosen.tolist() == [True, False]


class StoredIous(nn.Module):
    """A fake network that returns the given IoUs."""

    def __init__(self, ious: Tensor) -> None:
        super().__init__()
        self.ious = nn.Parameter(ious)

    def forward(self, masks: Tensor) -> Tensor:
        return self.ious.expand(len(masks), -1)


def test_mask_iou_loss_is_smooth_l1_at_the_true_class() -> None:
    """Errors of 0.3 (half of its square) and of 2 (less a half); the third slot, of a crowd region, is not chosen."""
    samples = MaskIouSamples(
        torch.zeros(3, 8, 8), torch.tensor([1, 2, -1]), torch.tensor([0.7, 0.5, 0.0]), torch.tensor([True, True, False])
    )
    loss = mask_iou_loss(StoredIous(torch.tensor([9.0, 0.4, 2.5])), samples)
    assert loss.item() == pytest.approx(0.5 * 0.3**2 + (2 - 0.5))


# --- semantics --------------------------------------------------------------------------------------------------


def test_semantic_loss_compares_with_the_union_of_each_class() -> None:
    """Two objects of class 1 in different corners, a crowd region that does not count, and an empty image."""
    masks = torch.zeros(3, 4, 4)
    masks[0, :2, :2] = 1
    masks[1, 2:, 2:] = 1
    masks[2] = 1
    first = objects_of([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]], [1, 1, -1], masks, [False, False, True])
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    truth = {(0, 1, 0, 0), (0, 1, 1, 1)}  # image, class, row, column
    expected = 0.0
    for place in itertools.product(range(2), range(3), range(2), range(2)):
        logit = logits[place].item()
        expected -= math.log(sigmoid(logit if place in truth else -logit))
    targets = batch_of([first, no_objects(4)], 3, (4, 4), (2, 2))
    loss = semantic_loss(logits, targets.semantic)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-6)


# --- the whole --------------------------------------------------------------------------------------------------


def scene(objects: list[ImageObjects], dtype: torch.dtype = torch.float32, side: int = 8) -> RawOutputs:
    """Random outputs over 20 anchors, 3 classes, ``side`` x ``side`` prototypes and a semantic grid of 4 x 4."""
    generator = torch.Generator().manual_seed(11)
    count = len(objects)
    centers = torch.rand(20, 2, generator=generator)
    sizes = torch.rand(20, 2, generator=generator) * 0.5 + 0.2

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return RawOutputs(
        boxes=leaf(count, 20, 4),
        class_logits=leaf(count, 20, 4),
        mask_coefficients=leaf(count, 20, 5),
        prototypes=leaf(count, side, side, 5),
        anchors=torch.cat([centers, sizes], dim=1),
        semantic_logits=leaf(count, 3, 4, 4),
    )


def leaves(outputs: RawOutputs) -> dict[str, Tensor]:
    assert outputs.semantic_logits is not None
    return {
        "boxes": outputs.boxes,
        "class_logits": outputs.class_logits,
        "mask_coefficients": outputs.mask_coefficients,
        "prototypes": outputs.prototypes,
        "semantic_logits": outputs.semantic_logits,
    }


def two_objects(side: int = 16) -> ImageObjects:
    masks = torch.zeros(2, side, side)
    masks[0, 2:9, 3:12] = 1
    masks[1, 8:15, 6:13] = 1
    boxes = [[3 / side, 2 / side, 12 / side, 9 / side], [6 / side, 8 / side, 13 / side, 15 / side]]
    return objects_of(boxes, [0, 2], masks)


def compute(
    config: LossConfig, outputs: RawOutputs, images: list[ImageObjects], network: nn.Module | None = None
) -> Losses:
    return losses_of(YolactLoss(config), outputs, batch_for(outputs, images), network)


def values(losses: Losses) -> dict[str, float]:
    """The unweighted terms of the papers; added ones have tests of their own."""
    return {name: term.item() for name, term in losses.terms.items() if name in PUBLISHED_WEIGHTS}


def test_the_total_is_the_weighted_sum_of_the_four_terms() -> None:
    losses = compute(PUBLISHED, scene([two_objects()]), [two_objects()])
    found = values(losses)
    assert found.keys() == {"classification", "box", "mask", "semantic"}
    weighted = found["classification"] + 1.5 * found["box"] + 6.125 * found["mask"] + found["semantic"]
    assert losses.total.item() == pytest.approx(weighted, rel=1e-6)
    assert all(value > 0 for value in values(losses).values())


def rescoring(seed: int = 3) -> MaskIouNet:
    """A re-scoring network for prototypes of 64 x 64 and 3 classes; biases keep its last ReLU from hiding all
    classes."""
    torch.manual_seed(seed)
    network = MaskIouNet(3)
    nn.init.constant_(network.maskiou_net[-2].bias, 0.5)
    return network


def test_a_network_with_rescoring_has_a_fifth_term() -> None:
    targets = [two_objects(), two_objects()]
    without = values(compute(PUBLISHED, scene(targets, side=64), targets))
    four = compute(PUBLISHED, scene(targets, side=64), targets).total.item()
    losses = compute(PUBLISHED, scene(targets, side=64), targets, rescoring())
    terms = values(losses)
    mask_iou = terms.pop("mask_iou")
    assert mask_iou > 0
    assert terms == without
    assert losses.total.item() == pytest.approx(four + 25 * mask_iou, rel=1e-6)


def test_the_rescoring_term_is_divided_by_all_positives_of_the_batch() -> None:
    """Three anchors are positive, in two images; the one of the image with a small object does not train re-scoring.

    The two others have masks of 25 pixels, the padded window, on a true one of 16: an IoU of 16 / 25.
    """
    small = objects_of([[0, 0, 0.5, 0.5]], [0], torch.nn.functional.pad(torch.ones(1, 1, 1), (0, 7, 0, 7)))
    outputs = RawOutputs(
        boxes=torch.zeros(2, 3, 4),
        class_logits=torch.zeros(2, 3, 3),
        mask_coefficients=torch.ones(2, 3, 1),
        prototypes=torch.ones(2, 8, 8, 1),
        anchors=torch.tensor([[0.75, 0.75, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]),
        semantic_logits=torch.zeros(2, 2, 4, 4),
    )
    config = published_loss(mask_iou_min_area=15)
    losses = compute(config, outputs, [quarter(4), small], StoredIous(torch.tensor([0.24, 9.0])))
    assert losses.terms["mask_iou"].item() == pytest.approx(2 * 0.5 * (0.64 - 0.24) ** 2 / 3, rel=1e-5)


def test_rescoring_also_trains_the_masks() -> None:
    """The published code does not cut the gradient between the two."""
    targets = [two_objects()]
    outputs, network = scene(targets, side=64), rescoring()
    compute(PUBLISHED, outputs, targets, network).terms["mask_iou"].backward()
    assert outputs.prototypes.grad.abs().sum() > 0
    assert outputs.mask_coefficients.grad.abs().sum() > 0
    assert outputs.boxes.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("objects", [no_objects(16), two_objects(128)], ids=["no objects", "only small ones"])
def test_without_samples_the_rescoring_term_and_its_gradients_are_zero(objects: ImageObjects) -> None:
    """Zero, not absent: in distributed training, processes exchange the same gradients in every step."""
    outputs, network = scene([objects], side=64), rescoring()
    losses = compute(PUBLISHED, outputs, [objects], network)
    assert losses.terms["mask_iou"].item() == 0
    losses.total.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in network.parameters())
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves(outputs).values())


def test_rescoring_is_also_trained_in_float32() -> None:
    targets, network = [two_objects()], rescoring()
    half = scene(targets, torch.bfloat16, side=64)
    full = RawOutputs(**{name: leaf.detach().float() for name, leaf in leaves(half).items()}, anchors=half.anchors)
    expected = compute(PUBLISHED, full, targets, network).terms["mask_iou"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute(PUBLISHED, half, targets, network).terms["mask_iou"]
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


def test_weights_scale_their_terms_only_in_the_total() -> None:
    targets = [two_objects()]
    plain = values(compute(PUBLISHED, scene(targets), targets))
    weights = {"classification": 2.0, "box": 3.0, "mask": 0.5, "semantic": 0.0, "mask_iou": 1.0}
    losses = compute(published_loss(weights=weights), scene(targets), targets)
    assert values(losses) == plain
    assert losses.total.item() == pytest.approx(sum(weights[name] * value for name, value in plain.items()), rel=1e-6)


def quarter(corner: int) -> ImageObjects:
    """One object of class 0 that fills the upper left (0) or the lower right (4) quarter of 8 x 8 pixels."""
    mask = torch.zeros(1, 8, 8)
    mask[0, corner : corner + 4, corner : corner + 4] = 1
    side = corner / 8
    return objects_of([[side, side, side + 0.5, side + 0.5]], [0], mask)


@pytest.mark.parametrize(
    ("targets", "chosen", "positives"), [([quarter(0)], 3, 1), ([quarter(4)], 3, 2), ([quarter(0), quarter(4)], 6, 3)]
)
def test_terms_are_divided_by_the_positives_of_the_whole_batch(
    targets: list[ImageObjects], chosen: int, positives: int
) -> None:
    """Two anchors fit the lower right quarter, one the upper left; those not positive are hard negatives.

    Each positive has four offsets wrong by 0.5, which cost 0.5 * 0.5 ** 2 each, and a padded window of 5 x 5 pixels,
    which cost ln 2 each, over a box area of 16. Each chosen anchor costs ln 3: three classes with equal logits.
    """
    batch = len(targets)
    outputs = RawOutputs(
        boxes=torch.full((batch, 3, 4), 0.5),
        class_logits=torch.zeros(batch, 3, 3),
        mask_coefficients=torch.ones(batch, 3, 1),
        prototypes=torch.zeros(batch, 8, 8, 1),
        anchors=torch.tensor([[0.75, 0.75, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]),
        semantic_logits=torch.zeros(batch, 2, 4, 4),
    )
    assert values(compute(PUBLISHED, outputs, targets)) == {
        "classification": pytest.approx(chosen * math.log(3) / positives, rel=1e-5),
        "box": pytest.approx(4 * 0.125, rel=1e-5),
        "mask": pytest.approx(25 * math.log(2) / 16, rel=1e-5),
        "semantic": pytest.approx(2 * math.log(2), rel=1e-5),
    }


def test_an_image_twice_in_the_batch_does_not_change_the_loss() -> None:
    """N counts the positives of the whole batch, and the semantic term is a mean over images."""
    once, targets = scene([two_objects()]), two_objects()
    twice = RawOutputs(
        **{name: leaf.detach().repeat(2, *[1] * (leaf.dim() - 1)) for name, leaf in leaves(once).items()},
        anchors=once.anchors,
    )
    single = values(compute(PUBLISHED, once, [targets]))
    double = values(compute(PUBLISHED, twice, [targets, targets]))
    assert double == {name: pytest.approx(value, rel=1e-5) for name, value in single.items()}


def test_an_image_without_objects_adds_to_the_semantic_term_only() -> None:
    targets = [two_objects(), no_objects(16)]
    both = scene(targets)
    alone = RawOutputs(**{name: leaf.detach()[:1] for name, leaf in leaves(both).items()}, anchors=both.anchors)
    first = values(compute(PUBLISHED, alone, targets[:1]))
    losses = compute(PUBLISHED, both, targets)
    assert {k: v for k, v in values(losses).items() if k != "semantic"} == {
        k: pytest.approx(v, rel=1e-5) for k, v in first.items() if k != "semantic"
    }
    losses.total.backward()
    for name, leaf in leaves(both).items():
        assert torch.isfinite(leaf.grad).all(), name
        assert (leaf.grad[1] != 0).any() == (name == "semantic_logits"), name


def test_a_batch_without_any_object_has_a_finite_loss() -> None:
    targets = [no_objects(16), no_objects(16)]
    outputs = scene(targets)
    losses = compute(PUBLISHED, outputs, targets)
    terms = values(losses)
    assert terms.pop("semantic") > 0
    assert terms == {"classification": 0, "box": 0, "mask": 0}
    losses.total.backward()
    assert torch.isfinite(outputs.semantic_logits.grad).all()


def test_all_gradients_are_finite() -> None:
    targets = [two_objects(), two_objects()]
    outputs = scene(targets)
    compute(PUBLISHED, outputs, targets).total.backward()
    for name, leaf in leaves(outputs).items():
        assert torch.isfinite(leaf.grad).all(), name
        assert leaf.grad.abs().sum() > 0, name


def test_saturated_masks_cost_at_most_100_a_pixel_and_keep_gradients_finite() -> None:
    targets = [two_objects()]
    outputs = scene(targets)
    with torch.no_grad():
        outputs.prototypes.mul_(1e4)
    losses = compute(PUBLISHED, outputs, targets)
    losses.total.backward()
    assert math.isfinite(losses.total.item())
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves(outputs).values())


def test_bfloat16_outputs_are_computed_in_float32() -> None:
    targets = [two_objects()]
    half = scene(targets, torch.bfloat16)
    full = RawOutputs(**{name: leaf.detach().float() for name, leaf in leaves(half).items()}, anchors=half.anchors)
    expected = values(compute(PUBLISHED, full, targets))
    losses = compute(PUBLISHED, half, targets)
    assert all(term.dtype == torch.float32 for term in losses.terms.values())
    assert values(losses) == expected


def test_autocast_does_not_affect_the_loss() -> None:
    targets = [two_objects()]
    outside = values(compute(PUBLISHED, scene(targets), targets))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = compute(PUBLISHED, scene(targets), targets)
    assert all(term.dtype == torch.float32 for term in inside.terms.values())
    assert values(inside) == outside


@pytest.mark.parametrize("name", ["boxes", "class_logits", "mask_coefficients", "prototypes", "semantic_logits"])
def test_nan_outputs_propagate_to_the_loss(name: str) -> None:
    """The trainer stops with a message about it; the loss itself must neither hide it nor fail."""
    targets = [two_objects()]
    outputs = scene(targets)
    with torch.no_grad():
        leaves(outputs)[name].fill_(math.nan)
    assert math.isnan(compute(PUBLISHED, outputs, targets).total.item())


def test_a_network_in_evaluation_mode_is_rejected() -> None:
    outputs = scene([two_objects()])
    outputs.semantic_logits = None
    with pytest.raises(AssertionError, match="training mode"):
        losses_of(YolactLoss(PUBLISHED), outputs, batch_of([two_objects()], 3, (8, 8)))


@pytest.mark.parametrize("images", [[two_objects(), no_objects(16)], [no_objects(16)]], ids=["objects", "none"])
def test_no_shape_depends_on_values_that_a_gpu_computes(
    images: list[ImageObjects], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device tensors have no values: each attempt to read one raises. It has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    outputs = scene(images, side=64)
    targets = batch_for(outputs, images).to("meta")
    on_meta = RawOutputs(
        **{name: leaf.detach().to("meta").requires_grad_() for name, leaf in leaves(outputs).items()},
        anchors=outputs.anchors.to("meta"),
    )
    priorities = torch.empty(len(images), 20, device="meta")
    losses = losses_of(YolactLoss(PUBLISHED), on_meta, targets, rescoring().to("meta"), priorities)
    losses.total.backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves(on_meta).values())


def test_a_single_crowd_region_trains_like_an_empty_image() -> None:
    """The crowd region leaves no positives: only the semantic term trains, as without any objects."""
    region = objects_of([[0.1, 0.1, 0.9, 0.9]], [0], torch.ones(1, 16, 16), crowd=[True])
    generator = torch.Generator().manual_seed(0)
    outputs = RawOutputs(
        boxes=torch.randn(1, 5, 4, generator=generator).requires_grad_(),
        class_logits=torch.randn(1, 5, 2, generator=generator).requires_grad_(),
        mask_coefficients=torch.randn(1, 5, 3, generator=generator).requires_grad_(),
        prototypes=torch.rand(1, 8, 8, 3, generator=generator).requires_grad_(),
        anchors=torch.rand(5, 4, generator=generator) * 0.5 + 0.2,
        semantic_logits=torch.randn(1, 1, 4, 4, generator=generator).requires_grad_(),
    )
    losses = compute(PUBLISHED, outputs, [region])
    terms = values(losses)
    assert terms.pop("semantic") > 0
    assert terms == {"classification": 0, "box": 0, "mask": 0}
    losses.total.backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves(outputs).values())
