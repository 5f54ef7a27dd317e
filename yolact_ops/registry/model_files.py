"""Fetch a model's files from where people keep models: the registry, or S3."""

from __future__ import annotations

from pathlib import Path

from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact_ops.registry.versions import fetch_files, resolve
from yolact_ops.tracking.store import connect

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Suffixes of files with weights; another address on S3 is that of a model's folder."""


def fetch_model(address: str, folder: Path, *, whole: bool = True) -> tuple[str, Path]:
    """Download a network's weights and description into a folder.

    Args:
        address: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``s3://BUCKET/KEY``.
        folder: exists.
        whole: on S3, the address is that of a model's folder; otherwise only the weights are needed, and the address
            may be that of a file with one of the `SUFFIXES`.

    Returns:
        The address, with an alias replaced by the version, and the path of the model's folder or of the file.

    Raises:
        RegistryError, TrackingError: there is no such version, or it cannot be fetched.
        DownloadError: there is no such file on S3, or it cannot be fetched.
    """
    if address.startswith("models:/"):
        version = resolve(connect(), address)
        path = fetch_files(version.name, int(version.version), folder, "artifacts/model")
        return f"models:/{version.name}/{version.version}", path
    return address, _fetch_objects(address.rstrip("/"), whole=whole, folder=folder)


def _fetch_objects(address: str, *, whole: bool, folder: Path) -> Path:
    """The folder of a network on S3, or the file with weights that the address names; ``whole``: the network is read.

    Only these files are fetched: a folder may have much else, such as checkpoints.
    """
    from yolact_ops.transfer.storage import S3Address, fetch_objects, list_objects, make_client  # loads boto3

    single = not whole and address.endswith(SUFFIXES)
    wanted = [address] if single else [f"{address}/{name}" for name in (WEIGHTS_FILE, DESCRIPTION_FILE)[: 1 + whole]]
    client = make_client()
    objects = [found for file in wanted for found in list_objects(client, S3Address.parse(file))]
    fetched = folder / "network"
    fetch_objects(client, S3Address.parse(address), objects, fetched)
    return fetched / objects[0].path if single else fetched
