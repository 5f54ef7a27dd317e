"""Throughput and memory use of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from yolact.data.loader import Batch
from yolact.devices import peak_resident


class SpeedMeter:
    """Counts images and waiting time since the last report.

    Args:
        device: the device whose memory is reported; on a CPU, the process's memory.
        total_steps: steps of the run.
    """

    def __init__(self, device: torch.device, total_steps: int) -> None:
        self.device = device
        self.total_steps = total_steps
        self.last_wait = 0.0
        """Seconds spent waiting for the last batch."""
        self._reset()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and record the waiting time for each."""
        source = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            self.last_wait = time.perf_counter() - start
            self._waited += self.last_wait
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        """Record a step with that many images."""
        self._images += images
        self._steps += 1

    def take(self, steps_done: int) -> dict[str, float]:
        """Metrics since the last call; call it after synchronising with the device.

        Returns:
            ``images_per_second``; ``data_wait``, the share of the time spent waiting for batches, 0 to 1;
            ``seconds_left``, the estimated time to the end of the run without its validations; on a GPU
            ``gpu_memory_gib``, the peak memory of tensors; on a CPU ``resident_memory_gib``, the peak memory of this
            process without its loader processes.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        metrics = {
            "images_per_second": self._images / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
            "seconds_left": seconds / self._steps * (self.total_steps - steps_done),
        }
        if self.device.type == "cuda":
            metrics["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        elif self.device.type == "cpu":
            metrics["resident_memory_gib"] = peak_resident() / 2**30
        self._reset()
        return metrics

    @staticmethod
    def describe(metrics: dict[str, float]) -> str:
        """The metrics for a progress bar."""
        minutes, seconds = divmod(round(metrics["seconds_left"]), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{metrics['images_per_second']:.1f} img/s, {hours}:{minutes:02}:{seconds:02} left"
        memory = metrics.get("gpu_memory_gib", metrics.get("resident_memory_gib"))
        return text if memory is None else f"{text}, {memory:.1f} GiB"

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._images = 0
        self._steps = 0
        self._waited = 0.0
