"""The weights that training starts from: on this machine's disk, in the registry, or on S3."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from yolact.errors import DataError, WeightsError
from yolact.models.backbones.hub import hub_file, without_internet
from yolact.models.file_names import WEIGHTS_FILE
from yolact.models.starting_weights import load_starting_weights
from yolact.models.state_dicts import other_content
from yolact.models.weight_sources import is_address
from yolact.models.yolact import Yolact
from yolact.settings import IMAGENET_VERSIONS
from yolact_ops.registry.model_files import fetch_model
from yolact_ops.registry.versions import RegistryError
from yolact_ops.tracking.store import TrackingError
from yolact_ops.transfer.download import DownloadError, fetch_file

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
        WeightsError: see `load_starting_weights`.
        DownloadError: they cannot be downloaded, or fetched from S3.
        RegistryError, TrackingError: they cannot be fetched from the registry.
    """
    key = "backbone_weights" if model.config.initial_weights == "none" else "initial_weights"
    address = getattr(model.config, key)
    if not is_address(address):
        if key == "backbone_weights" and address in IMAGENET_VERSIONS:
            _download_imagenet_weights(model)
        load_starting_weights(model, classes)
        return None
    with tempfile.TemporaryDirectory() as folder:
        log.info("model.%s: fetching %s", key, address)
        try:
            address, path = fetch_model(address, Path(folder), whole=key == "initial_weights")
        except (RegistryError, TrackingError, DownloadError) as error:
            raise type(error)(f"model.{key}: {error}") from error
        log.info("model.%s: starting from %s", key, address)
        if key == "backbone_weights" and path.is_dir():
            path /= WEIGHTS_FILE
        load_starting_weights(model, classes, path)
    return address


def _download_imagenet_weights(model: Yolact) -> None:
    """Bring the file of ``model.backbone_weights: imagenet``, if there is one, into torch.hub's folder.

    torch.hub itself would start over after an interruption; this resumes, also in the next run.

    Raises:
        DownloadError: it cannot be downloaded.
        WeightsError: it cannot be written, or is another file.
    """
    name, version = model.config.backbone, IMAGENET_VERSIONS[model.config.backbone_weights]
    try:
        address = model.backbone.imagenet_address(name, version)
    except WeightsError:
        return  # loading says why there are none
    if not address or hub_file(address).is_file():
        return
    try:
        _download(address, hub_file(address))
    except (DataError, OSError) as error:
        kind = type(error) if isinstance(error, DownloadError) else WeightsError
        raise kind(f"model.backbone_weights: {error} {without_internet(address)}") from error


def _download(address: str, target: Path) -> None:
    """Fetch a file with a hash in its name.

    Raises:
        DataError: it cannot be downloaded, or is another file.
        OSError: the folder cannot be written.
    """
    folder = target.parent / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / target.name
    with FileLock(folder / f"{target.name}.lock"):
        if target.is_file():  # another process was faster
            return
        log.info("model.backbone_weights: downloading %s to %s", address, target)
        fetch_file([address], part)
        if difference := other_content(part):
            part.unlink()
            raise DataError(f"{address} is not the expected file: {difference}. It was removed.")
        os.replace(part, target)
