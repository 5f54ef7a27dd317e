"""Settings that are ``auto``: chosen by the number of training images, and the log says why; or by the machine."""

from __future__ import annotations

import logging
import math
import os
from typing import Literal

import torch

from yolact.limits import usable_cpus
from yolact.settings import ModelConfig, TrainConfig

log = logging.getLogger(__name__)

PUBLISHED_RUNS = ((8_498, 113), (117_266, 55))
"""Training images and epochs of the two published data sets, PASCAL SBD and COCO (`yolact.models.published`)."""

FEW_IMAGES = 1_000
"""Below, and with pretrained weights, there are `FEW_IMAGES_EPOCHS`, and `FROZEN` layers. The limit is a judgement:
measured was a set of 193 images alone (docs/benchmarks.md, "Few real images")."""

FEW_IMAGES_EPOCHS = 80
"""Of these, the second half gained nothing on those 193 images; the power law would be 319."""

FROZEN = "stage2"
"""On those images, with ``train.layer_decay: 0.15``, freezing saved a sixth of the time and cost no AP (one seed)."""

MOST_WORKERS = 8
"""Loader processes by ``runtime.workers: auto``: a judgement, as one prepares about 200 images a second
(docs/benchmarks.md)."""


def resolve(train: TrainConfig, model: ModelConfig, images: int, *, log_it: bool = True) -> TrainConfig:
    """Settings without ``auto`` in ``epochs`` and ``freeze``.

    Args:
        train: settings of training.
        model: those of the network.
        images: number of training images, at least 1.
        log_it: whether each choice is logged with its reason.
    """
    reasons: list[str] = []
    chosen: dict[str, int | str] = {}
    if train.epochs == "auto":
        chosen["epochs"], why = automatic_epochs(model, images)
        reasons.append(f"train.epochs: auto: {chosen['epochs']} epochs for {images} training images, {why}")
    if train.freeze == "auto":
        chosen["freeze"], why = automatic_freeze(model, images)
        reasons.append(f"train.freeze: auto: {chosen['freeze']}, as {why}")
    if log_it:
        for reason in reasons:
            log.info(reason)
    return train.model_copy(update=chosen)


def automatic_epochs(model: ModelConfig, images: int) -> tuple[int, str]:
    """The value for ``train.epochs: auto``, and the reason.

    `FEW_IMAGES_EPOCHS` below `FEW_IMAGES`, if the weights are pretrained. Else the power of the number of images that
    both published runs lie on: fewer images get more epochs, but fewer steps, twice as many epochs for a twelfth of the
    images.
    """
    if model.pretrained and images < FEW_IMAGES:
        return FEW_IMAGES_EPOCHS, f"as pretrained weights need no more with fewer than {FEW_IMAGES}"
    (few, many_epochs), (many, few_epochs) = PUBLISHED_RUNS
    exponent = math.log(few_epochs / many_epochs) / math.log(many / few)  # -0.27
    return (
        max(round(many_epochs * (images / few) ** exponent), 1),
        f"on the power law through the published {many_epochs} epochs for {few} images and {few_epochs} for {many}",
    )


def automatic_freeze(model: ModelConfig, images: int) -> tuple[str, str]:
    """The value for ``train.freeze: auto``, and the reason.

    `FROZEN` below `FEW_IMAGES`, if there are pretrained weights to keep; else ``none``.
    """
    if not model.pretrained:
        return "none", "there are no pretrained weights to keep"
    if images >= FEW_IMAGES:
        return "none", f"there are {images} training images ({FEW_IMAGES} or more)"
    return FROZEN, f"with {images} training images (fewer than {FEW_IMAGES}) early layers keep their pretrained weights"


def loader_processes(workers: int | Literal["auto"]) -> int:
    """The number of loader processes; for ``auto`` one for each thread that this process computes with, `MOST_WORKERS`
    at most.

    Processes that torchrun has started on one machine (``LOCAL_WORLD_SIZE``) share its cores: torchrun gives each only
    one thread.
    """
    if workers != "auto":
        return workers
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    cores = usable_cpus() // int(processes) if processes else min(usable_cpus(), torch.get_num_threads())
    return min(max(cores, 1), MOST_WORKERS)
