"""Calls of Kubernetes from a task: what its answers mean, and patience while it does not answer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import TypeVar

from yolact.engine.interrupts import InterruptedRunError
from yolact.errors import EX_SOFTWARE, SettingsError, YolactError

TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the start of a response."""
PATIENCE = 900.0
"""Seconds without an answer of Kubernetes after which the task gives up; the TrainJob runs on."""
ASK_EVERY = 5.0
"""Seconds between two attempts."""
INSTALL = "`kubectl -n {namespace} apply -k deploy/train` (deploy/README.md, Several nodes)"

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class NodesError(YolactError):
    """The training on several nodes has failed, or cannot be followed."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StillRunsError(NodesError):
    """The TrainJob is left to a later try, or to another one."""


class RefusedError(NodesError):
    """Kubernetes answers with an error.

    Args:
        message: which one.
        status: its HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Calls:
    """Calls about one TrainJob.

    Args:
        name: the TrainJob's.
        namespace: where it is.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._name = name
        self._namespace = namespace

    def ask(self, right: str, call: Callable[[], _T]) -> _T:
        """The answer of Kubernetes; waits while it does not answer.

        Args:
            right: what the task must be allowed to do, in the form of ``kubectl auth can-i``.
            call: a call of Kubernetes' client, or of Kubeflow's SDK.

        Raises:
            RefusedError: it answers with an error.
            SettingsError: the right is missing.
            NodesError: it has not answered for `PATIENCE`.
        """
        end: float | None = None
        while True:
            try:
                return call()
            except Exception as error:
                if isinstance(error.__cause__, InterruptedRunError):  # wrapped by Kubeflow's SDK
                    raise error.__cause__ from None
                status, reason = _reason(error)
                if status == 403 and " cannot " in reason:  # else an admission webhook, or a quota, refuses
                    raise SettingsError(
                        f"tasks.train.nodes: the task has no right to {right} in namespace {self._namespace} "
                        f"({reason}). {INSTALL.format(namespace=self._namespace)}, or another --service-account"
                    ) from error
                if status and status != 429 and status < 500:
                    raise RefusedError(
                        f"TrainJob {self._name}: Kubernetes answers {status}: {reason}", status
                    ) from error
                if status is None:
                    raise
                if end is None:
                    end = time.monotonic() + PATIENCE
                    log.warning("Kubernetes does not answer (%s); the nodes train on, trying again", reason)
                if time.monotonic() > end:
                    raise StillRunsError(
                        f"Kubernetes has not answered for {PATIENCE:g} s ({reason}). TrainJob {self._name} is left as "
                        "it is; `python -m pipelines retry RUN` follows it again",
                        EX_SOFTWARE,
                    ) from error
                time.sleep(ASK_EVERY)


def _reason(error: Exception) -> tuple[int | None, str]:
    """HTTP status and reason of what Kubernetes' client raised: 0 without an answer, None for anything else.

    Kubeflow's SDK wraps the client's errors.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, ApiException):
        body = error.body if isinstance(error.body, str) else (error.body or b"").decode("utf-8", "replace")
        with suppress(ValueError, TypeError, KeyError):
            body = json.loads(body)["message"]
        return error.status or 0, f"{error.reason}: {body}" if body else str(error.reason)
    if isinstance(error, HTTPError | OSError | PoolTimeoutError):
        return 0, str(getattr(error, "reason", None) or error) or type(error).__name__
    return None, str(error)
