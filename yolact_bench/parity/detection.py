"""Checks of detection, of masks in image pixels, and of average precision."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from yolact.errors import DataError
from yolact.evaluation.evaluator import IOU_TYPES
from yolact.inference.detections import Detections
from yolact.inference.postprocess import Candidates, detect, to_image_frame
from yolact.models.yolact import Yolact
from yolact.settings import PUBLISHED_DETECTION, DetectConfig
from yolact_bench.parity.fixture import Fixture
from yolact_bench.parity.report import Checks
from yolact_bench.parity.stored import input_size, stored_outputs
from yolact_bench.published_ap import IOU_THRESHOLDS, GroundTruth, PublishedEvaluation

SCORE_TIE = 1e-6
"""Score difference below which rounding decides the order of two detections."""

_POST_FOLDER = re.compile(r"(?P<mode>.+)_st(?P<score>\d*\.?\d+)")


def check_detection(checks: Checks, network: Yolact | None) -> None:
    """Check detections from the stored outputs, their masks, and their average precision."""
    fixture = checks.fixture
    for mode in fixture.children("det"):
        with checks.part(f"det/{mode}"):
            _check_mode(checks, mode)
    for folder in fixture.children("post"):
        for image in fixture.children(f"post/{folder}"):
            with checks.part(f"post/{folder}/{image}"):
                _check_image_frame(checks, network, folder, image)
    if fixture.has("eval"):
        with checks.part("eval"):
            _check_average_precision(checks)


def _check_mode(checks: Checks, mode: str) -> None:
    fixture = checks.fixture
    outputs = stored_outputs(fixture, "train", "train/priors")
    found = detect(outputs, detect_config(fixture, mode, len(outputs.anchors)), input_size(fixture))
    for image in fixture.children(f"det/{mode}"):
        with checks.part(f"det/{mode}/{image}"):
            check_candidates(checks, f"det/{mode}/{image}", found[int(image)])


def detect_config(fixture: Fixture, mode: str, no_limit: int) -> DetectConfig:
    """The published detection settings with those of one of ``meta_json.detect.modes``.

    Args:
        no_limit: detections per image across classes, where the published code has no limit.
    """
    mode_settings = fixture.meta["detect", "modes", mode]
    cross_class = mode_settings["fast"] and mode_settings["cross_class"]
    nms = "cross_class" if cross_class else "fast" if mode_settings["fast"] else "traditional"

    def setting(key: str) -> Any:
        return mode_settings[key] if key in mode_settings else fixture.meta["detect", key]

    return DetectConfig.model_validate(
        PUBLISHED_DETECTION.model_dump()
        | {
            "score_threshold": float(mode_settings["conf_thresh"]),
            "nms": nms,
            "nms_iou": float(setting("nms_thresh")),
            "top_k": int(setting("top_k")),
            "max_detections": no_limit if cross_class else int(setting("max_num_detections")),
        }
    )


def check_candidates(checks: Checks, folder: str, found: Candidates) -> None:
    """Compare boxes, scores, classes and coefficients with those in a folder, in the stored order."""
    fixture = checks.fixture
    if len(found.scores) == len(fixture.tensor(f"{folder}/scores")):
        order = _order_of_ties(fixture, folder, found)
        found = Candidates(found.boxes[order], found.scores[order], found.labels[order], found.mask_coefficients[order])
    for name, values in (
        ("boxes", found.boxes),
        ("scores", found.scores),
        ("classes", found.labels),
        ("coeffs", found.mask_coefficients),
    ):
        if f"{folder}/{name}" in fixture:
            checks.array(f"{folder}/{name}", values)


def _order_of_ties(fixture: Fixture, folder: str, found: Candidates) -> Tensor:
    """Our rows in the order of the stored ones; only rows with nearly equal scores may swap."""
    scores, classes, boxes = (fixture.tensor(f"{folder}/{name}") for name in ("scores", "classes", "boxes"))
    order = list(range(len(scores)))
    start = 0
    for stop in range(1, len(scores) + 1):
        if stop < len(scores) and scores[stop - 1] - scores[stop] < SCORE_TIE:
            continue
        waiting = list(range(start, stop))
        for row in range(start, stop) if len(waiting) > 1 else ():
            distance = (found.boxes[waiting] - boxes[row]).abs().sum(dim=1) + (found.labels[waiting] != classes[row])
            order[row] = waiting.pop(int(distance.argmin()))
        start = stop
    return torch.tensor(order, dtype=torch.int64)


@torch.no_grad()
def _check_image_frame(checks: Checks, network: Yolact | None, folder: str, image: str) -> None:
    """Check detections of a mode in image pixels; ``_st0.30`` after the mode is a score threshold."""
    fixture = checks.fixture
    mode, score = _mode_and_score(fixture, folder)
    source = f"det/{mode}/{image}"
    candidates = Candidates(
        boxes=fixture.tensor(f"{source}/boxes").float(),
        scores=fixture.tensor(f"{source}/scores").float(),
        labels=fixture.tensor(f"{source}/classes"),
        mask_coefficients=fixture.tensor(f"{source}/coeffs").float(),
    )
    found = to_image_frame(
        candidates,
        fixture.tensor("train/proto")[int(image)].float(),
        int(fixture.meta["detect", "target_h"]),
        int(fixture.meta["detect", "target_w"]),
        PUBLISHED_DETECTION,
        network.maskiou_net if network is not None else None,
    )
    if score is not None:
        found = found.above(score)
    target = f"post/{folder}/{image}"
    for name, values in (
        ("classes", found.labels),
        ("scores", found.scores),
        ("scores_box", found.scores),
        ("scores_mask", found.mask_scores),
        ("boxes", found.boxes),
    ):
        if f"{target}/{name}" in fixture:
            checks.value(f"{target}/{name}", values, _like(fixture.tensor(f"{target}/{name}"), values))
    if f"{target}/masks_packed" in fixture:
        masks = fixture.masks(f"{target}/masks_packed", f"{target}/masks_shape").bool()
        checks.value(f"{target}/masks", found.masks, _like(masks, found.masks), pixels=True)


def _mode_and_score(fixture: Fixture, folder: str) -> tuple[str, float | None]:
    match = _POST_FOLDER.fullmatch(folder)
    if match is None or fixture.has(f"det/{folder}"):
        return folder, None
    return match["mode"], float(match["score"])


def _like(expected: Tensor, found: Tensor) -> Tensor:
    """Without detections the published code returns empty tensors that lack the usual dimensions."""
    return expected.reshape(found.shape) if expected.numel() == found.numel() == 0 else expected


def _check_average_precision(checks: Checks) -> None:
    """Check the published AP of the stored Fast NMS detections against the stored objects."""
    fixture = checks.fixture
    num_classes = fixture.tensor("train/conf").shape[-1] - 1
    thresholds = _thresholds(fixture)
    evaluation = PublishedEvaluation(
        num_classes, thresholds, min_relative_side=0
    )  # small objects are already missing from the stored ones
    mode = _evaluated_mode(fixture)
    for image in fixture.children("eval/gt"):
        evaluation.add(_stored_detections(fixture, f"post/{mode}/{image}"), _ground_truth(fixture, image))
    for kind in IOU_TYPES:
        result = evaluation.result(kind)
        shape = result.per_class.shape
        for name, values in (
            ("ap_per_class", torch.from_numpy(result.per_class)),
            ("num_gt", torch.from_numpy(result.num_objects).expand(shape)),
            ("num_det", torch.from_numpy(result.num_detections).expand(shape)),
        ):
            if f"eval/{name}/{kind}" in fixture:
                checks.array(f"eval/{name}/{kind}", values)
        printed = fixture.meta.get("eval", "ap", kind)
        if printed is not None:
            ours = result.percent()
            expected = [float(value) for value in printed.values()]
            checks.value(f"meta_json.eval.ap.{kind}", [ours.get(name, -1.0) for name in printed], expected)


def _thresholds(fixture: Fixture) -> tuple[float, ...]:
    printed = fixture.meta.get("eval", "ap", "box") or {}
    percents = sorted(int(name) for name in printed if name.isdigit())
    return tuple(percent / 100 for percent in percents) or IOU_THRESHOLDS


def _evaluated_mode(fixture: Fixture) -> str:
    modes = fixture.meta["detect", "modes"]
    fast = [name for name, mode in modes.items() if mode["fast"] and not mode["cross_class"]]
    if not fast:
        raise DataError("no mode of meta_json.detect.modes is Fast NMS, whose detections are evaluated")
    return "fast" if "fast" in fast else fast[0]


def _stored_detections(fixture: Fixture, folder: str) -> Detections:
    scores = fixture.tensor(f"{folder}/{'scores_box' if f'{folder}/scores_box' in fixture else 'scores'}")
    mask_scores = fixture.tensor(f"{folder}/scores_mask") if f"{folder}/scores_mask" in fixture else scores
    return Detections.from_masks(
        fixture.tensor(f"{folder}/boxes").float(),
        scores,
        fixture.tensor(f"{folder}/classes"),
        fixture.masks(f"{folder}/masks_packed", f"{folder}/masks_shape"),
        mask_scores=mask_scores,
    )


def _ground_truth(fixture: Fixture, image: str) -> GroundTruth:
    rows = fixture.tensor(f"eval/gt/{image}")
    labels = rows[:, 4].long()
    masks = fixture.masks(f"eval/gt_masks_packed/{image}", f"eval/gt_masks_shape/{image}")
    return GroundTruth(rows[:, :4].float(), labels, masks, labels < 0)
