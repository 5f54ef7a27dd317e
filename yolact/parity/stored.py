"""The project's bundles of tensors, made of stored arrays."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.parity.fixture import Fixture
from yolact.structures import RawOutputs, Targets

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
    """The network's outputs in a folder; ``priors`` is the full name of their anchors."""
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
    """Side of the network input, pixels, by which anchors and pixel boxes are measured."""
    size = fixture.meta.get("variant", "size")
    return int(size) if size is not None else int(fixture.tensor("input").shape[-1])


def stored_targets(fixture: Fixture, prefix: str) -> list[Targets]:
    """What is true of each image; ``prefix`` is a folder with its slash, or empty. Crowd rows come last."""
    crowds = [int(count) for count in fixture.tensor(f"{prefix}num_crowds").tolist()]
    targets = []
    for image, num_crowds in enumerate(crowds):
        rows = fixture.tensor(f"{prefix}targets/{image}")
        masks = fixture.masks(f"{prefix}masks_packed/{image}", f"{prefix}masks_shape/{image}")
        targets.append(targets_of(rows[:, :4], rows[:, 4], masks, num_crowds))
    return targets


def targets_of(boxes: Tensor, labels: Tensor, masks: Tensor, num_crowds: int) -> Targets:
    """What is true of one image, of which the last ``num_crowds`` rows are crowd regions."""
    crowd = torch.arange(len(boxes)) >= len(boxes) - num_crowds
    return Targets(boxes.float(), labels.long(), masks, crowd)
