"""torchvision's ImageNet weights, downloaded once into the folder of `torch.hub`."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from yolact.errors import WeightsError


def torchvision_weights(name: str, version: int) -> dict[str, Tensor]:
    """torchvision's ``IMAGENET1K_V1`` or ``IMAGENET1K_V2`` of a network, under torchvision's names.

    A file in the folder is used as it is. A download is checked against the hash in its name and appears whole or not
    at all; one that breaks off starts again from the beginning.

    Args:
        name: torchvision's name of the network.
        version: 1, or 2 for the weights of the newer training recipe. Both expect the same normalisation.

    Raises:
        WeightsError: there are none of that version, or they cannot be downloaded or read.
    """
    from torchvision.models import get_model_weights  # takes seconds, as in yolact/models/backbones/deformable.py

    choices = get_model_weights(name).__members__
    if f"IMAGENET1K_V{version}" not in choices:
        raise WeightsError(f"torchvision has no second version for {name}; use imagenet")
    weights = choices[f"IMAGENET1K_V{version}"]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise WeightsError(
            f"{weights.url} could not be downloaded or read ({error}). Without internet, download it elsewhere and "
            f"copy it into {folder} (TORCH_HOME moves that folder), or name the file: model.backbone_weights=FILE"
        ) from error
