"""What the components for Kubeflow Pipelines share: settings in, messages out, what the interface shows of a result.

Nothing here imports kfp: of an artifact it needs the path and the metadata.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yolact.errors import SettingsError
from yolact.files import write_text_atomic
from yolact_ops.commands.errors import clear_errors
from yolact_ops.lineage.lineage import CODE_VARIABLE, COMMIT_VARIABLE
from yolact_ops.lineage.redaction import shown_source
from yolact_ops.settings.params import DataParams, Params, read_params

if TYPE_CHECKING:
    from components.merge.step import Totals

IMAGE = f"yolact-pipeline:{version('yolact-pipeline')}"
"""The image that components run in unless a pipeline names another (`pipelines.config`)."""

TRACKED = ("train", "evaluate", "register", "promote", "fetch")
"""Steps that need an MLflow server, as their pods share no disk."""

log = logging.getLogger(__name__)


class Artifact(Protocol):
    """A ``kfp.dsl.Artifact``."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str: ...


class MetricsArtifact(Artifact, Protocol):
    """A ``kfp.dsl.Metrics``."""

    def log_metric(self, metric: str, value: float) -> None: ...


@contextmanager
def task(step: str, code_version: str) -> Iterator[None]:
    """Around a component's work: the step's own log lines, and errors that end the process with their message.

    Args:
        step: name in the log.
        code_version: of whoever started the run; part of what the caches know of a task, and noted in the lineage. An
            image of other code is warned of.
    """
    logging.basicConfig(level=logging.INFO, format=f"[{step}] %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    os.environ.setdefault(CODE_VARIABLE, code_version)
    _compare_code(code_version)
    with clear_errors(step):
        if step in TRACKED and "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise SettingsError(
                "MLFLOW_TRACKING_URI is not set, and a file in this pod would be gone with it. Name the server in the "
                "secret `mlflow` of pipelines/cluster.yaml."
            )
        yield


def _compare_code(code_version: str) -> None:
    """Warn if the image was built from other code than the run asks for (`yolact_ops.lineage.code.code_version`).

    What was never committed cannot be compared; then only the commit before it is.
    """
    built = os.environ.get(COMMIT_VARIABLE, "")
    commit, _, changes = code_version.partition("-")
    if built and not built.startswith("unknown") and built != (f"{commit}-dirty" if changes else commit):
        log.warning(
            "WARNING: this image was built from commit %s, but the run asks for the code %s: the results are the "
            "image's. Build and push an image of that commit, and give `image` in pipelines/cluster.yaml a tag of its "
            "own for each.",
            built,
            code_version,
        )


def settings(params: str) -> Params:
    """Check all settings, which came as YAML or JSON text.

    Raises:
        SettingsError: see `yolact_ops.settings.params.load_params`.
    """
    return read_params(params, Params, origin="parameter params")


def data_settings(params: str) -> DataParams:
    """Check the settings of the data, which came as YAML or JSON text.

    Raises:
        SettingsError: see `yolact_ops.settings.params.load_params`.
    """
    return read_params(params, DataParams, origin="parameter params")


def as_text(params: DataParams) -> str:
    """Settings as the JSON text that passes between tasks; equal settings, equal text.

    kfp's local runner replaces ``python3`` and ``{{$.NAME}}`` wherever they stand, so they are spelt by JSON's escapes.
    """
    text = json.dumps(params.model_dump(mode="json", by_alias=True), sort_keys=True)
    return text.replace("python3", r"pytho\u006e3").replace("{{", r"{\u007b")


def checkpoints_folder(volume: str, run: str, resume: str, model: Path) -> Path:
    """Where a training's checkpoints lie, so that a retried task finds them: a folder of the run's own on the volume.

    Args:
        volume: where the volume is mounted; empty: there is none, and checkpoints go with the task.
        run: id of the pipeline's run.
        resume: id of an earlier run that was given up and is to be gone on with; empty: none.
        model: folder of the artifact; without a volume, checkpoints lie beside it, so that they are not uploaded.

    Raises:
        SettingsError: there is no volume, or nothing of the run to go on with.
    """
    if not volume or not Path(volume).is_dir():
        if resume:
            raise SettingsError(f"resume_run: {resume}: there is no volume of checkpoints at {volume!r} to find it on")
        if volume:
            log.warning("%s is no folder: checkpoints go with this task, and a retry begins again", volume)
        return model.with_name(f"{model.name}-checkpoints")
    folder = Path(volume) / (resume or run)
    if resume and resume not in {path.name for path in Path(volume).iterdir() if path.is_dir()}:
        raise SettingsError(f"resume_run: {folder}: no such folder; an empty resume_run begins a new training")
    return folder


