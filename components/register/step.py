"""The register step: the model becomes a version in the MLflow registry, with its metrics and its lineage.

Reads ``models/``, ``data/processed/`` and ``metrics/eval.json``; writes ``reports/registration.json``. A version
whose mask AP50 reaches ``register.min_mask_ap50`` gets the alias ``candidate``; `components.promote` decides about
``champion``.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import logging
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import yolact
from components.register.model_card import CARD_FILE, CardFacts, description, model_card
from yolact.data.coco import CocoInstances
from yolact.errors import DataError
from yolact.files import write_json_atomic, write_text_atomic
from yolact.models.weights import DESCRIPTION_FILE, WEIGHTS_FILE, load_model
from yolact_ops.commands.outputs import read_json
from yolact_ops.commands.step import run_command
from yolact_ops.lineage.hashing import hash_files, hash_params
from yolact_ops.lineage.lineage import data_source, gather_lineage
from yolact_ops.registry.versions import CANDIDATE, IDENTITY, RegisteredModel
from yolact_ops.reports.formatting import flatten_text
from yolact_ops.settings.params import Params, load_params
from yolact_ops.tracking.run_record import RUN_FILE, TRAIN_RUN_TAG
from yolact_ops.tracking.runs import resume_run
from yolact_ops.tracking.store import default_environment, quiet_mlflow, reported, shown_uri, tracking_uri
from yolact_ops.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

log = logging.getLogger(__name__)

REQUIREMENTS = (
    "defusedxml",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pycocotools",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchvision",
)
"""Distributions that predicting needs; the model pins the versions it was registered with."""

BASE = Path("conf/base.yaml")
"""Settings that a version's are shown against."""

MODEL_TYPE = "instance-segmentation"

PARAMS_FILE = "params.yaml"
"""The settings, among the model's artifacts."""

