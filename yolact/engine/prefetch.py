"""Copy each batch to the device while the previous one is processed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from yolact.data.loader import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on ``device``.

    On a GPU the next batch is copied on a separate stream while the current one is processed; from page-locked memory,
    neither the host nor the computation waits for the copy.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _moved(batch, device)
        return
    copying = torch.cuda.Stream(device)

    def begin(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            return _moved(batch, device)

    source = map(begin, batches)
    following = next(source, None)
    while following is not None:
        present = following
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in _tensors(present):  # its memory is not reused before the computation is done
            tensor.record_stream(computing)
        following = next(source, None)
        yield present


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device, non_blocking=True), batch.targets.to(device), batch.image_ids)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a bundle."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))
