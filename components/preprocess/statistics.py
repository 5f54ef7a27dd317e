"""What ``stats.json`` says about the prepared data; README.md explains its keys."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact.formats.duplicates import MAX_DISTANCE, first_similar_pairs
from yolact.formats.prepare import AREA, CATEGORY, CROWD, DIFFICULT, HEIGHT, TRUNCATED, WIDTH, PhotoSummary
from yolact.formats.problems import Problem

LISTED_PAIRS = 1000
"""Pairs of like photos that are listed; the rest is counted."""

SHOWN_NAMES = 5
"""Photos that are named of a group that was parted."""

SIDE_EDGES: list[float] = [0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
"""Pixels; 32 and 96 part COCO's small, medium and large objects (cocodataset.org, "Detection evaluation")."""

ASPECT_EDGES = [1 / 8, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1 / 1.5, 1 / 1.25, 1.25, 1.5, 2, 3, 4, 5, 8]
"""Width over height; symmetric about 1."""

SHARE_EDGES = [0, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
"""Mask area over photo area."""


@dataclass(frozen=True)
class Outcome:
    """All that was found in a data set, before it is summed up."""

    layout: str
    """Name of the layout."""
    split_by_source: bool
    """Whether the source says which photos are for validation."""
    classes: Mapping[int, str]
    """The source's classes, by its own category ids."""
    categories: Mapping[int, str]
    """Those that are kept, under their new names and ids."""
    photos: Mapping[str, Sequence[PhotoSummary]]
    """By split, in the order of their ids."""
    rejected: Mapping[str, Sequence[Problem]]
    """By photo id."""
    strays: Sequence[Problem]
    """Annotations that belong to no photo."""
    rejected_split: Mapping[str, str]
    """Which split each rejected photo was listed in."""
    source_warnings: Sequence[Problem]
    """Oddities of no single photo."""
    parted: Sequence[Sequence[str]]
    """Files of each group of like photos that was too large to be kept in one split."""


def statistics(outcome: Outcome, digest: str) -> dict[str, Any]:
    """The content of ``stats.json``."""
    left_out = Counter(outcome.rejected_split.values())
    every = [photo for photos in outcome.photos.values() for photo in photos]
    source_names = list(outcome.classes.values())
    others = Counter(source_names[index - 1] for photo in every for index in photo.other_classes)
    return {
        "digest": digest,
        "layout": outcome.layout,
        "split_by": "source" if outcome.split_by_source else "data.val_fraction",
        "splits": {
            split: {
                "listed": len(photos) + left_out[split],
                "left_out": left_out[split],
                **_split_statistics(photos),
            }
            for split, photos in outcome.photos.items()
        },
        "classes": _class_statistics(outcome),
        "other_classes": dict(sorted(others.items())),
        "histograms": {split: _histograms(photos) for split, photos in outcome.photos.items()},
        "duplicates": {**_duplicates(outcome.photos), "parted": [_parted(names) for names in outcome.parted]},
        "problems": [
            *(_entry(photo, problem) for photo, found in outcome.rejected.items() for problem in found),
            *(_entry("", problem) for problem in outcome.strays),
        ],
        "warnings": [
            *(_entry("", warning) for warning in outcome.source_warnings),
            *(_entry(photo.photo_id, warning) for photo in every for warning in photo.warnings),
        ],
    }


def _table(photos: Sequence[PhotoSummary]) -> np.ndarray:
    """(N, 7) float32: all objects, see `PhotoSummary.instances`."""
    return np.concatenate([np.zeros((0, 7), dtype=np.float32), *(photo.instances for photo in photos)])


def _split_statistics(photos: Sequence[PhotoSummary]) -> dict[str, Any]:
    table = _table(photos)
    per_photo = Counter(len(photo.instances) for photo in photos)
    return {
        "images": len(photos),
        "images_without_instance": per_photo[0],
        "images_without_xml": sum(photo.has_xml is False for photo in photos),
        "images_turned": sum(photo.turned for photo in photos),
        "images_reduced": sum(photo.reduced for photo in photos),
        "instances": len(table),
        "instances_without_flags": int(np.isnan(table[:, DIFFICULT]).sum()),
        "crowds": int((table[:, CROWD] == 1).sum()),
        "difficult": int((table[:, DIFFICULT] == 1).sum()),
        "truncated": int((table[:, TRUNCATED] == 1).sum()),
        "instances_per_image": {str(count): per_photo[count] for count in sorted(per_photo)},
        "image_width": _distribution([photo.width for photo in photos]),
        "image_height": _distribution([photo.height for photo in photos]),
        "box_width": _distribution(table[:, WIDTH]),
        "box_height": _distribution(table[:, HEIGHT]),
        "mask_area": _distribution(table[:, AREA]),
    }


def _distribution(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Quartiles and mean; empty where there are no values."""
    if not len(values):
        return {}
    exact = np.asarray(values, dtype=np.float64)
    low, quarter, middle, three_quarters, high = np.percentile(exact, [0, 25, 50, 75, 100])
    summary = {"min": low, "p25": quarter, "median": middle, "p75": three_quarters, "max": high, "mean": exact.mean()}
    return {name: round(float(value), 2) for name, value in summary.items()}


def _class_statistics(outcome: Outcome) -> dict[str, Any]:
    """Photos that show each class and its objects, by split."""
    counts: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for split, photos in outcome.photos.items():
        for photo in photos:
            for category, instances in Counter(photo.instances[:, CATEGORY].astype(int).tolist()).items():
                counts[category, split][0] += 1
                counts[category, split][1] += instances
    return {
        name: {
            split: dict(zip(("images", "instances"), counts[category, split], strict=True)) for split in outcome.photos
        }
        for category, name in outcome.categories.items()
    }


def _histograms(photos: Sequence[PhotoSummary]) -> dict[str, Any]:
    """Objects by size, shape and share of the photo; ``counts`` begins below the first edge and ends above the last."""
    table = _table(photos)
    areas = np.repeat([photo.width * photo.height for photo in photos], [len(photo.instances) for photo in photos])
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


# Photos of one picture


def _duplicates(photos: Mapping[str, Sequence[PhotoSummary]]) -> dict[str, Any]:
    """Photos of one picture in both splits, and equal files within one."""
    train, val = photos["train"], photos["val"]
    count, places = first_similar_pairs(hashes(train), hashes(val), MAX_DISTANCE, LISTED_PAIRS)
    pairs = [
        {
            "train": train[row].file_name,
            "val": val[column].file_name,
            "different_bits": (train[row].difference_hash ^ val[column].difference_hash).bit_count(),
            "equal_files": train[row].source_sha256 == val[column].source_sha256,
        }
        for row, column in places
    ]
    return {
        "across_splits": {"count": count, "pairs": pairs},
        "equal_files_within": {split: _equal_files(found) for split, found in photos.items()},
    }


def _parted(names: Sequence[str]) -> dict[str, Any]:
    return {"images": len(names), "such_as": list(names[:SHOWN_NAMES])}


def hashes(photos: Sequence[PhotoSummary]) -> np.ndarray:
    """Difference hashes, (N,) uint64."""
    return np.array([photo.difference_hash for photo in photos], dtype=np.uint64)


def _equal_files(photos: Sequence[PhotoSummary]) -> list[list[str]]:
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for photo in photos:
        by_content[photo.source_sha256].append(photo.file_name)
    return [names for names in by_content.values() if len(names) > 1]


def _entry(photo_id: str, problem: Problem) -> dict[str, str]:
    return {"image": photo_id, "file": problem.file, "reason": problem.reason}
