"""Wait until the service answers with the new champion; `yolact serve` takes it up by itself (docs/serving.md)."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import requests  # type: ignore[import-untyped]

from yolact.errors import EX_UNAVAILABLE, YolactError
from yolact_ops.registry.versions import CHAMPION
from yolact_ops.settings.params import PromoteConfig
from yolact_ops.tracking.store import Failure, failure_of

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "YOLACT_SERVE_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable with the service's token, as for the server itself."""

INTERVAL = 2.0
"""Seconds between two looks."""
CONFIRMATIONS = 3
"""Answers in a row that must come from the new version: behind one address there may be several servers."""
REFUSALS = 2
"""Failures of the new version in a server after which it counts as refused: a download may fail once."""
REQUEST_TIMEOUT = 10.0
"""Seconds for one answer."""


class ServiceError(YolactError, RuntimeError):
    """The service refuses the request, or serves something else, before anything was changed."""


class ServiceUnavailableError(ServiceError):
    """The service does not answer, or answers with an error: a retry may succeed."""

    exit_code = EX_UNAVAILABLE


class NotServedError(YolactError, RuntimeError):
    """The service did not take up the new champion."""

    exit_code = 4


@dataclass(frozen=True)
class Rollout:
    """What came of the new champion in the service."""

    service: str
    """Address."""
    problem: str | None
    """Why the service does not answer with it; None if it does."""


@dataclass(frozen=True)
class Service:
    """A running `yolact serve` that follows the champion."""

    address: str
    timeout: float
    """Seconds that `check` and `wait` may take."""
    token: str | None = None

    @classmethod
    def from_settings(cls, config: PromoteConfig) -> Service | None:
        """The service of the settings, with the token of the environment; None if they name none."""
        if config.service == "none":
            return None
        return cls(config.service.rstrip("/"), config.service_timeout, os.environ.get(TOKEN_VARIABLE) or None)

    def check(self, name: str) -> None:
        """Wait until the service answers and follows the champion of ``name``, or has no model yet.

        Raises:
            ServiceError: it does not within the time; `ServiceUnavailableError` if it is unavailable at the end.
        """
        end = time.monotonic() + self.timeout
        log.info("asking %s which model it serves", self.address)
        while isinstance(answer := self._ask(), ServiceError):
            if time.monotonic() + INTERVAL > end:
                raise type(answer)(
                    f"promote.service: {self.address} {answer}. Nothing was changed; start the service, or set "
                    "promote.service to none"
                )
            time.sleep(INTERVAL)
        served = answer["model"]
        if served is not None and (served.get("name"), served.get("alias")) != (name, CHAMPION):
            raise ServiceError(
                f"promote.service: {self.address} serves {served.get('name')} version {served.get('version')}, and "
                f"does not follow models:/{name}@{CHAMPION}. Nothing was changed"
            )

    def wait(self, name: str, version: int) -> Rollout:
        """Wait until the service answers with a version, or refuses it, or the time is over."""
        end = time.monotonic() + self.timeout
        log.info("waiting until %s answers with %s version %d", self.address, name, version)
        in_a_row, said = 0, None
        while True:
            answer = self._ask()
            problem = str(answer) if isinstance(answer, ServiceError) else _problem(answer, name, version)
            if problem not in (None, said):
                log.info("%s %s", self.address, problem)
            said = problem
            in_a_row = 0 if problem else in_a_row + 1
            if in_a_row == CONFIRMATIONS:
                return Rollout(self.address, None)
            if not isinstance(answer, ServiceError) and _is_refused(answer, name, version):
                return Rollout(self.address, problem)
            if time.monotonic() + INTERVAL > end:
                late = problem or "has only begun to answer with it"
                return Rollout(self.address, f"{late} ({self.timeout:g} s after the promotion)")
            time.sleep(INTERVAL)

    def _ask(self) -> dict[str, Any] | ServiceError:
        """The content of ``/readyz``, or what is wrong with the answer. Each look is a connection of its own."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            answer = requests.get(f"{self.address}/readyz", headers=headers, timeout=REQUEST_TIMEOUT)
        except requests.RequestException as error:
            kind = ServiceUnavailableError if failure_of(error) is Failure.UNAVAILABLE else ServiceError
            return kind(f"does not answer ({type(error).__name__})")
        if answer.status_code in (401, 403):
            return ServiceError(f"answers {answer.status_code}: set the variable {TOKEN_VARIABLE}")
        try:
            tree = answer.json()
        except requests.JSONDecodeError:
            tree = None
        if not isinstance(tree, dict) or not {"ready", "model", "offered", "source_error"} <= tree.keys():
            if answer.status_code == 429 or answer.status_code >= 500:  # of a gateway without a server behind it
                return ServiceUnavailableError(f"answers {answer.status_code}")
            return ServiceError(f"is not `yolact serve`: /readyz answers {answer.status_code} and something else")
        return tree


def _problem(answer: dict[str, Any], name: str, version: int) -> str | None:
    """Why this server does not answer with the version; None if it does."""
    served, offered = answer["model"], answer["offered"]
    if _is(offered, name, version):
        return f"refuses it: {offered['error']}"
    if answer["ready"] and _is(served, name, version):
        return None
    if answer["source_error"]:
        return f"does not know the new champion: {answer['source_error']}"
    if served is None:
        return "has no model yet"
    return f"answers with version {served['version']}" if answer["ready"] else "is not ready"


def _is_refused(answer: dict[str, Any], name: str, version: int) -> bool:
    offered = answer["offered"]
    return _is(offered, name, version) and offered["failures"] >= REFUSALS


def _is(offer: dict[str, Any] | None, name: str, version: int) -> bool:
    return offer is not None and (offer["name"], offer["version"]) == (name, str(version))
