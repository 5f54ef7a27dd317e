"""Metrics of the server, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        disable_created_metrics()  # the time of each series' first value, which nobody asks for
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        to: Any = {"registry": self.registry}
        self.requests = Counter("yolact_requests", "Answered requests.", ["path", "status"], **to)
        self.request_seconds = Histogram(
            "yolact_request_seconds", "From a request's first byte to its answer.", ["path"], buckets=_SECONDS, **to
        )
        self.stage_seconds = Histogram(
            "yolact_stage_seconds",
            "Time of an image in decoding and waiting, of a batch in the model, of an answer in encoding.",
            ["stage"],
            buckets=_SECONDS,
            **to,
        )
        self.images = Counter(
            "yolact_images", "Images of requests: predicted, or refused as unusable.", ["result"], **to
        )
        self.refused = Counter("yolact_refused_requests", "Requests refused for lack of room.", ["reason"], **to)
        self.batch_images = Histogram(
            "yolact_batch_images", "Images per pass of the network.", buckets=(1, 2, 4, 8, 16, 32, 64), **to
        )
        self.queue = Gauge("yolact_queue_images", "Images in work or waiting.", **to)
        self.queue_limit = Gauge("yolact_queue_limit_images", "Images at which requests are refused.", **to)
        self.memory = Gauge("yolact_request_bytes", "Memory of request bodies and decoded images.", **to)
        self.model = Info("yolact_model", "The model that answers.", **to)
        self.model_loads = Counter("yolact_model_loads", "Models loaded and tested.", ["result"], **to)
        self.model_outdated = Gauge(
            "yolact_model_outdated", "1 while the offered version failed and an older one answers.", **to
        )
        self.registry_up = Gauge("yolact_registry_up", "1 if the registry answered when last asked.", **to)
        self.ready = Gauge("yolact_ready", "1 while the server is ready.", **to)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage."""
        start = perf_counter()
        yield
        self.stage_seconds.labels(stage).observe(perf_counter() - start)
