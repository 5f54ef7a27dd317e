"""The log of a container, printed while it is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from components.train.kubernetes_calls import TIMEOUT

LAST_LINES = 20
"""Lines that `PodLog.last` keeps."""


class PodLog:
    """Prints the log of a container, whose pod may be replaced, each line once.

    Args:
        core: ``CoreV1Api`` of Kubernetes' client.
        namespace: of the pods.
        container: its name.
    """

    def __init__(self, core: Any, namespace: str, container: str) -> None:
        self.last: list[str] = []
        """The newest lines, `LAST_LINES` at most."""
        self._core, self._namespace, self._container = core, namespace, container
        self._pod = ""
        self._stamp = ""
        self._read_at = 0.0

    def print_new(self, pod: dict[str, Any] | None, seconds: float, *, is_ended: bool) -> None:
        """Print what is new, and what comes within some seconds.

        Args:
            pod: the pod; None: there is none yet.
            seconds: to wait for more.
            is_ended: no more will come.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        begin = time.monotonic()
        if pod is not None and pod.get("status", {}).get("phase") != "Pending":
            self._turn_to(pod["metadata"]["name"])
            since = {"since_seconds": int(begin - self._read_at) + 60} if self._stamp else {}
            with suppress(ApiException, HTTPError, OSError):  # the next look tells what is wrong
                response = self._core.read_namespaced_pod_log(
                    self._pod,
                    self._namespace,
                    container=self._container,
                    follow=not is_ended,
                    timestamps=True,
                    _preload_content=False,
                    _request_timeout=(TIMEOUT[0], seconds),
                    **since,
                )
                try:
                    for line in _lines(response):
                        self._print(line)
                        if time.monotonic() - begin > seconds and not is_ended:
                            break
                finally:
                    response.close()
                    self._read_at = begin
        if not is_ended:
            time.sleep(max(seconds - (time.monotonic() - begin), 0))

    def _turn_to(self, pod: str) -> None:
        if pod != self._pod:
            self._pod, self._stamp = pod, ""

    def _print(self, line: str) -> None:
        stamp, _, text = line.partition(" ")
        seconds, _, fraction = stamp.removesuffix("Z").partition(".")
        stamp = f"{seconds}.{fraction:0<9}"
        if stamp > self._stamp:
            self._stamp = stamp
            self.last = [*self.last, text][-LAST_LINES:]
            print(text, file=sys.stderr, flush=True)


def _lines(response: Any) -> Iterator[str]:
    """The complete lines of a response, as they come."""
    rest = b""
    for part in response.stream(2**16):
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
