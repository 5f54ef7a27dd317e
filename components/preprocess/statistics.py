"""The content of ``stats.json``: statistics of the processed data; README.md explains its keys."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from components.preprocess.findings import kind_of
from components.preprocess.outcome import Outcome, hashes
from yolact.formats.duplicates import MAX_DISTANCE, first_similar_pairs
from yolact.formats.preparation import (
    AREA,
    CATEGORY,
    CROWD,
    DIFFICULT,
    HEIGHT,
    TRUNCATED,
    WIDTH,
    ImageSummary,
    objects_of,
)
from yolact.formats.problems import Problem

LISTED_PAIRS = 1000
"""Maximum number of near-duplicate pairs that are listed; the rest is counted."""

SHOWN_NAMES = 5
"""Maximum number of images listed of a group that is in several splits."""

SIDE_EDGES: list[float] = [0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
"""Pixels; 32 and 96 separate COCO's small, medium and large objects (cocodataset.org, "Detection evaluation")."""

ASPECT_EDGES = [1 / 8, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1 / 1.5, 1 / 1.25, 1.25, 1.5, 2, 3, 4, 5, 8]
"""Width over height; symmetric about 1."""

SHARE_EDGES = [0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
"""Mask area over image area."""


def statistics(outcome: Outcome, digest: str) -> dict[str, Any]:
    """The content of ``stats.json``, without its findings and the digests of the splits."""
    left_out = Counter(outcome.left_out_split.values())
    every = outcome.every_image
    source_names = list(outcome.classes.values())
    others = Counter(source_names[index - 1] for image in every for index in image.other_classes)
    return {
        "digest": digest,
        "format": outcome.format,
        "split_by": dict(outcome.split_by),
        "splits": {
            split: {
                "listed": len(images) + left_out[split],
                "left_out": left_out[split],
                **_split_statistics(images),
            }
            for split, images in outcome.images.items()
        },
        "classes": _class_statistics(outcome),
        "other_classes": dict(sorted(others.items())),
        "histograms": {split: _histograms(images) for split, images in outcome.images.items()},
        "duplicates": {**_duplicates(outcome.images), "divided": [_divided(names) for names in outcome.divided]},
        "problems": [_entry(image, problem) for image, found in outcome.rejected.items() for problem in found],
        "dropped": [_entry(image, problem) for image, problem in outcome.dropped],
        "warnings": [
            *(_entry("", warning) for warning in outcome.source_warnings),
            *(_entry(image.image_id, warning) for image in every for warning in image.warnings),
        ],
    }


def _split_statistics(images: Sequence[ImageSummary]) -> dict[str, Any]:
    table = objects_of(images)
    per_image = Counter(len(image.instances) for image in images)
    return {
        "images": len(images),
        "images_without_instance": per_image[0],
        "images_without_xml": sum(image.has_xml is False for image in images),
        "images_turned": sum(image.turned for image in images),
        "images_reduced": sum(image.reduced for image in images),
        "images_converted": sum(image.converted for image in images),
        "instances": len(table),
        "instances_without_flags": int(np.isnan(table[:, DIFFICULT]).sum()),
        "crowds": int((table[:, CROWD] == 1).sum()),
        "difficult": int((table[:, DIFFICULT] == 1).sum()),
        "truncated": int((table[:, TRUNCATED] == 1).sum()),
        "instances_per_image": {str(count): per_image[count] for count in sorted(per_image)},
        "image_width": _distribution([image.width for image in images]),
        "image_height": _distribution([image.height for image in images]),
        "box_width": _distribution(table[:, WIDTH]),
        "box_height": _distribution(table[:, HEIGHT]),
        "mask_area": _distribution(table[:, AREA]),
    }


def _distribution(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Quartiles and mean; empty without values."""
    if not len(values):
        return {}
    exact = np.asarray(values, dtype=np.float64)
    low, quarter, middle, three_quarters, high = np.percentile(exact, [0, 25, 50, 75, 100])
    summary = {"min": low, "p25": quarter, "median": middle, "p75": three_quarters, "max": high, "mean": exact.mean()}
    return {name: round(float(value), 2) for name, value in summary.items()}


def _class_statistics(outcome: Outcome) -> dict[str, Any]:
    """Number of images with each class and of its objects, by split."""
    counts: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])  # by position of the class
    for split, images in outcome.images.items():
        for image in images:
            for place, instances in Counter(image.instances[:, CATEGORY].astype(int).tolist()).items():
                counts[place, split][0] += 1
                counts[place, split][1] += instances
    return {
        name: {split: dict(zip(("images", "instances"), counts[place, split], strict=True)) for split in outcome.images}
        for place, name in enumerate(outcome.categories.values())
    }


def _histograms(images: Sequence[ImageSummary]) -> dict[str, Any]:
    """Histograms of size, shape and share of the image; ``counts`` start below the first edge, end above the last."""
    table = objects_of(images)
    areas = np.repeat([image.width * image.height for image in images], [len(image.instances) for image in images])
    values: dict[str, tuple[np.ndarray, list[float]]] = {
        "box_side": (np.sqrt(table[:, WIDTH] * table[:, HEIGHT]), SIDE_EDGES),
        "box_aspect": (table[:, WIDTH] / table[:, HEIGHT], ASPECT_EDGES),
        "mask_share": (table[:, AREA] / areas, SHARE_EDGES),
    }
    return {
        name: {
            "edges": edges,
            "counts": np.bincount(np.searchsorted(edges, found, side="right"), minlength=len(edges) + 1).tolist(),
        }
        for name, (found, edges) in values.items()
    }


# Near-duplicates


def _duplicates(images: Mapping[str, Sequence[ImageSummary]]) -> dict[str, Any]:
    """Near-duplicates across the splits, and identical files within one."""
    total, pairs = 0, []
    for one, other in combinations(images, 2):
        left, right = images[one], images[other]
        count, places = first_similar_pairs(hashes(left), hashes(right), MAX_DISTANCE, LISTED_PAIRS)
        total += count
        pairs += [
            {
                "splits": [one, other],
                one: left[row].file_name,
                other: right[column].file_name,
                "different_bits": (left[row].difference_hash ^ right[column].difference_hash).bit_count(),
                "equal_files": left[row].source_sha256 == right[column].source_sha256,
            }
            for row, column in places
        ]
    return {
        "across_splits": {"count": total, "pairs": pairs[:LISTED_PAIRS]},
        "equal_files_within": {split: _equal_files(found) for split, found in images.items()},
    }


def _divided(names: Sequence[str]) -> dict[str, Any]:
    return {"images": len(names), "examples": list(names[:SHOWN_NAMES])}


def _equal_files(images: Sequence[ImageSummary]) -> list[list[str]]:
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for image in images:
        by_content[image.source_sha256].append(image.file_name)
    return [names for names in by_content.values() if len(names) > 1]


def _entry(image_id: str, problem: Problem) -> dict[str, str]:
    return {"image": image_id, "file": problem.file, "reason": problem.reason, "kind": kind_of(problem)}
