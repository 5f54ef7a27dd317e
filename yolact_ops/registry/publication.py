"""Copy the versions of a registered model to Kubeflow's Model Registry.

MLflow stays the one that decides; what is copied can be made again. `publish` compares all versions with their copies
and writes what differs, so it completes what a killed process left, and a registry that was added later gets all of
them. Models, versions and artifacts are looked for before they are created.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from yolact_ops.registry.history import PREFIX as DECISION_PREFIX
from yolact_ops.registry.history import read_history, rolled_back
from yolact_ops.registry.model_registry import TOKEN_VARIABLE, Kind, ModelRegistry, ModelRegistryError, Tree
from yolact_ops.registry.versions import CANDIDATE, CHAMPION, IDENTITY, KIND, KIND_TAG, RegisteredModel
from yolact_ops.settings.params import RegisterConfig
from yolact_ops.tracking.store import connect, reported

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Most times that all is compared; each repeats because MLflow's registry changed meanwhile."""

LABELS = (CANDIDATE, CHAMPION)
"""Aliases; a version that has one has a property of this name, with an empty text: the page shows it as a label."""

ADDRESS = "model_uri"
"""Property of a version: its address in MLflow, as ``models:/yolact/3``."""

METRICS = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")
"""Tags that become numbers."""

FORMAT = {"modelFormatName": "yolact", "modelFormatVersion": "1"}
"""The format that the ServingRuntime in deploy/serving/kserve runs."""

FETCHED = ("s3", "gs")
"""Schemes of MLflow's artifact addresses that KServe fetches, too."""


@dataclass(frozen=True)
class Copy:
    """What the Model Registry must have of one version, as its API takes it."""

    version: Tree
    """Name, state, author, description and properties."""
    artifact: Tree
    """Name, address of the files and format."""


def publish(config: RegisterConfig, name: str) -> None:
    """Make the Model Registry agree with all versions of a registered model; does nothing if the settings name none.

    Args:
        config: ``model_registry`` and ``model_registry_files``.
        name: the registered model.

    Raises:
        ModelRegistryError: it fails, has a model or version of this name from elsewhere, or a version's files are where
            KServe cannot fetch them.
        RegistryError, TrackingError: MLflow's registry fails.
    """
    if config.model_registry == "none":
        return
    try:
        _publish(config, RegisteredModel.open(connect(), name))
    except ModelRegistryError as error:
        raise type(error)(
            f"{error}\nMLflow's registry is complete, only the copy is not. To complete it: yolact publish"
        ) from error


def _publish(config: RegisterConfig, model: RegisteredModel) -> None:
    registry = ModelRegistry(config.model_registry, os.environ.get(TOKEN_VARIABLE))
    copies = _copies(model, config)
    for _ in range(ATTEMPTS):
        writes = _write(registry, model.name, copies)
        before, copies = copies, _copies(model, config)
        if copies == before:  # else another process changed it, and what was written may be older than what it wrote
            log.info("%s has %d versions of %s (%d writes)", registry.address, len(copies), model.name, writes)
            return
    raise ModelRegistryError(f"the versions of {model.name} changed {ATTEMPTS} times meanwhile")


def _copies(model: RegisteredModel, config: RegisterConfig) -> list[Copy]:
    """The copies of the complete versions that this pipeline registered, oldest first."""
    history = read_history(model)
    aliases = {alias: model.alias(alias) for alias in LABELS}
    copies = []
    for number, version in model.versions().items():
        if version.status != "READY" or not set(IDENTITY) <= version.tags.keys():
            continue
        properties = {
            tag: _number(value) if tag in METRICS else _text(value)
            for tag, value in version.tags.items()
            if value and not tag.startswith(DECISION_PREFIX)
        }
        properties[ADDRESS] = _text(f"models:/{model.name}/{number}")
        properties |= {alias: _text("") for alias, at in aliases.items() if at == number}
        entry = {
            "name": str(number),
            "state": "ARCHIVED" if rolled_back(history, number) else "LIVE",
            "author": version.tags.get("user") or "unknown",
            "description": version.description or f"{model.name} version {number}",
            "customProperties": properties,
        }
        with reported(f"find the files of {model.name} version {number}"):
            location = model.client.get_model_version_download_uri(model.name, str(number))
        uri = storage_uri(location, config.model_registry_files, f"{model.name} version {number}")
        artifact = {"artifactType": "model-artifact", "name": model.name, "state": "LIVE", "uri": uri, **FORMAT}
        copies.append(Copy(entry, artifact))
    return copies


