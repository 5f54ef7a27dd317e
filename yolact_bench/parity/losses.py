"""Checks of the training loss: matching, hard negatives, every term and its gradients."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from yolact.boxes import encode
from yolact.errors import DataError
from yolact.losses.criterion import YolactLoss
from yolact.losses.masks import mask_iou_samples, mask_samples
from yolact.losses.matcher import Matches
from yolact.losses.terms import classification_loss
from yolact.models.maskiou import MaskIouNet
from yolact.models.yolact import Yolact
from yolact.settings import LossConfig
from yolact.structures import RawOutputs, Targets
from yolact_bench.parity.fixture import Fixture
from yolact_bench.parity.report import Checks
from yolact_bench.parity.stored import FIELDS, stored_outputs, stored_targets

PUBLISHED_LOSS = LossConfig(
    weights={"classification": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0, "mask_iou": 25.0},
    mask_iou_min_area=25,
    positive_iou=0.5,
    negative_iou=0.4,
    crowd_overlap=0.7,
    negatives_per_positive=3,
    max_masks_per_image=100,
    assignment="iou",
    class_targets="one_hot",
    box="smooth_l1",
    mask_dice=0,
    mask_upsampling=1,
)
"""Settings of ``yolact_base`` and ``yolact_plus_base`` (dbolya/yolact, ``data/config.py``)."""

TERMS = {"B": "box", "C": "classification", "M": "mask", "S": "semantic", "I": "mask_iou"}
"""Published name of each term, and ours."""

PREDICTIONS = "pred"
"""Folder of stored predictions in files without a network."""

_SAMPLED = re.compile(r"sample_?(\d+)")


def is_losses(fixture: Fixture) -> bool:
    """Whether a file holds predictions and targets without a network."""
    return fixture.has(PREDICTIONS) and fixture.has("targets")


def check_losses(checks: Checks) -> None:
    """Every variant of the loss in a file with predictions and targets."""
    for variant in _variants(checks.fixture):
        with checks.part(variant):
            outputs = stored_outputs(checks.fixture, PREDICTIONS, "priors")
            _check_variant(checks, variant, outputs, stored_targets(checks.fixture, "", outputs), None)


def check_network_losses(checks: Checks, network: Yolact | None) -> None:
    """The losses in a network's file, on its stored training outputs; each has its own targets."""
    fixture = checks.fixture
    for variant in _variants(fixture):
        with checks.part(variant):
            priors = f"{variant}/priors" if f"{variant}/priors" in fixture else "train/priors"
            outputs = stored_outputs(fixture, "train", priors)
            maskiou_net = network.maskiou_net if network is not None else None
            _check_variant(checks, variant, outputs, stored_targets(fixture, f"{variant}/", outputs), maskiou_net)


def _variants(fixture: Fixture) -> list[str]:
    return [folder for folder in fixture.children() if fixture.has(f"{folder}/loss")]


def variant_config(fixture: Fixture, variant: str) -> LossConfig:
    """The published loss with a variant's changes, from `meta_json` or from its name.

    ``meta_json.<variant>`` may have ``masks_to_train`` and ``crowd_iou_threshold``. Otherwise ``sample10`` means 10
    masks to train, and ``no_crowd`` a crowd rule that never applies.
    """
    changes: dict[str, float] = {}
    masks = fixture.meta.get(variant, "masks_to_train", default=fixture.meta.get("masks_to_train"))
    sampled = _SAMPLED.search(variant)
    if sampled or masks is not None:
        changes["max_masks_per_image"] = int(sampled[1] if sampled else masks)
    crowd = fixture.meta.get(variant, "crowd_iou_threshold")
    if crowd is not None or "no_crowd" in variant:
        changes["crowd_overlap"] = 1.0 if crowd is None else float(crowd)
    return PUBLISHED_LOSS.model_copy(update=changes)


