"""Detections as the JSON of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from serving.schemas import MaskForm

if TYPE_CHECKING:
    from yolact.inference.detections import Detections

BOX_DIGITS, SCORE_DIGITS = 2, 4
"""Decimals of pixels and of scores."""


def to_rows(found: Detections, masks: MaskForm) -> list[dict[str, Any]]:
    """Detections, best first, as plain values; see `serving.schemas.Detection`."""
    boxes = found.boxes.double().numpy().round(BOX_DIGITS).tolist()
    scores = found.scores.double().numpy().round(SCORE_DIGITS).tolist()
    rows = [
        {
            "class": found.class_names[label],
            "class_id": label,
            "category_id": found.category_ids[label],
            "score": score,
            "box": box,
        }
        for label, score, box in zip(found.labels.tolist(), scores, boxes, strict=True)
    ]
    for row, mask in zip(rows, _masks(found, masks), strict=masks != "none"):
        row["mask"] = mask
    return rows


def _masks(found: Detections, form: MaskForm) -> Sequence[Any]:
    if form == "rle":
        return found.rles()
    if form == "polygons":
        return [[part.round(BOX_DIGITS).ravel().tolist() for part in parts] for parts in found.polygons()]
    return []


def of_classes(found: Detections, names: Sequence[str] | None) -> Detections:
    """The detections of some classes; all for None."""
    if names is None:
        return found
    wanted = [label in names for label in found.class_names]
    return found[torch.tensor(wanted)[found.labels]]