def storage_uri(location: str, files: str, version: str) -> str:
    """The address of a version's files for KServe.

    Args:
        location: MLflow's address of them.
        files: ``register.model_registry_files``: where MLflow's server has what it calls ``mlflow-artifacts:/``.
        version: for the message.

    Raises:
        ModelRegistryError: KServe cannot fetch them.
    """
    scheme = location.partition(":")[0]
    if scheme in FETCHED:
        return location
    if scheme != "mlflow-artifacts":
        raise ModelRegistryError(
            f"the files of {version} are at {location}, where KServe cannot fetch them. Let MLflow keep artifacts in "
            "S3 and register the model again, or set register.model_registry to none"
        )
    if files == "none":
        raise ModelRegistryError(
            f"the files of {version} are at {location}, which only the MLflow server can read. Set "
            "register.model_registry_files in params.yaml to where that server keeps them (its --artifacts-destination "
            "or MLFLOW_ARTIFACTS_DESTINATION), as s3://bucket/prefix"
        )
    return f"{files.rstrip('/')}/{urlsplit(location).path.strip('/')}"


def _write(registry: ModelRegistry, name: str, copies: list[Copy]) -> int:
    """Write what differs and return the number of writes."""
    body = {
        "name": name,
        "description": "Instance segmentation with YOLACT.",
        "customProperties": {KIND_TAG: _text(KIND)},
    }
    model = registry.model(name)
    created = model is None
    if model is None:
        model = registry.create("registered_models", body) or registry.model(name)
    model = _existing(registry, model, f"the model {name}")
    _check_ours(registry, name, model)
    there = registry.versions(model)
    for copy in copies:
        _check_same(registry, name, there.get(copy.version["name"]), copy)
    writes = int(created)
    for copy in copies:
        number = copy.version["name"]
        found = there.get(number)
        if found is None:
            new = copy.version | {"registeredModelId": model["id"]}
            found = registry.create("model_versions", new) or registry.version(model, number)
            writes += 1
        found = _existing(registry, found, f"version {number} of {name}")
        _check_same(registry, name, found, copy)
        writes += _update(registry, "model_versions", found, copy.version)
        artifact = registry.artifact(found, name)
        if artifact is None:
            path = f"model_versions/{found['id']}/artifacts"
            artifact = registry.create(path, copy.artifact) or registry.artifact(found, name)
            writes += 1
        artifact = _existing(registry, artifact, f"the artifact of version {number} of {name}")
        writes += _update(registry, "model_artifacts", artifact, copy.artifact)
    known = {copy.version["name"] for copy in copies}
    for number, found in there.items():
        if number not in known and ADDRESS in found["customProperties"]:  # deleted in MLflow
            writes += _update(registry, "model_versions", found, {"state": "ARCHIVED", "customProperties": {}})
    return writes


def _update(registry: ModelRegistry, kind: Kind, found: Tree, wanted: Tree) -> bool:
    """Update an entry if it differs and return whether it did. Properties that others added stay."""
    changes = {key: value for key, value in wanted.items() if key not in ("name", "artifactType")}
    if "customProperties" in changes:
        others = {key: value for key, value in found["customProperties"].items() if key not in LABELS}
        changes["customProperties"] = others | changes["customProperties"]
    if all(found.get(key) == value for key, value in changes.items()):
        return False
    fixed = {key: value for key, value in wanted.items() if key == "artifactType"}
    registry.update(kind, found, fixed | changes)
    return True


def _existing(registry: ModelRegistry, found: Tree | None, what: str) -> Tree:
    if found is None:
        raise ModelRegistryError(
            f"the Model Registry at {registry.address} neither has {what} nor lets it be created. See the server's log"
        )
    return found


def _check_ours(registry: ModelRegistry, name: str, model: Tree) -> None:
    """Refuse a name that another model has."""
    if model.get("customProperties", {}).get(KIND_TAG) != _text(KIND):
        raise ModelRegistryError(
            f"the name {name!r} in the Model Registry at {registry.address} is taken by another model (it has no "
            f"property {KIND_TAG}). Set another register.model_name in params.yaml; nothing was changed there"
        )


def _check_same(registry: ModelRegistry, name: str, found: Tree | None, copy: Copy) -> None:
    """Refuse a version that was copied from another MLflow server."""
    if found is None:
        return
    for tag in IDENTITY:
        theirs, ours = (tree["customProperties"].get(tag) for tree in (found, copy.version))
        if theirs != ours:
            raise ModelRegistryError(
                f"version {found['name']} of {name} in the Model Registry at {registry.address} is another one (its "
                f"{tag} differs): it comes from another MLflow server. Set another register.model_name in params.yaml; "
                "this version was not changed there"
            )


def _text(value: str) -> Tree:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def _number(value: str) -> Tree:
    return {"metadataType": "MetadataDoubleValue", "double_value": float(value)}