def _check_variant(
    checks: Checks, variant: str, outputs: RawOutputs, targets: Targets, maskiou_net: MaskIouNet | None
) -> None:
    fixture = checks.fixture
    config = variant_config(fixture, variant)
    matches = YolactLoss(config).match(targets, outputs.anchors)
    with checks.part(f"{variant}/conf_t"):
        check_matches(checks, variant, matches, targets, outputs.anchors)
    if f"{variant}/ohem_target" in fixture or f"{variant}/ohem_ce" in fixture:
        with checks.part(f"{variant}/ohem_target"):
            _check_hard_negatives(checks, variant, outputs.class_logits, matches.classes, config.negatives_per_positive)
    permutations = [fixture.tensor(f"{variant}/perm/{k}") for k in _numbered(fixture, f"{variant}/perm")]
    with checks.part(f"{variant}/loss"):
        priorities = stored_priorities(matches, config.max_masks_per_image, permutations)
        _check_terms(checks, variant, config, outputs, targets, matches, maskiou_net, priorities)
    if any(name.startswith("maskiou_") for name in fixture.children(variant)):
        with checks.part(f"{variant}/maskiou"):
            priorities = stored_priorities(matches, config.max_masks_per_image, permutations)
            _check_mask_iou(checks, variant, config, outputs, targets, matches, maskiou_net, priorities)


def _numbered(fixture: Fixture, folder: str) -> list[str]:
    return sorted(fixture.children(folder), key=int)


def check_matches(checks: Checks, folder: str, matches: Matches, targets: Targets, anchors: Tensor) -> None:
    """Compare with ``conf_t``; and with ``idx_t`` and ``loc_t`` where an anchor is positive.

    The arrays have a row per image, or belong to the only image.
    """
    fixture = checks.fixture
    classes = matches.classes
    stored = fixture.tensor(f"{folder}/conf_t") if f"{folder}/conf_t" in fixture else None
    if stored is None:
        return
    checks.array(f"{folder}/conf_t", classes.reshape(stored.shape) if classes.numel() == stored.numel() else classes)
    positive = stored.reshape(len(classes), -1) > 0
    if f"{folder}/idx_t" in fixture:
        expected = fixture.tensor(f"{folder}/idx_t").reshape(len(classes), -1)
        found = matches.objects - _first_rows(targets)  # the published code counts within an image
        checks.value(f"{folder}/idx_t", found[positive], expected[positive], note="of positives")
    if f"{folder}/loc_t" in fixture:
        expected = fixture.tensor(f"{folder}/loc_t").reshape(len(classes), -1, 4)
        offsets = encode(targets.boxes[matches.objects], anchors)
        checks.value(f"{folder}/loc_t", offsets[positive], expected[positive], note="of positives")


def _first_rows(targets: Targets) -> Tensor:
    """(B, 1): the row of each image's first object."""
    counts = torch.tensor(targets.counts)
    return (counts.cumsum(0) - counts)[:, None]


def _check_hard_negatives(checks: Checks, variant: str, logits: Tensor, classes: Tensor, ratio: int) -> None:
    """The anchors that the class loss selects are those whose logits receive a gradient."""
    fixture = checks.fixture
    leaf = logits.clone().requires_grad_()
    classification_loss(leaf, classes, ratio).backward()
    assert leaf.grad is not None
    selected = (leaf.grad != 0).any(dim=-1)  # (B, A)
    if f"{variant}/ohem_target" in fixture:
        checks.array(f"{variant}/ohem_target", classes[selected])
    if f"{variant}/ohem_ce" in fixture:
        checks.array(f"{variant}/ohem_ce", F.cross_entropy(logits[selected], classes[selected], reduction="none"))


