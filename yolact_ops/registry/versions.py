"""Registered models of this project in MLflow's registry: their versions, aliases and files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact.errors import YolactError
from yolact_ops.tracking.store import default_environment, quiet_mlflow, reported, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.entities.model_registry import RegisteredModel as MlflowModel

CANDIDATE = "candidate"
"""Alias of the newest version that reached ``register.min_mask_ap50``."""
CHAMPION = "champion"
"""Alias of the version in use; `yolact promote` and `yolact rollback` move it."""

IDENTITY = ("model_digest", "data_digest", "detect_hash")
"""Tags that together identify a version."""

KIND_TAG = "yolact.kind"
KIND = "instance-segmentation"
"""Value of `KIND_TAG` on registered models of this project."""

PARAMS_FILE = "params.yaml"
"""All settings, among a version's artifacts."""
DETECT_FILE = "detect.json"
"""The detection settings that a version is served with, among its artifacts."""

_TAKEN = "Set another register.model_name in params.yaml; nothing was changed."

_PAGE = 1000
"""Versions per request."""

_SPEC = re.compile(r"""^(?:models:/)?(?P<name>[^/:@'"]+)(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))$""")


class RegistryError(YolactError, RuntimeError):
    """A model, version or file is missing from the registry, or the name is taken; the message names the model."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model of this project. Every method raises `TrackingError` if the store fails."""

    client: MlflowClient
    name: str

    @classmethod
    def open(cls, client: MlflowClient, name: str) -> RegisteredModel:
        """Open the registered model ``name``.

        Raises:
            RegistryError: there is none, or it belongs to another project.
        """
        found = _find(client, name)
        if found is None:
            raise RegistryError(
                f"the registry at {shown_uri()} has no model {name!r}. Register one first: dvc repro register"
            )
        _check_ours(client, found)
        return cls(client, name)

    @classmethod
    def open_or_create(cls, client: MlflowClient, name: str) -> RegisteredModel:
        """Open the registered model ``name``, creating it if needed; safe for concurrent processes.

        Raises:
            RegistryError: the name is taken by a prompt or another kind of model.
        """
        from mlflow.exceptions import MlflowException

        if _find(client, name) is None:
            with reported(f"register the model {name}"):
                try:
                    description = "Instance segmentation with YOLACT."
                    client.create_registered_model(name, tags={KIND_TAG: KIND}, description=description)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    if _find(client, name) is None:  # not another process, but a prompt: MLflow hides those
                        raise RegistryError(
                            f"the name {name!r} at {shown_uri()} is taken by a prompt. {_TAKEN}"
                        ) from None
        return cls.open(client, name)

    def versions(self) -> dict[int, ModelVersion]:
        """All versions with their tags by number, oldest first."""
        return {int(version.version): version for version in find_versions(self.client, f"name = '{self.name}'")}

    def version(self, number: int) -> ModelVersion:
        """A version that is complete.

        Raises:
            RegistryError: it does not exist, its files are incomplete, or this pipeline did not register it.
        """
        found = self.versions()
        if number not in found:
            there = ", ".join(map(str, found)) or "none"
            raise RegistryError(f"{self.name} has no version {number}; it has: {there}")
        if found[number].status != "READY":
            raise RegistryError(
                f"{self.name} version {number} is not ready ({found[number].status}): its registration was "
                "interrupted. Register it again: dvc repro -f register"
            )
        missing = [tag for tag in IDENTITY if tag not in found[number].tags]
        if missing:
            raise RegistryError(
                f"{self.name} version {number} has no tag {missing[0]}: it was not registered by this pipeline and "
                "cannot be compared or traced"
            )
        return found[number]

    def tags(self) -> dict[str, str]:
        """Tags of the registered model itself."""
        with reported(f"read the tags of {self.name}"):
            return dict(self.client.get_registered_model(self.name).tags)

    def set_model_tag(self, key: str, value: str) -> None:
        """Set a tag of the registered model itself."""
        with reported(f"set a tag of {self.name}"):
            self.client.set_registered_model_tag(self.name, key, value)

    def alias(self, alias: str) -> int | None:
        """Number of the version that has the alias; None if none has."""
        with reported(f"read the aliases of {self.name}"):
            found = self.client.get_registered_model(self.name).aliases.get(alias)
        return None if found is None else int(found)

    def set_alias(self, alias: str, version: int) -> None:
        """Move the alias to a version."""
        with reported(f"set the alias {alias} of {self.name}"):
            self.client.set_registered_model_alias(self.name, alias, str(version))

    def delete_alias(self, alias: str) -> None:
        """Remove the alias from its version."""
        with reported(f"delete the alias {alias} of {self.name}"):
            self.client.delete_registered_model_alias(self.name, alias)

    def set_tag(self, version: int, key: str, value: str) -> None:
        """Set or overwrite a tag of a version."""
        with reported(f"set a tag of {self.name} version {version}"):
            self.client.set_model_version_tag(self.name, str(version), key, value)


