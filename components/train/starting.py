"""The weights that training starts from: on this machine's disk, in the registry, or on S3."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yolact.models.file_names import WEIGHTS_FILE
from yolact.models.starting_weights import load_starting_weights
from yolact.models.yolact import Yolact
from yolact_ops.registry.model_files import fetch_model, is_address

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
        RegistryError, TrackingError: they cannot be fetched.
    """
    key = "backbone_weights" if model.config.initial_weights == "none" else "initial_weights"
    address = getattr(model.config, key)
    if not is_address(address):
        load_starting_weights(model, classes)
        return None
    with tempfile.TemporaryDirectory() as folder:
        log.info("model.%s: fetching %s", key, address)
        address, path = fetch_model(address, Path(folder), whole=key == "initial_weights")
        log.info("model.%s: starting from %s", key, address)
        if key == "backbone_weights" and path.is_dir():
            path /= WEIGHTS_FILE
        load_starting_weights(model, classes, path)
    return address
