"""Shared by the Kubeflow tasks of all steps: settings, clear errors, the check of the code version, Markdown tables.

What the UI shows of a step's result is defined in the step's own folder, in ``display.py``. Nothing here imports kfp:
an artifact is its path and its metadata.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from yolact.errors import DataError, SettingsError
from yolact_ops.commands.container import keep_to_container
from yolact_ops.commands.errors import clear_errors
from yolact_ops.commands.secrets import read_secrets
from yolact_ops.commands.step import start_log
from yolact_ops.lineage import code
from yolact_ops.lineage.variables import CODE_VARIABLE, COMMIT_VARIABLE, IMAGE_VARIABLE
from yolact_ops.settings.params import DataParams, Params, read_params

IMAGE = f"yolact-pipeline:{version('yolact-pipeline')}"
"""Default container image of the components (`pipelines.config` can set another)."""


class Artifact(Protocol):
    """A ``kfp.dsl.Artifact``."""

    metadata: dict[str, Any]
    uri: str

    @property
    def path(self) -> str: ...


class MetricsArtifact(Artifact, Protocol):
    """A ``kfp.dsl.Metrics``."""

    def log_metric(self, metric: str, value: float) -> None: ...


@contextmanager
def task(
    step: str, code_version: str, *, needs_mlflow: bool = False, inputs: Iterable[Artifact] = ()
) -> Iterator[None]:
    """Context of a task: check that the code is the pipeline's, keep to what the container may use
    (`yolact_ops.commands.container`), read its secrets, log as the step, report errors by their message.

    Args:
        step: the step's folder in ``components``; also its name in the log.
        code_version: the step's version when the pipeline was compiled (`yolact_ops.lineage.code`). It is an input of
            the task, so the caches distinguish versions of the code.
        needs_mlflow: the step needs MLflow. On a cluster the server's address must be set, because a local store
            would be lost with the pod.
        inputs: folders that tasks before this one wrote; refused if they are empty.
    """
    start_log(step, force=True)
    keep_to_container()
    with clear_errors(step):
        _check_code(step, code_version)
        os.environ.setdefault(CODE_VARIABLE, code_version)
        read_secrets()
        if needs_mlflow and "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise SettingsError(
                "MLFLOW_TRACKING_URI is not set, and a local store would be lost with this pod. Name the server in the "
                "secret `mlflow` of pipelines/cluster.yaml."
            )
        _check_inputs(inputs)
        yield


def _check_inputs(inputs: Iterable[Artifact]) -> None:
    """Refuse inputs without a file: the launcher downloads nothing, without an error, if the store has nothing."""
    for artifact in inputs:
        folder = Path(artifact.path)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise DataError(
                f"{artifact.uri or artifact.path}: there is nothing in the object store. If Kubeflow took that output "
                "from its cache, submit again with --no-enable-caching; it makes the output anew."
            )


def _check_code(step: str, code_version: str) -> None:
    """Refuse to run if the code is not the pipeline's: the results would be cached under the wrong version.

    Raises:
        SettingsError: the versions differ, or the pipeline specifies none.
    """
    if not code_version:
        raise SettingsError(
            "code_version: empty. `python -m pipelines compile` (and submit, run-local) pass each task the version of "
            "its code; for your own pipeline, `python3 -m yolact_ops.lineage.code` prints it."
        )
    there = code.installed_version(step)
    if there == code_version:
        return
    wrong = f"the pipeline was compiled for version {code_version} of the step {step}"
    if not code.is_recorded():
        raise SettingsError(f"{wrong}, but {code.ROOT} now has version {there}. Start the pipeline again.")
    image, commit = os.environ.get(IMAGE_VARIABLE, "of this container"), os.environ.get(COMMIT_VARIABLE, "unknown")
    raise SettingsError(
        f"{wrong}, but the image {image} has version {there} (commit {commit}). Nothing was run. Build "
        "and push an image from the checkout that you submit from (`make image IMAGE=...`, `docker push ...`), name it "
        "as `image` in pipelines/cluster.yaml, and submit again."
    )


def settings(params: str) -> Params:
    """Parse and check all settings, given as YAML or JSON text.

    Raises:
        SettingsError: see `yolact_ops.settings.params.load_params`.
    """
    return read_params(params, Params, origin="parameter params")


def data_settings(params: str) -> DataParams:
    """Parse and check the settings of the data, given as YAML or JSON text.

    Raises:
        SettingsError: see `yolact_ops.settings.params.load_params`.
    """
    return read_params(params, DataParams, origin="parameter params")


def as_text(params: DataParams) -> str:
    """Settings as the JSON text passed between tasks; equal settings give equal text.

    kfp's local runner replaces ``python3`` and ``{{$.NAME}}`` anywhere in a text, so they are written as JSON escapes.
    """
    text = json.dumps(params.model_dump(mode="json", by_alias=True), sort_keys=True)
    return text.replace("python3", r"pytho\u006e3").replace("{{", r"{\u007b")


def show_page(page: Artifact, folder: Path) -> None:
    """Copy the report in ``folder``, one self-contained page, to the artifact."""
    shutil.copyfile(folder / "index.html", page.path)


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(columns)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
