"""Logging to an open run: metrics, tags, settings, artifacts, data sets, system metrics."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_ops.lineage.lineage import gather_lineage, shown_settings
from yolact_ops.reports.formatting import flatten_text
from yolact_ops.settings.params import Params
from yolact_ops.tracking.journal import Journal
from yolact_ops.tracking.store import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_LENGTH = 36
"""Maximum length of a data set's digest, characters (mlflow.utils.validation.MAX_DATASET_DIGEST_SIZE)."""

TABLES_TAG = "mlflow.loggedArtifacts"
"""MLflow's tag for the artifacts that its pages show as tables (mlflow.utils.mlflow_tags)."""

_SOURCE_TYPES = {"s3": ("s3", "uri"), "http": ("http", "url"), "https": ("http", "url")}
"""MLflow's type of a data source and the key of its address, by scheme; all others have the type ``local``."""

_NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
"""What MLflow does not allow in the names of metrics and parameters."""
LONGEST_NAME = 150
"""Characters of a class's or parameter's name that MLflow's limit of 250 for the whole name leaves room for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """A data set as MLflow shows it among the inputs of a run."""

    name: str
    digest: str
    """Digest of the content; MLflow shows the first `DIGEST_LENGTH` characters, the profile the full one."""
    source: str
    """``data.source`` without credentials."""
    path: Path
    """The COCO instances file, relative to the repository's root."""
    context: str
    """What it was used for: ``training`` or ``validation``."""
    num_images: int
    """Number of images; MLflow shows it as the number of rows."""


class Tracker:
    """An MLflow run, open for logging. Everything logged goes to the journal; nothing waits for the store.

    Args:
        client: client of the store; reading through it needs the store.
        journal: the run's journal.
        train_run_id: id of the train step's run, if that is a different one.
        is_unavailable: the store was unavailable when the run was opened.
    """

    def __init__(
        self,
        client: MlflowClient,
        journal: Journal,
        *,
        train_run_id: str | None = None,
        is_unavailable: bool = False,
    ) -> None:
        self.client = client
        self.record = journal.record
        self.run_id = journal.record.run_id
        self.experiment_id = journal.record.experiment_id
        self.train_run_id = train_run_id or self.run_id
        """Id of the train step's run: usually this one, see `yolact_ops.tracking.run_record`."""
        self._journal = journal
        self._is_unavailable = is_unavailable

    def log_metrics(self, metrics: dict[str, float], step: int | None = None, *, model_id: str | None = None) -> None:
        """Log metrics with the current time; characters that MLflow does not allow in names become ``_``; names
        of classes in them come from `allowed_names`.

        Args:
            metrics: value by name.
            step: training step; None for metrics of the run as a whole, which MLflow keeps as step 0.
            model_id: the logged model that the metrics also belong to.
        """
        named = {allowed_name(name): float(value) for name, value in metrics.items()}
        self._journal.records.append({"metrics": named, "time": _now(), "step": step or 0, "model_id": model_id})

    def log_artifacts(self, folder: Path, artifact_path: str, *, without: Collection[str] = ()) -> None:
        """Store the content of ``folder`` under ``artifact_path`` of the run, except the files named in ``without``."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            if name.as_posix() not in without:
                self.log_artifact(file, (Path(artifact_path) / name.parent).as_posix())

    def log_artifact(self, file: Path, artifact_path: str | None = None) -> None:
        """Store a file's current content under ``artifact_path`` of the run, or at its top level."""
        self._journal.add_file(file, artifact_path)

    def show_as_table(self, artifact: str) -> None:
        """Have MLflow's pages show a JSON artifact ``{"columns": [...], "data": [[...]]}`` as a table."""
        self.set_tags({TABLES_TAG: json.dumps([{"path": artifact, "type": "table"}])})

    def log_dataset(self, data: DataSet) -> None:
        """Log a data set as an input of the run."""
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
        """Log use of processor, memory, disk, network and GPU every 10 s, as ``system/...``.

        MLflow's own monitor measures, in a thread; ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` sets another interval in
        seconds. If the store is available, step numbers continue where an interrupted run stopped. GPUs need
        ``nvidia-ml-py``.
        """
        from yolact_ops.tracking.system_metrics import Monitor

        monitor = Monitor(self.run_id, tracking_uri(), resume=not self._is_unavailable, log_metrics=self.log_metrics)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, replacing their earlier values."""
        self._journal.records.append({"tags": {name: str(value) for name, value in tags.items()}})

    def set_status(self, status: str, *, ended: bool) -> None:
        """Set the run's status, such as RUNNING, and, if it ended, its end time."""
        self._journal.add_status(status, _now() if ended else None)

    def describe(self, params: Params, *, step: str, known: Mapping[str, str]) -> None:
        """Log settings (as ``train.lr``), lineage and the values of MLflow's own columns.

        MLflow parameters are immutable: if a run resumes with other settings, the changed ones are named in the log,
        and the tag ``params_hash`` is that of the current settings.

        Args:
            params: all settings.
            step: name of the current step; the entries of the steps before it in ``dvc.lock`` are part of the lineage.
            known: parameters that the run already has.
        """
        flat = flatten_text(shown_settings(params))
        names = allowed_names(flat)
        settings = {names[name]: value for name, value in flat.items()}
        self._journal.records.append({"params": {n: value for n, value in settings.items() if n not in known}})
        changed = [name for name, value in settings.items() if known.get(name, value) != value]
        if changed:
            log.warning("run %s keeps the first values of: %s", self.run_id, ", ".join(changed))
        lineage = gather_lineage(params, step=step)
        tags = lineage.as_tags() | {"mlflow.source.name": _program(), "mlflow.source.type": "LOCAL"}
        if lineage.git_commit:
            tags["mlflow.source.git.commit"] = lineage.git_commit
        self.set_tags(tags)


def allowed_name(metric: str) -> str:
    """A metric's name with ``_`` for characters that MLflow does not allow."""
    return _NOT_IN_NAMES.sub("_", metric)


def allowed_names(names: Iterable[str]) -> dict[str, str]:
    """A name for each of some that MLflow allows, all different.

    They are parts of a metric's name, or names of parameters. Characters that are not allowed, and ``/``, become ``_``.
    Changed names that equal another's, and names that are too long, end in ``-`` and eight hexadecimal digits of their
    original's SHA-256, which are the same in every run.
    """
    originals = list(dict.fromkeys(names))
    changed = {name: allowed_name(name).replace("/", "_") for name in originals}
    counts = Counter(changed.values())
    for name, allowed in changed.items():
        if (counts[allowed] > 1 and allowed != name) or len(allowed) > LONGEST_NAME or not allowed.strip(". "):
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            changed[name] = f"{allowed[: LONGEST_NAME - 9]}-{digest}"
    return changed


def _now() -> int:
    """Milliseconds since 1970, MLflow's unit."""
    return int(time.time() * 1000)


def _program() -> str:
    """Name of the running program, for MLflow's column "Source"."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
