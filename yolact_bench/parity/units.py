"""Checks of single functions: boxes, masks, matching, NMS, average precision, preparation of images."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from yolact.boxes import box_iou, crop_mask, cxcywh_to_xyxy, decode, encode, pixel_bounds, xyxy_to_cxcywh
from yolact.crop import View
from yolact.data.augment import Sample, crop_targets, draw_crop, render
from yolact.inference.postprocess import Candidates, cross_class_fast_nms, detect, fast_nms, traditional_nms
from yolact.losses.matcher import match
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_AUGMENTATION
from yolact.structures import RawOutputs, targets_from_masks
from yolact.transforms import IMAGENET, UNIT_RANGE, normalize, to_square
from yolact_bench.boxes import (
    integer_pixel_bounds,
    intersection_over_first,
    mask_intersection_over_first,
    mask_iou,
)
from yolact_bench.parity.detection import check_candidates
from yolact_bench.parity.fixture import Fixture
from yolact_bench.parity.losses import PUBLISHED_LOSS, check_matches
from yolact_bench.parity.report import Checks
from yolact_bench.parity.resizing import aspect_ratio_size, resize_masks, resize_planes_like_opencv
from yolact_bench.parity.stored import crowd_last
from yolact_bench.published_ap import average_precision

NORMALIZATIONS = {"resnet": IMAGENET, "darknet": UNIT_RANGE}
"""Ours for the published name of each transform."""

NO_AUGMENTATION = PUBLISHED_AUGMENTATION.model_copy(
    update=dict.fromkeys(("photometric", "expand", "random_crop", "mirror"), False)
)

_BOUNDS = re.compile(r"size(?P<size>\d+)_pad(?P<padding>\d+)_(?P<kind>float|int)")
_FAST = re.compile(r"(?P<kind>fast|cross)_k(?P<top_k>\d+)_t(?P<percent>\d+)")
_TRADITIONAL = re.compile(r"trad_t(?P<percent>\d+)")


def is_units(fixture: Fixture) -> bool:
    """Whether a file holds inputs and results of single functions."""
    return any(section in SECTIONS for section in fixture.children())


def check_units(checks: Checks) -> None:
    """Every section that is known."""
    for section in checks.fixture.children():
        if section in SECTIONS:
            with checks.part(section):
                SECTIONS[section](checks)


def _check_coding(checks: Checks) -> None:
    fixture = checks.fixture
    anchors, boxes = fixture.tensor("coding/priors"), fixture.tensor("coding/boxes")
    checks.array("coding/encoded", encode(boxes, anchors))
    checks.array("coding/decoded", decode(fixture.tensor("coding/loc"), anchors))
    checks.array("coding/point_form_of_priors", cxcywh_to_xyxy(anchors))
    checks.array("coding/center_size_of_boxes", xyxy_to_cxcywh(boxes))


def _check_box_iou(checks: Checks) -> None:
    a, b = checks.fixture.tensor("iou/a"), checks.fixture.tensor("iou/b")
    checks.array("iou/iou", box_iou(a, b))
    checks.array("iou/crowd", intersection_over_first(a, b))


def _check_mask_iou(checks: Checks) -> None:
    a, b = checks.fixture.tensor("mask_iou/a"), checks.fixture.tensor("mask_iou/b")
    checks.array("mask_iou/iou", mask_iou(a, b))
    checks.array("mask_iou/crowd", mask_intersection_over_first(a, b))


def _check_matching(checks: Checks) -> None:
    """Folders whose name has ``crowd`` in it use the crowd boxes."""
    fixture = checks.fixture
    boxes, labels, anchors = (fixture.tensor(f"match/{name}") for name in ("truths", "labels", "priors"))
    for folder in fixture.children("match"):
        if not fixture.has(f"match/{folder}"):
            continue
        with checks.part(f"match/{folder}"):
            crowd = fixture.tensor("match/crowd_boxes") if "crowd" in folder else boxes[:0]
            boxes_of_all = torch.cat([boxes, crowd])
            targets = targets_from_masks(
                boxes=[boxes_of_all],
                labels=[torch.cat([labels, torch.full((len(crowd),), -1)])],
                masks=[torch.zeros(len(boxes_of_all), 1, 1)],  # ignored by matching
                crowd=[crowd_last(len(boxes_of_all), len(crowd))],
                num_classes=int(labels.max()) + 1,
                mask_size=(1, 1),
                semantic_size=(1, 1),
            )
            config = PUBLISHED_LOSS
            matches = match(targets, anchors, config.positive_iou, config.negative_iou, config.crowd_overlap)
            check_matches(checks, f"match/{folder}", matches, targets, anchors)


def _check_bounds(checks: Checks) -> None:
    """Size, padding and kind are in the folders' names."""
    fixture = checks.fixture
    first, second = fixture.tensor("sanitize/x1"), fixture.tensor("sanitize/x2")
    for folder in fixture.children("sanitize"):
        settings = _BOUNDS.fullmatch(folder)
        if settings is None:
            continue
        with checks.part(f"sanitize/{folder}"):
            bounds = pixel_bounds if settings["kind"] == "float" else integer_pixel_bounds
            low, high = bounds(first, second, int(settings["size"]), int(settings["padding"]))
            checks.array(f"sanitize/{folder}/lo", low)
            checks.array(f"sanitize/{folder}/hi", high)


