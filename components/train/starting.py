"""The weights that training starts from: on this machine's disk, in the registry, or on S3."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yolact.errors import WeightsError
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_ops.registry.versions import fetch_files, resolve
from yolact_ops.tracking.store import connect
from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client

log = logging.getLogger(__name__)


def load_start(model: Yolact, classes: Sequence[str]) -> str | None:
    """Load the weights that the network's configuration names, see `load_starting_weights`.

    ``model.initial_weights`` and ``model.backbone_weights`` may also be a registered version (``models:/NAME@ALIAS``,
    ``models:/NAME/VERSION``; a version's whole network, or its backbone) or ``s3://BUCKET/KEY``.

    Args:
        model: the network.
        classes: its class names.

    Returns:
        The address, with an alias replaced by the version; None for weights on this machine.

    Raises:
        WeightsError: the address has no weights, or see `load_starting_weights`.
        DownloadError, RegistryError, TrackingError: they cannot be fetched.
    """
    key = "backbone_weights" if model.config.initial_weights == "none" else "initial_weights"
    address = getattr(model.config, key)
    if not address.startswith(("models:/", "s3://")):
        load_starting_weights(model, classes)
        return None
    with tempfile.TemporaryDirectory() as folder:
        log.info("model.%s: fetching %s", key, address)
        fetch = _fetch_version if address.startswith("models:/") else _fetch_objects
        path, resolved = fetch(address, Path(folder))
        if resolved != address:
            log.info("%s is %s", address, resolved)
        if key == "backbone_weights" and path.is_dir():
            path /= WEIGHTS_FILE
        load_starting_weights(model, classes, path)
    return resolved


def _fetch_version(address: str, folder: Path) -> tuple[Path, str]:
    """The folder of a version's network, and the version's address."""
    version = resolve(connect(), address)
    path = fetch_files(version.name, int(version.version), folder, "artifacts/model")
    return path, f"models:/{version.name}/{version.version}"


def _fetch_objects(address: str, folder: Path) -> tuple[Path, str]:
    """The file, or the folder of a network, that an address on S3 names, and the address."""
    parsed, client = S3Address.parse(address), make_client()
    objects = list_objects(client, parsed)
    if [item.key for item in objects] == [parsed.key]:
        wanted, path = objects, folder / objects[0].path
    else:  # a folder may have much else, such as checkpoints
        wanted, path = [item for item in objects if str(item.path) in (WEIGHTS_FILE, DESCRIPTION_FILE)], folder
        if not wanted:
            raise WeightsError(f"{address}: has no {WEIGHTS_FILE}; name the folder of a model, or one file")
    fetch_objects(client, parsed, wanted, folder)
    return path, address
