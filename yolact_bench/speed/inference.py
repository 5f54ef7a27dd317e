"""From images to masks of their size, stage by stage: how long, how much memory, and is the result the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.errors import SettingsError
from yolact.inference.machine import Machine, describe_machine
from yolact.inference.timing import Laps, median
from yolact.models.yolact import Yolact
from yolact.settings import DetectConfig, ModelConfig
from yolact_bench.speed.agreement import Agreement, compare
from yolact_bench.speed.contestants import Entry, Found, Runner, Task
from yolact_bench.speed.memory import PeakMemory, measure_memory

WARM_UP = 5
"""Runs of each contestant before the first round: caches fill, compilers and autotuners do their work."""

MEMORY_PROCESSES = 3
"""In which each contestant's memory is measured on a CPU."""


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds for a batch."""

    preprocess: float
    """From (H, W, 3) uint8 RGB images to the network's input."""
    network: float
    nms: float
    masks: float
    """From the chosen boxes to masks as large as the images."""
    total: float


@dataclass(frozen=True)
class ContestantResult:
    """One contestant's metrics."""

    name: str
    precision: str | None
    """None for another implementation, which decides itself."""
    compiled: bool | None
    file: str | None
    milliseconds: StageTimes
    """Medians over the rounds, each on its own."""
    images_per_second: float
    """Batch size over the median total."""
    speed: float
    """Median over the rounds of the reference's total over this one's in the same round."""
    detections: float
    """Per image, mean over the first batch."""
    memory: PeakMemory | None
    agreement: Agreement | None
    """With the reference; None for the reference itself."""


@dataclass(frozen=True)
class InferenceSettings:
    """What was measured."""

    weights: str
    """Where they come from."""
    model: ModelConfig
    num_classes: int
    detection: DetectConfig
    images: list[tuple[int, int]]
    """Height and width, pixels; batches take them in turn."""
    batch: int
    rounds: int
    warm_up: int
    cudnn_benchmark: bool
    """Whether cuDNN was let choose its fastest algorithms by trying (on GPUs, for all contestants)."""


@dataclass(frozen=True)
class InferenceBenchmark:
    """The whole measurement."""

    machine: Machine
    settings: InferenceSettings
    reference: str
    """Name of the first contestant."""
    contestants: list[ContestantResult]


