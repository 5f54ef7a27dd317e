"""COCO JSON that says which image has which id; no PyTorch is needed to write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

RESULTS_FILE = "detections.json"
"""COCO results: the detections of all images in one list."""
IMAGES_FILE = "images.json"
"""COCO instances without annotations: which image has which id."""


def coco_tree(
    images: Sequence[Mapping[str, Any]], category_ids: Iterable[int], names: Iterable[str], description: str
) -> dict[str, Any]:
    """COCO instances JSON without annotations: images and categories."""
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, names, strict=True)]
    return {
        "info": {"description": description},
        "images": list(images),
        "annotations": [],
        "categories": categories,
    }
