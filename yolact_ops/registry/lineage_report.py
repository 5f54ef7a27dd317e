"""What a registered version was made from, the commands that rebuild it, and where that would not be exact."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.register.step import PARAMS_FILE
from yolact.errors import SettingsError
from yolact_ops.lineage.dvc_lock import find_lock_commit
from yolact_ops.registry.versions import RegisteredModel, fetch_files, resolve
from yolact_ops.settings.params import Params, load_params
from yolact_ops.tracking.run_record import TRAIN_RUN_TAG
from yolact_ops.tracking.store import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

GROUPS = {
    "code": ("git_commit", "git_dirty", "git_branch", "git_remote", "code_version", "package_version"),
    "data": ("data_source", "data_digest", "dvc_lock_hash"),
    "settings": ("params_hash", "detect_hash", "params_changes"),
    "run": ("run_id", TRAIN_RUN_TAG, "pipeline_run_id", "image", "image_digest", "host", "user", "gpu"),
    "model": ("model_digest", "mask_AP", "mask_AP50", "box_AP", "box_AP50"),
}
"""Tags by what they tell about, in the order in which they are shown; all other tags follow."""

FIXED_SOURCES = ("sample", "voc2012", "sbd")
"""Values of ``data.source`` that always give the same images: generated from a seed, or checked against a sum."""


@dataclass(frozen=True)
class LineageReport:
    """The lineage of one version."""

    name: str
    version: int
    aliases: list[str]
    tags: dict[str, str]
    lock_commit: str | None
    """A commit of the repository here whose ``dvc.lock`` names this version's data and model."""
    params: Params | None
    """None where the version carries no settings (it is older than that)."""

    def groups(self) -> dict[str, dict[str, str]]:
        """The tags by group; those of no group are ``libraries`` or ``other``."""
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
        """Settings that differ from ``conf/base.yaml`` of then; None where that is not known."""
        try:
            tree = json.loads(self.tags["params_changes"])
        except (KeyError, ValueError):
            return None
        return {str(key): str(value) for key, value in tree.items()} if isinstance(tree, dict) else None

    def commands(self) -> list[str]:
        """Shell commands that make the model again, for the folder and environment that this is asked in.

        The settings are fetched before the folder changes: without MLFLOW_TRACKING_URI they are in the store here.
        """
        remote = self.tags.get("git_remote", "PROJECT")
        lines = [f"git clone {shlex.quote(remote)} rebuilt"]
        if "git_commit" in self.tags:
            lines.append(f"git -C rebuilt checkout {self.tags['git_commit']}")
        if self.params is not None:
            path = f"artifacts/{PARAMS_FILE}"  # MLflow keeps the folder
            uri = shlex.quote(f"models:/{self.name}/{self.version}/{path}")
            fetch = f"mlflow artifacts download --artifact-uri {uri} --dst-path rebuilt"
            lines.append(f"{fetch} && mv rebuilt/{path} rebuilt/")
        lines.append("cd rebuilt && make install && source .venv/bin/activate")
        if self.lock_commit is not None and self.tags.get("data_source") not in FIXED_SOURCES:
            lines.append(f"git checkout {self.lock_commit} -- dvc.lock && dvc pull data/raw data/processed")
            lines.append("dvc repro --force --single-item train")
        return [*lines, "dvc repro evaluate"]

    def doubts(self) -> list[str]:
        """Why the commands might make another model."""
        return [*self._code_doubts(), *self._data_doubts(), *self._settings_doubts()]

    def _code_doubts(self) -> list[str]:
        if "git_commit" not in self.tags:
            return ["the code is not known: it ran outside a git repository"]
        doubts = []
        if self.tags.get("git_dirty") != "false":
            doubts.append(
                "the repository had changes that were not committed: if more than params.yaml, other code ran"
            )
        if "git_remote" not in self.tags:
            doubts.append("the repository's address is not known (no remote origin): put it in place of PROJECT")
        return doubts

    def _data_doubts(self) -> list[str]:
        if self.lock_commit is not None:
            return []
        source, digest = self.tags.get("data_source"), self.tags.get("data_digest", "unknown")
        if source in FIXED_SOURCES:
            return []
        check = f"if data/processed/stats.json then has another digest than {digest}, it is other data"
        if source is None:
            return [f"the data's source is not known; {check}"]
        where = f" as {self.tags.get('host', 'the machine of then')} saw it" if "://" not in source else ""
        return [
            "no commit here has the dvc.lock that this version was made with (run this in a clone that has it), so the "
            f"data is fetched from its source{where}, {source}, which may have changed since; {check}"
        ]

    def _settings_doubts(self) -> list[str]:
        if self.params is None:
            return [
                "the version carries no settings, as an older program registered it: its run's parameters have them"
            ]
        model, doubts = self.params.model, []
        for key, value in (("initial_weights", model.initial_weights), ("backbone_weights", model.backbone_weights)):
            if value not in ("none", "imagenet"):
                doubts.append(f"training began from a file of the machine of then: model.{key} = {value}")
        doubts.append(
            "metrics are equal to the last bit only on a CPU with as many threads and the same libraries; a GPU adds "
            "in changing order, so there they are close"
        )
        return doubts

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
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
    """The lineage of the version that ``spec`` names.

    Args:
        client: of the registry.
        spec: see `yolact_ops.registry.versions.resolve`.
        root: a clone of the project (or any folder); its history is searched for the version's ``dvc.lock``.

    Raises:
        RegistryError: there is no such version.
        TrackingError: the store fails.
    """
    found = resolve(client, spec)
    model, number = RegisteredModel.open(client, found.name), int(found.version)
    tags = {key: value for key, value in found.tags.items() if not key.startswith("decision.")}
    lock_hash = tags.get("dvc_lock_hash")
    return LineageReport(
        name=model.name,
        version=number,
        aliases=_aliases(client, model.name, number),
        tags=tags,
        lock_commit=None if lock_hash is None else find_lock_commit(lock_hash, root),
        params=_settings(model.name, number, tags),
    )


def _aliases(client: MlflowClient, name: str, number: int) -> list[str]:
    aliases: Mapping[str, str] = client.get_registered_model(name).aliases
    return sorted(alias for alias, version in aliases.items() if int(version) == number)


def _settings(name: str, number: int, tags: Mapping[str, str]) -> Params | None:
    """The settings among the version's files; None where it has none, or they are those of another program."""
    if "data_source" not in tags:  # older than both
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return load_params(fetch_files(name, number, Path(folder), f"artifacts/{PARAMS_FILE}"))
        except (TrackingError, SettingsError):
            return None
