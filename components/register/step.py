"""The register step: add the model to the MLflow registry as a version with its metrics and lineage.

Reads ``models/``, ``data/processed/eval/`` and ``metrics/eval.json``; writes ``reports/registration.json``. A version
whose mask AP50 reaches ``register.min_mask_ap50`` gets the alias ``candidate``; the promote step decides about
``champion``.
"""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.register.candidate import Candidate, gather_candidate
from components.register.model_card import description
from components.register.packaging import package_model
from yolact.data.processed import EVAL, PROCESSED
from yolact.files import write_json_atomic
from yolact_ops.commands.step import run_command
from yolact_ops.registry.publication import publish
from yolact_ops.registry.versions import CANDIDATE, IDENTITY, RegisteredModel
from yolact_ops.settings.params import Params
from yolact_ops.tracking.run_record import EVALUATE_THREADS_TAG, RUN_FILE, TRAIN_RUN_TAG, TRAIN_THREADS_TAG
from yolact_ops.tracking.runs import resume_run
from yolact_ops.tracking.store import TrackingError, default_environment, reported, shown_uri, tracking_uri
from yolact_ops.tracking.tracker import Tracker

log = logging.getLogger(__name__)

MODEL_TYPE = "instance-segmentation"

VERSIONS_TAG = "mlflow.modelVersions"
"""MLflow's tag on a stored model for the link to its versions (mlflow.utils.mlflow_tags)."""


def run(params: Params, *, model_dir: Path, eval_data_dir: Path, metrics_path: Path, report_path: Path) -> None:
    """Register the model in ``model_dir``.

    The same model, data and detection settings are one version: registering them again updates its metrics, description
    and alias.

    Args:
        params: all settings; ``register`` names the model and the floor.
        model_dir: what train wrote: ``model.safetensors``, ``model.json`` and ``run.json``.
        eval_data_dir: what preprocess wrote for evaluation: ``stats.json``, ``val.json`` and images.
        metrics_path: what evaluate wrote.
        report_path: gets name, version, alias (or null), metrics and identity as JSON.

    Raises:
        DataError: an input is missing or damaged.
        WeightsError: the model is missing or damaged.
        TrackingError: the MLflow store fails.
        RegistryError: ``register.model_name`` is taken by another model.
        ModelRegistryError: the version is registered, but could not be copied to ``register.model_registry``.
    """
    candidate = gather_candidate(params, model_dir, eval_data_dir, metrics_path)
    with resume_run(params, model_dir / RUN_FILE) as tracker:
        model = RegisteredModel.open_or_create(tracker.client, candidate.name)
        candidate = _of_run(candidate, tracker)
        version, reused = _find_or_create_version(tracker, model, candidate)
        _set_alias(model, candidate, version)
        tracker.set_tags({"registered_model": f"{candidate.name}/{version}"})
        write_json_atomic(report_path, _report(candidate, version, tracker.run_id))
    log.info(
        "%s version %s %s", candidate.name, version, "was registered before and is reused" if reused else "registered"
    )
    _log_gate(candidate, version)
    publish(params.register_, candidate.name)


def _of_run(candidate: Candidate, tracker: Tracker) -> Candidate:
    """The candidate with the tags that name its runs, and with their numbers of threads."""
    run_id, train_run_id = tracker.run_id, tracker.train_run_id
    tags = {"run_id": run_id} | ({TRAIN_RUN_TAG: train_run_id} if train_run_id != run_id else {})
    for run in dict.fromkeys((train_run_id, run_id)):
        with suppress(TrackingError), reported(f"read run {run}"):  # the store may have lost the training's run
            found = tracker.client.get_run(run).data.tags
            tags |= {name: found[name] for name in (TRAIN_THREADS_TAG, EVALUATE_THREADS_TAG) if name in found}
    return replace(candidate, card=replace(candidate.card, tags={**candidate.card.tags, **tags}))