def describe_raw(raw: Artifact, params: DataParams, fingerprint: str) -> None:
    """Say of ``data/raw`` where it comes from and how much it is."""
    files = [path for path in Path(raw.path).rglob("*") if path.is_file()]
    raw.metadata |= {
        "source": shown_source(params.data.source),
        "fingerprint": fingerprint,
        "images": sum(path.suffix.lower() in (".jpg", ".jpeg") for path in files),
        "bytes": sum(path.stat().st_size for path in files),
    }


def describe_data(processed: Artifact) -> None:
    """Say of ``data/processed`` what ``stats.json`` says in short."""
    stats = _read_json(Path(processed.path) / "stats.json")
    processed.metadata |= {
        "digest": stats["digest"],
        "format": stats["format"],
        "classes": len(stats["classes"]),
        **{
            f"{split}_{what}": found[what]
            for split, found in stats["splits"].items()
            for what in ("images", "instances")
        },
    }


def describe_model(model: Artifact, metrics: MetricsArtifact, summary: Path) -> None:
    """Say of a trained model which run made it, and show the metrics of training."""
    record = _read_json(Path(model.path) / "run.json")
    model.metadata |= {
        "framework": "pytorch",
        "mlflow_run": record["run_id"],
        "mlflow_experiment": record["experiment"],
    }
    for name, value in _read_json(summary).items():
        metrics.log_metric(name, value)


def describe_evaluation(evaluation: Artifact, metrics: MetricsArtifact, summary: Artifact) -> None:
    """Show the metrics of ``eval.json``, and the table of classes as Markdown."""
    folder = Path(evaluation.path)
    scores = _read_json(folder / "eval.json")
    evaluation.metadata |= {"images": scores["images"]}
    kinds = ("mask", "box")
    for kind in kinds:
        for name, value in scores[kind].items():
            if isinstance(value, float):
                metrics.log_metric(f"{kind}_{name}", value)
    names = ("AP", "AP50", "AP75", "AP70")
    overall_rows = [(kind, *(_percent(scores[kind][name]) for name in names)) for kind in kinds]
    classes = [
        (name, *(_percent(scores[kind]["per_class"][name][metric]) for kind in kinds for metric in ("AP", "AP50")))
        for name in scores["mask"]["per_class"]
    ]
    overall = markdown_table(("", *names), overall_rows)
    each = markdown_table(("class", "mask AP", "mask AP50", "box AP", "box AP50"), classes)
    text = f"# {scores['images']} images, in percent\n\n{overall}\n{each}"
    write_text_atomic(summary.path, text)


def describe_predictions(totals: Totals, metrics: MetricsArtifact, summary: Artifact) -> None:
    """Show how much was found, and of which classes."""
    for name, value in (("images", totals.images), ("objects", totals.objects), ("not_readable", totals.problems)):
        metrics.log_metric(name, value)
    rows = [(name, str(count)) for name, count in totals.per_class.items()]
    write_text_atomic(summary.path, f"# {totals.images} images\n\n{markdown_table(('class', 'objects'), rows)}")


def show_page(page: Artifact, folder: Path) -> None:
    """Make the report in ``folder``, which needs no other file, the artifact."""
    shutil.copyfile(folder / "index.html", page.path)


def describe_record(artifact: Artifact, summary: Artifact, title: str) -> None:
    """Show a JSON file of facts, as ``registration.json`` is, as metadata and as Markdown, with dotted names."""
    facts = dict(_flat(_read_json(Path(artifact.path))))
    artifact.metadata |= {name: value for name, value in facts.items() if value is not None}
    rows = [(name, "-" if value is None else str(value)) for name, value in facts.items()]
    write_text_atomic(summary.path, f"# {title}\n\n{markdown_table(('', ''), rows)}")


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(columns)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
