"""The detections of a version on the evaluated images: from its run, an earlier evaluation, or a new one.

Two versions are compared on one ground truth, image by image. If a version was measured on another one, or its run has
been evaluated again since, it is evaluated on the local processed data, and the result is stored as a separate MLflow
run for later comparisons, below the run that ``MLFLOW_RUN_ID`` names, if any. Each version is measured with its own
detection settings, as served.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.data.coco import CocoInstances
from yolact.devices import computing_threads
from yolact.errors import DataError
from yolact.evaluation.evaluator import ApSummary, IouType, evaluate_coco, index_ground_truth, predict_dataset
from yolact.files import write_json_atomic
from yolact.settings import RuntimeConfig
from yolact_ops.lineage.statistics import read_data_digest
from yolact_ops.registry.packaged_model import PackagedModel
from yolact_ops.registry.versions import RegisteredModel, RegistryError
from yolact_ops.tracking.evaluations import (
    FOLDER,
    TOLERANCE,
    VERSION_TAG,
    evaluated_annotations,
    hash_ground_truth,
    pack_evaluation,
    read_evaluation,
    renumbered,
    tracked_metrics,
)
from yolact_ops.tracking.store import TrackingError, reported
from yolact_ops.tracking.tracker import allowed_name
from yolact_ops.transfer.instances import load_instances

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

MODEL_TAG = "evaluated_model_digest"
"""Tag of a run that only evaluates: which weights."""
DETECTION_TAG = "evaluated_detect_hash"
"""Tag of such a run: which detection settings."""
GROUND_TRUTH_TAG = "evaluated_ground_truth"
"""Tag of such a run: which ground truth, see `yolact_ops.tracking.evaluations.hash_ground_truth`."""


@dataclass(frozen=True)
class Evidence:
    """A version's detections and their ground truth."""

    version: int
    run_id: str
    """The run that has them."""
    ground_truth: dict[str, Any]
    """A COCO instances tree."""
    rows: list[dict[str, Any]]
    """COCO results."""
    digest: str
    """Digest of the ground truth, see `yolact_ops.tracking.evaluations.hash_ground_truth`."""

    def measure(self, iou_type: IouType) -> ApSummary:
        """AP of the detections."""
        return evaluate_coco(index_ground_truth(self.ground_truth, f"run {self.run_id}"), self.rows, iou_type)

    def numbered_as(self, other: Evidence) -> Evidence:
        """The same with the image and class ids of ``other``, whose ground truth has the same digest."""
        rows = renumbered(self.rows, self.ground_truth, other.ground_truth)
        return replace(self, ground_truth=other.ground_truth, rows=rows)


