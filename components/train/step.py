"""The train step: COCO instances in, trained network out.

Reads ``data/processed/``; writes ``models/model.safetensors``, ``models/model.json`` and ``models/run.json``,
``metrics/train.json`` and ``plots/train/``. ``models/checkpoints/`` outlives a killed run: the next one with
the same settings and data goes on from there, in the same MLflow run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from components.common.command import run_command
from components.common.lineage import hash_files, read_data_digest
from components.common.tracking import Tracker, start_run
from yolact.config import ModelConfig, Params
from yolact.data.coco import CocoInstances
from yolact.devices import choose_device
from yolact.engine.evaluator import Validation
from yolact.engine.trainer import Metrics, Trainer, TrainingResult, checkpoint_store
from yolact.errors import DataError, SettingsError
from yolact.files import replaced_directory, write_json_atomic, write_text_atomic
from yolact.models.starting_weights import load_starting_weights
from yolact.models.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.yolact import Yolact

log = logging.getLogger(__name__)

LOSS_COLUMNS = {
    "total": "total",
    "classification": "class",
    "box": "box",
    "mask": "mask",
    "semantic": "semantic",
    "mask_iou": "mask_iou",
}
"""Column of ``plots/train/losses.csv`` by name of the loss term; a term that the network has not has no column."""


@dataclass
class TrackingListener:
    """Sends the run's progress to MLflow."""

    tracker: Tracker

    def on_step(self, step: int, row: Metrics) -> None:
        self.tracker.log_metrics({f"train/{name}": value for name, value in row.items()}, step)

    def on_epoch(self, step: int, row: Metrics) -> None:
        self.tracker.log_metrics({f"val/{name}": value for name, value in row.items() if name != "step"}, step)


def run(params: Params, *, processed_dir: Path, model_dir: Path, metrics_path: Path, plots_dir: Path) -> None:
    """Train a network on the train split in ``processed_dir`` and validate it on the val split.

    Args:
        params: ``model``, ``train``, ``runtime`` and ``register.experiment`` are read; all of it is logged.
        processed_dir: what preprocess wrote: ``images/``, ``train.json``, ``val.json`` and ``stats.json``.
        model_dir: gets the model, the MLflow run's id and the checkpoints.
        metrics_path: gets a summary of the run as JSON.
        plots_dir: gets ``losses.csv``, ``lr.csv`` and ``ap.csv``; what was there is replaced.

    Raises:
        DataError: the data is missing or faulty, or a split has no photo or no object.
        SettingsError: the device is not on this machine, or the run would start from the model that it replaces.
        WeightsError: the weights to start from cannot be had or do not fit.
        DivergedError: the loss is not finite.
        TrackingError: the MLflow store fails.
    """
    _check_start(params.model, model_dir)
    train, val = _load_split(processed_dir, "train"), _load_split(processed_dir, "val")
    device = choose_device(params.runtime.device)
    fingerprint = _fingerprint(params, read_data_digest(processed_dir), train.class_names)
    state = checkpoint_store(model_dir, params.runtime.keep_checkpoints).begin(fingerprint)

    torch.manual_seed(params.train.seed)
    model = Yolact(params.model, len(train.class_names))
    if state is None:
        load_starting_weights(model, train.class_names)
    resume_run_id = state.extra["run_id"] if state else None
    with start_run(params, model_dir / "run.json", resume_run_id=resume_run_id) as tracker:
        _log_data(tracker, processed_dir, train, val)
        trainer = Trainer(
            model.to(device),
            train,
            params,
            model_dir,
            fingerprint,
            Validation(val, processed_dir / "val.json", params.train.batch_size),
            TrackingListener(tracker),
            extra={"run_id": tracker.run_id},
        )
        if state is not None:
            trainer.restore(state)
        result = trainer.fit()
        summary = _summary(result)
        with replaced_directory(plots_dir) as folder:
            _write_plots(folder, result)
        write_json_atomic(metrics_path, summary)
        tracker.log_metrics({f"train/{name}": value for name, value in summary.items()}, result.steps)
    trainer.finish()
    log.info("best validation mask AP %.3f; model: %s", result.best_score, model_dir)


def _check_start(config: ModelConfig, model_dir: Path) -> None:
    if config.initial_weights != "none" and Path(config.initial_weights).resolve() == model_dir.resolve():
        raise SettingsError(
            f"model.initial_weights: {config.initial_weights}: is where this run writes its model; copy the one there "
            "to another folder and name that"
        )


def _load_split(processed_dir: Path, split: str) -> CocoInstances:
    path = processed_dir / f"{split}.json"
    data = CocoInstances.load(path, processed_dir / "images")
    if not any(data.objects.values()):
        raise DataError(
            f"{path}: {len(data.images)} photos and no object in them; check the source and preprocess again"
        )
    return data


def _fingerprint(params: Params, data_digest: str, classes: Sequence[str]) -> str:
    """SHA-256 (hex) of what the trained weights depend on; checkpoints of another one are not used."""
    facts = {
        "model": params.model.model_dump(mode="json"),
        "train": params.train.model_dump(mode="json", exclude={"log_every"}),
        "start": _start_digest(params.model),
        "data": data_digest,
        "classes": list(classes),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _start_digest(config: ModelConfig) -> str | None:
    """SHA-256 (hex) of the local files that training starts from; None where there are none."""
    if config.initial_weights == "none":
        paths = [Path(config.backbone_weights)]
    else:
        paths = [Path(config.initial_weights) / name for name in (DESCRIPTION_FILE, WEIGHTS_FILE)]
    return hash_files(*paths) if all(path.is_file() for path in paths) else None


def _log_data(tracker: Tracker, processed_dir: Path, train: CocoInstances, val: CocoInstances) -> None:
    digest = read_data_digest(processed_dir)
    for split, data, context in (("train", train, "training"), ("val", val, "validation")):
        tracker.log_dataset(processed_dir / f"{split}.json", split, digest, context, len(data.images))


def _summary(result: TrainingResult) -> dict[str, float]:
    """``metrics/train.json``: mean of the losses logged in the last epoch, the best validation and the speed."""
    last = result.history["steps"][-1]["epoch"]
    rows = [row for row in result.history["steps"] if row["epoch"] == last]
    losses = [_loss_columns(row) for row in rows]
    return {
        "steps": result.steps,
        "best_val_mask_AP": result.best_score,
        "seconds_per_step": result.seconds_per_step,
        **{f"loss_{column}": fmean(row[column] for row in losses) for column in losses[0]},
    }


def _loss_columns(row: Metrics) -> Metrics:
    """The loss terms of a logged step under their columns' names, in order."""
    return {column: row[term] for term, column in LOSS_COLUMNS.items() if term in row}


def _write_plots(folder: Path, result: TrainingResult) -> None:
    steps, epochs = result.history["steps"], result.history["epochs"]
    losses = [{"epoch": row["epoch"], "step": row["step"]} | _loss_columns(row) for row in steps]
    _write_csv(folder / "losses.csv", losses)
    _write_csv(folder / "lr.csv", [{"step": row["step"], "lr": row["lr"]} for row in steps])
    _write_csv(folder / "ap.csv", [{name: value for name, value in row.items() if name != "step"} for row in epochs])


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


if __name__ == "__main__":
    run_command(
        "train",
        lambda params: run(
            params,
            processed_dir=Path("data/processed"),
            model_dir=Path("models"),
            metrics_path=Path("metrics/train.json"),
            plots_dir=Path("plots/train"),
        ),
    )
