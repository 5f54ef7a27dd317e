"""Settings that training chooses by its images, and the log says why; or by the machine."""

from __future__ import annotations

import logging
import math
import os
from typing import Literal, TypeVar

import torch

from yolact.data.coco import CocoInstances
from yolact.engine.anchor_fit import Coverage, fit_anchors
from yolact.limits import usable_cpus
from yolact.settings import ModelConfig, TrainConfig, TrainingParams

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

ENOUGH_OBJECTS = 100
"""Below, anchors are not fitted: they might fit these objects alone. The limit is a judgement."""

MOST_WORKERS = 8
"""Loader processes by ``runtime.workers: auto``: a judgement, as one prepares about 200 images a second
(docs/benchmarks.md)."""


P = TypeVar("P", bound=TrainingParams)


def resolve(params: P, data: CocoInstances, *, log_it: bool = True) -> P:
    """Settings without ``auto`` in ``epochs`` and ``freeze``, and with the anchors of ``train.fit_anchors``.

    The result is the same when it is resolved again. Make the network of its ``model``.

    Args:
        params: the settings.
        data: the training images.
        log_it: whether each choice is logged with its reason.
    """
    train = resolve_train(params.train, params.model, len(data.images), log_it=log_it)
    model = params.model
    if train.fit_anchors:
        model, why = fitted_anchors(model, data)
        train = train.model_copy(update={"fit_anchors": False})
        if log_it:
            log.info("train.fit_anchors: %s", why)
    return params.model_copy(update={"model": model, "train": train})


def resolve_train(train: TrainConfig, model: ModelConfig, images: int, *, log_it: bool = True) -> TrainConfig:
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


def fitted_anchors(model: ModelConfig, data: CocoInstances) -> tuple[ModelConfig, str]:
    """The network's settings for ``train.fit_anchors``, and what was done.

    The anchors are those that `yolact.engine.anchor_fit.fit_anchors` suggests. They stay as they are with initial
    weights, which were trained with them, and with fewer than `ENOUGH_OBJECTS` objects.
    """
    if model.initial_weights != "none":
        return model, "the anchors stay as they are, as model.initial_weights was trained with its own"
    objects = sum(not item.crowd for items in data.objects.values() for item in items)
    if objects < ENOUGH_OBJECTS:
        return model, f"the anchors stay as they are, with {objects} training objects (fewer than {ENOUGH_OBJECTS})"
    report = fit_anchors(data, model)
    fit = report.suggested
    changes = {"anchor_scales": fit.scales, "anchor_ratios": fit.ratios, "square_anchors": fit.square}
    return model.model_copy(update=changes), (
        f"anchor_scales {fit.scales} and anchor_ratios {fit.ratios}: an anchor overlaps {_share(fit.all)} of "
        f"{report.measured} training objects by half, before {_share(report.present.all)}"
    )


def _share(coverage: Coverage) -> str:
    """The recall in percent, of at least one box."""
    assert coverage.recall is not None
    return f"{coverage.recall:.0%}"


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