def _check_terms(
    checks: Checks,
    variant: str,
    config: LossConfig,
    outputs: RawOutputs,
    targets: Targets,
    matches: Matches,
    maskiou_net: MaskIouNet | None,
    priorities: Tensor,
) -> None:
    """Every stored term, and every stored gradient: of B + C + M + S under ``grad``, of I under ``dI_d<output>``."""
    fixture = checks.fixture
    leaves = _leaves(outputs)
    losses = YolactLoss(config)(leaves, targets, matches, priorities, maskiou_net).weighted
    for letter in sorted(TERMS.keys() & fixture.children(f"{variant}/loss")):
        with checks.part(f"{variant}/loss/{letter}"):
            if TERMS[letter] not in losses:
                raise DataError("a network with mask re-scoring is needed, whose weights are not in the file")
            checks.array(f"{variant}/loss/{letter}", losses[TERMS[letter]])
    total = losses["box"] + losses["classification"] + losses["mask"] + losses["semantic"]
    for name in fixture.children(f"{variant}/grad"):
        checks.array(f"{variant}/grad/{name}", _gradient(total, leaves, name))
    if "mask_iou" in losses:
        for name in FIELDS:
            if f"{variant}/dI_d{name}" in fixture:
                checks.array(f"{variant}/dI_d{name}", _gradient(losses["mask_iou"], leaves, name))
            norm = fixture.meta.get(variant, f"norm_dI_d{name}")
            if norm is not None:
                found = _gradient(losses["mask_iou"], leaves, name).norm()
                checks.value(f"meta_json.{variant}.norm_dI_d{name}", found, float(norm))


def _leaves(outputs: RawOutputs) -> RawOutputs:
    """Copies that collect gradients."""
    copied = deepcopy(outputs)
    for field in fields(copied):
        tensor = getattr(copied, field.name)
        if tensor is not None:
            tensor.requires_grad_(field.name != "anchors")
    return copied


def _gradient(loss: Tensor, outputs: RawOutputs, name: str) -> Tensor:
    leaf: Tensor = getattr(outputs, FIELDS[name])
    [gradient] = torch.autograd.grad(loss, leaf, retain_graph=True, materialize_grads=True)
    return gradient


def _check_mask_iou(
    checks: Checks,
    variant: str,
    config: LossConfig,
    outputs: RawOutputs,
    targets: Targets,
    matches: Matches,
    maskiou_net: MaskIouNet | None,
    priorities: Tensor,
) -> None:
    """The samples of mask re-scoring: class, true IoU, pixel sum and predicted IoU of each."""
    if maskiou_net is None:
        raise DataError("a network with mask re-scoring is needed, whose weights are not in the file")
    fixture = checks.fixture
    with torch.no_grad():
        masks = mask_samples(
            outputs.prototypes, outputs.mask_coefficients, matches, targets, priorities, config.max_masks_per_image
        )
        samples = mask_iou_samples(masks, config.mask_iou_min_area)
        chosen = samples.chosen
        labels = samples.labels[chosen]
        predicted = maskiou_net(samples.masks[chosen]).gather(1, labels[:, None]).squeeze(1)
    for name, found in (
        ("target", samples.ious[chosen]),
        ("label", labels),
        ("pred", predicted),
        ("input_sum", samples.masks[chosen].sum(dim=(1, 2))),
    ):
        if f"{variant}/maskiou_{name}" in fixture:
            checks.array(f"{variant}/maskiou_{name}", found)


def stored_priorities(matches: Matches, max_masks: int, permutations: list[Tensor]) -> Tensor:
    """Priorities (B, A) with which the mask loss selects as the published code did, see `YolactLoss.forward`.

    If an image has more positives than the mask loss takes, that code draws a permutation of them, in the anchors'
    order, and takes the first ones.

    Args:
        permutations: the drawn permutations, in order.

    Raises:
        DataError: their number or the length of one does not match.
    """
    priorities = -torch.arange(matches.classes.shape[1], dtype=torch.float32).repeat(len(matches.classes), 1)
    waiting = list(permutations)
    for row, classes in zip(priorities, matches.classes, strict=True):
        positive = (classes > 0).nonzero().squeeze(1)
        count = len(positive)
        if count <= max_masks:
            continue
        if not waiting:
            raise DataError(f"the loss draws more permutations than the {len(permutations)} that are stored")
        drawn = waiting.pop(0)
        if len(drawn) != count:
            raise DataError(f"the loss draws a permutation of {count}, the stored one has {len(drawn)}")
        row[positive[drawn.long()]] = -torch.arange(count, dtype=torch.float32)
    if waiting:
        raise DataError(f"the loss draws {len(permutations) - len(waiting)} of {len(permutations)} permutations")
    return priorities
