"""The weights that training starts from: on this machine's disk, in the registry, or on S3."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_ops.registry.versions import fetch_files, resolve
from yolact_ops.tracking.store import connect, quiet_mlflow, reported

log = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Of files with weights; another address on S3 is that of a model's folder."""


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
        RegistryError, TrackingError: they cannot be fetched.
    """
    key = "backbone_weights" if model.config.initial_weights == "none" else "initial_weights"
    address = getattr(model.config, key)
    if not address.startswith(("models:/", "s3://")):
        load_starting_weights(model, classes)
        return None
    with tempfile.TemporaryDirectory() as folder:
        log.info("model.%s: fetching %s", key, address)
        if address.startswith("models:/"):
            version = resolve(connect(), address)
            path = fetch_files(version.name, int(version.version), Path(folder), "artifacts/model")
            address = f"models:/{version.name}/{version.version}"
            log.info("model.%s: starting from %s", key, address)
        else:
            path = _fetch_objects(address.rstrip("/"), whole=key == "initial_weights", folder=Path(folder))
        if key == "backbone_weights" and path.is_dir():
            path /= WEIGHTS_FILE
        load_starting_weights(model, classes, path)
    return address


def _fetch_objects(address: str, *, whole: bool, folder: Path) -> Path:
    """The folder of a network on S3, or the file with weights that the address names; ``whole``: the network is read.

    Only these files are fetched: a folder may have much else, such as checkpoints.
    """
    quiet_mlflow()
    import mlflow.artifacts

    single = not whole and address.endswith(SUFFIXES)
    wanted = [address] if single else [f"{address}/{name}" for name in (WEIGHTS_FILE, DESCRIPTION_FILE)[: 1 + whole]]
    for file in wanted:
        with reported(f"fetch {file}"):
            path = Path(mlflow.artifacts.download_artifacts(file, dst_path=str(folder)))
    return path if single else folder
