"""A process of its own for each backend, and the turns that it takes.

Runtimes keep their threads spinning for a while after each run, and PyTorch's next operation in the same process waits
for a core. A backend's own threads cost its users the same; those of the other backends do not.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

import torch

from yolact.errors import SettingsError

RUNS = 3
LONG = 1.0
"""Runs of a turn, and the seconds after which none of them starts."""

T = TypeVar("T")


class Process:
    """A process that keeps what it has loaded, and does one thing after another.

    Args:
        name: the backend's name, for errors.
        load: called there with ``arguments``; all must be picklable.

    Raises:
        SettingsError: the process was killed. Other errors are those of ``load``.
    """

    def __init__(self, name: str, load: Callable[..., Any], *arguments: Any) -> None:
        self._name = name
        self._executor = new_process()
        try:
            self._ask(_load, load, arguments)
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns there for the loaded object and ``arguments``.

        Raises:
            SettingsError: the process was killed. Other errors are those of the function.
        """
        return self._ask(_call, function, arguments)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise SettingsError(f"{self._name}: its process was killed, perhaps because memory ran out") from None

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_process() -> ProcessPoolExecutor:
    """A new process that inherits nothing and does one thing after another."""
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a process that ends with it.

    Raises:
        BrokenProcessPool: the process was killed.
    """
    with new_process() as executor:
        return executor.submit(function, *arguments).result()


def prepare(device: torch.device, threads: int) -> None:
    """Set PyTorch's threads in this process; on a GPU cuDNN may benchmark its algorithms."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"


def last_of_turn(run: Callable[[], T]) -> T:
    """What the last run of a turn returns.

    A turn is `RUNS` runs, or as many as start in `LONG` seconds. The first ones bring the caches back, and meanwhile
    the threads of the backend before go to sleep.
    """
    end = time.perf_counter() + LONG
    result = run()
    for _ in range(RUNS - 1):
        if time.perf_counter() > end:
            break
        result = run()
    return result


_LOADED: list[Any] = []
"""In the process of a `Process`: what it has loaded."""


def _load(load: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _LOADED.append(load(*arguments))


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_LOADED[0], *arguments)