def measure(
    model: Yolact,
    classes: Sequence[str],
    images: Sequence[np.ndarray],
    entries: Sequence[Entry],
    detection: DetectConfig,
    *,
    weights: str,
    device: torch.device,
    batch: int = 1,
    rounds: int = 20,
    memory: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> InferenceBenchmark:
    """Let contestants with the same weights find the objects of the same images, in turn, round by round.

    All of them run once in each round, so that a machine whose speed changes hits all alike. The first entry is the
    reference of speeds and of agreement.

    Args:
        model: whose weights all get, on the CPU.
        classes: names by label.
        images: (H, W, 3) uint8 RGB; a batch takes the next ones in turn.
        entries: at least one.
        detection: settings of all; other implementations follow them as far as they can.
        weights: where the weights come from, for the record.
        device: where all run.
        memory: measure it too, in new processes for each contestant (`MEMORY_PROCESSES`).
        progress: is told what is being done.

    Raises:
        SettingsError: a contestant cannot be loaded or does not follow the protocol, or memory is short on the GPU.
    """
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tuned or device.type == "cuda"
    try:
        with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder, torch.no_grad():
            path = Path(folder) / "weights.pth"
            torch.save(model.state_dict(), path)
            task = Task(path, model.config, tuple(classes), detection, str(device), torch.get_num_threads())
            machine = describe_machine(device)
            # Before any contestant is loaded here: other implementations may leave traces that a new process inherits.
            memories = _memories(task, images, entries, batch, progress) if memory else [None] * len(entries)
            race = _Race(task, images, entries, batch, progress)
            race.run(rounds)
            results = race.results(memories)
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU's memory is too small for this; try a smaller --batch (now {batch})") from error
    finally:
        torch.backends.cudnn.benchmark = tuned
    settings = InferenceSettings(
        weights=weights,
        model=model.config,
        num_classes=len(classes),
        detection=detection,
        images=[(image.shape[0], image.shape[1]) for image in images],
        batch=batch,
        rounds=rounds,
        warm_up=WARM_UP,
        cudnn_benchmark=device.type == "cuda",
    )
    return InferenceBenchmark(machine, settings, entries[0].name, results)


def _memories(
    task: Task, images: Sequence[np.ndarray], entries: Sequence[Entry], batch: int, progress: Callable[[str], None]
) -> list[PeakMemory | None]:
    first = [images[index] for index in _chosen(0, batch, len(images))]
    peaks: list[PeakMemory | None] = []
    for entry in entries:
        progress(f"{entry.name}: measuring memory")
        work, device = _Work(entry, task, first), torch.device(task.device)
        peaks.append(measure_memory(entry.name, work, device, task.threads, MEMORY_PROCESSES))
    return peaks


@dataclass(frozen=True)
class _Work:
    """One batch through all stages, to measure memory."""

    entry: Entry
    task: Task
    images: list[np.ndarray]

    def load(self) -> Callable[[], object]:
        """See `yolact_bench.speed.memory.Work`."""
        runner = self.entry.load(self.task)
        sizes = [image.shape[:2] for image in self.images]

        def run() -> None:
            value = None
            with torch.no_grad():
                for stage in runner.stages([runner.read(image) for image in self.images], sizes):
                    value = stage(value)

        return run


def _chosen(number: int, batch: int, images: int) -> list[int]:
    """Which of the images are in batch ``number``."""
    return [(number * batch + index) % images for index in range(batch)]


@dataclass
class _Lane:
    """A contestant on its way."""

    entry: Entry
    runner: Runner
    images: list[Any]
    """The images as its own reader gives them."""
    rounds: list[list[float]] = field(default_factory=list)
    """Milliseconds of each stage, round by round."""


@dataclass(frozen=True)
class _Outcome:
    raw: dict[str, Tensor] | None
    found: list[Found]


class _Race:
    """Loads the contestants and runs them in turn."""

    def __init__(
        self,
        task: Task,
        images: Sequence[np.ndarray],
        entries: Sequence[Entry],
        batch: int,
        progress: Callable[[str], None],
    ) -> None:
        self.task = task
        self.images = images
        self.batch = batch
        self.progress = progress
        self.device = torch.device(task.device)
        self.lanes = [self._load(entry) for entry in entries]

    def run(self, rounds: int) -> None:
        """Warm up, then take the times of all rounds."""
        for lane in self.lanes:
            self.progress(f"{lane.entry.name}: warming up")
            for number in range(WARM_UP):
                self._times(lane, number)
        for number in range(rounds):
            self.progress(f"round {number + 1} of {rounds}")
            for lane in self.lanes:
                lane.rounds.append(self._times(lane, number))

    def results(self, memories: Sequence[PeakMemory | None]) -> list[ContestantResult]:
        """Metrics of the rounds that were run, with agreement; ``memories`` were measured apart."""
        self.progress("comparing results")
        outcomes = [self._outcome(lane) for lane in self.lanes]
        return [self._result(*each, outcomes[0]) for each in zip(self.lanes, outcomes, memories, strict=True)]

    def _load(self, entry: Entry) -> _Lane:
        self.progress(f"{entry.name}: loading")
        runner = entry.load(self.task)
        return _Lane(entry, runner, [runner.read(image) for image in self.images])

    def _stages(self, lane: _Lane, number: int) -> list[Callable[[Any], Any]]:
        images = [lane.images[index] for index in _chosen(number, self.batch, len(self.images))]
        return lane.runner.stages(images, self._sizes(number))

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        return [self.images[index].shape[:2] for index in _chosen(number, self.batch, len(self.images))]

    def _times(self, lane: _Lane, number: int) -> list[float]:
        value, times = None, []
        laps = Laps(self.device)
        for stage in self._stages(lane, number):
            value = stage(value)
            times.append(laps.lap())
        return times

    def _outcome(self, lane: _Lane) -> _Outcome:
        preprocess, network, nms, masks = self._stages(lane, 0)
        raw = network(preprocess(None))
        outputs = lane.runner.raw_outputs(raw)  # before the network runs again: CUDA graphs reuse their memory
        return _Outcome(outputs, lane.runner.found(masks(nms(raw)), self._sizes(0)))

    def _result(
        self, lane: _Lane, outcome: _Outcome, memory: PeakMemory | None, reference: _Outcome
    ) -> ContestantResult:
        totals = [sum(times) for times in lane.rounds]
        reference_totals = [sum(times) for times in self.lanes[0].rounds]
        times = StageTimes(*(median(stage) for stage in [*zip(*lane.rounds, strict=True), totals]))
        own = lane.entry.file is None
        return ContestantResult(
            name=lane.entry.name,
            precision=lane.entry.precision if own else None,
            compiled=lane.entry.compile if own else None,
            file=None if own else str(lane.entry.file),
            milliseconds=times,
            images_per_second=self.batch * 1000 / times.total,
            speed=median([other / own for own, other in zip(totals, reference_totals, strict=True)]),
            detections=sum(len(found.scores) for found in outcome.found) / self.batch,
            memory=memory,
            agreement=None if outcome is reference else self._agreement(outcome, reference),
        )

    def _agreement(self, outcome: _Outcome, reference: _Outcome) -> Agreement:
        return compare(
            outcome.found,
            reference.found,
            outcome.raw,
            reference.raw,
            integer_boxes=self.task.detection.integer_boxes,
        )
