"""The same numbers as the published implementation (dbolya/yolact at commit 902073d), computed there once and stored.

The README beside the numbers says how they were made and which tolerances two correct implementations reach.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from yolact.boxes import (
    box_iou,
    crop_mask,
    cxcywh_to_xyxy,
    decode,
    encode,
    intersection_over_first,
    pixel_window,
    xyxy_to_cxcywh,
)
from yolact.config import PUBLISHED_DETECTION, LossConfig, ModelConfig
from yolact.data.transforms import normalize, to_square
from yolact.losses import YolactLoss, classification_loss
from yolact.matcher import Matches, match
from yolact.models.anchors import pyramid_anchors
from yolact.models.backbone import RESNETS, ResNetDesign
from yolact.models.yolact import Yolact
from yolact.postprocess import Candidates, cross_class_fast_nms, detect, fast_nms, to_photo_frame
from yolact.structures import RawOutputs, Targets

LOSS = LossConfig(
    class_weight=1.0,
    box_weight=1.5,
    mask_weight=6.125,
    semantic_weight=1.0,
    positive_iou=0.5,
    negative_iou=0.4,
    crowd_overlap=0.7,
    negatives_per_positive=3,
    max_masks_per_image=100,
)


class Numbers:
    """One stored file; floats that were stored in half precision come as float32."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.meta: dict[str, Any] = json.loads(self.arrays["meta_json"].item()) if "meta_json" in self.arrays else {}

    def __getitem__(self, name: str) -> Tensor:
        array = torch.from_numpy(self.arrays[name])
        return array.float() if array.dtype == torch.float16 else array

    def masks(self, name: str) -> Tensor:
        """Masks stored as bits; ``name`` has ``{}`` where ``packed`` or ``shape`` goes."""
        shape = self.arrays[name.format("shape")]
        bits = np.unpackbits(self.arrays[name.format("packed")])
        return torch.from_numpy(bits[: np.prod(shape)].reshape(shape))


@pytest.fixture(scope="module")
def units(reference_fixtures: Path) -> Numbers:
    return Numbers(reference_fixtures / "units.npz")


@pytest.fixture(scope="module")
def base(reference_fixtures: Path) -> Numbers:
    return Numbers(reference_fixtures / "base_138.npz")


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """The greatest difference is small against the spread of the numbers."""
    assert found.shape == expected.shape
    assert ((found - expected).abs().max() / expected.std()).item() < tolerance


# --- single functions -----------------------------------------------------------------------------------------------