VERSIONS_TAG = "mlflow.modelVersions"
"""MLflow's tag on a stored model for the link to its versions (mlflow.utils.mlflow_tags)."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of evaluation that a version carries, 0 to 1; None where there was nothing to measure on."""

    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None

    @classmethod
    def of(cls, tree: Any, path: Path) -> Metrics:
        """Take them from the content of ``metrics/eval.json``, which lies at ``path``.

        Raises:
            DataError: a metric is missing or no number from 0 to 1.
        """
        keys = [(kind, name) for kind in ("box", "mask") for name in ("AP", "AP50")]
        return cls(**{f"{kind}_{name}".lower(): _read_metric(path, tree, kind, name) for kind, name in keys})

    def measured(self) -> dict[str, float]:
        """Value by name (``mask_AP50``), without those that are None."""
        return {name.replace("_ap", "_AP"): value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Candidate:
    """All that goes into a version, read and checked before the registry is touched."""

    model_dir: Path
    example: Path
    """A image of the val split."""
    metrics: Metrics
    card: CardFacts

    @property
    def params(self) -> Params:
        return self.card.params

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def tags(self) -> dict[str, str]:
        """Lineage and `IDENTITY`."""
        return dict(self.card.tags)

    @property
    def reaches_floor(self) -> bool:
        value = self.metrics.mask_ap50
        return value is not None and value >= self.params.register_.min_mask_ap50


def run(params: Params, *, model_dir: Path, processed_dir: Path, metrics_path: Path, report_path: Path) -> None:
    """Register the model in ``model_dir``.

    The same model, data and detection settings are one version, however often they are registered: that version gets
    its metrics, description and alias again, and no second one is made.

    Args:
        params: all settings; ``register`` names the model and the floor.
        model_dir: what train wrote: ``model.safetensors``, ``model.json`` and ``run.json``.
        processed_dir: what preprocess wrote: ``stats.json``, ``val.json`` and ``images/``.
        metrics_path: what evaluate wrote.
        report_path: gets name, version, alias (or null), metrics and identity as JSON.

    Raises:
        DataError: an input is missing or faulty.
        WeightsError: the model is missing or damaged.
        TrackingError: the MLflow store fails.
        RegistryError: the registry has something else under ``register.model_name``.
    """
    candidate = _gather(params, model_dir, processed_dir, metrics_path)
    with resume_run(params, model_dir / RUN_FILE) as tracker:
        model = RegisteredModel.open_or_create(tracker.client, candidate.name)
        candidate = _of_run(candidate, tracker.run_id, tracker.train_run_id)
        version, reused = _find_or_create_version(tracker, model, candidate)
        _set_alias(model, candidate, version)
        tracker.set_tags({"registered_model": f"{candidate.name}/{version}"})
        write_json_atomic(report_path, _report(candidate, version, tracker.run_id))
    log.info(
        "%s version %s %s", candidate.name, version, "was registered before and is reused" if reused else "registered"
    )
    _log_gate(candidate, version)


def _gather(params: Params, model_dir: Path, processed_dir: Path, metrics_path: Path) -> Candidate:
    load_model(model_dir)
    evaluation = read_json(metrics_path, "evaluate")
    metrics = Metrics.of(evaluation, metrics_path)
    val = CocoInstances.load(processed_dir / "val.json", processed_dir / "images")
    if not val.images:
        raise DataError(f"{processed_dir / 'val.json'}: has no images; the model's input example is one of them")
    tags = gather_lineage(params, processed_dir=processed_dir).as_tags()
    tags["data_source"] = data_source(params)
    tags["detect_hash"] = hash_params(params.evaluate.detect)
    tags["model_digest"] = hash_files(model_dir / WEIGHTS_FILE, model_dir / DESCRIPTION_FILE)
    if BASE.is_file():
        tags["params_changes"] = json.dumps(changed_settings(params, load_params(BASE)))
    stats = read_json(processed_dir / "stats.json", "preprocess")
    card = CardFacts(params.register_.model_name, params, evaluation, stats, tags)
    return Candidate(model_dir, val.images_dir / val.images[0].file_name, metrics, card)


def changed_settings(params: Params, base: Params) -> dict[str, str]:
    """Settings that differ from the base, as ``train.lr`` with their values as YAML writes them; ``runtime`` aside."""
    ours, theirs = (flatten_text(side.model_dump(mode="json", by_alias=True)) for side in (params, base))
    changed = {key: value for key, value in ours.items() if theirs.get(key) != value and not key.startswith("runtime.")}
    if "data.source" in changed:
        changed["data.source"] = data_source(params)
    return changed


def _read_metric(path: Path, tree: Any, kind: str, name: str) -> float | None:
    try:
        value = tree[kind][name]
    except (KeyError, TypeError):
        raise DataError(f"{path}: key {kind}.{name} is missing. Run the evaluate step again.") from None
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(f"{path}: {kind}.{name} must be null or a number from 0 to 1; found {value!r}")
    return float(value)


def _of_run(candidate: Candidate, run_id: str, train_run_id: str) -> Candidate:
    """The candidate with the runs that it comes from among its tags."""
    runs = {"run_id": run_id} | ({TRAIN_RUN_TAG: train_run_id} if train_run_id != run_id else {})
    return replace(candidate, card=replace(candidate.card, tags={**candidate.card.tags, **runs}))


def _find_or_create_version(tracker: Tracker, model: RegisteredModel, candidate: Candidate) -> tuple[int, bool]:
    """Number of the candidate's version, and whether it was there before."""
    client = tracker.client
    metrics = {name: repr(value) for name, value in candidate.metrics.measured().items()}
    found = _find_version(model, candidate)
    if found is not None:
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
        link = [{"name": candidate.name, "version": version.version}]
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(link)})
    return int(version.version), False


def _find_version(model: RegisteredModel, candidate: Candidate) -> int | None:
    """Newest version with the candidate's `IDENTITY` whose files are complete."""
    same = {tag: candidate.tags[tag] for tag in IDENTITY}.items()
    versions = model.versions().items()
    return max(
        (number for number, version in versions if version.status == "READY" and same <= version.tags.items()),
        default=None,
    )


