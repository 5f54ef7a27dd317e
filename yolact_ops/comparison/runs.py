"""Find runs: a list with key metrics, or one run by id, name or model version."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from yolact.errors import DataError
from yolact_ops.registry.versions import find_versions, resolve
from yolact_ops.tracking.store import TrackingError, reported, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ALL_EXPERIMENTS = "*"

SHORT = 8
"""Displayed length of ids, commits and digests, characters."""

_PAGE = 200
"""Runs or versions per request."""

VERSION = "models:"
"""Prefix of a registered version's address."""


@dataclass(frozen=True)
class RunRow:
    """A run with its key metrics; None for missing ones."""

    name: str
    run_id: str
    experiment: str
    started: str
    """UTC, ISO 8601, to the second."""
    status: str
    mask_ap: float | None
    mask_ap50: float | None
    box_ap: float | None
    steps: int | None
    train_seconds: float | None
    """Training time: steps times seconds per step; excludes validation."""
    backbone: str | None
    image_size: int | None
    data_digest: str | None
    git_commit: str | None
    git_dirty: bool | None
    versions: list[str]
    """Registered versions, as ``yolact/3 @champion``."""


def list_runs(
    client: MlflowClient, *, experiment: str = ALL_EXPERIMENTS, limit: int = 20, filter_string: str = ""
) -> list[RunRow]:
    """The newest runs, newest first.

    Args:
        client: client of the store.
        experiment: name of the experiment, or `ALL_EXPERIMENTS`.
        limit: maximum number of runs.
        filter_string: MLflow's filter, as ``metrics.`eval/mask_AP` > 0.3``.

    Raises:
        TrackingError: the store fails or has no such experiment, or the filter is invalid.
    """
    names = experiment_names(client)
    if experiment != ALL_EXPERIMENTS:
        names = {number: name for number, name in names.items() if name == experiment}
        if not names:
            known = ", ".join(sorted(experiment_names(client).values()))
            raise TrackingError(
                f"{shown_uri()} has no experiment {experiment!r}. There are: {known}. Choose one with --experiment, "
                f"or all with --experiment '{ALL_EXPERIMENTS}'."
            )
    runs = search_runs(client, list(names), filter_string, limit)
    versions = versions_of(client, [run.info.run_id for run in runs])
    return [_row(run, names[run.info.experiment_id], versions.get(run.info.run_id, [])) for run in runs]


def experiment_names(client: MlflowClient) -> dict[str, str]:
    """Name by id of every experiment that is not deleted.

    Raises:
        TrackingError: the store fails.
    """
    with reported("list the experiments"):
        found: dict[str, str] = {}
        token = None
        while True:
            page = client.search_experiments(max_results=_PAGE, page_token=token)
            found |= {item.experiment_id: item.name for item in page}
            token = page.token
            if not token:
                return found


def search_runs(client: MlflowClient, experiment_ids: Sequence[str], filter_string: str, limit: int) -> list[Run]:
    """At most ``limit`` runs that are not deleted, newest first.

    Raises:
        TrackingError: the store fails, or the filter is invalid.
    """
    from mlflow.exceptions import MlflowException

    runs: list[Run] = []
    token = None
    with reported("search runs"):
        try:
            while len(runs) < limit:
                wanted = min(_PAGE, limit - len(runs))
                page = client.search_runs(
                    list(experiment_ids),
                    filter_string,
                    max_results=wanted,
                    order_by=["start_time DESC"],
                    page_token=token,
                )
                runs += page
                token = page.token
                if not token:
                    break
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise TrackingError(
                    f"MLflow does not understand the filter {filter_string!r}: {error.message}\n"
                    "Examples: metrics.`eval/mask_AP` > 0.3, params.`model.backbone` = 'resnet50', tags.host = 'gpu1', "
                    "attributes.status = 'FINISHED'; joined with `and`."
                ) from error
            raise
    return runs