@dataclass(frozen=True)
class Evaluator:
    """Finds a version's detections, evaluating it on the local processed data if necessary."""

    model: RegisteredModel
    eval_data_dir: Path
    runtime: RuntimeConfig
    batch_size: int

    def of(self, version: ModelVersion, *, on: Evidence | None = None) -> Evidence:
        """The detections of a version.

        Args:
            version: a version of the registered model.
            on: the evidence of another version: use the same ground truth, with its image and class ids. None for the
                version's own ground truth.

        Raises:
            RegistryError: it must be evaluated again, and the data for that is not here.
            TrackingError: the store fails.
        """
        digest = None if on is None else on.digest
        found = self._stored(version, digest)
        if found is None:
            data_digest = version.tags.get("data_digest") if on is None else self._data_digest(on)
            found = self._evaluate(version, data_digest, digest)
        return found if on is None else found.numbered_as(on)

    def _stored(self, version: ModelVersion, digest: str | None) -> Evidence | None:
        own = self._of_own_run(version)
        if own is not None and digest in (None, own.digest):
            return own
        for run in self._evaluation_runs(version):
            if digest is None or run.data.tags.get(GROUND_TRUTH_TAG) == digest:
                return _read(self.model.client, int(version.version), run.info.run_id)
        return None

    def _of_own_run(self, version: ModelVersion) -> Evidence | None:
        """The detections of the version's own run, if the version's metrics still come from them."""
        number = int(version.version)
        try:
            found = _read(self.model.client, number, _run_id(version))
        except TrackingError as error:
            log.info("version %d: %s", number, str(error).partition("\n")[0])
            return None
        kinds: tuple[IouType, ...] = ("mask", "box")
        for kind in kinds:
            stated, value = version.tags.get(f"{kind}_AP"), found.measure(kind).AP
            if (stated is None) != (value is None):
                return None
            if stated is not None and value is not None and abs(float(stated) - value) > TOLERANCE:
                log.info("version %d: its run was evaluated again since it was registered", number)
                return None
        return found

    def _evaluation_runs(self, version: ModelVersion) -> list[Run]:
        """Runs that only evaluated the version's weights and detection settings, newest first."""
        model, detection = (version.tags.get(tag) for tag in ("model_digest", "detect_hash"))
        client = self.model.client
        with reported("look for evaluations"):
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            wanted = f"tags.{MODEL_TAG} = '{model}' and tags.{DETECTION_TAG} = '{detection}'"
            runs = client.search_runs(experiments, f"{wanted} and attributes.status = 'FINISHED'")
        return list(runs)

    def _data_digest(self, evidence: Evidence) -> str | None:
        return self.model.version(evidence.version).tags.get("data_digest")

    def _evaluate(self, version: ModelVersion, data_digest: str | None, digest: str | None) -> Evidence:
        """Evaluate the version on the processed data, which must have ``data_digest``."""
        number = int(version.version)
        self._check_data(number, data_digest)
        annotations = evaluated_annotations(self.eval_data_dir)
        data = load_instances(annotations, self.runtime)
        tree = json.loads(annotations.read_text(encoding="utf-8"))
        found = hash_ground_truth(tree)
        if digest not in (None, found):
            raise RegistryError(
                f"{annotations} is not what the other version was measured on, though {self.eval_data_dir} has the "
                "same digest. Run the evaluate and register steps of that version again."
            )
        log.info("%s version %d is evaluated again on %s", self.model.name, number, annotations)
        with tempfile.TemporaryDirectory() as folder:
            packaged = PackagedModel.fetch(self.model.name, number, Path(folder))
            with computing_threads(self.runtime.threads):
                predictor = packaged.predictor(self.runtime.device, self.batch_size)
                rows = _predict(predictor, data)
        evidence = Evidence(number, "", tree, rows, found)
        return replace(evidence, run_id=self._store(version, evidence, annotations))

    def _check_data(self, number: int, data_digest: str | None) -> None:
        how_to_fix = (
            "Get that data first: check out its commit (`yolact lineage` names it), and run "
            "`dvc pull data/processed/eval` or `dvc repro preprocess`."
        )
        try:
            here = read_data_digest(self.eval_data_dir)
        except DataError as error:
            raise RegistryError(
                f"{self.model.name} version {number} must be evaluated again: {error} {how_to_fix}"
            ) from None
        if data_digest is None or here != data_digest:
            raise RegistryError(
                f"{self.model.name} version {number} must be evaluated again on the data with the digest "
                f"{(data_digest or 'unknown')[:12]}, but {self.eval_data_dir} has {here[:12]}. {how_to_fix}"
            )

    def _store(self, version: ModelVersion, evidence: Evidence, annotations: Path) -> str:
        """Store an evaluation as a run in the version's experiment and return the run's id."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        client = self.model.client
        given = os.environ.get("MLFLOW_RUN_ID")
        tags = ({MLFLOW_PARENT_RUN_ID: given} if given else {}) | {
            VERSION_TAG: f"{self.model.name}/{evidence.version}",
            MODEL_TAG: version.tags["model_digest"],
            DETECTION_TAG: version.tags["detect_hash"],
            GROUND_TRUTH_TAG: evidence.digest,
            "data_digest": read_data_digest(self.eval_data_dir),
        }
        name = f"evaluation of {self.model.name} {evidence.version}"
        with reported("start a run"):
            experiment = client.get_run(_run_id(version)).info.experiment_id
            run = client.create_run(experiment, tags=tags, run_name=name)
        metrics = tracked_metrics(evidence.measure("box"), evidence.measure("mask"))
        with _finished(client, run), tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / FOLDER
            folder.mkdir()
            detections = Path(temporary) / "detections.json"
            write_json_atomic(detections, evidence.rows)
            pack_evaluation(folder, annotations, detections)
            with reported("store the evaluation"):
                client.log_batch(run.info.run_id, metrics=_as_metrics(metrics))
                client.log_artifacts(run.info.run_id, str(folder), FOLDER)
        return str(run.info.run_id)


def _as_metrics(metrics: dict[str, float]) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(allowed_name(name), value, now, 0) for name, value in metrics.items()]


def _run_id(version: ModelVersion) -> str:
    return str(version.run_id)


def _read(client: MlflowClient, number: int, run_id: str) -> Evidence:
    ground_truth, rows = read_evaluation(client, run_id)
    return Evidence(number, run_id, ground_truth, rows, hash_ground_truth(ground_truth))


def _predict(predictor: Any, data: CocoInstances) -> list[dict[str, Any]]:
    """COCO results of a network whose classes may differ from the data's: they are matched by name.

    Detections of classes that the data does not have are left out.
    """
    id_of = dict(zip(data.class_names, data.category_ids, strict=True))
    unknown = min(data.category_ids, default=0) - 1
    own_ids = [id_of.get(name, unknown) for name in predictor.classes]
    rows = predict_dataset(predictor, replace(data, category_ids=own_ids)).rows
    return [row for row in rows if row["category_id"] != unknown]


@contextmanager
def _finished(client: MlflowClient, run: Run) -> Iterator[None]:
    """End the run as finished or failed."""
    try:
        yield
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    with reported("end the run"):
        client.set_terminated(run.info.run_id, "FINISHED")
