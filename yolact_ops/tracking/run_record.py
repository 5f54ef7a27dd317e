"""Which MLflow run a step works on: the record of a run, and the function that finds it (`which_run`).

1. ``MLFLOW_RUN_ID``, where set (Kubeflow Pipelines sets it), names the run. It is neither created nor ended here.
2. Otherwise the recorded run: ``models/run.json`` of the train step, or, for a resumed training, its checkpoint's copy.
3. ``models/run.json`` is an output of a DVC stage and may come from another machine's cache. A recorded run that the
   store does not have is replaced by the run with the tag `RESTORED_TAG`, created when first needed; the file stays.
4. Without a record, a new run is created in the experiment ``register.experiment``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import DataError
from yolact.files import write_json_atomic
from yolact_ops.lineage.lineage import user_name
from yolact_ops.tracking.store import TrackingError, reported, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_FILE = "run.json"
"""File with a `RunRecord`, in the model's folder and in a journal."""
RESTORED_TAG = "restored_from_run"
"""Tag of a run that replaces one which the store does not have: that run's id."""
TRAIN_THREADS_TAG, EVALUATE_THREADS_TAG = "train_threads", "evaluate_threads"
"""Tags of a run: CPU threads that PyTorch computed with, in each training process and to evaluate. The last digits of
results on a CPU depend on them."""

TRAIN_RUN_TAG = "train_run_id"
"""Tag of a run that ``MLFLOW_RUN_ID`` names for a later step: the id of the train step's run."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow 3.17 show its pages for machine learning instead of those for language models."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """Identity of an MLflow run; content of `RUN_FILE`, and part of every checkpoint."""

    run_id: str
    experiment_id: str
    experiment: str
    tracking_uri: str
    """URI of the store, without credentials."""

    @classmethod
    def from_json(cls, tree: Mapping[str, str]) -> RunRecord:
        """The record in a checkpoint; older checkpoints have the run's id only."""
        return cls(**{field.name: tree.get(field.name, "") for field in fields(cls)})

    def to_json(self) -> dict[str, str]:
        """The record as a JSON object."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a `RUN_FILE`.

        Raises:
            DataError: the file is missing or invalid.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file. Run the train step first: dvc repro train") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: not the record of a run ({error}). Run the train step again.") from error

    def write(self, path: Path) -> None:
        """Write a `RUN_FILE`."""
        write_json_atomic(path, self.to_json())


@dataclass(frozen=True)
class FoundRun:
    """The run that a step works on."""

    record: RunRecord
    params: Mapping[str, str]
    """Parameters that the store has; empty if it was not asked."""
    is_owned: bool
    """Whether the steps set its status: not if ``MLFLOW_RUN_ID`` names it."""
    is_new: bool
    """Whether no step has logged to it yet."""


def which_run(client: MlflowClient, experiment: str, recorded: RunRecord | None) -> FoundRun:
    """The run to work on, see the module's docstring.

    Args:
        client: client of the store.
        experiment: name of the experiment for a new run.
        recorded: the run that an earlier step or attempt worked on; None for a new one.

    Raises:
        TrackingError: the store fails or does not have the run of ``MLFLOW_RUN_ID``.
    """
    given = _given_run(client)
    if given is not None:
        is_new = recorded is None or given.info.run_id != recorded.run_id
        return FoundRun(_record(client, given), given.data.params, is_owned=False, is_new=is_new)
    if recorded is None:
        run, is_new = create_run(client, experiment, {}), True
    else:
        run, is_new = _find_or_restore(client, experiment, recorded.run_id)
    return FoundRun(_record(client, run), run.data.params, is_owned=True, is_new=is_new)


def which_run_unasked(recorded: RunRecord) -> FoundRun:
    """`which_run` without the store, which is unavailable but known to have the recorded run."""
    given = os.environ.get("MLFLOW_RUN_ID")
    record = replace(recorded, run_id=given or recorded.run_id)
    return FoundRun(record, params={}, is_owned=not given, is_new=record.run_id != recorded.run_id)


def _given_run(client: MlflowClient) -> Run | None:
    """The run that ``MLFLOW_RUN_ID`` names; None if it is not set."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    run = find_run(client, run_id)
    if run is None:
        raise TrackingError(
            f"MLFLOW_RUN_ID names the run {run_id}, which {shown_uri()} does not have "
            "(or it was deleted). Correct or unset MLFLOW_RUN_ID, or set MLFLOW_TRACKING_URI to its store."
        )
    return run


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run with that id; None if the store does not have it or it was deleted."""
    from mlflow.exceptions import MlflowException

    with reported(f"read run {run_id}"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return run if run.info.lifecycle_stage == "active" else None


def _find_or_restore(client: MlflowClient, experiment: str, run_id: str) -> tuple[Run, bool]:
    """The run with that id, or the one that replaces it; and whether the latter had to be created."""
    run = find_run(client, run_id)
    if run is not None:
        return run, False
    experiment_id = _experiment_id(client, experiment)
    with reported("search runs"):
        found = client.search_runs(
            [experiment_id], f"tags.{RESTORED_TAG} = '{run_id}'", order_by=["attributes.start_time ASC"], max_results=1
        )
    if found:
        return found[0], False
    run = create_run(client, experiment, {RESTORED_TAG: run_id})
    log.warning(
        "%s has no run %s (the model comes from elsewhere); run %s replaces it", shown_uri(), run_id, run.info.run_id
    )
    return run, True


def create_run(client: MlflowClient, experiment: str, tags: dict[str, str]) -> Run:
    """A new run of this user in an experiment, which is created if it does not exist.

    Raises:
        TrackingError: the store fails, or the experiment cannot be used.
    """
    experiment_id = _experiment_id(client, experiment)
    with reported("start a run"):
        run = client.create_run(experiment_id, tags=tags | {"mlflow.user": user_name()})
    log.info("MLflow run %s (%s) at %s", run.info.run_name, run.info.run_id, shown_uri())
    return run


def _experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment ``MLFLOW_EXPERIMENT_ID``, or of the one with that name, created if it does not exist.

    Raises:
        TrackingError: the experiment does not exist or was deleted (its name stays taken), or its artifacts need a
            server.
    """
    from mlflow.exceptions import MlflowException

    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    with reported(f"open the experiment {given or name}"):
        experiment = client.get_experiment(given) if given else client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name, tags=EXPERIMENT_TAGS))
            except MlflowException as error:  # another process was faster
                experiment = client.get_experiment_by_name(name)
                if experiment is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    name = experiment.name
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} at {shown_uri()} was deleted, and its name is still "
            f"taken. Restore it with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or set another register.experiment in params.yaml."
        )
    if experiment.artifact_location.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http"):
        raise TrackingError(
            f"the experiment {name!r} at {shown_uri()} was created through an MLflow server, which alone can store its "
            "artifacts. Set MLFLOW_TRACKING_URI to that server, or set another register.experiment in params.yaml."
        )
    return str(experiment.experiment_id)


def _record(client: MlflowClient, run: Run) -> RunRecord:
    with reported("read the experiment"):
        experiment = client.get_experiment(run.info.experiment_id).name
    return RunRecord(run.info.run_id, run.info.experiment_id, experiment, shown_uri())
