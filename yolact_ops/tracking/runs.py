"""MLflow tracking that the steps share: one run spans train, evaluate and register.

Where it goes: ``MLFLOW_TRACKING_URI`` when that is set, else the SQLite file ``mlflow.db`` in the working
folder (the repository's root), with artifacts in ``mlruns/`` beside it. ``mlflow ui`` there shows both
(so does ``mlflow ui --backend-store-uri sqlite:///mlflow.db``). MLflow notes the artifact folder's absolute
path when it creates an experiment: after the folder has been moved, metrics and parameters of old runs are
still there, but their artifacts are looked for at the old place, and new runs of the same experiment write
there. Whoever moves folders should run ``mlflow server`` and set ``MLFLOW_TRACKING_URI`` to it.

Which run: the one that ``MLFLOW_RUN_ID`` names, when that is set (Kubeflow Pipelines does); it is neither
created nor ended here. Else train starts a run and writes its id to ``models/run.json``, and the later steps
resume it from there. That file is an output of train in DVC and may come from another machine's cache: a run
that the store does not have is replaced by a new one with the tag ``restored_from_run``, which later steps
find by that tag; the file itself stays as it is. A run is RUNNING while a step works on it, FINISHED between
the steps, FAILED after an error and KILLED after Ctrl-C or SIGTERM; the next step or attempt sets it to RUNNING again.

A server that is away. What a `Tracker` is told goes into a journal in ``models/tracking/<run id>/`` and from there to
MLflow, in threads (yolact_ops/tracking/sender.py), so nothing waits for the network and nothing is lost. Only the start
of a run needs the server; evaluate, and a training that goes on from a checkpoint, do without. Where the journal could
not be sent by the end of a step, the next step of the run sends it, or ``yolact sync``. A step whose folder is gone
with its pod (Kubeflow Pipelines) needs the store, at its end too; train keeps its journal with its checkpoints there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.engine.interrupts import InterruptedRunError
from yolact.files import write_json_atomic
from yolact_ops.lineage.lineage import gather_lineage, user_name
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import FOLDER, Journal, RunRecord
from yolact_ops.tracking.sender import JournalSender
from yolact_ops.tracking.store import (
    DEFAULT_TRACKING_URI,
    StoreAwayError,
    TrackingError,
    connect,
    default_environment,
    new_client,
    quiet_mlflow,
    reported,
    shown_uri,
    tracking_uri,
)
from yolact_ops.tracking.sync import send_leftovers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "DEFAULT_TRACKING_URI",
    "RESTORED_TAG",
    "TRAIN_RUN_TAG",
    "DataSet",
    "RunRecord",
    "StoreAwayError",
    "Tracker",
    "TrackingError",
    "connect",
    "default_environment",
    "flatten",
    "quiet_mlflow",
    "reported",
    "resume_run",
    "shown_uri",
    "start_run",
    "tracking_uri",
]

log = logging.getLogger(__name__)

RESTORED_TAG = "restored_from_run"
"""On a run that stands in for one that the store does not have: that run's id."""
TRAIN_RUN_TAG = "train_run_id"
"""On a run given by ``MLFLOW_RUN_ID`` to a later step: the run of the train step."""

DIGEST_LENGTH = 36
"""Most characters of a data set's digest (mlflow.utils.validation.MAX_DATASET_DIGEST_SIZE)."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow 3.17 show an experiment as machine learning; without it, its pages are those for language models."""

NOTE_TAG = "mlflow.note.content"
"""MLflow's tag for the description of a run, Markdown (mlflow.utils.mlflow_tags)."""

TABLES_TAG = "mlflow.loggedArtifacts"
"""MLflow's tag that names the artifacts which its pages show as tables (mlflow.utils.mlflow_tags)."""

_SOURCE_TYPES = {"s3": ("s3", "uri"), "http": ("http", "url"), "https": ("http", "url")}
"""MLflow's kind of data source and the key of its address, by scheme; all others are its kind ``local``."""

LAST_PATIENCE = 10.0
"""Seconds that the end of an interrupted run waits for MLflow; a pod that is moved is killed after 30 by default."""

_SENDING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""While a journal is sent, tries come from there; MLflow's own would only delay what is behind them."""

_NOT_IN_METRIC_NAMES = re.compile(r"[^\w.\- :/]")


@dataclass(frozen=True)
class DataSet:
    """A data set as MLflow shows it among the inputs of a run."""

    name: str
    digest: str
    """Of its content; MLflow shows the first `DIGEST_LENGTH` characters, the profile has it whole."""
    source: str
    """Where it comes from, as the user named it (``data.source``), without credentials."""
    path: Path
    """The COCO instances file, below the repository's root."""
    context: str
    """What it was used for, as ``training`` or ``validation``."""
    num_images: int
    """Images in it; MLflow shows them as rows."""


