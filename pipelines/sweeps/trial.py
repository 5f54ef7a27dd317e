"""One trial of a sweep: ``python -m pipelines.sweeps.trial``, the same process on this machine and on a cluster.

`TRIAL_VARIABLE` has the trial. The last line of standard output is ``METRIC=VALUE``, which Katib's metrics collector
reads. Exit codes are those of the steps, also 75 after a request to stop and 70 after an unexpected exception. After
all but an error of the user the same trial resumes from its checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from components.evaluate import step as evaluate
from components.train import step as train
from pipelines.sweeps.data import prepare_data, shared_params, validation_data
from pipelines.sweeps.exit_codes import crash_exit_code
from pipelines.sweeps.runs import end_run, open_run
from pipelines.sweeps.sweep import TRIAL_VARIABLE, Sweep, SweepFolder, Trial, TrialFolder
from yolact.data.processed import EVAL, TRAIN
from yolact.engine.interrupts import InterruptedRunError, Interrupts
from yolact.errors import EX_TEMPFAIL
from yolact.files import write_text_atomic
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.task import as_text, task
from yolact_ops.lineage.variables import CODE_VARIABLE
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import change

RUN_VARIABLE = "MLFLOW_RUN_ID"


def run_trial(trial: Trial) -> float:
    """Train and evaluate with the trial's settings; a stopped trial resumes.

    Returns:
        The sweep's metric, 0 to 1.

    Raises:
        SystemExit: a step failed or was stopped; it has printed why.
        YolactError: the metric could not be measured, or MLflow fails.
    """
    folder = SweepFolder(Path(trial.folder))
    place = folder.trial(trial.name)
    place.path.mkdir(parents=True, exist_ok=True)
    with FileLock(place.path / "lock"):  # an earlier start whose sweep was killed may be writing its checkpoint
        processed = prepare_data(trial.sweep, folder)
        os.environ.pop(CODE_VARIABLE, None)  # set by the first step of a process; the run is train's
        params = change(shared_params(folder), trial.overrides)
        write_text_atomic(place.params_file, as_text(params))
        with _tracked(trial, folder, params):
            _train_and_evaluate(trial.sweep, place, params, processed, validation_data(processed, folder))
    return place.value(trial.sweep.metric)


def _train_and_evaluate(sweep: Sweep, place: TrialFolder, params: Params, processed: Path, validation: Path) -> None:
    with task("train", sweep.version("train"), needs_mlflow=True):
        train.run(
            params,
            train_data_dir=processed / TRAIN,
            eval_data_dir=processed / EVAL,
            model_dir=place.model,
            metrics_path=place.path / "train.json",
            plots_dir=place.path / "plots" / "train",
            checkpoints_dir=place.path / "checkpoints",
        )
    with task("evaluate", sweep.version("evaluate"), needs_mlflow=True):
        evaluate.run(
            params,
            eval_data_dir=validation,
            model_dir=place.model,
            metrics_path=place.metrics_file,
            report_dir=place.path / "report",
            plots_dir=place.path / "plots" / "eval",
        )


@contextmanager
def _tracked(trial: Trial, folder: SweepFolder, params: Params) -> Iterator[None]:
    """Give the steps a run nested under the sweep's, by the variable that names a run to them."""
    experiment, place = params.register_.experiment, folder.trial(trial.name)
    with task("train", trial.sweep.version("train"), needs_mlflow=True):  # reads the secrets too
        parent = open_parent(trial.sweep, folder, experiment)
        run = open_run(place.run_file, experiment, f"{trial.sweep.name} {trial.name}", parent=parent, params={})
    os.environ[RUN_VARIABLE] = run.run_id
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except BaseException as error:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        if stopped or (isinstance(error, SystemExit) and error.code == EX_TEMPFAIL):
            status = "KILLED"
        raise
    finally:
        end_run(run.run_id, status)


def open_parent(sweep: Sweep, folder: SweepFolder, experiment: str) -> str:
    """Id of the sweep's MLflow run, which the first trial, or this machine's sweep, creates.

    Raises:
        TrackingError: the store fails.
    """
    params = {f"space.{key}": text for key, text in sweep.space.items()} | {"metric": sweep.metric}
    with folder.lock():
        return open_run(folder.run_file, experiment, sweep.name, params=params).run_id


def _stop_at_end_of_input() -> None:
    while os.read(0, 4096):  # not sys.stdin: a thread that reads it cannot be ended with the process
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the trial that the environment names."""
    trial = Trial.from_json(os.environ.pop(TRIAL_VARIABLE))
    os.environ.pop(RUN_VARIABLE, None)
    if trial.ends_with_parent:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    interrupts = Interrupts()
    with crash_exit_code(), clear_errors("trial"), interrupts.watched(), interrupts.at_once():
        value = run_trial(trial)
    print(f"{trial.sweep.metric}={value!r}", flush=True)


if __name__ == "__main__":
    main()
