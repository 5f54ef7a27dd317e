"""Predict a stream of images while the next ones are read and the last results are written."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, TypeVar

from torch import Tensor

from yolact.inference.detections import Detections
from yolact.inference.predictor import ImagePredictor

T = TypeVar("T")

WAIT = 0.1
"""Longest time until a thread notices that nobody takes its values any more, or until a stop is noticed, seconds."""

GRACE = 1.0
"""Longest time that a thread that reads a camera gets to end after a stop, seconds."""


def ahead(
    values: Iterable[T], depth: int, *, newest: bool = False, stopped: Callable[[], bool] = lambda: False
) -> Generator[T]:
    """Yield the values of an iterable that a thread of its own computes.

    An error in the iterable is raised here, after the values before it. Closing the generator ends the thread, which
    closes the iterable.

    Args:
        values: read by the thread alone.
        depth: maximum number of values computed and not yet taken, at least 1.
        newest: never wait for the reader: drop the oldest value instead (for a camera, whose images would age).
        stopped: with ``newest``, asked while no value is ready; if true, the generator ends although the iterable has
            not. A thread that still waits for its next value after `GRACE` is left behind: a camera may send none.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    end = object()
    closed = threading.Event()

    def put(item: tuple[Any, BaseException | None], *, drop: bool = False) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=None if drop else WAIT, block=not drop)
                return True
            except queue.Full:
                if drop:
                    with suppress(queue.Empty):  # the reader was faster
                        ready.get_nowait()
        return False

    def compute() -> None:
        source = iter(values)
        try:
            for value in source:
                if not put((value, None), drop=newest):
                    break
            else:
                put((end, None))
        except BaseException as error:  # raised by the reader
            put((end, error))
        finally:
            if isinstance(source, Generator):
                source.close()

    thread = threading.Thread(target=compute, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                value, error = ready.get(timeout=WAIT)
            except queue.Empty:
                if newest and stopped():
                    return
                continue
            if error is not None:
                raise error
            if value is end:
                return
            yield value
    finally:
        closed.set()
        thread.join(GRACE if newest and stopped() else None)


def predict_stream(
    predictor: ImagePredictor,
    images: Iterable[T],
    pixels: Callable[[T], Tensor],
    *,
    live: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[tuple[T, Detections]]:
    """Yield each image with its detections, in order.

    Three threads read the images, run the network and make the masks, each a little ahead of the next. On a GPU or on
    free CPU cores they work at the same time.

    Args:
        predictor: not used elsewhere meanwhile.
        images: anything that ``pixels`` turns into a (3, H, W) uint8 RGB tensor; read in a thread.
        pixels: called in the network's thread.
        live: images come from a camera: predict the newest one, one at a time, and drop those that came meanwhile.
        stopped: asked while a camera sends nothing; if true, the stream ends after the images before.
    """
    size = 1 if live else predictor.batch_size
    with (
        closing(ahead(images, size, newest=live, stopped=stopped)) as read,
        closing(ahead(_run(predictor, read, pixels, size), 1)) as run,
        closing(ahead(_postprocess(predictor, run), size)) as found,
    ):
        yield from found


def _run(
    predictor: ImagePredictor, images: Iterator[T], pixels: Callable[[T], Tensor], size: int
) -> Iterator[tuple[list[T], list[tuple[int, int]], Any]]:
    while batch := list(itertools.islice(images, size)):
        tensors = [pixels(image) for image in batch]
        yield batch, [(tensor.shape[1], tensor.shape[2]) for tensor in tensors], predictor.forward(tensors)


def _postprocess(
    predictor: ImagePredictor, batches: Iterable[tuple[list[T], list[tuple[int, int]], Any]]
) -> Iterator[tuple[T, Detections]]:
    for images, sizes, outputs in batches:
        yield from zip(images, predictor.postprocess(outputs, sizes), strict=True)
