"""Exponential moving average of a network's weights (Polyak averaging)."""

from __future__ import annotations

import copy
from typing import Any

import torch

from yolact.models.yolact import Yolact


class Ema:
    """A second network whose weights follow the trained one's slowly.

    After update n (from 1), ``average = d * average + (1 - d) * weights`` with ``d = min(decay, (1 + n) / (10 + n))``,
    the warm-up of TensorFlow's ``ExponentialMovingAverage``, so that the random first weights are soon forgotten.
    Statistics of batch norm are averaged too, counters are copied.

    Args:
        model: with its initial weights, on its device; it is copied.
        decay: 0 to 1.
    """

    def __init__(self, model: Yolact, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def update(self, model: Yolact) -> None:
        """Move towards the weights of ``model``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
