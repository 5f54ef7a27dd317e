"""The evaluate step: predict the test split, or without one the val split, compute metrics, write a report.

Reads ``data/processed/eval/`` and ``models/``; writes ``metrics/eval.json``, ``box.json`` and ``mask.json`` there,
``reports/eval/`` and ``plots/eval/``, and adds metrics and report to the training's MLflow run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from components.evaluate.report import DETECTIONS_FILE, PER_CLASS_TABLE, Evaluation, write_plots, write_report
from yolact.data.coco import CocoInstances
from yolact.data.processed import EVAL, PROCESSED
from yolact.devices import computing_threads
from yolact.errors import DataError
from yolact.evaluation.evaluator import (
    IouType,
    evaluate_class_agnostic,
    evaluate_coco,
    load_ground_truth,
    predict_dataset,
)
from yolact.files import replaced_directory, write_json_atomic
from yolact.inference.predictor import Predictor
from yolact_ops.commands.step import run_command
from yolact_ops.reports.formatting import decimal
from yolact_ops.settings.params import Params
from yolact_ops.tracking.evaluations import FOLDER, evaluated_annotations, log_evaluation, tracked_metrics
from yolact_ops.tracking.notes import NOTE_TAG, run_note
from yolact_ops.tracking.run_record import EVALUATE_THREADS_TAG, RUN_FILE
from yolact_ops.tracking.runs import resume_run
from yolact_ops.transfer.instances import load_instances

log = logging.getLogger(__name__)


def run(
    params: Params,
    *,
    eval_data_dir: Path,
    model_dir: Path,
    metrics_path: Path,
    report_dir: Path,
    plots_dir: Path,
    scores_dir: Path | None = None,
    needs_store: bool = False,
) -> None:
    """Evaluate the model in ``model_dir`` on the test split in ``eval_data_dir``, or without one on the val split.

    Args:
        params: the settings; reads ``evaluate`` and ``runtime``.
        eval_data_dir: output of preprocess for evaluation: images, and ``test.json`` or ``val.json``.
        model_dir: output of train: ``model.safetensors``, ``model.json`` and ``run.json``.
        metrics_path: receives the metrics as JSON; identical detections give an identical file.
        report_dir: receives detections, tables, drawings and ``index.html``; replaced as a whole.
        plots_dir: receives the tables for ``dvc plots``; replaced as a whole.
        scores_dir: receives ``box.json`` and ``mask.json``, the metrics without classes: rows of `dvc metrics show`.
        needs_store: everything must be in MLflow when this returns, because ``model_dir`` is deleted then; otherwise it
            may be logged later.

    Raises:
        DataError: the data or ``run.json`` is missing or invalid, the split is empty, or the model and the data have
            different classes.
        WeightsError: the model is missing or damaged.
        TrackingError: the MLflow store rejects the request, or it is unavailable and ``needs_store`` is set; without
            ``needs_store`` everything is logged later.
    """
    annotations = evaluated_annotations(eval_data_dir)
    data = load_instances(annotations, params.runtime)
    if not data.images:
        raise DataError(f"{annotations}: has no images; add images to that split and run preprocess again")
    with computing_threads(params.runtime.threads):
        predictor = Predictor.load(
            model_dir, params.evaluate.detect, device=params.runtime.device, batch_size=params.evaluate.batch_size
        )
    _check_classes(predictor.classes, data.class_names, model_dir, annotations)

    with resume_run(params, model_dir / RUN_FILE, step="evaluate", needs_store=needs_store) as tracker:
        with computing_threads(params.runtime.threads):
            evaluation = _evaluate(predictor, data, annotations)
        with replaced_directory(report_dir) as folder:
            write_report(folder, evaluation, params)
        with replaced_directory(plots_dir) as folder:
            write_plots(folder, evaluation)
        write_json_atomic(metrics_path, _metrics(evaluation))
        if scores_dir is not None:
            for summary in (evaluation.box, evaluation.mask):
                write_json_atomic(scores_dir / f"{summary.iou_type}.json", summary.metrics())
        metrics = tracked_metrics(evaluation.box, evaluation.mask)
        for kind in evaluation.any_class:
            metrics |= {f"eval/{kind}_{name}": ap for name, ap in _any_class(evaluation, kind) if ap is not None}
        tracker.log_metrics(metrics)
        tracker.show_as_table(f"{FOLDER}/{PER_CLASS_TABLE}")
        note = run_note(params, data.class_names, len(data.images), _headline(evaluation))
        tracker.set_tags({NOTE_TAG: note, EVALUATE_THREADS_TAG: str(evaluation.threads)})
        log_evaluation(tracker, annotations, report_dir / DETECTIONS_FILE)
        tracker.log_artifacts(report_dir, artifact_path=FOLDER, without=(DETECTIONS_FILE,))

    for summary in (evaluation.box, evaluation.mask):
        values = [*summary.metrics().items(), *_any_class(evaluation, summary.iou_type)]
        log.info("%-4s  %s", summary.iou_type, "  ".join(f"{name} {decimal(value)}" for name, value in values))
    log.info("%d images of the %s split; report: %s", len(data.images), annotations.stem, report_dir / "index.html")


def _check_classes(model: list[str], data: list[str], model_dir: Path, annotations: Path) -> None:
    if list(model) != list(data):
        raise DataError(
            f"the model has other classes than the data.\n"
            f"  {model_dir / 'model.json'}: {', '.join(model)}\n"
            f"  {annotations}: {', '.join(data)}\n"
            "Train again on this data (`dvc repro train`), or evaluate on the data that the model was trained on."
        )


def _evaluate(predictor: Predictor, data: CocoInstances, annotations: Path) -> Evaluation:
    ground_truth = load_ground_truth(annotations)
    found = predict_dataset(predictor, data)
    return Evaluation(
        split=annotations.stem,
        data=data,
        results=found.rows,
        box=evaluate_coco(ground_truth, found.rows, "box"),
        mask=evaluate_coco(ground_truth, found.rows, "mask"),
        any_class={
            iou_type: evaluate_class_agnostic(ground_truth, found.rows, iou_type) for iou_type in ("mask", "box")
        },
        seconds=found.seconds,
        device=str(predictor.device),
        threads=torch.get_num_threads(),
    )


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    """``metrics/eval.json``, without anything that differs between identical runs, such as times."""
    return {
        "split": evaluation.split,
        "images": len(evaluation.data.images),
        "box": evaluation.box.to_json(),
        "mask": evaluation.mask.to_json(),
        "any_class": {iou_type: vars(ap) for iou_type, ap in evaluation.any_class.items()},
    }


def _any_class(evaluation: Evaluation, iou_type: IouType) -> list[tuple[str, float | None]]:
    """AP and AP50 when all classes count as one, under names for the log and MLflow."""
    return [(f"{name}_any_class", value) for name, value in vars(evaluation.any_class[iou_type]).items()]


def _headline(evaluation: Evaluation) -> dict[str, float | None]:
    mask, box = evaluation.mask, evaluation.box
    return {"mask AP": mask.AP, "mask AP50": mask.AP50, "box AP": box.AP, "box AP50": box.AP50}


if __name__ == "__main__":
    run_command(
        "evaluate",
        lambda params: run(
            params,
            eval_data_dir=PROCESSED / EVAL,
            model_dir=Path("models"),
            metrics_path=Path("metrics/eval.json"),
            report_dir=Path("reports/eval"),
            plots_dir=Path("plots/eval"),
            scores_dir=Path("metrics"),
        ),
    )
