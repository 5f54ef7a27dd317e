"""The lineage of a registered version: its inputs, the commands that rebuild it, and where a rebuild is inexact."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact.errors import SettingsError
from yolact.settings import IMAGENET_VERSIONS
from yolact_ops.lineage.dvc_lock import find_lock_commit
from yolact_ops.registry.history import PREFIX as DECISION_PREFIX
from yolact_ops.registry.versions import PARAMS_FILE, RegisteredModel, fetch_files, resolve
from yolact_ops.settings.yaml_text import read_yaml
from yolact_ops.tracking.run_record import EVALUATE_THREADS_TAG, TRAIN_RUN_TAG, TRAIN_THREADS_TAG
from yolact_ops.tracking.store import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

GROUPS = {
    "code": ("git_commit", "git_dirty", "git_branch", "git_remote", "code_version", "package_version"),
    "data": ("data_source", "data_digest", "dvc_lock_hash"),
    "settings": ("params_hash", "detect_hash", "params_changes"),
    "run": (
        "run_id",
        "experiment",
        TRAIN_RUN_TAG,
        "pipeline_run_id",
        "kubeflow_run_id",
        "image",
        "image_digest",
        "host",
        "user",
        "gpu",
        TRAIN_THREADS_TAG,
        EVALUATE_THREADS_TAG,
    ),
    "model": ("model_digest", "mask_AP", "mask_AP50", "box_AP", "box_AP50"),
}
"""Tags by topic, in display order; all other tags follow. ``kubeflow_run_id``: older versions have the pipeline run's
id under this name."""

FIXED_SOURCES = ("sample", "voc2012", "sbd")
"""Values of ``data.source`` that always give the same images: generated from a seed or verified by checksum."""


@dataclass(frozen=True)
class LineageReport:
    """The lineage of one version."""

    name: str
    version: int
    aliases: list[str]
    tags: dict[str, str]
    lock_commit: str | None
    """A commit of the local repository whose ``dvc.lock`` names this version's data and model."""
    settings: Mapping[str, Any] | None
    """``params.yaml`` as its own release wrote it; None if the version has none, as the oldest versions."""

    def groups(self) -> dict[str, dict[str, str]]:
        """The tags by group; the rest is under ``libraries`` or ``other``."""
        groups = {
            title: {tag: self.tags[tag] for tag in tags if tag in self.tags}
            for title, tags in GROUPS.items()
            if any(tag in self.tags for tag in tags)
        }
        known = {tag for tags in groups.values() for tag in tags}
        rest = {tag: value for tag, value in sorted(self.tags.items()) if tag not in known}
        libraries = {tag: value for tag, value in rest.items() if tag.endswith("_version")}
        other = {tag: value for tag, value in rest.items() if tag not in libraries}
        return groups | {title: tags for title, tags in (("libraries", libraries), ("other", other)) if tags}

    def changed_settings(self) -> dict[str, str] | None:
        """Settings that differed from ``conf/base.yaml`` at registration; None if unknown."""
        try:
            tree = json.loads(self.tags["params_changes"])
        except (KeyError, ValueError):
            return None
        return {str(key): str(value) for key, value in tree.items()} if isinstance(tree, dict) else None

    def commands(self) -> list[str]:
        """Shell commands that rebuild the model, for the current folder and environment.

        The settings are downloaded before the folder changes: without MLFLOW_TRACKING_URI the store is in this folder.
        """
        remote = self.tags.get("git_remote", "PROJECT")
        lines = [f"git clone {shlex.quote(remote)} rebuilt"]
        if "git_commit" in self.tags:
            lines.append(f"git -C rebuilt checkout {self.tags['git_commit']}")
        if self.settings is not None:
            path = f"artifacts/{PARAMS_FILE}"  # MLflow keeps the folder
            uri = shlex.quote(f"models:/{self.name}/{self.version}/{path}")
            fetch = f"mlflow artifacts download --artifact-uri {uri} --dst-path rebuilt"
            lines.append(f"{fetch} && mv rebuilt/{path} rebuilt/")
        lines.append("cd rebuilt && make install && source .venv/bin/activate")
        if self.lock_commit is not None and self.tags.get("data_source") not in FIXED_SOURCES:
            pull = "dvc pull data/raw data/processed/train data/processed/eval"
            lines.append(f"git checkout {self.lock_commit} -- dvc.lock && {pull}")
            lines.append("dvc repro --force --single-item train")
        return [*lines, "dvc repro evaluate"]

    def doubts(self) -> list[str]:
        """Reasons why the commands might give a different model."""
        return [*self._code_doubts(), *self._data_doubts(), *self._settings_doubts()]

    def _code_doubts(self) -> list[str]:
        if "git_commit" not in self.tags:
            return ["the code is unknown: it ran outside a git repository"]
        doubts = []
        if self.tags.get("git_dirty") != "false":
            doubts.append("the repository had uncommitted changes: unless only params.yaml changed, other code ran")
        if "git_remote" not in self.tags:
            doubts.append("the repository's URL is unknown (no remote origin): replace PROJECT with it")
        return doubts

    def _data_doubts(self) -> list[str]:
        if self.lock_commit is not None:
            return []
        source, digest = self.tags.get("data_source"), self.tags.get("data_digest", "unknown")
        if source in FIXED_SOURCES:
            return []
        check = f"if data/processed/eval/stats.json then has another digest than {digest}, the data differs"
        if source is None:
            return [f"the data's source is unknown; {check}"]
        where = f" as seen from {self.tags.get('host', 'the original machine')}" if "://" not in source else ""
        return [
            "no local commit has the dvc.lock that this version was made with (run this in a clone that has it), so "
            f"the data is fetched from its source{where}, {source}, which may have changed since; {check}"
        ]

    def _settings_doubts(self) -> list[str]:
        if self.settings is None:
            return ["the version has no settings, as an older program registered it: see its run's parameters"]
        model, doubts = self.settings.get("model"), []
        for key in ("initial_weights", "backbone_weights"):
            value = model.get(key, "none") if isinstance(model, dict) else "none"
            if value.startswith(("models:/", "s3://")):
                doubts.append(f"training started from model.{key} = {value}, which may be another now")
            elif value not in ("none", *IMAGENET_VERSIONS):
                doubts.append(f"training started from a file on the original machine: model.{key} = {value}")
        doubts.append(
            f"metrics are equal to the last bit only on a CPU with as many threads{self._threads()} and the same "
            "libraries; a GPU sums in varying order, so there they are close"
        )
        return doubts

    def _threads(self) -> str:
        """How many threads made the version, and how to have as many; empty if unknown."""
        found = [self.tags[tag] for tag in (TRAIN_THREADS_TAG, EVALUATE_THREADS_TAG) if tag in self.tags]
        if not found:
            return ""
        numbers = dict.fromkeys(found)
        text = f"training {found[0]}, evaluation {found[-1]}" if len(numbers) > 1 else found[0]
        return f" ({text}, by runtime.threads)"

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": self.aliases,
            "lineage": self.groups(),
            "changed_settings": self.changed_settings(),
            "lock_commit": self.lock_commit,
            "rebuild": self.commands(),
            "not_exact_because": self.doubts(),
        }


