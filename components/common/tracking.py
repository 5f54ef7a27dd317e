"""MLflow tracking that the steps share: one run spans train, evaluate and register.

Where it goes: ``MLFLOW_TRACKING_URI`` when that is set, else the SQLite file ``mlflow.db`` in the working
folder (the repository's root), with artifacts in ``mlruns/`` beside it. ``mlflow ui`` there shows both
(so does ``mlflow ui --backend-store-uri sqlite:///mlflow.db``). MLflow notes the artifact folder's absolute
path when it creates an experiment: after the folder has been moved, figures and parameters of old runs are
still there, but their artifacts are looked for at the old place, and new runs of the same experiment write
there. Whoever moves folders should run ``mlflow server`` and set ``MLFLOW_TRACKING_URI`` to it.

Which run: the one that ``MLFLOW_RUN_ID`` names, when that is set (Kubeflow Pipelines does); it is neither
created nor ended here. Else train starts a run and writes its id to ``models/run.json``, and the later steps
resume it from there. That file is an output of train in DVC and may come from another machine's cache: a run
that the store does not have is replaced by a new one with the tag ``restored_from_run``, which later steps
find by that tag; the file itself stays as it is. A run is RUNNING while a step works on it, FINISHED between
the steps, FAILED after an error and KILLED after Ctrl-C or SIGTERM; the next step or attempt sets it to RUNNING again.

MLflow is imported when it is first needed, with its usage telemetry, links and progress bars switched off
unless the environment says otherwise.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.lineage import gather_lineage, redact, without_credentials
from yolact.config import Params
from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import DataError, YolactError
from yolact.files import write_json_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
RESTORED_TAG = "restored_from_run"
"""On a run that stands in for one that the store does not have: that run's id."""
TRAIN_RUN_TAG = "train_run_id"
"""On a run given by ``MLFLOW_RUN_ID`` to a later step: the run of the train step."""

DIGEST_LENGTH = 36
"""Most characters of a data set's digest (mlflow.utils.validation.MAX_DATASET_DIGEST_SIZE)."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What MLflow is told unless the environment already says something else."""

_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A server that is away is reported after seconds; later calls have MLflow's own patience (minutes)."""

_NOT_IN_METRIC_NAMES = re.compile(r"[^\w.\- :/]")


class TrackingError(YolactError):
    """The tracking store cannot be reached, refuses, or lacks what it should have; names its URI."""


@dataclass(frozen=True)
class RunRecord:
    """Content of ``models/run.json``: which MLflow run made this model."""

    run_id: str
    experiment_id: str
    experiment: str
    tracking_uri: str
    """Without credentials."""

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read the file that train wrote.

        Raises:
            DataError: the file is missing or is not such a record.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file. Run the train step first: dvc repro train") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: not the record of a run ({error}). Run the train step again.") from error