def versions_of(client: MlflowClient, run_ids: Sequence[str]) -> dict[str, list[str]]:
    """Registered versions by run id, as ``yolact/3 @champion @candidate``.

    Raises:
        TrackingError: the store fails.
    """
    versions: list[ModelVersion] = []
    for start in range(0, len(run_ids), _PAGE):
        listed = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + _PAGE])
        versions += find_versions(client, f"run_id IN ({listed})")
    with reported("read the aliases"):  # a search does not return them
        names = sorted({version.name for version in versions})
        aliases_of = {name: client.get_registered_model(name).aliases for name in names}
    found: dict[str, list[str]] = {}
    for version in sorted(versions, key=lambda item: (item.name, int(item.version))):
        aliases = [
            f"@{name}" for name, number in aliases_of[version.name].items() if str(number) == str(version.version)
        ]
        found.setdefault(str(version.run_id), []).append(" ".join([f"{version.name}/{version.version}", *aliases]))
    return found


def find_run(client: MlflowClient, reference: str) -> Run:
    """Find a run by its id, name or model version.

    Args:
        client: client of the store.
        reference: a run's id or a prefix of it, its name, or a registered version (``models:/yolact@champion``,
            ``models:/yolact/3``), which means the run that made it.

    Raises:
        DataError: several runs match.
        RegistryError: there is no such version.
        TrackingError: no run matches, or the store fails.
    """
    if reference.startswith(VERSION):
        return run_of_version(client, resolve(client, reference))
    experiments = list(experiment_names(client))
    quoted = reference.replace("'", "")
    by_name = search_runs(client, experiments, f"attributes.run_name = '{quoted}'", limit=10)
    by_id = (
        search_runs(client, experiments, f"attributes.run_id LIKE '{reference}%'", limit=10)
        if re.fullmatch(r"[0-9a-f]{4,32}", reference)
        else []
    )
    fitting = {run.info.run_id: run for run in [*by_id, *by_name]}
    if not fitting:
        raise TrackingError(
            f"{shown_uri()} has no run {reference!r}. `yolact runs --experiment '{ALL_EXPERIMENTS}'` lists names and "
            "ids. Also accepted: at least four characters of an id, models:/NAME@ALIAS, models:/NAME/VERSION, a folder."
        )
    if len(fitting) > 1:
        listed = ", ".join(f"{run.info.run_id[:12]} ({run.info.run_name}, {_when(run)})" for run in fitting.values())
        raise DataError(f"{reference!r} matches several runs: {listed}. Give more of the id.")
    return next(iter(fitting.values()))


def run_of_version(client: MlflowClient, version: ModelVersion) -> Run:
    """The run that registered a version.

    Raises:
        TrackingError: there is none, or the store fails.
    """
    if not version.run_id:
        raise TrackingError(
            f"{version.name} version {version.version} was registered without a run, so it has no evaluation to compare"
        )
    with reported(f"look for the run of {version.name} version {version.version}"):
        return client.get_run(version.run_id)


def _row(run: Run, experiment: str, versions: list[str]) -> RunRow:
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    steps, seconds = metrics.get("train/steps"), metrics.get("train/seconds_per_step")
    size = params.get("model.image_size")
    dirty = tags.get("git_dirty")
    return RunRow(
        name=run.info.run_name,
        run_id=run.info.run_id,
        experiment=experiment,
        started=_when(run),
        status=run.info.status,
        mask_ap=metrics.get("eval/mask_AP"),
        mask_ap50=metrics.get("eval/mask_AP50"),
        box_ap=metrics.get("eval/box_AP"),
        steps=None if steps is None else int(steps),
        train_seconds=None if steps is None or seconds is None else steps * seconds,
        backbone=params.get("model.backbone"),
        image_size=int(size) if size and size.isdecimal() else None,
        data_digest=data_digest(run),
        git_commit=tags.get("git_commit"),
        git_dirty=None if dirty is None else dirty == "true",
        versions=versions,
    )


def data_digest(run: Run) -> str | None:
    """Digest of a run's processed data, or MLflow's prefix of it; None if unknown."""
    tagged: Mapping[str, Any] = run.data.tags
    if tagged.get("data_digest"):
        return str(tagged["data_digest"])
    datasets = run.inputs.dataset_inputs if run.inputs else []
    return next((str(item.dataset.digest) for item in datasets), None)


def _when(run: Run) -> str:
    return datetime.fromtimestamp(run.info.start_time / 1000, tz=UTC).isoformat(timespec="seconds")
