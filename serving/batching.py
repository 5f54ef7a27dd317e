"""Run the images of several requests through the network together.

A batch is what waits when the network is free: images never wait for others to come, so a single client sees no delay,
and under load the batches grow by themselves. Images of a batch share the model and its detection settings.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from serving.errors import OverloadedError
from serving.metrics import Metrics
from serving.models import ServedModel
from yolact.settings import DetectConfig

if TYPE_CHECKING:
    from yolact.inference.detections import Detections

log = logging.getLogger(__name__)

BATCH_PIXELS = 2**24
"""Pixels of a batch's images; a larger image runs alone. Bounds the memory of its masks."""

SMOOTHING = 0.1
"""Weight of the newest batch in the mean time of an image."""


@dataclass(eq=False)
class _Waiting:
    image: Tensor
    model: ServedModel
    config: DetectConfig
    found: asyncio.Future[Detections]
    since: float

    @property
    def pixels(self) -> int:
        return self.image.shape[1] * self.image.shape[2]


class Batcher:
    """The queue before the network. All methods belong to the event loop; the network runs in a thread of its own.

    Args:
        limit: images in work or waiting.
        batch_size: images per batch.
        metrics: where to count.
    """

    def __init__(self, limit: int, batch_size: int, metrics: Metrics) -> None:
        self.limit = limit
        self.reserved = 0
        """Images of requests that are not answered yet."""
        self.busy_since: float | None = None
        """When the batch that runs now began (`time.perf_counter`)."""
        self._batch_size = batch_size
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._image_seconds = 0.05
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        metrics.queue_limit.set(limit)

    @contextmanager
    def room_for(self, images: int) -> Iterator[None]:
        """Keep room for the images of a request until it is answered.

        Raises:
            OverloadedError: there is none.
        """
        if self.reserved + images > self.limit:
            raise OverloadedError("the queue is full", self.retry_after())
        self._reserve(images)
        try:
            yield
        finally:
            self._reserve(-images)

    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, in which the images of now are done."""
        return min(60, max(1, ceil(self.reserved * self._image_seconds)))

    def _reserve(self, images: int) -> None:
        self.reserved += images
        self._metrics.queue.set(self.reserved)

    async def detect(
        self, model: ServedModel, config: DetectConfig, images: Sequence[Tensor]
    ) -> list[Detections | BaseException]:
        """Each image's detections, or the error of the network with it.

        If the caller is cancelled, images that still wait are left out.
        """
        loop = asyncio.get_running_loop()
        now = perf_counter()
        items = [_Waiting(image, model, config, loop.create_future(), now) for image in images]
        self._waiting.extend(items)
        self._arrived.set()
        try:
            return await asyncio.gather(*(item.found for item in items), return_exceptions=True)
        finally:
            for item in items:
                item.found.cancel()

    async def run(self) -> None:
        """Run batches until cancelled."""
        try:
            while True:
                batch = self._next_batch()
                if batch:
                    await self._run_batch(batch)
                else:
                    self._arrived.clear()
                    await self._arrived.wait()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> list[_Waiting]:
        """The image that waits longest, and others that may run with it."""
        batch: list[_Waiting] = []
        passed_over: list[_Waiting] = []
        pixels = 0
        while self._waiting and len(batch) < self._batch_size:
            item = self._waiting.popleft()
            if item.found.done():  # its request has ended
                continue
            fits = not batch or (
                item.model is batch[0].model and item.config == batch[0].config and pixels + item.pixels <= BATCH_PIXELS
            )
            if fits:
                batch.append(item)
                pixels += item.pixels
            else:
                passed_over.append(item)
        self._waiting.extendleft(reversed(passed_over))
        return batch

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        start = perf_counter()
        self.busy_since = start
        for item in batch:
            self._metrics.stage_seconds.labels("waiting").observe(start - item.since)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._thread, batch[0].model.detect, [item.image for item in batch], batch[0].config
            )
        except Exception as error:
            if len(batch) > 1:  # one of them may be the cause: the others need not suffer
                for item in batch:
                    await self._run_batch([item])
                return
            log.exception("the network failed on an image of %s", tuple(batch[0].image.shape))
            if not batch[0].found.done():
                batch[0].found.set_exception(error)
            return
        finally:
            self.busy_since = None
        took = perf_counter() - start
        self._metrics.stage_seconds.labels("model").observe(took)
        self._metrics.batch_images.observe(len(batch))
        self._image_seconds += SMOOTHING * (took / len(batch) - self._image_seconds)
        for item, detections in zip(batch, found, strict=True):
            if not item.found.done():
                item.found.set_result(detections)
