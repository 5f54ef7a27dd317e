"""One training step, stage by stage: how long, how much memory, and are the losses and gradients the same."""

from __future__ import annotations

import math
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
from yolact.settings import LossConfig, ModelConfig
from yolact_bench.speed.contestants import Entry
from yolact_bench.speed.learners import (
    LearnerRunner,
    SgdSettings,
    TrainingBatch,
    TrainingTask,
    make_batch,
)
from yolact_bench.speed.memory import PeakMemory, measure_memory

WARM_UP = 2
"""Steps of each learner before the first round, the first of which is the one that is compared."""

OBJECTS = 8
"""In each image: COCO's mean is 7.7 (Lin et al. 2014, section 5)."""


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds for a batch."""

    forward: float
    loss: float
    """Matching and all terms."""
    backward: float
    optimizer: float
    total: float


@dataclass(frozen=True)
class LearnerResult:
    """One learner's metrics."""

    name: str
    precision: str | None
    """None for another implementation, which decides itself."""
    file: str | None
    milliseconds: StepTimes
    """Medians over the rounds, each on its own."""
    images_per_second: float
    """Batch size over the median total."""
    speed: float
    """Median over the rounds of the reference's total over this one's in the same round."""
    memory: PeakMemory | None
    terms: dict[str, float] | None
    """Of the loss in the first step; None where the learner does not tell."""
    term_errors: dict[str, float | None] | None
    """Relative difference of each of the reference's terms from this one's, None for one that is missing or no number;
    None in all for the reference itself, or where one of the two does not tell."""
    gradient_error: float | None
    """Norm of the difference from the reference's gradients in the first step over their norm, all parameters that both
    name together; None as above."""


@dataclass(frozen=True)
class TrainingSettings:
    """What was measured."""

    weights: str
    """Where they come from."""
    model: ModelConfig
    num_classes: int
    loss: LossConfig
    sgd: SgdSettings
    batch: int
    objects: int
    """In each image."""
    rounds: int
    warm_up: int


@dataclass(frozen=True)
class TrainingBenchmark:
    """The whole measurement."""

    machine: Machine
    settings: TrainingSettings
    reference: str
    """Name of the first learner."""
    learners: list[LearnerResult]