class Tracker:
    """One MLflow run, open for writing. What it is told goes into the journal; none of that waits for the store.

    Args:
        client: of the store; reading through it needs the store.
        journal: of the run.
        is_away: the store could not be reached when the run was opened.
    """

    def __init__(self, client: MlflowClient, journal: Journal, *, is_away: bool = False) -> None:
        self.client = client
        self.record = journal.record
        self.run_id = journal.record.run_id
        self.experiment_id = journal.record.experiment_id
        self._journal = journal
        self._is_away = is_away

    def log_metrics(self, metrics: dict[str, float], step: int | None = None, *, model_id: str | None = None) -> None:
        """Log numbers under the current time; characters that MLflow refuses in names become ``_``.

        Args:
            metrics: value by name.
            step: training step; None for metrics that have no course, which MLflow keeps as step 0.
            model_id: the logged model that the numbers are also about.
        """
        named = {allowed_name(name): float(value) for name, value in metrics.items()}
        self._journal.records.append({"metrics": named, "time": _now(), "step": step or 0, "model_id": model_id})

    def log_artifacts(self, folder: Path, artifact_path: str, *, without: Collection[str] = ()) -> None:
        """Store the content of ``folder`` under ``artifact_path`` of the run, but for files named in ``without``."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            if name.as_posix() not in without:
                self.log_artifact(file, (Path(artifact_path) / name.parent).as_posix())

    def log_artifact(self, file: Path, artifact_path: str | None = None) -> None:
        """Store one file as it is now under ``artifact_path`` of the run, or at its top."""
        self._journal.add_file(file, artifact_path)

    def show_as_table(self, artifact: str) -> None:
        """Let MLflow's pages show a JSON artifact ``{"columns": [...], "data": [[...]]}`` as a table."""
        self.set_tags({TABLES_TAG: json.dumps([{"path": artifact, "type": "table"}])})

    def log_dataset(self, data: DataSet) -> None:
        """Note a data set as an input of the run."""
        scheme = data.source.partition("://")[0] if "://" in data.source else ""
        kind, key = _SOURCE_TYPES.get(scheme, ("local", "uri"))
        fields = {
            "name": data.name,
            "digest": data.digest[:DIGEST_LENGTH],
            "source_type": kind,
            "source": json.dumps({key: data.source, "path": data.path.as_posix()}),
            "profile": json.dumps({"num_rows": data.num_images, "digest": data.digest}),
            "context": data.context,
        }
        self._journal.records.append({"inputs": [fields]})

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log the machine's processor, memory, disk, network and GPU use every 10 s, as ``system/...``.

        MLflow's own monitor does it, in a thread; ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` sets other seconds. Its
        step counts on where an interrupted run had stopped, as far as the store is there to say. GPUs are seen where
        ``nvidia-ml-py`` is installed.
        """
        from yolact_ops.tracking.system_metrics import Monitor

        monitor = Monitor(self.run_id, tracking_uri(), resume=not self._is_away, log_metrics=self.log_metrics)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a tag that is there gets the new value."""
        self._journal.records.append({"tags": {name: str(value) for name, value in tags.items()}})

    def set_status(self, status: str, *, ended: bool) -> None:
        """Set the state of the run, as RUNNING, and where it has ended, the time of that."""
        self._journal.records.append({"status": status, "time": _now() if ended else None})

    def describe(self, params: Params, *, step: str, known: Mapping[str, str]) -> None:
        """Log settings (``train.lr`` style), lineage and what MLflow's own columns show.

        MLflow keeps a parameter's first value for good: of a run that is continued with other settings the
        changed ones are named in the log, and ``params_hash`` tells the current ones.

        Args:
            params: all settings.
            step: which step this is; what ``dvc.lock`` says of the steps before it is part of the lineage.
            known: the parameters that the run has.
        """
        settings = flatten(params.model_dump(mode="json", by_alias=True))
        self._journal.records.append({"params": {n: value for n, value in settings.items() if n not in known}})
        changed = [name for name, value in settings.items() if known.get(name, value) != value]
        if changed:
            log.warning("run %s keeps the first values of: %s", self.run_id, ", ".join(changed))
        lineage = gather_lineage(params, step=step)
        tags = lineage.as_tags() | {"mlflow.source.name": _program(), "mlflow.source.type": "LOCAL"}
        if lineage.git_commit:
            tags["mlflow.source.git.commit"] = lineage.git_commit
        self.set_tags(tags)


