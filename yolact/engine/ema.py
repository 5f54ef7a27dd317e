"""Exponential moving average of a network's weights (Polyak averaging)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from yolact.models.yolact import Yolact


class _Pairs:
    """Tensors of the averages and of the trained network, in the same order."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.own = [own for own, _ in pairs]
        self.trained = [trained for _, trained in pairs]


class Ema:
    """A second network with averaged weights of the trained network.

    After update n (from 1), ``average = d * average + (1 - d) * weights`` with ``d = min(decay, (1 + n) / (10 + n))``,
    the warm-up of TensorFlow's ``ExponentialMovingAverage``, which quickly forgets the random initial weights.
    Batch norm statistics are averaged too; counters are copied.

    Args:
        model: the network to average, with its initial weights, on its device; it is copied. Later its tensors may
            change in place but must not be replaced.
        decay: 0 to 1.
    """

    def __init__(self, model: Yolact, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0
        averages, values = (network.state_dict(keep_vars=True).values() for network in (self.model, model))
        pairs = list(zip(averages, values, strict=True))
        self._averaged = _Pairs([pair for pair in pairs if pair[0].is_floating_point()])
        self._copied = _Pairs([pair for pair in pairs if not pair[0].is_floating_point()])

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the current weights, in a few kernels for all tensors together."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged.own, self._averaged.trained, 1 - decay)
        torch._foreach_copy_(self._copied.own, self._copied.trained)

    def state(self) -> dict[str, Any]:
        """State for `restore`."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
