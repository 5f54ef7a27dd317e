"""torchvision's ImageNet weights, downloaded once into the folder of `torch.hub`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yolact.errors import WeightsError
from yolact.models.state_dicts import named_hash, read_checked

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


def torchvision_weights(name: str, version: int) -> dict[str, Tensor]:
    """torchvision's ``IMAGENET1K_V1`` or ``IMAGENET1K_V2`` of a network, under torchvision's names.

    A file in the folder is used, or else downloaded; either is checked against the hash in its name. A download
    appears whole or not at all; one that breaks off starts again from the beginning. (Training downloads the file
    beforehand, resuming.)

    Args:
        name: torchvision's name of the network.
        version: 1, or 2 for the weights of the newer training recipe. Both expect the same normalisation.

    Raises:
        WeightsError: there are none of that version, or they cannot be downloaded or read.
    """
    address = torchvision_address(name, version)
    file = hub_file(address)
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(file), hash_prefix=named_hash(file))
        return read_checked(file)
    except WeightsError as error:
        raise WeightsError(f"{error}. Remove it, and it is downloaded again. {without_internet(address)}") from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{address} could not be downloaded or read ({error}). {without_internet(address)}"
        ) from error


def torchvision_address(name: str, version: int) -> str:
    """Address of the file with those weights.

    Raises:
        WeightsError: there are none of that version.
    """
    return str(_choice(name, version).url)


def hub_file(address: str) -> Path:
    """Where torch.hub keeps the file of an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]


def without_internet(address: str) -> str:
    """What to do if the file cannot be downloaded here."""
    return (
        f"Without internet, download it elsewhere and copy it into {hub_file(address).parent} (TORCH_HOME moves that "
        "folder), or name the file: model.backbone_weights=FILE"
    )


def _choice(name: str, version: int) -> WeightsEnum:
    from torchvision.models import get_model_weights  # takes seconds, as in yolact/models/backbones/deformable.py

    choices = get_model_weights(name).__members__
    if f"IMAGENET1K_V{version}" not in choices:
        raise WeightsError(f"torchvision has no second version for {name}; use imagenet")
    return choices[f"IMAGENET1K_V{version}"]
