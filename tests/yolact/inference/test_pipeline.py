"""Stages that work ahead in threads: order, errors, early ends, and the same detections as without them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from tests.small_networks import tiny_config
from yolact.inference import pipeline
from yolact.inference.pipeline import ahead, predict_stream
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact

pytestmark = pytest.mark.usefixtures("one_thread")


def working_threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def wait_for_threads() -> None:
    deadline = time.monotonic() + 20
    while working_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert working_threads() == 0


def test_values_come_in_order_and_the_thread_ends() -> None:
    assert list(ahead(iter(range(100)), 3)) == list(range(100))
    assert list(ahead([], 1)) == []
    assert working_threads() == 0


def test_at_most_depth_values_are_computed_before_they_are_taken() -> None:
    computed = []

    def values() -> Iterator[int]:
        for number in range(50):
            computed.append(number)
            yield number

    with closing(ahead(values(), 2)) as stream:
        assert next(stream) == 0
        time.sleep(0.05)
        assert len(computed) <= 1 + 2 + 1  # taken, waiting, and one that waits for a place


def test_an_error_comes_after_the_values_before_it() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    stream = ahead(values(), 5)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    assert working_threads() == 0


def test_closing_early_closes_all_stages() -> None:
    closed = []

    def values() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    with closing(ahead((value for value in ahead(values(), 1)), 1)) as stream:
        assert next(stream) == 0
    wait_for_threads()
    assert closed == [True]


def test_a_live_stage_drops_what_is_old_and_keeps_the_newest() -> None:
    done = threading.Event()

    def values() -> Iterator[int]:
        yield from range(100)
        done.set()

    with closing(ahead(values(), 1, newest=True)) as stream:
        while not done.is_set():
            last = next(stream)
            done.wait(0.05)
        rest = [last, *stream]
    assert len(rest) <= 2
    assert rest[-1] == 99


def test_a_stop_ends_a_stage_whose_source_sends_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "GRACE", 0.01)
    unplugged, stopped = threading.Event(), threading.Event()

    def values() -> Iterator[int]:
        yield 1
        unplugged.wait()

    stream = ahead(values(), 1, newest=True, stopped=stopped.is_set)
    assert next(stream) == 1
    stopped.set()
    rescue = threading.Timer(20, unplugged.set)  # else a stream that does not end would hold up all tests
    rescue.start()
    assert list(stream) == []
    assert working_threads() == 1  # nothing has woken it
    rescue.cancel()
    unplugged.set()
    wait_for_threads()


def test_a_stream_gives_the_same_detections_as_the_predictor() -> None:
    torch.manual_seed(3)
    predictor = Predictor(Yolact(tiny_config(), 2), ["cat", "dog"], batch_size=2)
    random = np.random.default_rng(0)
    images = [torch.from_numpy(random.integers(0, 256, (3, 40 + k, 60), dtype=np.uint8)) for k in range(5)]
    expected = predictor.predict(images)
    with closing(predict_stream(predictor, enumerate(images), lambda item: item[1])) as stream:
        found = list(stream)
    assert [number for (number, _), _ in found] == [0, 1, 2, 3, 4]
    for (_, one), other in zip(found, expected, strict=True):
        assert len(other) > 0
        assert torch.equal(one.scores, other.scores)
        assert one.rles() == other.rles()