@dataclass(frozen=True)
class _Opened:
    """A run that a step is about to work on."""

    client: MlflowClient
    record: RunRecord
    known: Mapping[str, str]
    """Its parameters, as far as the store has said."""
    is_owned: bool
    """Not given by ``MLFLOW_RUN_ID``: its state is ours to set."""
    is_new: bool
    """Has nothing of this pipeline yet."""
    is_away: bool = False
    """The store could not be reached."""


@contextmanager
def start_run(
    params: Params, run_file: Path, *, resume: RunRecord | None = None, journals: Path | None = None
) -> Iterator[Tracker]:
    """Open the run of the train step, and write ``run_file``.

    Args:
        params: logged in full; ``register.experiment`` is created when it is not there.
        run_file: ``models/run.json``.
        resume: the run that an interrupted training had begun; it goes on also where its store is away.
        journals: parent of the journal, where that shall outlive the folder of ``run_file``; what is left of it in the
            end is copied there, for the steps that come after. None: in that folder.

    Raises:
        StoreAwayError: the store cannot be reached, and no run is to be resumed.
        TrackingError: the store refuses, or does not have the run that ``MLFLOW_RUN_ID`` names.
        JournalBusyError: another process works on the run.
    """
    run_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with default_environment({} if resume is None else _SENDING):
            opened = _open_for_training(params, resume)
    except StoreAwayError as error:
        opened = _open_away(error, resume)
    with _working(opened, journals or _journals_of(run_file)) as tracker:
        if not opened.is_away:
            tracker.describe(params, step="train", known=opened.known)
        write_json_atomic(run_file, asdict(opened.record))
        yield tracker
    if journals is not None and (left := journals / opened.record.run_id).is_dir():
        shutil.copytree(left, run_file.parent / FOLDER / left.name, dirs_exist_ok=True)


@contextmanager
def resume_run(
    params: Params, run_file: Path, *, step: str = "register", needs_store: bool = True
) -> Iterator[Tracker]:
    """Open the run that the train step noted in ``run_file``, for evaluate and register.

    Args:
        params: logged in full where the run is not the one of train.
        run_file: ``models/run.json``.
        step: which step this is.
        needs_store: a store that is away ends the step, here or after its work; else it works on, and MLflow is told
            later.

    Raises:
        DataError: ``run_file`` is missing or is not such a record.
        StoreAwayError: the store cannot be reached, and the step needs it.
        TrackingError: the store refuses, or does not have the run that ``MLFLOW_RUN_ID`` names, or has not got all by
            the end of a step that needs it.
        JournalBusyError: another process works on the run.
    """
    record = RunRecord.read(run_file)
    try:
        with default_environment({} if needs_store else _SENDING):
            opened = _open_again(params, record)
    except StoreAwayError as error:
        opened = _open_away(error, None if needs_store else record)
    with _working(opened, _journals_of(run_file), needs_store=needs_store) as tracker:
        if opened.is_new:
            tracker.describe(params, step=step, known=opened.known)
        if opened.record.run_id != record.run_id and not opened.is_owned:
            tracker.set_tags({TRAIN_RUN_TAG: record.run_id})
        yield tracker


def _open_for_training(params: Params, resume: RunRecord | None) -> _Opened:
    client = connect()
    run = given = _given_run(client)
    if run is None:
        is_new = resume is None
        if resume is None:
            run = _create_run(client, params, {})
        else:
            run, is_new = _find_or_restore(client, params, resume.run_id)
    else:
        is_new = resume is None or run.info.run_id != resume.run_id
    return _Opened(client, _record(client, run), run.data.params, is_owned=given is None, is_new=is_new)


def _open_again(params: Params, record: RunRecord) -> _Opened:
    client = connect()
    run = given = _given_run(client)
    if run is None:
        run, is_new = _find_or_restore(client, params, record.run_id)
    else:
        is_new = run.info.run_id != record.run_id
    return _Opened(client, _record(client, run), run.data.params, is_owned=given is None, is_new=is_new)


def _open_away(error: StoreAwayError, record: RunRecord | None) -> _Opened:
    """Open a run without asking the store, where it is known to have begun there.

    Raises:
        StoreAwayError: the one given, where that is not known.
    """
    if record is None or record.tracking_uri != shown_uri():
        raise error
    log.warning("%s\nThe step goes on, and MLflow is told when the server is back.", str(error).partition("\n")[0])
    given = os.environ.get("MLFLOW_RUN_ID")
    return _Opened(
        new_client(),
        replace(record, run_id=given or record.run_id),
        known={},
        is_owned=not given,
        is_new=given is not None and given != record.run_id,
        is_away=True,
    )


