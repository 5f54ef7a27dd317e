"""Matches in each image, against hand calculations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from yolact.evaluation.evaluator import index_ground_truth
from yolact.evaluation.image_results import ImageResult, advantage, disagreement, measure_images

SIDE = 100


def region(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    rle = mask_utils.encode(mask)
    return {
        "bbox": [float(x), float(y), float(width), float(height)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "area": float(width * height),
    }


def truth(*objects: tuple[int, int, int, tuple[int, int, int, int], int], images: int = 2) -> Any:
    """Ground truth of (id, image, class, place, crowd)."""
    return index_ground_truth(
        {
            "images": [{"id": i, "file_name": f"{i}", "width": SIDE, "height": SIDE} for i in range(1, images + 1)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, **region(*place)}
                for number, image, category, place, crowd in objects
            ],
        },
        "truth",
    )


def row(image: int, category: int, place: tuple[int, int, int, int], score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "score": score, **region(*place)}


def test_each_object_has_the_iou_of_the_detection_that_finds_it() -> None:
    # The larger object comes first in the file and its detection last by score, so order cannot help.
    objects = truth((7, 1, 1, (0, 0, 50, 50), 0), (5, 1, 1, (60, 60, 20, 20), 0), (9, 1, 2, (0, 60, 20, 20), 0))
    rows = [row(1, 1, (0, 0, 50, 40), 0.5), row(1, 1, (60, 60, 20, 15), 0.8), row(1, 1, (0, 60, 20, 20), 0.7)]
    got = measure_images(objects, rows, min_score=0.3)
    assert got[1].found == pytest.approx({7: 0.8, 5: 0.75, 9: 0.0})
    assert (got[1].false, got[1].num_found) == (1, 2)  # the cat where the dog is
    assert got[2] == ImageResult({}, 0)


def test_low_scores_bad_overlaps_and_second_detections_find_nothing() -> None:
    objects = truth((1, 1, 1, (0, 0, 50, 50), 0))
    rows = [row(1, 1, (0, 0, 50, 50), 0.29), row(1, 1, (0, 0, 50, 24), 0.9)]
    assert measure_images(objects, rows, min_score=0.3)[1] == ImageResult({1: 0.0}, 1)
    twice = [row(1, 1, (0, 0, 50, 50), 0.9), row(1, 1, (0, 0, 50, 45), 0.8)]
    assert measure_images(objects, twice, min_score=0.3)[1] == ImageResult({1: 1.0}, 1)


def test_crowd_regions_are_neither_found_nor_missed() -> None:
    objects = truth((1, 1, 1, (0, 0, 80, 80), 1))
    assert measure_images(objects, [row(1, 1, (10, 10, 20, 20))], min_score=0.3)[1] == ImageResult({}, 0)


def test_differences_cancel_in_the_advantage_but_not_in_the_disagreement() -> None:
    a, b = ImageResult({1: 0.9, 2: 0.0}, 3), ImageResult({1: 0.0, 2: 0.8}, 1)
    assert advantage(a, b) == pytest.approx(-0.9 + 0.8 + 1)
    assert advantage(b, a) == pytest.approx(-0.9)
    assert disagreement(a, b) == disagreement(b, a) == pytest.approx(0.9 + 0.8 + 1)
    assert disagreement(a, a) == advantage(a, a) == 0