def test_box_coding(units: Numbers) -> None:
    anchors, boxes = units["coding/priors"], units["coding/boxes"]
    torch.testing.assert_close(encode(boxes, anchors), units["coding/encoded"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(decode(units["coding/loc"], anchors), units["coding/decoded"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cxcywh_to_xyxy(anchors), units["coding/point_form_of_priors"])
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), units["coding/center_size_of_boxes"])


def test_overlaps(units: Numbers) -> None:
    a, b = units["iou/a"], units["iou/b"]
    torch.testing.assert_close(box_iou(a, b), units["iou/iou"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(intersection_over_first(a, b), units["iou/crowd"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("with_crowd", [True, False])
def test_matching(units: Numbers, with_crowd: bool) -> None:
    boxes, labels = units["match/truths"], units["match/labels"]
    crowd_boxes = units["match/crowd_boxes"] if with_crowd else torch.zeros(0, 4)
    targets = targets_of(
        torch.cat([boxes, crowd_boxes]), torch.cat([labels, torch.full((len(crowd_boxes),), -1)]), len(crowd_boxes)
    )
    folder = "match/crowd" if with_crowd else "match/plain"
    matched = match(targets, units["match/priors"], 0.5, 0.4, 0.7)
    assert_same_matching(
        matched,
        targets,
        units["match/priors"],
        units[f"{folder}/conf_t"],
        units[f"{folder}/idx_t"],
        units[f"{folder}/loc_t"],
    )


def targets_of(boxes: Tensor, labels: Tensor, num_crowds: int, masks: Tensor | None = None) -> Targets:
    """Crowd rows come last."""
    crowd = torch.arange(len(boxes)) >= len(boxes) - num_crowds
    return Targets(boxes, labels.long(), torch.zeros(len(boxes), 1, 1) if masks is None else masks, crowd)


def assert_same_matching(
    matched: Matches, targets: Targets, anchors: Tensor, classes: Tensor, objects: Tensor, offsets: Tensor
) -> None:
    positive = classes > 0
    assert positive.any()
    assert torch.equal(matched.classes, classes)
    assert torch.equal(matched.objects[positive], objects[positive])
    boxes = targets.boxes[matched.objects[positive]]
    torch.testing.assert_close(encode(boxes, anchors[positive]), offsets[positive], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [138, 551])
@pytest.mark.parametrize("padding", [0, 1])
def test_pixel_windows(units: Numbers, size: int, padding: int) -> None:
    low, high = pixel_window(units["sanitize/x1"], units["sanitize/x2"], size, padding)
    folder = f"sanitize/size{size}_pad{padding}_float"
    torch.testing.assert_close(low, units[f"{folder}/lo"])
    torch.testing.assert_close(high, units[f"{folder}/hi"])


@pytest.mark.parametrize("padding", [0, 1])
def test_crop(units: Numbers, padding: int) -> None:
    kept = crop_mask(units["crop/boxes"], 24, 30, padding)
    assert torch.equal(kept.permute(1, 2, 0), units[f"crop/kept_pad{padding}"])


@pytest.mark.parametrize(("top_k", "iou"), [(200, 0.5), (50, 0.3)])
@pytest.mark.parametrize("kind", ["fast", "cross"])
def test_nms(units: Numbers, kind: str, top_k: int, iou: float) -> None:
    """The published Fast NMS returns the best 100 over all classes; across classes it returns all."""
    suppress = fast_nms if kind == "fast" else cross_class_fast_nms
    indices, labels, scores = suppress(units["nms/boxes"], units["nms/scores"].T, iou, top_k)
    order = scores.argsort(descending=True)[: 100 if kind == "fast" else None]
    folder = f"nms/{kind}_k{top_k}_t{round(iou * 100)}"
    torch.testing.assert_close(scores[order], units[f"{folder}/scores"])
    assert torch.equal(labels[order], units[f"{folder}/classes"])
    assert torch.equal(units["nms/boxes"][indices[order]], units[f"{folder}/boxes"])
    assert torch.equal(units["nms/coeffs"][indices[order]], units[f"{folder}/coeffs"])


def test_detection_with_a_score_test_per_class(units: Numbers) -> None:
    """The published code has this test behind a switch that is never on; here it is always on."""
    foreground, boxes = units["nms/scores"].T, units["nms/boxes"]
    # The stored scores of an anchor may add up to more than one, which no softmax gives: scale them all down, and
    # the threshold with them, which changes neither their order nor who passes.
    scale = 0.99 / foreground.sum(dim=1).max()
    probabilities = torch.cat([1 - scale * foreground.sum(dim=1, keepdim=True), scale * foreground], dim=1)
    outputs = RawOutputs(
        boxes=torch.zeros(1, len(boxes), 4),
        class_logits=probabilities.log()[None],
        mask_coefficients=units["nms/coeffs"][None],
        prototypes=torch.zeros(1, 2, 2, 8),
        anchors=xyxy_to_cxcywh(boxes),
        semantic_logits=None,
    )
    threshold = units.meta["conf_thresh_of_fast_second_threshold"] * scale.item()
    [found] = detect(outputs, PUBLISHED_DETECTION.model_copy(update={"score_threshold": threshold}))
    folder = "nms/fast_second_threshold"
    torch.testing.assert_close(found.scores / scale, units[f"{folder}/scores"], atol=1e-5, rtol=1e-5)
    assert torch.equal(found.labels, units[f"{folder}/classes"])
    assert torch.equal(found.mask_coefficients, units[f"{folder}/coeffs"])


def test_photo_preparation(units: Numbers) -> None:
    image = units.arrays["prep/image_bgr"][:, :, ::-1].copy()
    found = normalize(to_square(image, 64)[None])[0]
    torch.testing.assert_close(found, units["prep/resnet/torch"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, units["prep/resnet/cv"], atol=1e-5, rtol=1e-5)


# --- anchors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "yolact_base",
        "yolact_im400",
        "yolact_im700",
        "yolact_resnet50",
        "yolact_resnet50_pascal",
        "yolact_plus_base",
        "yolact_plus_resnet50",
    ],
)
def test_anchors(reference_fixtures: Path, name: str) -> None:
    expected = json.loads((reference_fixtures / "anchors.json").read_text())[name]
    rows = np.load(reference_fixtures / "anchor_rows.npz")
    [ratios] = expected["pred_aspect_ratios"][0]
    size = expected["max_size"]
    sides = [-(-size // 8)]  # each level is half the one before, rounded up
    while len(sides) < 5:
        sides.append(-(-sides[-1] // 2))
    anchors = pyramid_anchors(
        [(side, side) for side in sides], expected["pred_scales"], ratios, size, expected["use_square_anchors"]
    )
    assert len(anchors) == expected["num_priors"]
    assert anchors.double().sum(dim=0).tolist() == pytest.approx(expected["column_sums"], rel=1e-7)
    assert anchors.double().square().sum(dim=0).tolist() == pytest.approx(expected["column_sums_of_squares"], rel=1e-7)
    found = anchors[torch.from_numpy(rows[f"{name}/index"])]
    torch.testing.assert_close(found, torch.from_numpy(rows[f"{name}/rows"]), atol=0, rtol=2e-7)


# --- losses ---------------------------------------------------------------------------------------------------------


@dataclass
class LossCase:
    """Stored predictions and targets of three images."""

    numbers: Numbers
    outputs: RawOutputs
    targets: list[Targets]


@pytest.fixture
def loss_case(reference_fixtures: Path) -> LossCase:
    numbers = Numbers(reference_fixtures / "losses_138.npz")
    outputs = RawOutputs(
        boxes=numbers["pred/loc"].requires_grad_(),
        class_logits=numbers["pred/conf"].requires_grad_(),
        mask_coefficients=numbers["pred/mask"].requires_grad_(),
        prototypes=numbers["pred/proto"].requires_grad_(),
        anchors=numbers["priors"],
        semantic_logits=numbers["pred/segm"].requires_grad_(),
    )
    targets = []
    for image, num_crowds in enumerate(numbers["num_crowds"].tolist()):
        rows = numbers[f"targets/{image}"]
        targets.append(targets_of(rows[:, :4], rows[:, 4], num_crowds, numbers.masks(f"masks_{{}}/{image}")))
    return LossCase(numbers, outputs, targets)


def published_terms(case: LossCase, variant: str) -> dict[str, Any]:
    letters = {"box": "B", "classification": "C", "mask": "M", "semantic": "S"}
    return {
        name: pytest.approx(case.numbers[f"{variant}/loss/{letter}"].item(), rel=1e-5)
        for name, letter in letters.items()
    }


def test_matching_of_a_batch(loss_case: LossCase) -> None:
    numbers, anchors = loss_case.numbers, loss_case.outputs.anchors
    for image, targets in enumerate(loss_case.targets):
        assert_same_matching(
            match(targets, anchors, 0.5, 0.4, 0.7),
            targets,
            anchors,
            numbers["default/conf_t"][image],
            numbers["default/idx_t"][image],
            numbers["default/loc_t"][image],
        )


def test_loss_terms_and_their_gradients(loss_case: LossCase) -> None:
    losses = YolactLoss(LOSS)(loss_case.outputs, loss_case.targets)
    assert {name: term.item() for name, term in losses.as_dict().items()} == published_terms(loss_case, "default")
    losses.total.backward()
    outputs = loss_case.outputs
    assert outputs.semantic_logits is not None
    for leaf, name in (
        (outputs.boxes, "loc"),
        (outputs.class_logits, "conf"),
        (outputs.mask_coefficients, "mask"),
        (outputs.prototypes, "proto"),
        (outputs.semantic_logits, "segm"),
    ):
        expected = loss_case.numbers[f"default/grad/{name}"]
        assert leaf.grad is not None
        assert (leaf.grad - expected).abs().max() < 1e-4 * expected.abs().max(), name
        assert torch.equal(leaf.grad != 0, expected != 0), name


def test_loss_without_the_crowd_rule(loss_case: LossCase) -> None:
    losses = YolactLoss(LOSS.model_copy(update={"crowd_overlap": 1.0}))(loss_case.outputs, loss_case.targets)
    assert {k: v.item() for k, v in losses.as_dict().items()} == published_terms(loss_case, "no_crowd_rule")


def test_loss_with_sampled_masks(loss_case: LossCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored permutations take the place of the random ones."""
    stored: Iterator[Tensor] = iter([loss_case.numbers[f"sample10/perm/{k}"] for k in range(2)])

    def permutation(count: int, **_: object) -> Tensor:
        drawn = next(stored)
        assert len(drawn) == count
        return drawn

    monkeypatch.setattr(torch, "randperm", permutation)
    losses = YolactLoss(LOSS.model_copy(update={"max_masks_per_image": 10}))(loss_case.outputs, loss_case.targets)
    assert {k: v.item() for k, v in losses.as_dict().items()} == published_terms(loss_case, "sample10")
    assert next(stored, None) is None


def test_hard_negatives(loss_case: LossCase) -> None:
    """The anchors that get a gradient are the selected ones."""
    numbers = loss_case.numbers
    logits, classes = loss_case.outputs.class_logits, numbers["default/conf_t"]
    classification_loss(logits, classes, 3).backward()
    selected = logits.grad.abs().sum(dim=-1) > 0  # (B, A)
    assert torch.equal(classes[selected], numbers["default/ohem_target"])
    costs = torch.nn.functional.cross_entropy(logits.detach()[selected], classes[selected], reduction="none")
    torch.testing.assert_close(costs, numbers["default/ohem_ce"], atol=1e-5, rtol=1e-5)


# --- the network ----------------------------------------------------------------------------------------------------


def one_block_network(monkeypatch: pytest.MonkeyPatch, base: Numbers, backbone_weights: str) -> Yolact:
    """The published network with one bottleneck per stage and the stored weights."""
    monkeypatch.setitem(RESNETS, "resnet50", ResNetDesign(Bottleneck, (1, 1, 1, 1)))
    config = ModelConfig.model_validate(
        {
            "backbone": "resnet50",
            "backbone_weights": backbone_weights,
            "image_size": 138,
            "fpn_channels": 256,
            "num_prototypes": 32,
            "anchor_scales": base.meta["pred_scales"],
            "anchor_ratios": base.meta["aspect_ratios"],
            "square_anchors": True,
        }
    )
    network = Yolact(config, 20)
    network.load_state_dict({key[3:]: base[key] for key in base.arrays.files if key.startswith("sd/")})
    return network


OUTPUTS = {"boxes": "loc", "class_logits": "conf", "mask_coefficients": "mask", "prototypes": "proto"}


@torch.no_grad()
def test_network_outputs(base: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode with frozen batch norm, and in evaluation mode."""
    network = one_block_network(monkeypatch, base, "imagenet")
    for training in (True, False):
        outputs = network.train(training)(base["input"])
        for name, stored in OUTPUTS.items():
            assert_near(getattr(outputs, name), base[f"train/{stored}"])
        torch.testing.assert_close(outputs.anchors, base["train/priors"], atol=0, rtol=2e-7)
        if training:
            assert_near(outputs.semantic_logits, base["train/segm"])


@torch.no_grad()
def test_network_outputs_of_an_oblong_input(base: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = one_block_network(monkeypatch, base, "none").eval()(base["rect/input"])
    for name, stored in OUTPUTS.items():
        assert_near(getattr(outputs, name), base[f"rect/{stored}"])
    torch.testing.assert_close(outputs.anchors, base["rect/priors"], atol=0, rtol=2e-7)


@torch.no_grad()
def test_network_outputs_with_batch_statistics(base: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    network = one_block_network(monkeypatch, base, "none").train()
    outputs = network(base["input"])
    assert_near(outputs.boxes, base["bn_batch/loc"], 1e-3)
    assert_near(outputs.semantic_logits, base["bn_batch/segm"], 1e-3)
    after = network.state_dict()
    prefix = "bn_batch/after/"
    for key in [name for name in base.arrays.files if name.startswith(prefix)]:
        torch.testing.assert_close(after[key.removeprefix(prefix)], base[key], atol=1e-5, rtol=1e-4)


# --- detection ------------------------------------------------------------------------------------------------------


def stored_outputs(base: Numbers) -> RawOutputs:
    return RawOutputs(
        boxes=base["train/loc"],
        class_logits=base["train/conf"],
        mask_coefficients=base["train/mask"],
        prototypes=base["train/proto"],
        anchors=base["train/priors"],
        semantic_logits=None,
    )


@pytest.mark.parametrize("mode", ["fast", "cross", "fast_high"])
def test_detection(base: Numbers, mode: str) -> None:
    """Equal to the published list, as far as that list's scores pass the threshold in their own class."""
    settings = base.meta["detect"]["modes"][mode]
    config = PUBLISHED_DETECTION.model_copy(
        update={
            "score_threshold": settings["conf_thresh"],
            "nms": "cross_class" if settings["cross_class"] else "fast",
            "max_detections": 1000 if settings["cross_class"] else 100,  # published: no limit across classes
        }
    )
    for image, found in enumerate(detect(stored_outputs(base), config)):
        folder = f"det/{mode}/{image}"
        passed = base[f"{folder}/scores"] > settings["conf_thresh"]
        assert passed.sum() >= 29
        torch.testing.assert_close(found.scores, base[f"{folder}/scores"][passed], atol=1e-6, rtol=1e-5)
        assert torch.equal(found.labels, base[f"{folder}/classes"][passed])
        torch.testing.assert_close(found.boxes, base[f"{folder}/boxes"][passed], atol=1e-6, rtol=1e-5)
        assert torch.equal(found.mask_coefficients, base[f"{folder}/coeffs"][passed])


@pytest.mark.parametrize("mode", ["fast", "cross"])
@pytest.mark.parametrize("image", [0, 1])
def test_detections_in_the_photos_frame(base: Numbers, mode: str, image: int) -> None:
    """The published boxes are cut to whole pixels; here they keep their fractions."""
    folder = f"det/{mode}/{image}"
    candidates = Candidates(
        base[f"{folder}/boxes"], base[f"{folder}/scores"], base[f"{folder}/classes"], base[f"{folder}/coeffs"]
    )
    found = to_photo_frame(candidates, base["train/proto"][image], height=150, width=200)
    folder = f"post/{mode}/{image}/"
    assert torch.equal(found.scores, base[f"{folder}scores"])
    assert torch.equal(found.labels, base[f"{folder}classes"])
    assert torch.equal(found.boxes.trunc().long(), base[f"{folder}boxes"])
    expected = base.masks(f"{folder}masks_{{}}").bool()
    assert (found.masks != expected).float().mean() < 1e-6


def test_detections_above_a_score(base: Numbers) -> None:
    [candidates, _] = detect(stored_outputs(base), PUBLISHED_DETECTION)
    found = to_photo_frame(candidates, base["train/proto"][0], height=150, width=200).above(0.3)
    assert torch.equal(found.labels, base["post/fast_st0.30/0/classes"])
    expected = base.masks("post/fast_st0.30/0/masks_{}").bool()
    assert (found.masks != expected).float().mean() < 1e-5
