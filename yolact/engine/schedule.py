"""Learning rate over the run."""

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
