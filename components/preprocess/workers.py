"""A function over many items in several processes: in order, with little in memory at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from yolact.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
"""Items sent to a process at once."""

CHUNKS_AHEAD = 4
"""Chunks for each process that are under way or waiting to be fetched."""


def usable_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """``function`` of each item, in the items' order, worked out by ``workers`` processes.

    Few items, or one worker, are worked out here. No more than a few chunks are ahead of what the caller has taken,
    so memory does not grow with the number of items.

    Raises:
        DataError: a process was killed, as by the system when memory ran out.
    """
    if workers <= 1 or len(items) <= CHUNK:
        yield from map(function, items)
        return
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    with ProcessPoolExecutor(min(workers, -(-len(items) // CHUNK))) as pool:
        under_way: deque[Future[list[Result]]] = deque()
        try:
            for chunk in chunks:
                under_way.append(pool.submit(_apply, function, chunk))
                if len(under_way) >= workers * CHUNKS_AHEAD:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a process that read photos was killed, most likely because memory ran out. Run it again with fewer "
                "CPU cores (as with `taskset -c 0`) or more memory."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
