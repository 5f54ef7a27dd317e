"""The evaluation of a run, stored with it in MLflow, so that runs can be compared on any machine.

The run's artifact folder ``eval/`` has `GROUND_TRUTH` (the COCO instances file of the evaluated split) and `DETECTIONS`
(COCO results, box and mask in one row), both gzipped: RLE shrinks to a third.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_ops.tracking.store import TrackingError, reported, shown_uri
from yolact_ops.tracking.tracker import Tracker, allowed_names

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from yolact.evaluation.evaluator import ApSummary

FOLDER = "eval"
EVALUATED_SPLITS = ("test", "val")
"""The splits that an evaluation uses, the first that there is: images held out, or else the validation images."""
GROUND_TRUTH = f"{FOLDER}/ground_truth.json.gz"
DETECTIONS = f"{FOLDER}/detections.json.gz"
GZIP = b"\x1f\x8b"
"""First bytes of every gzip file (RFC 1952, 2.3.1)."""

VERSION_TAG = "evaluated_version"
"""Tag of a run that only evaluates a registered version: ``NAME/NUMBER``."""

TOLERANCE = 1e-9
"""Maximum difference between a version's metrics and those recomputed from its detections."""


def evaluated_annotations(eval_data_dir: Path) -> Path:
    """The COCO instances file of the split that is evaluated: ``test.json`` if images are held out, else ``val.json``.

    Training never reads it in the first case, so the evaluation is of images that no choice depended on.

    Args:
        eval_data_dir: what preprocess wrote for evaluation.
    """
    paths = [eval_data_dir / f"{split}.json" for split in EVALUATED_SPLITS]
    return next((path for path in paths if path.is_file()), paths[-1])


def log_evaluation(tracker: Tracker, ground_truth: Path, detections: Path) -> None:
    """Store both files with the run; equal files give equal archives.

    Args:
        tracker: the run's tracker.
        ground_truth: the COCO instances file of the evaluated split.
        detections: JSON list of COCO results.
    """
    with tempfile.TemporaryDirectory() as folder:
        for packed in pack_evaluation(Path(folder), ground_truth, detections):
            tracker.log_artifact(packed, FOLDER)


def pack_evaluation(folder: Path, ground_truth: Path, detections: Path) -> list[Path]:
    """Write what `log_evaluation` stores in the run's artifact folder `FOLDER` to ``folder``."""
    written = []
    for source, name in ((ground_truth, GROUND_TRUTH), (detections, DETECTIONS)):
        packed = folder / Path(name).name
        packed.write_bytes(gzip.compress(source.read_bytes(), compresslevel=6, mtime=0))
        written.append(packed)
    return written


def read_evaluation(client: MlflowClient, run_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what `log_evaluation` stored with a run.

    Args:
        client: client of the store that has the run.
        run_id: the run's id.

    Returns:
        The ground truth as a COCO instances tree, and the rows of COCO results.

    Raises:
        TrackingError: the store fails, or the run was not evaluated, or by a version that stored no ground truth.
    """
    with reported(f"read the evaluation of run {run_id}"):
        there = {file.path for file in client.list_artifacts(run_id, FOLDER)}
    missing = [name for name in (GROUND_TRUTH, DETECTIONS) if name not in there]
    if missing:
        raise TrackingError(
            f"run {run_id} at {shown_uri()} has no {' and no '.join(missing)}. It was not evaluated, or by an older "
            "version: run the evaluate step of its model again. If the server was unavailable then: yolact sync"
        )
    return _read(client, run_id, GROUND_TRUTH), _read(client, run_id, DETECTIONS)


def tracked_metrics(box: ApSummary, mask: ApSummary) -> dict[str, float]:
    """Names and values for MLflow: ``eval/mask_AP50``, and per class ``eval/per_class/mask_AP50/<class>``.

    Class names are changed where MLflow does not allow them, see `allowed_names`. Classes and sizes without ground
    truth have no value and are omitted.
    """
    values: dict[str, float | None] = {}
    names = allowed_names(box.per_class)
    for kind, summary in (("box", box), ("mask", mask)):
        values |= {f"eval/{kind}_{name}": value for name, value in summary.metrics().items()}
        for class_name, ap in summary.per_class.items():
            values |= {
                f"eval/per_class/{kind}_{name}/{names[class_name]}": value
                for name, value in (("AP", ap.AP), ("AP50", ap.AP50), ("AP70", ap.AP70))
            }
    return {name: value for name, value in values.items() if value is not None}


def content(tree: dict[str, Any]) -> tuple[Any, ...]:
    """The content of a COCO instances tree, independent of ids and order."""
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
    """Detections with the image and category ids of another tree with the same content.

    Args:
        rows: COCO results.
        tree: the COCO instances tree that they belong to.
        other: the tree with the same files and class names whose ids to use.
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
            # An MLflow server in front of S3 declares gzip as transfer encoding, so its client has unpacked the file.
            return json.loads(gzip.decompress(data) if data.startswith(GZIP) else data)
        except (OSError, EOFError, ValueError) as error:
            raise TrackingError(
                f"{name} of run {run_id} at {shown_uri()} is damaged ({error}). Run the evaluate step again."
            ) from error
