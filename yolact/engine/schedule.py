"""Learning rate over the run, and whether a run with it may get more epochs."""

from __future__ import annotations

import math

from yolact.settings import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of step ``step`` (from 0) in a run of ``total_steps``.

    Rises linearly from ``warmup_start_lr`` to ``lr`` over ``warmup_steps``; then ``step`` multiplies by
    ``lr_gamma`` at each milestone (published: x0.1) and ``cosine`` falls to zero at the end of the run
    (Loshchilov and Hutter 2017, equation 5).
    """
    if step < config.warmup_steps:
        return config.warmup_start_lr + (config.lr - config.warmup_start_lr) * step / config.warmup_steps
    if config.schedule == "step":
        passed = sum(step >= milestone * total_steps for milestone in config.lr_milestones)
        return config.lr * config.lr_gamma**passed
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def why_not_extended(steps: int, steps_per_epoch: int, epochs: int, config: TrainConfig) -> str:
    """Why a run of ``epochs`` cannot be continued as one of ``config.epochs``; empty if it can.

    It can if each of its first ``steps`` steps has the same learning rate in both: then the result is that of a run
    which had ``config.epochs`` from the start.
    """
    totals = [count * steps_per_epoch for count in (epochs, config.epochs)]
    for step in range(steps):
        before, after = (learning_rate(step, total, config) for total in totals)
        if before != after:
            how = (
                "it falls to zero over the run" if config.schedule == "cosine" else "lr_milestones are fractions of it"
            )
            return (
                f"with train.schedule: {config.schedule} the learning rate depends on train.epochs ({how}): epoch "
                f"{step // steps_per_epoch + 1} had {before:.3g}, and in a run of {config.epochs} it has {after:.3g}"
            )
    return ""