def _log_model(tracker: Tracker, candidate: Candidate) -> str:
    """Store the model with the run, with its metrics, and return its id."""
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
        with suppress(Exception):  # the first error is the one to tell
            client.finalize_logged_model(entry.model_id, "FAILED")
        raise
    with reported("link the model with its run"):
        client.finalize_logged_model(entry.model_id, "READY")
        client.log_outputs(tracker.run_id, [LoggedModelOutput(entry.model_id, step=0)])
    metrics = {f"eval/{name}": value for name, value in candidate.metrics.measured().items()}
    tracker.log_metrics(metrics, model_id=entry.model_id)
    return str(entry.model_id)


def package_model(candidate: Candidate, parts: Path, folder: Path, entry: LoggedModel) -> None:
    """Write the MLflow model into ``folder``: weights, code, settings, signature, example, versions and model card.

    Args:
        candidate: what to pack.
        parts: a folder to gather the artifacts in; not there yet.
        folder: not there yet.
        entry: the model's entry in the store, named in its ``MLmodel`` file.
    """
    quiet_mlflow()
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    from components.register import pyfunc_model

    model_dir = parts / "model"
    model_dir.mkdir(parents=True)
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        shutil.copy2(candidate.model_dir / name, model_dir)
    detect = candidate.params.evaluate.detect
    write_json_atomic(parts / "detect.json", detect.model_dump(mode="json"))
    write_text_atomic(parts / PARAMS_FILE, params_text(candidate.params))
    image = base64.b64encode(candidate.example.read_bytes()).decode("ascii")
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=pyfunc_model.__file__,
        artifacts={
            "model": str(model_dir),
            "detect": str(parts / "detect.json"),
            "params": str(parts / PARAMS_FILE),
        },
        code_paths=[str(Path(yolact.__file__).parent)],
        signature=pyfunc_model.signature(detect),
        input_example=pd.DataFrame({pyfunc_model.COLUMN: [image]}),
        pip_requirements=pinned_requirements(),
        model_config=pyfunc_model.MODEL_CONFIG,
        mlflow_model=Model(
            artifact_path=entry.artifact_location,
            run_id=entry.source_run_id,
            model_uuid=entry.model_id,
            model_id=entry.model_id,
        ),
    )
    write_text_atomic(folder / CARD_FILE, model_card(candidate.card))


def params_text(params: Params) -> str:
    """All settings as YAML; a source is named without its password, if it has one."""
    tree = params.model_dump(mode="json", by_alias=True)
    tree["data"]["source"] = data_source(params)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def pinned_requirements() -> list[str]:
    """`REQUIREMENTS` with the installed versions; local parts as ``+cpu`` are no version that pip can fetch."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _set_alias(model: RegisteredModel, candidate: Candidate, version: int) -> None:
    """Give the version the alias, or take it away where the metrics no longer reach the floor."""
    if candidate.reaches_floor:
        model.set_alias(CANDIDATE, version)
    elif model.alias(CANDIDATE) == version:
        model.delete_alias(CANDIDATE)


def _log_gate(candidate: Candidate, version: int) -> None:
    floor, value = candidate.params.register_.min_mask_ap50, candidate.metrics.mask_ap50
    if value is None:
        log.warning("version %s gets no alias: its mask AP50 could not be measured (no objects in val)", version)
    elif candidate.reaches_floor:
        log.info("version %s is the %s: mask AP50 %.4f, floor %.4f", version, CANDIDATE, value, floor)
    else:
        log.warning(
            "version %s gets no alias: mask AP50 %.4f is %.4f below register.min_mask_ap50 %.4f",
            version,
            value,
            floor - value,
            floor,
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
            processed_dir=Path("data/processed"),
            metrics_path=Path("metrics/eval.json"),
            report_path=Path("reports/registration.json"),
        ),
    )
