"""Keep the served model current: load what the source offers beside the old model, test it, then swap.

The old model answers until the new one has passed its test, and goes on to answer if the new one fails or the registry
is unavailable. Requests in work end with the model they began with.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from serving.metrics import Metrics
from serving.models import Offer, ServedModel, Source, self_test
from yolact.errors import YolactError
from yolact_ops.commands.collector import resume_collector
from yolact_ops.lineage.redaction import redact

log = logging.getLogger(__name__)

JITTER = 0.2
"""Part of the interval by which a look at the registry comes earlier or later: servers do not ask all at once."""
FIRST_RETRY, LAST_RETRY = 5.0, 600.0
"""Seconds until a failed model is tried again; each failure doubles them."""


@dataclass(frozen=True)
class Failure:
    """An offered model that could not be taken up."""

    offer: Offer
    error: str
    count: int
    retry_at: float
    """On the monotonic clock."""


class Following:
    """The served model, kept current by `run`.

    Args:
        source: where models come from.
        poll: seconds between looks.
        metrics: where to count.
        give_up: called with the error if a source that offers one model only cannot load it.
    """

    def __init__(
        self, source: Source, poll: float, metrics: Metrics, give_up: Callable[[YolactError], None] | None = None
    ) -> None:
        self.model: ServedModel | None = None
        self.failure: Failure | None = None
        self.source_error: str | None = None
        """Why the registry did not say what to serve, when last asked."""
        self._source = source
        self._poll = poll
        self._metrics = metrics
        self._give_up = give_up
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model-loader")
        self._ended = False

    async def run(self) -> None:
        """Look and load until cancelled; of a source that offers one model only, until it is loaded."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    model = await loop.run_in_executor(self._thread, self._next)
                except YolactError as error:
                    if not self._source.follows and self._give_up is not None:
                        self._give_up(error)
                        return
                    model = None
                finally:
                    resume_collector()  # the start is over: what comes is requests, or a long wait for a champion
                if model is not None:
                    self._swap(model)
                self._report()
                if model is not None:
                    await loop.run_in_executor(self._thread, _import_later)
                if self.model is not None and not self._source.follows:
                    return
                await asyncio.sleep(self._pause())
        finally:
            self._ended = True
            self._thread.shutdown(wait=False, cancel_futures=True)

    def status(self) -> dict[str, Any]:
        """Details for ``/readyz``."""
        failure = self.failure
        return {
            "model": None if self.model is None else asdict(self.model.offer),
            "offered": None
            if failure is None
            else asdict(failure.offer)
            | {
                "error": failure.error,
                "failures": failure.count,
                "retry_in_seconds": max(0, round(failure.retry_at - monotonic())),
            },
            "source_error": self.source_error,
        }

    def _pause(self) -> float:
        pause = self._poll if self.model is not None else min(self._poll, FIRST_RETRY)
        return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for cryptography

    def _next(self) -> ServedModel | None:
        """The offered model, loaded and tested; None if it is the served one, or is not to be tried yet.

        Raises:
            YolactError: the source or the model fails.
        """
        try:
            offer = self._source.offered()
        except Exception as error:
            text = _text(error)
            if text != self.source_error and not self._ended:
                again = "; the server looks again" if self._source.follows else ""
                log.warning("which model to serve is not known%s: %s", again, text, exc_info=_is_bug(error))
            self.source_error = text
            raise _user_error(error) from error
        self.source_error = None
        if self.model is not None and offer == self.model.offer:
            self.failure = None
            return None
        before = self.failure if self.failure is not None and self.failure.offer == offer else None
        if before is not None and monotonic() < before.retry_at:
            return None
        try:
            model = self._source.load(offer)
            self_test(model)
            _ = model.description  # imports what it needs now, not in the first request for it
        except Exception as error:
            if self._ended:  # threads that download are refused once the process ends: no fault of the model
                raise _user_error(error) from error
            count = 1 if before is None else before.count + 1
            wait = min(FIRST_RETRY * 2 ** (count - 1), LAST_RETRY)
            self.failure = Failure(offer, _text(error), count, monotonic() + wait)
            self._metrics.model_loads.labels("failed").inc()
            text = _text(error)
            log.error("version %s of %s cannot be served: %s", offer.version, offer.name, text, exc_info=_is_bug(error))
            raise _user_error(error) from error
        self.failure = None
        return model

    def _swap(self, model: ServedModel) -> None:
        before = self.model
        self.model = model
        self._metrics.model_loads.labels("ok").inc()
        offer = model.offer
        self._metrics.model.info({"name": offer.name, "version": offer.version or "", "alias": offer.alias or ""})
        old = "" if before is None else f", instead of version {before.offer.version}"
        log.info("serving %s version %s%s", offer.name, offer.version, old)

    def _report(self) -> None:
        self._metrics.registry_up.set(self.source_error is None)
        self._metrics.model_outdated.set(self.failure is not None and self.model is not None)


def _import_later() -> None:
    """Import what ``nms=traditional`` needs. It takes seconds; neither a request nor the start should wait for it."""
    import torchvision.ops  # noqa: F401


def _text(error: Exception) -> str:
    """The first line of an error, without credentials."""
    return (redact(str(error)).strip().partition("\n")[0] or type(error).__name__)[:500]


def _is_bug(error: Exception) -> bool:
    """Whether the log needs the traceback."""
    return not isinstance(error, YolactError | OSError)


def _user_error(error: Exception) -> YolactError:
    return error if isinstance(error, YolactError) else YolactError(f"{type(error).__name__}: {_text(error)}")
