"""The end of a sweep: ``python -m pipelines.sweeps.best`` on a cluster, where it runs in a pod of its own."""

from __future__ import annotations

import os
from pathlib import Path

from components.evaluate import step as evaluate
from components.promote import step as promote
from components.register import step as register
from pipelines.sweeps.data import prepare_data, validation_data
from pipelines.sweeps.exit_codes import crash_exit_code
from pipelines.sweeps.runs import end_run, log_best
from pipelines.sweeps.sweep import BEST_VARIABLE, Best, SweepFolder
from pipelines.sweeps.trial import open_parent
from yolact.data.processed import EVAL
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.task import settings, task


def finish(best: Best) -> None:
    """Record the best trial with the sweep's MLflow run; register its model, and promote it if the gate allows it.

    Where images are held out, they are evaluated first, as in the pipeline `training`.

    Raises:
        SystemExit: a step failed; it has printed why.
        TrackingError: MLflow fails.
    """
    sweep, folder = best.sweep, SweepFolder(Path(best.folder))
    place = folder.trial(best.name)
    params = settings(place.params_file.read_text(encoding="utf-8"))
    with task("register", sweep.version("register"), needs_mlflow=True):  # reads the secrets too
        parent = open_parent(sweep, folder, params.register_.experiment)
        tags = {"best_trial": best.name} | {f"best.{key}": value for key, value in best.assignments.items()}
        log_best(parent, sweep.metric, place.value(sweep.metric), tags)
    if best.registers:
        processed, report = prepare_data(sweep, folder), folder.path / "registration.json"
        data = processed / EVAL
        metrics = place.metrics_file
        if validation_data(processed, folder) != data:
            metrics = place.path / "held_out" / "eval.json"
            with task("evaluate", sweep.version("evaluate"), needs_mlflow=True):
                evaluate.run(
                    params,
                    eval_data_dir=data,
                    model_dir=place.model,
                    metrics_path=metrics,
                    report_dir=metrics.with_name("report"),
                    plots_dir=metrics.with_name("plots"),
                    needs_store=True,
                )
        with task("register", sweep.version("register"), needs_mlflow=True):
            register.run(
                params,
                model_dir=place.model,
                eval_data_dir=data,
                metrics_path=metrics,
                report_path=report,
            )
        with task("promote", sweep.version("promote"), needs_mlflow=True):
            promote.run(
                params,
                registration_path=report,
                eval_data_dir=data,
                report_path=folder.path / "promotion.json",
                page_path=folder.path / "promotion.md",
            )
    end_run(parent, "FINISHED")


if __name__ == "__main__":
    with crash_exit_code(), clear_errors("sweep"):
        finish(Best.from_json(os.environ.pop(BEST_VARIABLE)))