def report_lineage(client: MlflowClient, spec: str, *, root: Path = Path()) -> LineageReport:
    """Report the lineage of a version.

    Args:
        client: connected to the registry.
        spec: the version, see `yolact_ops.registry.versions.resolve`.
        root: a clone of the project, or any folder; its git history is searched for the version's ``dvc.lock``.

    Raises:
        RegistryError: there is no such version.
        TrackingError: the store fails.
    """
    found = resolve(client, spec)
    model, number = RegisteredModel.open(client, found.name), int(found.version)
    tags = {key: value for key, value in found.tags.items() if not key.startswith(DECISION_PREFIX)}
    lock_hash = tags.get("dvc_lock_hash")
    return LineageReport(
        name=model.name,
        version=number,
        aliases=_aliases(client, model.name, number),
        tags=tags,
        lock_commit=None if lock_hash is None else find_lock_commit(lock_hash, root),
        settings=_settings(model.name, number, tags),
    )


def _aliases(client: MlflowClient, name: str, number: int) -> list[str]:
    aliases: Mapping[str, str] = client.get_registered_model(name).aliases
    return sorted(alias for alias, version in aliases.items() if int(version) == number)


def _settings(name: str, number: int, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The settings among the version's files, as its own release wrote them; None if it has none."""
    if "data_source" not in tags:  # older than the settings among the files
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_yaml(fetch_files(name, number, Path(folder), f"artifacts/{PARAMS_FILE}"))
        except (TrackingError, SettingsError):
            return None