def _check_crop(checks: Checks) -> None:
    """The padding is in the array's name, the size of the grid in its shape."""
    fixture = checks.fixture
    masks, boxes = fixture.tensor("crop/masks"), fixture.tensor("crop/boxes")
    for name in fixture.children("crop"):
        if not name.startswith("kept_pad"):
            continue
        with checks.part(f"crop/{name}"):
            height, width = masks.shape[:2]
            kept = crop_mask(boxes, height, width, float(name.removeprefix("kept_pad")))
            checks.array(f"crop/{name}", (masks != 0) & kept.permute(1, 2, 0))


def _check_nms(checks: Checks) -> None:
    """Settings are in the folders' names: ``k`` the top k, ``t`` the IoU threshold in percent."""
    for folder in checks.fixture.children("nms"):
        name = f"nms/{folder}"
        with checks.part(name):
            if settings := _FAST.fullmatch(folder):
                check_candidates(checks, name, _fast_nms(checks.fixture, settings))
            elif settings := _TRADITIONAL.fullmatch(folder):
                check_candidates(checks, name, _traditional_nms(checks.fixture, settings))
            elif folder == "fast_second_threshold":
                check_candidates(checks, name, _detect_without_tail(checks.fixture))
            elif folder == "trad_single":
                _check_sequential_nms(checks)


def _fast_nms(fixture: Fixture, settings: re.Match[str]) -> Candidates:
    suppress = fast_nms if settings["kind"] == "fast" else cross_class_fast_nms
    boxes, scores = fixture.tensor("nms/boxes"), fixture.tensor("nms/scores").T  # (N, 4), (N, C)
    found = suppress(boxes, scores, int(settings["percent"]) / 100, int(settings["top_k"]))
    # The published code has no limit across classes.
    return _best(fixture, found, int(fixture.meta["max_num_detections"]) if settings["kind"] == "fast" else None)


def _traditional_nms(fixture: Fixture, settings: re.Match[str]) -> Candidates:
    meta = fixture.meta
    boxes, scores = fixture.tensor("nms/boxes"), fixture.tensor("nms/scores").T
    pixels = float(meta["max_size_during_trad_nms"])
    found = traditional_nms(boxes, scores, int(settings["percent"]) / 100, float(meta["conf_thresh"]), pixels)
    return _best(fixture, found, int(meta["max_num_detections"]))


def _best(fixture: Fixture, found: tuple[Tensor, Tensor, Tensor], limit: int | None) -> Candidates:
    """The survivors of NMS as indices, labels and scores; best first."""
    rows, labels, scores = found
    order = scores.argsort(descending=True, stable=True)[:limit]
    boxes, coefficients = fixture.tensor("nms/boxes"), fixture.tensor("nms/coeffs")
    return Candidates(boxes[rows[order]], scores[order], labels[order], coefficients[rows[order]])


def _detect_without_tail(fixture: Fixture) -> Candidates:
    """Fast NMS with a test of every score: the published code's switch ``second_threshold``, here the default.

    It belongs to `detect`, which starts from logits. The stored scores of a box may add up to more than one, which
    softmax cannot produce: scores and threshold are scaled down together, which changes neither the order nor which
    boxes pass.
    """
    boxes, scores, coefficients = (fixture.tensor(f"nms/{name}") for name in ("boxes", "scores", "coeffs"))
    scale = 0.99 / float(scores.sum(dim=0).max())
    foreground = scale * scores.double().T  # (N, C)
    probabilities = torch.cat([1 - foreground.sum(dim=1, keepdim=True), foreground], dim=1)
    outputs = RawOutputs(
        boxes=torch.zeros_like(boxes)[None],
        class_logits=probabilities.log().float()[None],
        mask_coefficients=coefficients[None],
        prototypes=boxes.new_zeros(1, 2, 2, coefficients.shape[1]),
        anchors=xyxy_to_cxcywh(boxes),
        semantic_logits=None,
    )
    meta = fixture.meta
    changes = {
        "score_threshold": scale * float(meta["conf_thresh_of_fast_second_threshold"]),
        "max_detections": int(meta["max_num_detections"]),
    }
    [found] = detect(outputs, DEFAULT_DETECTION.model_copy(update=changes), int(meta["max_size_during_trad_nms"]))
    return Candidates(found.boxes, found.scores / scale, found.labels, found.mask_coefficients)


