"""Length of a run, learning rate over it, and whether a run with it may get more epochs."""

from __future__ import annotations

import math

from yolact.settings import TrainConfig

PUBLISHED_WARMUP = 500
"""Steps, on both data sets."""


def warmup_steps(total_steps: int, config: TrainConfig) -> int:
    """Steps of the warm-up in a run of ``total_steps``.

    ``auto`` is the published number (500, for both data sets), but at most a tenth of the run: a few hundred images
    would else be trained during the warm-up alone.
    """
    return min(PUBLISHED_WARMUP, total_steps // 10) if config.warmup_steps == "auto" else config.warmup_steps


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of step ``step`` (from 0) in a run of ``total_steps``.

    Rises linearly from ``warmup_start_lr`` to ``lr`` over `warmup_steps`; then ``step`` multiplies by ``lr_gamma`` at
    each milestone (published: x0.1) and ``cosine`` falls to zero at the end of the run (Loshchilov and Hutter 2017,
    equation 5).
    """
    warmup = warmup_steps(total_steps, config)
    if step < warmup:
        return config.warmup_start_lr + (config.lr - config.warmup_start_lr) * step / warmup
    if config.schedule == "step":
        passed = sum(step >= milestone * total_steps for milestone in config.lr_milestones)
        return config.lr * config.lr_gamma**passed
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def why_not_extended(steps: int, steps_per_epoch: int, epochs: int, config: TrainConfig) -> str:
    """Why a run of ``epochs`` cannot be continued as one of ``config.epochs``; empty if it can.

    It can if each of its first ``steps`` steps has the same learning rate and the same kind of images in both: then the
    result is that of a run which had ``config.epochs`` from the start.
    """
    mosaics = [config.augment.mosaic_epochs(count) for count in (epochs, config.num_epochs)]
    if steps > min(mosaics) * steps_per_epoch and mosaics[0] != mosaics[1]:
        return (
            f"with train.augment.mosaic the epochs with mosaics depend on train.epochs (mosaic_until is a fraction of "
            f"it): they end after epoch {mosaics[0]}, and in a run of {config.num_epochs} after epoch {mosaics[1]}"
        )
    totals = [count * steps_per_epoch for count in (epochs, config.num_epochs)]
    for step in range(steps):
        before, after = (learning_rate(step, total, config) for total in totals)
        if before != after:
            warmups = {warmup_steps(total, config) for total in totals}
            how = (
                "warmup_steps: auto is a tenth of a short run"
                if len(warmups) > 1
                else "it falls to zero over the run"
                if config.schedule == "cosine"
                else "lr_milestones are fractions of it"
            )
            return (
                f"with train.schedule: {config.schedule} the learning rate depends on train.epochs ({how}): epoch "
                f"{step // steps_per_epoch + 1} had {before:.3g}, and in a run of {config.num_epochs} it has "
                f"{after:.3g}"
            )
    return ""
