"""How fast a run is, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from yolact.data.loader import Batch
from yolact.devices import peak_resident


class SpeedMeter:
    """Counts images and waiting since the last look.

    Args:
        device: whose memory is reported: the GPU's, or on a CPU the process's.
        total_steps: of the run.
    """

    def __init__(self, device: torch.device, total_steps: int) -> None:
        self.device = device
        self.total_steps = total_steps
        self.last_wait = 0.0
        """Seconds that the last batch was waited for."""
        self._reset()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, and note how long each was waited for."""
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
        """Note a step with that many images."""
        self._images += images
        self._steps += 1

    def take(self, steps_done: int) -> dict[str, float]:
        """Metrics since the last call; call it when the device has done its work.

        Returns:
            ``images_per_second``; ``data_wait``, the share of the time in which the next batch was waited for, 0 to 1;
            ``seconds_left`` to the end of the run without its validations; on a GPU ``gpu_memory_gib``, the most that
            tensors took; on a CPU ``resident_memory_gib``, the most that this process took, its loader processes not
            counted.
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
