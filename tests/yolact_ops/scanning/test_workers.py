"""A function over many items in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from yolact.errors import DataError
from yolact_ops.scanning.workers import CHUNK, CHUNKS_AHEAD, map_in_order


def squared(value: int) -> int:
    return value * value


def killed_at_50(value: int) -> int:
    if value == 50:
        os._exit(1)
    return value


def faulty_at_50(value: int) -> int:
    if value == 50:
        raise RuntimeError("a fault of ours")
    return value


class Watched(Sequence[int]):
    """Numbers that count how many were requested."""

    taken = 0

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        self.taken = max(self.taken, place.stop)
        return list(range(1000))[place]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(map_in_order(squared, range(100), workers)) == [value * value for value in range(100)]


def test_no_items_give_no_results() -> None:
    assert list(map_in_order(squared, [], 4)) == []


def test_only_a_few_chunks_are_computed_ahead_of_the_caller() -> None:
    items = Watched()
    results: Iterator[int] = map_in_order(squared, items, 2)
    assert [next(results) for _ in range(CHUNK)] == [value * value for value in range(CHUNK)]
    assert items.taken <= CHUNK * (2 * CHUNKS_AHEAD + 1)
    results.close()  # type: ignore[attr-defined]


def test_a_killed_process_is_reported_with_the_items_in_progress() -> None:
    with pytest.raises(DataError, match="a process that reads images was killed, most likely because memory") as caught:
        list(map_in_order(killed_at_50, range(100), 2, lambda value: f"image {value}"))
    listed = str(caught.value).split("In progress were: ")[1].split(".")[0].split(", ")
    assert "image 50" in listed
    assert len(listed) <= 2


def test_an_error_in_a_process_is_raised_in_the_caller() -> None:
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(map_in_order(faulty_at_50, range(100), 2))