class Tracker:
    """One MLflow run, open for writing. Every method raises `TrackingError` when the store fails."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None, *, model_id: str | None = None) -> None:
        """Log numbers under the current time; characters that MLflow refuses in names become ``_``.

        Args:
            metrics: value by name.
            step: training step; None for figures that have no course, which MLflow keeps as step 0.
            model_id: the logged model that the numbers are also about.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(_NOT_IN_METRIC_NAMES.sub("_", name), float(value), now, step or 0, model_id=model_id)
            for name, value in metrics.items()
        ]
        with reported("log metrics"):
            self.client.log_batch(self.run_id, metrics=entries)

    def log_artifacts(self, folder: Path, artifact_path: str, *, without: Collection[str] = ()) -> None:
        """Store the content of ``folder`` under ``artifact_path`` of the run, but for files named in ``without``."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            if name.as_posix() not in without:
                self.log_artifact(file, (Path(artifact_path) / name.parent).as_posix())

    def log_artifact(self, file: Path, artifact_path: str | None = None) -> None:
        """Store one file under ``artifact_path`` of the run, or at its top."""
        with reported(f"store {file}"):
            self.client.log_artifact(self.run_id, str(file), artifact_path)

    def log_dataset(self, json_path: Path, name: str, digest: str, context: str, num_images: int) -> None:
        """Note a data set as an input of the run.

        Args:
            json_path: the COCO instances file; shown as the source.
            name: name to show.
            digest: content digest; MLflow shows the first `DIGEST_LENGTH` characters, the profile has it whole.
            context: what it was used for, as ``training`` or ``evaluation``.
            num_images: photos in it; MLflow shows them as rows.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": str(json_path.resolve())}),
            profile=json.dumps({"num_rows": num_images, "digest": digest}),
        )
        entry = DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)])
        with reported("log a data set"):
            self.client.log_inputs(self.run_id, datasets=[entry])

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log the machine's processor, memory, disk, network and GPU use every 10 s, as ``system/...``.

        MLflow's own monitor does it, in a thread; ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` sets other seconds. Its
        step counts on where an interrupted run had stopped. GPUs are seen where ``nvidia-ml-py`` is installed.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=tracking_uri())
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a tag that is there gets the new value."""
        from mlflow.entities import RunTag

        with reported("set tags"):
            self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def describe(self, params: Params) -> None:
        """Log settings (``train.lr`` style), lineage and what MLflow's own columns show.

        MLflow keeps a parameter's first value for good: of a run that is continued with other settings the
        changed ones are named in the log, and ``params_hash`` tells the current ones.
        """
        from mlflow.entities import Param

        with reported("log parameters"):
            known = self.client.get_run(self.run_id).data.params
            settings = flatten(params.model_dump(mode="json", by_alias=True))
            new = [Param(name, value) for name, value in settings.items() if name not in known]
            self.client.log_batch(self.run_id, params=new)
        changed = [name for name, value in settings.items() if known.get(name, value) != value]
        if changed:
            log.warning("run %s keeps the first values of: %s", self.run_id, ", ".join(changed))
        # dvc.lock is written after each step: what it says while train works is about the run before.
        lineage = replace(gather_lineage(params), dvc_lock_hash=None)
        tags = lineage.as_tags() | {"mlflow.source.name": _program(), "mlflow.source.type": "LOCAL"}
        if lineage.git_commit:
            tags["mlflow.source.git.commit"] = lineage.git_commit
        self.set_tags(tags)


@contextmanager
def start_run(params: Params, run_file: Path, *, resume_run_id: str | None = None) -> Iterator[Tracker]:
    """Open the run of the train step, and write ``run_file``.

    Args:
        params: logged in full; ``register.experiment`` is created when it is not there.
        run_file: ``models/run.json``.
        resume_run_id: the run that an interrupted training had begun.

    Raises:
        TrackingError: the store fails, or does not have the run that ``MLFLOW_RUN_ID`` names.
    """
    client = connect()
    given = _given_run(client)
    if given is not None:
        run = given
    elif resume_run_id is not None:
        run, _ = _find_or_restore(client, params, resume_run_id)
    else:
        run = _create_run(client, params, {})
    tracker = Tracker(client, run)
    with _working(tracker, owned=given is None):
        tracker.describe(params)
        write_json_atomic(run_file, asdict(_record(client, run)))
        yield tracker


@contextmanager
def resume_run(params: Params, run_file: Path) -> Iterator[Tracker]:
    """Open the run that the train step noted in ``run_file``, for evaluate and register.

    Raises:
        DataError: ``run_file`` is missing or is not such a record.
        TrackingError: the store fails, or does not have the run that ``MLFLOW_RUN_ID`` names.
    """
    record = RunRecord.read(run_file)
    client = connect()
    given = _given_run(client)
    if given is not None:
        run, fresh = given, given.info.run_id != record.run_id
    else:
        run, fresh = _find_or_restore(client, params, record.run_id)
    tracker = Tracker(client, run)
    with _working(tracker, owned=given is None):
        if fresh:
            tracker.describe(params)
        if given is not None and fresh:
            tracker.set_tags({TRAIN_RUN_TAG: record.run_id})
        yield tracker


def tracking_uri() -> str:
    """Address of the tracking store, credentials included.

    The default has the absolute path: MLflow keeps one store per address, wherever the process goes.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def shown_uri() -> str:
    """Address of the tracking store for files and messages: no credentials, no path of this machine by default."""
    return without_credentials(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI)


def connect() -> MlflowClient:
    """A client of the tracking store that has answered once.

    Raises:
        TrackingError: the store does not answer within seconds, or refuses.
    """
    quiet_mlflow()
    _check_default_store()
    with reported("reach the tracking store"):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=tracking_uri())
        with default_environment(_FIRST_CONTACT):
            client.search_experiments(max_results=1)
    return client


def _check_default_store() -> None:
    """Refuse a store file that cannot be written before SQLAlchemy retries for a minute and blames the query."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return
    store = Path("mlflow.db").resolve()
    blocked = next((p for p in (store.parent, store) if p.exists() and not os.access(p, os.W_OK)), None)
    if blocked is not None:
        raise TrackingError(
            f"{blocked}: cannot be written, so runs cannot be tracked in mlflow.db here. Give yourself write "
            "permission, or set MLFLOW_TRACKING_URI to an MLflow server."
        )


def quiet_mlflow() -> None:
    """Switch MLflow's telemetry, links, progress bars and routine log lines off, where not set by the user."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn what the tracking or artifact store raises into a `TrackingError` that names the way out."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _store_errors()):
            raise
        reason = redact(str(error)).strip().partition("\n")[0][:500]
        raise TrackingError(
            f"could not {doing} at {shown_uri()}: {reason}\n"
            "Check that the MLflow server runs and that MLFLOW_TRACKING_URI is right (with a login, also "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), or unset "
            "MLFLOW_TRACKING_URI to track in the file mlflow.db here."
        ) from error


