"""What evaluate found, kept with its MLflow run so that runs can be compared without their machines.

Below the run's folder ``eval/`` lie `GROUND_TRUTH` (the COCO instances file of the evaluated split) and `DETECTIONS`
(COCO results, box and mask in one row), both gzipped: run lengths shrink to a third.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_ops.tracking.runs import Tracker, TrackingError, reported, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "eval"
GROUND_TRUTH = f"{FOLDER}/val.json.gz"
DETECTIONS = f"{FOLDER}/detections.json.gz"
GZIP = b"\x1f\x8b"
"""Every gzip file begins so (RFC 1952, 2.3.1)."""

TOLERANCE = 1e-9
"""Most difference between a version's metrics and those that its detections give, which are the same sums."""


def log_evaluation(tracker: Tracker, ground_truth: Path, detections: Path) -> None:
    """Keep both files with the run; equal files give equal archives.

    Args:
        tracker: of the run.
        ground_truth: the COCO instances file that was evaluated on.
        detections: JSON list of COCO results.
    """
    with tempfile.TemporaryDirectory() as folder:
        for packed in pack_evaluation(Path(folder), ground_truth, detections):
            tracker.log_artifact(packed, FOLDER)


def pack_evaluation(folder: Path, ground_truth: Path, detections: Path) -> list[Path]:
    """Write what belongs below the run's folder `FOLDER` into ``folder``, see `log_evaluation`."""
    written = []
    for source, name in ((ground_truth, GROUND_TRUTH), (detections, DETECTIONS)):
        packed = folder / Path(name).name
        packed.write_bytes(gzip.compress(source.read_bytes(), compresslevel=6, mtime=0))
        written.append(packed)
    return written


def read_evaluation(client: MlflowClient, run_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `log_evaluation` kept with a run.

    Args:
        client: of the store that has the run.
        run_id: of the run.

    Returns:
        The ground truth as a COCO instances tree, and the rows of COCO results.

    Raises:
        TrackingError: the store fails, or the run was not evaluated, or by a version that kept no ground truth.
    """
    with reported(f"read the evaluation of run {run_id}"):
        there = {file.path for file in client.list_artifacts(run_id, FOLDER)}
    missing = [name for name in (GROUND_TRUTH, DETECTIONS) if name not in there]
    if missing:
        raise TrackingError(
            f"run {run_id} at {shown_uri()} has no {' and no '.join(missing)}. It was not evaluated, or by an older "
            "version: run the evaluate step of its model again. If the server was away then: yolact sync"
        )
    return _read(client, run_id, GROUND_TRUTH), _read(client, run_id, DETECTIONS)


def content(tree: dict[str, Any]) -> tuple[Any, ...]:
    """What a COCO instances tree says, however its images, classes and objects are numbered and ordered."""
    names = {item["id"]: item["name"] for item in tree["categories"]}
    files = {item["id"]: item["file_name"] for item in tree["images"]}
    objects = [
        (
            files[item["image_id"]],
            names[item["category_id"]],
            bool(item.get("iscrowd")),
            *(json.dumps(item.get(key), sort_keys=True) for key in ("segmentation", "bbox", "area")),
        )
        for item in tree["annotations"]
    ]
    images = [(item["file_name"], item["width"], item["height"]) for item in tree["images"]]
    return sorted(names.values()), sorted(images), sorted(objects)


def hash_ground_truth(tree: dict[str, Any]) -> str:
    """SHA-256 (hex) of a COCO instances tree's `content`."""
    return hashlib.sha256(json.dumps(content(tree), separators=(",", ":")).encode()).hexdigest()


def renumbered(rows: list[dict[str, Any]], tree: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections with the numbers that another tree of the same content has for images and classes.

    Args:
        rows: COCO results.
        tree: the COCO instances tree that they belong to.
        other: one with the same files and class names.
    """
    images = {item["file_name"]: item["id"] for item in other["images"]}
    classes = {item["name"]: item["id"] for item in other["categories"]}
    image_of = {item["id"]: images[item["file_name"]] for item in tree["images"]}
    class_of = {item["id"]: classes[item["name"]] for item in tree["categories"]}
    return [row | {"image_id": image_of[row["image_id"]], "category_id": class_of[row["category_id"]]} for row in rows]


def _read(client: MlflowClient, run_id: str, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        with reported(f"fetch {name} of run {run_id}"):
            path = Path(client.download_artifacts(run_id, name, folder))
        data = path.read_bytes()
        try:
            # An MLflow server in front of S3 says that gzip is how it sends the file, so its client has unpacked it.
            return json.loads(gzip.decompress(data) if data.startswith(GZIP) else data)
        except (OSError, EOFError, ValueError) as error:
            raise TrackingError(
                f"{name} of run {run_id} at {shown_uri()} is damaged ({error}). Run the evaluate step again."
            ) from error