def measure(
    model: Yolact,
    images: Sequence[np.ndarray],
    entries: Sequence[Entry],
    loss: LossConfig,
    *,
    weights: str,
    device: torch.device,
    batch: int = 2,
    objects: int = OBJECTS,
    rounds: int = 5,
    memory: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> TrainingBenchmark:
    """Let learners with the same weights train on the same batch, in turn, round by round.

    All of them step once in each round, so that a machine whose speed changes hits all alike. The first entry is the
    reference of speeds, terms and gradients.

    Args:
        model: whose weights all begin with, on the CPU.
        images: (H, W, 3) uint8 RGB; the batch takes them in turn.
        entries: at least one.
        weights: where the weights come from, for the record.
        device: where all run.
        objects: in each image.
        memory: measure it too, in one new process for each learner.
        progress: is told what is being done.

    Raises:
        SettingsError: a learner cannot be loaded or does not follow the protocol, or memory is short on the GPU.
    """
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tuned or device.type == "cuda"
    size = model.config.image_size
    made = make_batch(list(images), batch, size, model.num_classes, objects, seed=0)
    try:
        with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder:
            path = Path(folder) / "weights.pth"
            torch.save(model.state_dict(), path)
            task = TrainingTask(
                path, model.config, model.num_classes, loss, SgdSettings(), str(device), torch.get_num_threads()
            )
            machine = describe_machine(device)
            memories = [_memory(entry, task, made, progress) if memory else None for entry in entries]
            race = _Race(task, made, entries, progress)
            race.run(rounds)
            results = race.results(memories)
    except torch.OutOfMemoryError as error:
        raise SettingsError(f"the GPU's memory is too small for this; try a smaller --batch (now {batch})") from error
    finally:
        torch.backends.cudnn.benchmark = tuned
    settings = TrainingSettings(
        weights=weights,
        model=model.config,
        num_classes=model.num_classes,
        loss=loss,
        sgd=task.sgd,
        batch=batch,
        objects=objects,
        rounds=rounds,
        warm_up=WARM_UP,
    )
    return TrainingBenchmark(machine, settings, entries[0].name, results)


def _memory(entry: Entry, task: TrainingTask, batch: TrainingBatch, progress: Callable[[str], None]) -> PeakMemory:
    progress(f"{entry.name}: measuring memory")
    return measure_memory(entry.name, _Work(entry, task, batch), torch.device(task.device), task.threads)


@dataclass(frozen=True)
class _Work:
    """Training steps, to measure memory."""

    entry: Entry
    task: TrainingTask
    batch: TrainingBatch

    def load(self) -> Callable[[], object]:
        """See `yolact_bench.speed.memory.Work`."""
        runner = LearnerRunner(self.entry, self.task)
        batch = runner.prepare(self.batch)

        def run() -> None:
            value = None
            for stage in runner.stages(batch):
                value = stage(value)

        return run


@dataclass
class _Lane:
    """A learner on its way."""

    entry: Entry
    runner: LearnerRunner
    batch: Any
    """In its own form."""
    terms: dict[str, float] | None = None
    term_errors: dict[str, float | None] | None = None
    gradient_error: float | None = None
    rounds: list[list[float]] = field(default_factory=list)
    """Milliseconds of each stage, round by round."""


class _Race:
    """Loads the learners and lets them step in turn."""

    def __init__(
        self, task: TrainingTask, batch: TrainingBatch, entries: Sequence[Entry], progress: Callable[[str], None]
    ) -> None:
        self.progress = progress
        self.device = torch.device(task.device)
        self.batch_size = len(batch.targets)
        self.lanes = [self._load(entry, task, batch) for entry in entries]

    def _load(self, entry: Entry, task: TrainingTask, batch: TrainingBatch) -> _Lane:
        self.progress(f"{entry.name}: loading")
        runner = LearnerRunner(entry, task)
        return _Lane(entry, runner, runner.prepare(batch))

    def run(self, rounds: int) -> None:
        """Compare the first step, warm up, then take the times of all rounds."""
        self._compare_first_steps()
        for lane in self.lanes:
            self.progress(f"{lane.entry.name}: warming up")
            for _ in range(WARM_UP - 1):
                self._times(lane)
        for number in range(rounds):
            self.progress(f"round {number + 1} of {rounds}")
            for lane in self.lanes:
                lane.rounds.append(self._times(lane))

    def _compare_first_steps(self) -> None:
        reference: dict[str, Tensor] | None = None
        for lane in self.lanes:
            self.progress(f"{lane.entry.name}: first step")
            forward, loss, backward, optimizer = lane.runner.stages(lane.batch)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # where masks are drawn at random, ours are the same
                losses = loss(forward(None))
            backward(losses)
            lane.terms = lane.runner.terms(losses)
            gradients = lane.runner.gradients()
            optimizer(losses)
            if lane is self.lanes[0]:
                reference = gradients
                continue
            lane.term_errors = _term_errors(lane.terms, self.lanes[0].terms)
            lane.gradient_error = _gradient_error(gradients, reference)

    def _times(self, lane: _Lane) -> list[float]:
        value, times = None, []
        laps = Laps(self.device)
        for stage in lane.runner.stages(lane.batch):
            value = stage(value)
            times.append(laps.lap())
        return times

    def results(self, memories: Sequence[PeakMemory | None]) -> list[LearnerResult]:
        """Metrics of the rounds that were run; ``memories`` were measured apart."""
        return [self._result(lane, memory) for lane, memory in zip(self.lanes, memories, strict=True)]

    def _result(self, lane: _Lane, memory: PeakMemory | None) -> LearnerResult:
        totals = [sum(times) for times in lane.rounds]
        reference_totals = [sum(times) for times in self.lanes[0].rounds]
        times = StepTimes(*(median(stage) for stage in [*zip(*lane.rounds, strict=True), totals]))
        own = lane.entry.file is None
        return LearnerResult(
            name=lane.entry.name,
            precision=lane.entry.precision if own else None,
            file=None if own else str(lane.entry.file),
            milliseconds=times,
            images_per_second=self.batch_size * 1000 / times.total,
            speed=median([other / own for own, other in zip(totals, reference_totals, strict=True)]),
            memory=memory,
            terms=lane.terms,
            term_errors=lane.term_errors,
            gradient_error=lane.gradient_error,
        )


def _term_errors(terms: dict[str, float] | None, reference: dict[str, float] | None) -> dict[str, float | None] | None:
    if terms is None or reference is None:
        return None
    errors = {
        name: abs(terms.get(name, math.nan) - expected) / (abs(expected) or 1.0) for name, expected in reference.items()
    }
    return {name: error if math.isfinite(error) else None for name, error in errors.items()}


def _gradient_error(gradients: dict[str, Tensor] | None, reference: dict[str, Tensor] | None) -> float | None:
    if gradients is None or reference is None:
        return None
    names = gradients.keys() & reference.keys()
    length = math.sqrt(sum(float(reference[name].square().sum()) for name in names))
    error = math.sqrt(sum(float((gradients[name] - reference[name]).square().sum()) for name in names))
    return error / length if length and math.isfinite(error) else None
