"""What all routes share: the model, the queue, threads, limits and metrics, and the way of an image through them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request
from torch import Tensor

from serving.batching import Batcher
from serving.bodies import Upload
from serving.errors import ApiError
from serving.feedback import FeedbackStore
from serving.following import Following
from serving.images import Memory, Share, decode, from_pixels, reduced
from serving.metrics import Metrics
from serving.models import ServedModel, open_source
from serving.results import of_classes
from serving.schemas import DetectionOptions
from serving.settings import ServerSettings
from yolact.errors import DataError, YolactError
from yolact.limits import usable_cpus

if TYPE_CHECKING:
    from yolact.inference.detections import Detections

T = TypeVar("T")

STUCK = 120.0
"""Seconds after which a batch that still runs makes the server unhealthy."""


@dataclass(frozen=True)
class Outcome:
    """What became of an image."""

    name: str | None
    image: Tensor | None = None
    """(3, H, W) uint8 RGB."""
    found: Detections | None = None
    error: str | None = None


class Service:
    """The parts of the server.

    Args:
        settings: see `ServerSettings`.
        give_up: called with the error if the only model cannot be loaded.
    """

    def __init__(self, settings: ServerSettings, give_up: Callable[[YolactError], None] | None = None) -> None:
        self.settings = settings
        self.token = settings.read_token()
        self.metrics = Metrics()
        self.memory = Memory(settings.memory_bytes, self.metrics)
        self.batcher = Batcher(settings.queue_size, settings.batch_size, self.metrics)
        self.following = Following(open_source(settings, settings.model), settings.poll, self.metrics, give_up)
        self.candidate = self._follow_candidate(settings)
        """What requests with ``candidate=true`` get; None if the server has none."""
        self.feedback = None if settings.feedback is None else FeedbackStore(settings.feedback, settings)
        self.stopping = False
        """Whether the server takes leave: it answers, but is not ready."""
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(max(2, usable_cpus()), thread_name_prefix="images")

    @staticmethod
    def _follow_candidate(settings: ServerSettings) -> Following | None:
        """Without the server's metrics, which are about the model; a candidate that fails does not end the server."""
        if settings.candidate is None:
            return None
        return Following(open_source(settings, settings.candidate), settings.poll, Metrics())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model and run batches."""
        self._tasks = [asyncio.create_task(self.following.run()), asyncio.create_task(self.batcher.run())]
        if self.candidate is not None:
            self._tasks.append(asyncio.create_task(self.candidate.run()))
        if self.feedback is not None:
            self._tasks.append(asyncio.create_task(self.feedback.run()))
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def name(self) -> str:
        """The model's name in the Open Inference Protocol."""
        model = self.following.model
        return self.settings.name or (model.offer.name if model is not None else "yolact")

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        return self.following.model is not None and not self.stopping

    @property
    def sickness(self) -> str | None:
        """Why the server must be started again; None if it is healthy."""
        since = self.batcher.busy_since
        if since is not None and perf_counter() - since > STUCK:
            return f"a batch has run for more than {STUCK:g} s"
        if any(task.done() and not task.cancelled() and task.exception() is not None for task in self._tasks):
            return "an internal task has failed"
        return None

    def model(self, candidate: bool = False) -> ServedModel:
        """The model, or the candidate, for a new request.

        Raises:
            ApiError: none is loaded yet, or the server has no candidate.
        """
        if candidate:
            if self.candidate is None:
                raise ApiError(404, "this server has no candidate; YOLACT_SERVE_CANDIDATE names one")
            if self.candidate.model is None:
                raise ApiError(503, "the candidate is not loaded yet", {"Retry-After": "2"})
            return self.candidate.model
        if self.following.model is None:
            raise ApiError(503, "the model is not loaded yet; /readyz says why", {"Retry-After": "2"})
        return self.following.model

    @contextmanager
    def share(self) -> Iterator[Share]:
        """The memory of one request."""
        with Share(self.memory) as share:
            yield share

    async def in_thread(self, stage: str, work: Callable[[], T]) -> T:
        """Run CPU work off the event loop."""

        def measured() -> T:
            with self.metrics.timed(stage):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, measured)

    async def detect(
        self,
        model: ServedModel,
        uploads: Sequence[Upload],
        options: DetectionOptions,
        share: Share,
        side: int | None = None,
    ) -> list[Outcome]:
        """Decode images and detect objects in them; each image has its own outcome.

        Args:
            model: from `model`.
            uploads: the images; there must be room for them in the queue (`Batcher.room_for`).
            options: the request's.
            share: the request's memory.
            side: reduce images to this longest side first, pixels.

        Raises:
            ApiError: an option does not fit the model, or a limit is reached.
        """
        unknown = [name for name in options.classes or () if name not in model.classes]
        if unknown:
            known = ", ".join(model.classes[:100])
            raise ApiError(
                422, f"classes: the model does not know {', '.join(map(repr, unknown[:10]))}; it has: {known}"
            )
        config = model.config.replace(**options.changes())
        decoded = await asyncio.gather(*(self._decode(upload, share, side) for upload in uploads))
        images = [each for each in decoded if isinstance(each, Tensor)]
        found = iter(await self.batcher.detect(model, config, images))
        outcomes = []
        for upload, each in zip(uploads, decoded, strict=True):
            if not isinstance(each, Tensor):
                outcomes.append(Outcome(upload.name, error=each))
                continue
            result = next(found)
            if isinstance(result, BaseException):
                outcomes.append(Outcome(upload.name, error=f"the network failed: {type(result).__name__}"))
            else:
                outcomes.append(Outcome(upload.name, each, of_classes(result, options.classes)))
        for outcome in outcomes:
            self.metrics.images.labels("ok" if outcome.error is None else "error").inc()
        return outcomes

    async def _decode(self, upload: Upload, share: Share, side: int | None) -> Tensor | str:
        """The image, or why it cannot be used."""
        if upload.error is not None:
            return upload.error

        def work() -> Tensor:
            limit = self.settings.max_pixels
            image = (
                decode(upload.data, limit, share) if upload.pixels is None else from_pixels(upload.pixels, limit, share)
            )
            return image if side is None else reduced(image, side)

        try:
            return await self.in_thread("decoding", work)
        except DataError as error:
            return str(error)


def service_of(request: Request) -> Service:
    """The service of the app that answers."""
    service: Service = request.app.state.service
    return service