def _find_or_create_version(tracker: Tracker, model: RegisteredModel, candidate: Candidate) -> tuple[int, bool]:
    """Number of the candidate's version, and whether it existed already."""
    client = tracker.client
    metrics = {name: repr(value) for name, value in candidate.metrics.measured().items()}
    there = _same_versions(model, candidate)
    if there:
        found = there[-1]
        for name, value in metrics.items():
            model.set_tag(found, name, value)
        with reported(f"describe {model.name} version {found}"):
            client.update_model_version(model.name, str(found), description=description(candidate.card))
        return found, True
    model_id = _log_model(tracker, candidate)
    # Given a SQLite file, MLflow 3.17 looks the model up in the store that the environment names (or its default).
    with reported(f"register {candidate.name}"), default_environment({"MLFLOW_TRACKING_URI": tracking_uri()}):
        version = client.create_model_version(
            candidate.name,
            source=f"models:/{model_id}",
            run_id=tracker.run_id,
            model_id=model_id,
            tags=candidate.tags | metrics,
            description=description(candidate.card),
        )
        number = int(version.version)
        if (first := min(_same_versions(model, candidate), default=number)) < number:
            # Another process stored its files meanwhile. Each sees the versions that were made before its own.
            client.delete_model_version(candidate.name, str(number))
            return first, True
        link = [{"name": candidate.name, "version": version.version}]
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(link)})
    return number, False


def _same_versions(model: RegisteredModel, candidate: Candidate) -> list[int]:
    """The complete versions with the candidate's `IDENTITY`, oldest first."""
    same = {tag: candidate.tags[tag] for tag in IDENTITY}.items()
    versions = model.versions().items()
    return [number for number, version in versions if version.status == "READY" and same <= version.tags.items()]


def _log_model(tracker: Tracker, candidate: Candidate) -> str:
    """Store the model and its metrics with the run and return the model's id."""
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    identity = {tag: candidate.tags[tag] for tag in IDENTITY}
    with reported("open an entry for the model"):
        entry = client.create_logged_model(
            tracker.experiment_id, candidate.name, source_run_id=tracker.run_id, tags=identity, model_type=MODEL_TYPE
        )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "mlflow"
            package_model(candidate, Path(temporary) / "parts", folder, entry)
            with reported("store the model"):
                client.log_model_artifacts(entry.model_id, str(folder))
    except BaseException:
        with suppress(Exception):  # report the first error
            client.finalize_logged_model(entry.model_id, "FAILED")
        raise
    with reported("link the model with its run"):
        client.finalize_logged_model(entry.model_id, "READY")
        client.log_outputs(tracker.run_id, [LoggedModelOutput(entry.model_id, step=0)])
    metrics = {f"eval/{name}": value for name, value in candidate.metrics.measured().items()}
    tracker.log_metrics(metrics, model_id=entry.model_id)
    return str(entry.model_id)


def _set_alias(model: RegisteredModel, candidate: Candidate, version: int) -> None:
    """Set the alias, or remove it if the metrics no longer reach the floor."""
    if candidate.reaches_floor:
        model.set_alias(CANDIDATE, version)
    elif model.alias(CANDIDATE) == version:
        model.delete_alias(CANDIDATE)


def _log_gate(candidate: Candidate, version: int) -> None:
    floor, value = candidate.params.register_.min_mask_ap50, candidate.metrics.mask_ap50
    if candidate.reaches_floor:
        log.info("version %s is the %s: mask AP50 %.4f, floor %.4f", version, CANDIDATE, value, floor)
        return
    if value is None:
        reason = "its mask AP50 could not be measured (no objects in val)"
    else:
        reason = f"mask AP50 {value:.4f} is {floor - value:.4f} below register.min_mask_ap50 {floor:.4f}"
    log.warning(
        "version %s gets no alias: %s. It can be served all the same (yolact serve models:/%s/%s) and promoted by its "
        "number (yolact promote --version %s)",
        version,
        reason,
        candidate.name,
        version,
        version,
    )


def _report(candidate: Candidate, version: int, run_id: str) -> dict[str, Any]:
    metrics = candidate.metrics
    return {
        "name": candidate.name,
        "version": version,
        "alias": CANDIDATE if candidate.reaches_floor else None,
        "model_uri": f"models:/{candidate.name}/{version}",
        "run_id": run_id,
        "tracking_uri": shown_uri(),
        "min_mask_ap50": candidate.params.register_.min_mask_ap50,
        "metrics": {
            "box": {"AP": metrics.box_ap, "AP50": metrics.box_ap50},
            "mask": {"AP": metrics.mask_ap, "AP50": metrics.mask_ap50},
        },
        **{tag: candidate.tags[tag] for tag in IDENTITY},
    }


if __name__ == "__main__":
    run_command(
        "register",
        lambda params: run(
            params,
            model_dir=Path("models"),
            eval_data_dir=PROCESSED / EVAL,
            metrics_path=Path("metrics/eval.json"),
            report_path=Path("reports/registration.json"),
        ),
    )
