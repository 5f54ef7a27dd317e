"""The MLflow runs of a sweep: one for the sweep, and nested under it one for each trial."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from yolact_ops.tracking.run_record import RunRecord, create_run, find_run
from yolact_ops.tracking.store import TrackingError, connect, reported, shown_uri

RUN_NAME_TAG, PARENT_TAG = "mlflow.runName", "mlflow.parentRunId"
"""MLflow's tags (mlflow.utils.mlflow_tags)."""

log = logging.getLogger(__name__)


def open_run(file: Path, experiment: str, name: str, *, parent: str = "", params: Mapping[str, str]) -> RunRecord:
    """The run that ``file`` records, set to RUNNING; a new one if there is none, or the store has lost it.

    Args:
        file: record of the run; written for a new one.
        experiment: name of the experiment for a new run.
        name: name of a new run.
        parent: id of the run under which a new one is nested; empty for none.
        params: parameters of a new run.

    Raises:
        TrackingError: the store fails.
    """
    client = connect()
    if file.is_file():
        record = RunRecord.read(file)
        if find_run(client, record.run_id) is not None:
            with reported(f"continue run {record.run_id}"):
                client.update_run(record.run_id, status="RUNNING")
            return record
    run = create_run(client, experiment, {RUN_NAME_TAG: name} | ({PARENT_TAG: parent} if parent else {}))
    with reported("describe the run"):
        for key, value in params.items():
            client.log_param(run.info.run_id, key, value)
    record = RunRecord(run.info.run_id, run.info.experiment_id, experiment, shown_uri())
    record.write(file)
    return record


def log_best(run_id: str, metric: str, value: float, tags: Mapping[str, str]) -> None:
    """Record the best trial with the sweep's run.

    Raises:
        TrackingError: the store fails.
    """
    client = connect()
    with reported("record the best trial"):
        client.log_metric(run_id, metric, value)
        for key, text in tags.items():
            client.set_tag(run_id, key, text)


def end_run(run_id: str, status: str) -> None:
    """Set a run's final status; only warns where the store fails, as the results are in files."""
    try:
        with reported(f"end run {run_id}"):
            connect().set_terminated(run_id, status)
    except TrackingError as error:
        log.warning("%s", error)
