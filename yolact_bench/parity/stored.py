"""`RawOutputs` and `Targets` from stored arrays."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.errors import DataError
from yolact.structures import RawOutputs, Targets, targets_from_masks
from yolact_bench.parity.fixture import Fixture

FIELDS = {
    "loc": "boxes",
    "conf": "class_logits",
    "mask": "mask_coefficients",
    "proto": "prototypes",
    "priors": "anchors",
    "segm": "semantic_logits",
}
"""Published name of each output of the network, and ours."""


def stored_outputs(fixture: Fixture, folder: str, priors: str) -> RawOutputs:
    """The network's outputs in a folder; ``priors`` is the full name of the array of anchors."""
    semantic = f"{folder}/segm"
    return RawOutputs(
        boxes=fixture.tensor(f"{folder}/loc").float(),
        class_logits=fixture.tensor(f"{folder}/conf").float(),
        mask_coefficients=fixture.tensor(f"{folder}/mask").float(),
        prototypes=fixture.tensor(f"{folder}/proto").float(),
        anchors=fixture.tensor(priors).float(),
        semantic_logits=fixture.tensor(semantic).float() if semantic in fixture else None,
    )


def input_size(fixture: Fixture) -> int:
    """Side of the network's input, pixels."""
    size = fixture.meta.get("variant", "size")
    return int(size) if size is not None else int(fixture.tensor("input").shape[-1])


def stored_targets(fixture: Fixture, prefix: str, outputs: RawOutputs) -> Targets:
    """Targets of the images, with crowd regions last.

    Args:
        prefix: folder with its slash, or empty.
        outputs: the images' outputs, which determine the masks' resolutions.

    Raises:
        DataError: the semantic logits, which the loss needs, are missing.
    """
    if outputs.semantic_logits is None:
        raise DataError("the losses need the semantic logits, array segm")
    crowds = [int(count) for count in fixture.tensor(f"{prefix}num_crowds").tolist()]
    rows = [fixture.tensor(f"{prefix}targets/{image}") for image in range(len(crowds))]
    height, width = outputs.prototypes.shape[1:3]
    return targets_from_masks(
        boxes=[row[:, :4] for row in rows],
        labels=[row[:, 4].long() for row in rows],
        masks=[
            fixture.masks(f"{prefix}masks_packed/{image}", f"{prefix}masks_shape/{image}")
            for image in range(len(crowds))
        ],
        crowd=[crowd_last(len(row), num_crowds) for row, num_crowds in zip(rows, crowds, strict=True)],
        num_classes=outputs.class_logits.shape[-1] - 1,
        mask_size=(height, width),
        semantic_size=(outputs.semantic_logits.shape[2], outputs.semantic_logits.shape[3]),
    )


def crowd_last(count: int, num_crowds: int) -> Tensor:
    """(count,) bool, true for the last ``num_crowds`` rows: crowd regions."""
    return torch.arange(count) >= count - num_crowds