def _check_sequential_nms(checks: Checks) -> None:
    """Sequential NMS on pixel boxes, each with the best of its scores; the IoU threshold is 0.5."""
    fixture = checks.fixture
    boxes = fixture.tensor("nms/trad_single/boxes_px")
    best = fixture.tensor("nms/scores").amax(dim=0)
    rows, _, _ = traditional_nms(boxes, best[:, None], 0.5, -1.0, 1.0)  # the boxes are in pixels already
    checks.array("nms/trad_single/kept", rows.sort().values)


def _check_average_precision(checks: Checks) -> None:
    fixture = checks.fixture
    for folder in fixture.children("ap"):
        with checks.part(f"ap/{folder}"):
            scores = fixture.tensor(f"ap/{folder}/scores").numpy()
            correct = fixture.tensor(f"ap/{folder}/true").numpy()
            found = average_precision(scores, correct, int(fixture.number(f"ap/{folder}/num_gt")))
            checks.array(f"ap/{folder}/ap", found)


def _check_preparation(checks: Checks) -> None:
    fixture = checks.fixture
    for folder in fixture.children("prep"):
        with checks.part(f"prep/{folder}"):
            if folder in NORMALIZATIONS:
                _check_transform(checks, folder)
            elif folder == "train_noaug":
                _check_training_chain(checks)
            elif folder == "preserve_ar_wh":
                rows = fixture.tensor("prep/preserve_ar_wh")
                size = int(fixture.meta.get("max_size", default=550))
                checks.array(
                    "prep/preserve_ar_wh", [[w, h, *aspect_ratio_size(w, h, size)] for w, h in rows[:, :2].tolist()]
                )


def _rgb_image(fixture: Fixture) -> np.ndarray:
    return fixture.tensor("prep/image_bgr").numpy()[:, :, ::-1].copy()


def _check_transform(checks: Checks, folder: str) -> None:
    """One code path covers both published ones, for images (``cv``) and for tensors (``torch``)."""
    fixture = checks.fixture
    image = torch.from_numpy(_rgb_image(fixture)).permute(2, 0, 1)
    for path in fixture.children(f"prep/{folder}"):
        expected = fixture.tensor(f"prep/{folder}/{path}")
        found = normalize(to_square(image, expected.shape[-1])[None], NORMALIZATIONS[folder])[0]
        checks.value(f"prep/{folder}/{path}", found, expected)


def _check_training_chain(checks: Checks) -> None:
    """The training chain with all random steps off.

    Two things follow the published chain where ours differs intentionally: the image before it is rounded to uint8, and
        masks in OpenCV's arithmetic. The notes say how far training's own image is from that, and how many mask pixels
        differ in ours.
    """
    fixture = checks.fixture
    image = _rgb_image(fixture)
    height, width = image.shape[:2]
    masks = fixture.tensor("prep/gt_masks").to(torch.uint8)
    sample = Sample(
        image=image,
        boxes=fixture.tensor("prep/gt_boxes").double().numpy() * [width, height, width, height],
        labels=fixture.tensor("prep/gt_labels").long().numpy(),
        masks=coco_mask.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0))),
        crowd=fixture.tensor("prep/gt_labels").numpy() < 0,
    )
    expected = fixture.tensor("prep/train_noaug/image")
    size = expected.shape[-1]
    view = View.of(draw_crop(sample, NO_AUGMENTATION, np.random.default_rng(0)), height, width, size)
    exact = to_square(torch.from_numpy(image).permute(2, 0, 1), size)
    levels = float((render(image, view) - exact).abs().max())
    name = "prep/train_noaug/image (before rounding to uint8)"
    note = f"in training, rounding changes levels by up to {levels:.2f} of 255"
    checks.value(name, normalize(exact[None], IMAGENET)[0], expected, note=note)
    targets = crop_targets(sample, view, int(sample.labels.max(initial=0)) + 1)
    checks.array("prep/train_noaug/boxes", targets.boxes)
    published = fixture.tensor("prep/train_noaug/masks")
    found = resize_planes_like_opencv(masks, (size, size))
    ours = torch.from_numpy(resize_masks(masks.numpy(), (size, size)))
    note = f"rounded once, as in our training, {_differing(ours, published)} of {published.numel()} pixels differ"
    checks.value("prep/train_noaug/masks (OpenCV's arithmetic)", found, published, pixels=True, note=note)


def _differing(found: Tensor, expected: Tensor) -> int:
    return int((found != expected).sum()) if found.shape == expected.shape else expected.numel()


SECTIONS: dict[str, Callable[[Checks], None]] = {
    "coding": _check_coding,
    "iou": _check_box_iou,
    "mask_iou": _check_mask_iou,
    "match": _check_matching,
    "sanitize": _check_bounds,
    "crop": _check_crop,
    "nms": _check_nms,
    "ap": _check_average_precision,
    "prep": _check_preparation,
}
"""Folders of unit vectors, and what checks them."""
