"""A complete training step never makes the host wait for a GPU; tests/gpu checks the same on a real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.yolact.engine.runs import trainer_on
from yolact.engine import trainer
from yolact.engine.prefetch import prefetch

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = torch.device("meta")
"""Stands for a GPU: its tensors have no values, and each attempt to look at one raises."""
FROM_THE_HOST = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""Bring values of the host to a device."""
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
READING = {
    Tensor.item,
    Tensor.tolist,
    Tensor.cpu,
    Tensor.numpy,
    Tensor.nonzero,
    torch.nonzero,
    torch.equal,
    Tensor.equal,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
}


class NoWaiting(TorchFunctionMode):
    """Rejects operations that make the host wait for the device.

    One transfer from the device to the host does not: an asynchronous copy. Here it returns zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuses = False
        self.copies_to_the_host = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.device == DEVICE for tensor in given)
        to_host = on_device and func is Tensor.to and "cpu" in args
        if self.refuses and on_device:
            assert func not in READING, f"{func.__name__} waits for the device"
            assert func not in INDEXING or not brings_an_index(args[1]), "an index on the host"
            assert not to_host or kwargs.get("non_blocking"), "a copy to the host that is waited for"
        if to_host:
            self.copies_to_the_host += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        result = func(*args, **kwargs)
        if self.refuses and isinstance(result, Tensor) and result.device == DEVICE:
            assert func not in FROM_THE_HOST, f"{func.__name__} copies to the device and waits for it"
            assert func is not Tensor.to or on_device, "a copy from memory that is not page-locked"
        return result


def brings_an_index(index: Any) -> bool:
    """Whether tensors or lists on the host select the elements."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) or (isinstance(part, Tensor) and part.device != DEVICE) for part in parts)


MODERN = {"assignment": "atss", "class_targets": "iou", "box": "ciou", "mask_dice": 1.0, "mask_upsampling": 2}


@pytest.mark.parametrize(
    ("accumulate", "optimizer", "loss"), [(1, "sgd", {}), (2, "sgd", {}), (1, "adamw", {}), (2, "adamw", MODERN)]
)
def test_a_training_step_does_not_wait_for_the_device(
    accumulate: int, optimizer: str, loss: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients are being copied to the host when the step ends, and are read after the next one."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    monkeypatch.setattr(trainer, "random_priorities", lambda *size, device=DEVICE: torch.rand(size[:2], device=device))
    learner = trainer_on(
        "meta",
        tmp_path,
        batch_size=4,
        accumulate=accumulate,
        optimizer=optimizer,
        ema_decay=0.9,
        max_grad_norm=10.0,
        loss={"max_masks_per_image": 5} | loss,
        layer_decay=0.8,
        model={"backbone_weights": "imagenet"},
    )
    first, second = prefetch(learner.loader, DEVICE)
    with NoWaiting() as mode:
        learner._train_step(first)  # creates anchors, constants and momenta
        mode.refuses = True
        learner._train_step(second)
    assert mode.copies_to_the_host == 2


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[torch.arange(2)],
        lambda x: x.to("cpu"),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.nonzero(),
    ],
)
def test_waiting_is_detected(wait: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3, device=DEVICE)
    with NoWaiting() as mode:
        mode.refuses = True
        with pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
            wait(x)
