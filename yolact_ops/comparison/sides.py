"""The two sides of a comparison: MLflow runs, or the working folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.data.processed import EVAL, PROCESSED
from yolact.settings import DetectConfig
from yolact_ops.commands.outputs import read_json
from yolact_ops.comparison.runs import SHORT, VERSION, data_digest, find_run, run_of_version, versions_of
from yolact_ops.lineage.hashing import hash_params
from yolact_ops.registry.versions import resolve
from yolact_ops.reports.formatting import flatten_text
from yolact_ops.settings.params import load_params
from yolact_ops.tracking.evaluations import FOLDER, TOLERANCE, evaluated_annotations, read_evaluation
from yolact_ops.tracking.store import TrackingError, connect, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

REPORT = f"{FOLDER}/report.json"
"""Artifact of a run: its evaluation's settings and timing."""


@dataclass(frozen=True)
class Side:
    """A trained model with its evaluation."""

    name: str
    """Name of the run, or the folder."""
    facts: dict[str, str]
    """Its identity, as text: run, status, code, data, registered."""
    params: dict[str, str]
    """All settings by dotted key; those of ``evaluate`` as the evaluation used them."""
    ground_truth: dict[str, Any]
    """The tree of the COCO instances file it was evaluated on."""
    rows: list[dict[str, Any]]
    """Its detections as COCO results."""
    evaluate: dict[str, Any]
    """Section ``evaluate`` of the settings, as the evaluation used it; empty if unknown."""
    milliseconds: float | None
    """Prediction time per image in that evaluation."""
    device: str | None
    remark: str | None = None
    """A warning for the user, for example that the run failed."""


def open_side(reference: str, client: MlflowClient | None) -> tuple[Side, MlflowClient | None]:
    """Find a side and read its evaluation; the store is contacted only for a run.

    Args:
        reference: a folder that the steps have written to, or a run, see `yolact_ops.comparison.runs.find_run`.
        client: connected client of the store; None connects if necessary.

    Raises:
        DataError: the folder has no evaluation, or several runs match.
        RegistryError: there is no such version.
        TrackingError: no run matches, it has no evaluation, or the store fails.
    """
    if Path(reference).is_dir():
        return read_folder(Path(reference)), client
    client = client or connect()
    if reference.startswith(VERSION):
        version = resolve(client, reference)
        return read_run(client, run_of_version(client, version), version), client
    return read_run(client, find_run(client, reference)), client


def read_folder(root: Path) -> Side:
    """Read the side that the steps wrote below ``root``.

    Raises:
        DataError: a file is missing or damaged.
    """
    report = read_json(root / "reports" / "eval" / "report.json", "evaluate")
    params = load_params(root / "params.yaml")
    data = root / PROCESSED / EVAL
    digest = read_json(data / "stats.json", "preprocess").get("digest")
    return Side(
        name="working folder" if root.resolve() == Path.cwd() else str(root),
        facts={"data": str(digest)[:SHORT]},
        params=flatten_text(params.model_dump(mode="json", by_alias=True)),
        ground_truth=read_json(evaluated_annotations(data), "preprocess"),
        rows=read_json(root / "reports" / "eval" / "detections.json", "evaluate"),
        **_measured(report),
    )


def read_run(client: MlflowClient, run: Run, version: ModelVersion | None = None) -> Side:
    """Read the side of a run.

    Args:
        client: client of the store that has the run.
        run: the evaluated run.
        version: the requested version of that run, if any; `Side.remark` warns if the run was evaluated again since.

    Raises:
        TrackingError: it has not been evaluated, or the store fails.
    """
    name, run_id, status = run.info.run_name, run.info.run_id, run.info.status
    try:
        ground_truth, rows = read_evaluation(client, run_id)
    except TrackingError as error:
        state = {"RUNNING": "is still running", "FINISHED": "is finished"}.get(status, f"ended as {status}")
        raise type(error)(f"run {name} {state}; its evaluation cannot be read.\n{error}") from error
    report, tags = _read_report(client, run_id), run.data.tags
    commit = tags.get("git_commit", "")[:SHORT] + ("*" if tags.get("git_dirty") == "true" else "")
    facts = {
        "run": run_id,
        "status": status,
        "code": commit,
        "data": (data_digest(run) or "")[:SHORT],
        "registered": ", ".join(versions_of(client, [run_id]).get(run_id, [])),
    }
    return Side(
        name=name,
        facts={key: value for key, value in facts.items() if value},
        params=dict(run.data.params) | flatten_text({"evaluate": report.get("settings", {})}),
        ground_truth=ground_truth,
        rows=rows,
        remark=" ".join(_remarks(run, report, version)) or None,
        **_measured(report),
    )


def _remarks(run: Run, report: dict[str, Any], version: ModelVersion | None) -> Iterator[str]:
    name, status = run.info.run_name, run.info.status
    if status != "FINISHED":
        yield f"run {name} is {status}, not FINISHED: metrics may change or be missing."
    if version is not None and not _is_of_version(run, report, version):
        yield (
            f"run {name} was evaluated again since it registered {version.name} version {version.version}: compared is "
            "its current evaluation, not the version's. The version's metrics are on its page in the registry."
        )


def _is_of_version(run: Run, report: dict[str, Any], version: ModelVersion) -> bool:
    """Whether a run's current evaluation is, as far as known, the one that the version was registered with."""
    for metric in ("mask_AP", "mask_AP50", "box_AP", "box_AP50"):
        stated, value = version.tags.get(metric), run.data.metrics.get(f"eval/{metric}")
        if stated is not None and value is not None and abs(float(stated) - value) > TOLERANCE:
            return False
    try:
        used = hash_params(DetectConfig.model_validate(report["settings"]["detect"]))
    except (KeyError, ValueError):  # an evaluation of an older release
        return True
    return used == version.tags.get("detect_hash")


def _read_report(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Report of the run's evaluation; empty if there is none."""
    with reported(f"read {REPORT} of run {run_id}"), tempfile.TemporaryDirectory() as folder:
        if REPORT not in {file.path for file in client.list_artifacts(run_id, FOLDER)}:
            return {}
        tree: dict[str, Any] = json.loads(Path(client.download_artifacts(run_id, REPORT, folder)).read_bytes())
        return tree


def _measured(report: dict[str, Any]) -> dict[str, Any]:
    seconds = report.get("seconds_per_image")
    return {
        "evaluate": report.get("settings", {}),
        "milliseconds": None if seconds is None else 1000 * seconds,
        "device": report.get("device"),
    }
