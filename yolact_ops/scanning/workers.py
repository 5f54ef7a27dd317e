"""Map a function over many items in several processes: in order, with bounded memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from yolact.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
"""Number of items sent to a process at once."""

CHUNKS_AHEAD = 4
"""Maximum number of chunks per process that are in progress or not yet consumed."""

_in_hand: Any = None
"""In a worker process: where it records its current item; an integer from 0, or -1 for none."""


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, name: Callable[[Item], str] = str
) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed by ``workers`` processes.

    Few items, or those of one worker, are computed in this process. Only a few chunks are computed ahead of the caller,
    so memory does not grow with the number of items.

    Args:
        function: picklable, as are its results.
        items: picklable items.
        workers: number of processes.
        name: returns an item's name for messages.

    Raises:
        DataError: a process was killed, for example because memory ran out; names the items in progress.
    """
    if workers <= 1 or len(items) <= CHUNK:
        yield from map(function, items)
        return
    starts = range(0, len(items), CHUNK)
    places = [multiprocessing.RawValue("q", -1) for _ in range(min(workers, len(starts)))]
    free: SimpleQueue[int] = multiprocessing.SimpleQueue()
    for slot in range(len(places)):
        free.put(slot)
    with ProcessPoolExecutor(len(places), initializer=_take_slot, initargs=(places, free)) as pool:
        under_way: deque[Future[list[Result]]] = deque()
        try:
            for start in starts:
                under_way.append(pool.submit(_apply, function, start, items[start : start + CHUNK]))
                if len(under_way) >= workers * CHUNKS_AHEAD:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        except BrokenProcessPool:
            in_hand = [name(items[place.value]) for place in places if place.value >= 0]
            raise DataError(
                "a process that reads images was killed, most likely because memory ran out. In progress were: "
                f"{', '.join(in_hand) or 'none'}. Run it again with fewer CPU cores (as with `taskset -c 0`) or more "
                "memory. If one of these images is listed again, check its files or remove it."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _take_slot(places: Sequence[Any], free: SimpleQueue[int]) -> None:
    """Initialize a worker process: reserve its slot for recording the current item."""
    global _in_hand
    _in_hand = places[free.get()]


def _apply(function: Callable[[Item], Result], start: int, items: Sequence[Item]) -> list[Result]:
    results = []
    for place, item in enumerate(items, start):
        _in_hand.value = place
        results.append(function(item))
    _in_hand.value = -1
    return results