@contextmanager
def default_environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, and take them away again at the end."""
    missing = [name for name in defaults if name not in os.environ]
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``{"train.lr": "0.001"}``; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _given_run(client: MlflowClient) -> Run | None:
    """The run that ``MLFLOW_RUN_ID`` names, or None when it is not set."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    run = _find_run(client, run_id)
    if run is None:
        raise TrackingError(
            f"MLFLOW_RUN_ID names the run {run_id}, which {shown_uri()} does not have "
            "(or it was deleted). Correct or unset MLFLOW_RUN_ID, or set MLFLOW_TRACKING_URI to its store."
        )
    return run


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of that id, or None when the store does not have it or has it as deleted."""
    from mlflow.exceptions import MlflowException

    with reported(f"read run {run_id}"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return run if run.info.lifecycle_stage == "active" else None


def _find_or_restore(client: MlflowClient, params: Params, run_id: str) -> tuple[Run, bool]:
    """The run of that id, or the one that stands in for it; True when that had to be created."""
    run = _find_run(client, run_id)
    if run is not None:
        return run, False
    experiment_id = _experiment_id(client, params.register_.experiment)
    with reported("search runs"):
        found = client.search_runs(
            [experiment_id], f"tags.{RESTORED_TAG} = '{run_id}'", order_by=["attributes.start_time ASC"], max_results=1
        )
    if found:
        return found[0], False
    run = _create_run(client, params, {RESTORED_TAG: run_id})
    log.warning(
        "%s has no run %s (the model comes from elsewhere); it has run %s instead", shown_uri(), run_id, run.info.run_id
    )
    return run, True


def _create_run(client: MlflowClient, params: Params, tags: dict[str, str]) -> Run:
    experiment_id = _experiment_id(client, params.register_.experiment)
    with reported("start a run"):
        run = client.create_run(experiment_id, tags=tags | {"mlflow.user": _user()})
    log.info("MLflow run %s (%s) at %s", run.info.run_name, run.info.run_id, shown_uri())
    return run


def _experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment, which is created when it is not there.

    Raises:
        TrackingError: the experiment was deleted (its name stays taken), or its artifacts need a server.
    """
    from mlflow.exceptions import MlflowException

    with reported(f"open the experiment {name}"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name))
            except MlflowException as error:  # another process was faster
                experiment = client.get_experiment_by_name(name)
                if experiment is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} at {shown_uri()} was deleted, and its name is still "
            f"taken. Bring it back with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or set another register.experiment in params.yaml."
        )
    if experiment.artifact_location.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http"):
        raise TrackingError(
            f"the experiment {name!r} at {shown_uri()} was made through an MLflow server, which alone can store its "
            "artifacts. Set MLFLOW_TRACKING_URI to that server, or set another register.experiment in params.yaml."
        )
    return str(experiment.experiment_id)


@contextmanager
def _working(tracker: Tracker, *, owned: bool) -> Iterator[None]:
    """Keep the run's status true while a step works on it; a run that is not ours keeps its own."""
    if not owned:
        yield
        return
    with reported("open the run"):
        tracker.client.update_run(tracker.run_id, status="RUNNING")
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | InterruptedRunError) else "FAILED"
        try:
            tracker.client.set_terminated(tracker.run_id, status)
        except Exception as second:  # the first error is the one to tell
            log.warning("run %s could not be marked %s: %s", tracker.run_id, status, redact(str(second)))
        raise
    with reported("end the run"):
        tracker.client.set_terminated(tracker.run_id, "FINISHED")


def _record(client: MlflowClient, run: Run) -> RunRecord:
    with reported("read the experiment"):
        experiment = client.get_experiment(run.info.experiment_id).name
    return RunRecord(run.info.run_id, run.info.experiment_id, experiment, shown_uri())


def _store_errors() -> tuple[type[Exception], ...]:
    """What the tracking store, its database driver and the artifact store may raise."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests import RequestException  # type: ignore[import-untyped]
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, RequestException, Boto3Error, BotoCoreError, ClientError, ImportError)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def _program() -> str:
    """What MLflow's column "Source" shows: the program that was started."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