@contextmanager
def _working(opened: _Opened, parent: Path, *, needs_store: bool = False) -> Iterator[Tracker]:
    """Send the run's journal, below ``parent``, while a step works on it; keep the run's state true if it is ours."""
    with default_environment({} if needs_store else _SENDING):
        journal = _open_journal(parent, opened)
        sender = JournalSender(opened.client, journal)
        tracker = Tracker(opened.client, journal, is_away=opened.is_away)
        if opened.is_owned:
            tracker.set_status("RUNNING", ended=False)
        if not opened.is_away:
            _send_first(sender, opened, needs_store=needs_store)
        sender.start()
        if not opened.is_away:
            send_leftovers(parent, opened.record.run_id, opened.client)
        try:
            yield tracker
        except BaseException as error:
            if opened.is_owned:
                is_stopped = isinstance(error, KeyboardInterrupt | InterruptedRunError)
                with suppress(OSError):  # as on a full disk; the first error is the one to tell
                    tracker.set_status("KILLED" if is_stopped else "FAILED", ended=True)
            sender.close(LAST_PATIENCE)
            raise
        try:
            if opened.is_owned:
                tracker.set_status("FINISHED", ended=True)
        finally:
            sender.close()
        if needs_store and not journal.is_taken:
            raise TrackingError(
                f"{shown_uri()} has not got all of run {opened.record.run_id}, and this step may not end before that. "
                "Run it again when the server and its artifact store work."
            )


def _open_journal(parent: Path, opened: _Opened) -> Journal:
    """The journal of a run; a run whose journal cannot be written is marked as failed."""
    try:
        return Journal(parent / opened.record.run_id, opened.record)
    except OSError:
        if opened.is_owned and not opened.is_away:
            _mark_failed(opened)
        raise


def _mark_failed(opened: _Opened) -> None:
    """Tell the store now, and without the journal, that a run failed."""
    with suppress(Exception), default_environment(_SENDING):  # the first error is the one to tell
        opened.client.set_terminated(opened.record.run_id, "FAILED")


def _send_first(sender: JournalSender, opened: _Opened, *, needs_store: bool) -> None:
    """Send what earlier steps have left and that the run goes on, so that what refuses is told before the work begins.

    Raises:
        TrackingError: the store fails; one that is away only where the step needs it, or nothing can be lost yet.
    """
    journal = sender.journal
    try:
        with reported("open the run"):
            sender.records.send_all()
    except BaseException as error:
        if isinstance(error, StoreAwayError) and not needs_store and not opened.is_new:
            return
        if opened.is_new and journal.is_new:
            journal.discard()
        if opened.is_new and opened.is_owned:
            _mark_failed(opened)
        journal.release()
        raise


def _journals_of(run_file: Path) -> Path:
    """Folder of the journals: beside ``run_file``, or there in the repository that DVC runs an experiment for.

    An experiment of ``dvc exp run --temp`` has a folder of its own, which is gone at its end.
    """
    root = os.environ.get("DVC_ROOT")
    if root and os.environ.get("MLFLOW_TRACKING_URI") and not run_file.is_absolute():
        return Path(root) / run_file.parent / FOLDER
    return run_file.parent / FOLDER


def allowed_name(metric: str) -> str:
    """A metric's name with ``_`` for the characters that MLflow refuses."""
    return _NOT_IN_METRIC_NAMES.sub("_", metric)


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
        run = client.create_run(experiment_id, tags=tags | {"mlflow.user": user_name()})
    log.info("MLflow run %s (%s) at %s", run.info.run_name, run.info.run_id, shown_uri())
    return run


def _experiment_id(client: MlflowClient, name: str) -> str:
    """Id of the experiment of ``MLFLOW_EXPERIMENT_ID`` or else of that name, which is created when it is not there.

    Raises:
        TrackingError: the experiment was deleted (its name stays taken), is not there, or its artifacts need a server.
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
            f"taken. Bring it back with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
            "or set another register.experiment in params.yaml."
        )
    if experiment.artifact_location.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http"):
        raise TrackingError(
            f"the experiment {name!r} at {shown_uri()} was made through an MLflow server, which alone can store its "
            "artifacts. Set MLFLOW_TRACKING_URI to that server, or set another register.experiment in params.yaml."
        )
    return str(experiment.experiment_id)


def _record(client: MlflowClient, run: Run) -> RunRecord:
    with reported("read the experiment"):
        experiment = client.get_experiment(run.info.experiment_id).name
    return RunRecord(run.info.run_id, run.info.experiment_id, experiment, shown_uri())


def _now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def _program() -> str:
    """What MLflow's column "Source" shows: the program that was started."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