def resolve(client: MlflowClient, spec: str) -> ModelVersion:
    """Find the version named ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; ``models:/`` is optional.

    Raises:
        RegistryError: the text is not such a name, or there is no such version.
    """
    match = _SPEC.match(spec)
    if match is None:
        raise RegistryError(f"{spec!r} names no version; write models:/yolact@champion or models:/yolact/3")
    model = RegisteredModel.open(client, match["name"])
    if match["version"]:
        return model.version(int(match["version"]))
    number = model.alias(match["alias"])
    if number is None:
        raise RegistryError(
            f"no version of {model.name} has the alias {match['alias']!r}{_hint(match['alias'])}. Or name a version by "
            f"its number, as models:/{model.name}/1"
        )
    return model.version(number)


def fetch_files(name: str, version: int, folder: Path, path: str = "") -> Path:
    """Download a version's files, or the one at ``path`` among them, into ``folder``.

    Raises:
        TrackingError: the store fails or has no such file.
    """
    quiet_mlflow()
    import mlflow.artifacts

    uri = f"models:/{name}/{version}" + (f"/{path}" if path else "")
    folder.mkdir(parents=True, exist_ok=True)
    # Given a SQLite file, MLflow 3.17 looks models up in the store that the environment names (or its default).
    with reported(f"fetch {uri}"), default_environment({"MLFLOW_TRACKING_URI": tracking_uri()}):
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=tracking_uri()))


def _hint(alias: str) -> str:
    return {
        CHAMPION: ": nothing was promoted yet. Do so with: yolact promote",
        CANDIDATE: ": none reached register.min_mask_ap50",
    }.get(alias, "")


def _find(client: MlflowClient, name: str) -> MlflowModel | None:
    from mlflow.exceptions import MlflowException

    with reported(f"look for the model {name}"):
        try:
            return client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def _check_ours(client: MlflowClient, model: MlflowModel) -> None:
    """Refuse a name that is taken by another model, before anything is written."""
    if model.tags.get(KIND_TAG) == KIND:
        return
    versions = find_versions(client, f"name = '{model.name}'")
    foreign = [version.version for version in versions if not set(IDENTITY) <= version.tags.keys()]
    if foreign:  # models of this project that are older than the tag have versions with all of IDENTITY
        raise RegistryError(
            f"the name {model.name!r} at {shown_uri()} is taken by another model: its version {foreign[0]} was not "
            f"registered by this pipeline. {_TAKEN}"
        )


def find_versions(client: MlflowClient, filter_string: str) -> list[ModelVersion]:
    """All versions that match MLflow's filter, with their tags, sorted by name and number.

    Raises:
        TrackingError: the store fails.
    """
    found: list[ModelVersion] = []
    token = None
    with reported("read the registered versions"):
        while True:
            page = client.search_model_versions(filter_string, max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: (version.name, int(version.version)))
