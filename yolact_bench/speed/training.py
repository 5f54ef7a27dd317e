"""A training step: time by stage, peak memory, and differences of losses and gradients between backends."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.inference.machine import Machine, describe_machine
from yolact.models.yolact import Yolact
from yolact.settings import LossConfig, ModelConfig
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.memory import PeakMemory, measure_memory
from yolact_bench.speed.rounds import Rounds, time_stages, tuned_gpu
from yolact_bench.speed.training_backends import SgdSettings, TrainingBatch, TrainingRunner, TrainingTask, make_batch

WARM_UP = 2
"""Steps of each backend before the first round; the first of them is compared."""

OBJECTS = 8
"""Objects per image: COCO's mean is 7.7 (Lin et al. 2014, section 5)."""


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds for a batch."""

    forward: float
    loss: float
    """Matching and all terms of the loss."""
    backward: float
    optimizer: float
    total: float


@dataclass(frozen=True)
class TrainingResult:
    """One backend's results."""

    name: str
    precision: str | None
    """None for another implementation, which chooses its own."""
    file: str | None
    milliseconds: StepTimes
    """Medians over the rounds, each computed separately."""
    images_per_second: float
    """Batch size over the median total."""
    speed: float
    """Median over the rounds of the reference's total over this one's in the same round."""
    memory: PeakMemory | None
    terms: dict[str, float] | None
    """Terms of the loss in the first step; None if the backend does not report them."""
    term_errors: dict[str, float | None] | None
    """Relative difference of each of the reference's terms from this backend's, None for a term that is missing or not
    finite; None as a whole for the reference itself, or if one of the two does not report its terms."""
    gradient_error: float | None
    """Norm of the difference from the reference's gradients in the first step over their norm, over all parameters that
    both report; None as above."""


@dataclass(frozen=True)
class TrainingSettings:
    """The measured workload."""

    weights: str
    """Their origin."""
    model: ModelConfig
    num_classes: int
    loss: LossConfig
    sgd: SgdSettings
    batch: int
    objects: int
    """Objects per image."""
    rounds: int
    warm_up: int


@dataclass(frozen=True)
class TrainingBenchmark:
    """Results of `measure`."""

    machine: Machine
    settings: TrainingSettings
    reference: str
    """Name of the first backend."""
    backends: list[TrainingResult]


def measure(
    model: Yolact,
    images: Sequence[np.ndarray],
    specs: Sequence[BackendSpec],
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
    """Train with several backends, which have the same weights and batch, in alternating rounds of one step each.

    Args:
        model: the network, on the CPU; all backends start from its weights.
        images: (H, W, 3) uint8 RGB; the batch uses them in turn.
        specs: at least one; the first is the reference for speed, terms and gradients.
        weights: origin of the weights, for the record.
        device: where all backends run.
        objects: objects per image.
        memory: also measure peak memory, in a new process for each backend.
        progress: receives a line about the current activity.

    Raises:
        SettingsError: a backend cannot be loaded or does not follow the protocol, or the GPU runs out of memory.
    """
    size = model.config.image_size
    made = make_batch(list(images), batch, size, model.num_classes, objects, seed=0)
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder, tuned_gpu(device, batch):
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)
        task = TrainingTask(
            path, model.config, model.num_classes, loss, SgdSettings(), str(device), torch.get_num_threads()
        )
        machine = describe_machine(device)
        memories = [_memory(spec, task, made, progress) if memory else None for spec in specs]
        results = _Comparison(task, made, specs, progress).run(rounds, memories)
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
    return TrainingBenchmark(machine, settings, specs[0].name, results)


def _memory(spec: BackendSpec, task: TrainingTask, batch: TrainingBatch, progress: Callable[[str], None]) -> PeakMemory:
    progress(f"{spec.name}: measuring memory")
    return measure_memory(spec.name, _Work(spec, task, batch), torch.device(task.device), task.threads)


@dataclass(frozen=True)
class _Work:
    """Training steps, to measure memory."""

    spec: BackendSpec
    task: TrainingTask
    batch: TrainingBatch

    def load(self) -> Callable[[], object]:
        """See `yolact_bench.speed.memory.Work`."""
        runner = TrainingRunner(self.spec, self.task)
        batch = runner.prepare(self.batch)

        def run() -> None:
            value = None
            for stage in runner.stages(batch):
                value = stage(value)

        return run


@dataclass(frozen=True)
class _Loaded:
    """A loaded backend."""

    spec: BackendSpec
    runner: TrainingRunner
    batch: Any
    """The batch in its own form."""


@dataclass(frozen=True)
class _FirstStep:
    """A backend's first step compared with the reference's; see `TrainingResult`."""

    terms: dict[str, float] | None
    term_errors: dict[str, float | None] | None
    gradient_error: float | None


class _Comparison:
    """Loads the backends, compares their first steps and times them in alternating rounds."""

    def __init__(
        self,
        task: TrainingTask,
        batch: TrainingBatch,
        specs: Sequence[BackendSpec],
        progress: Callable[[str], None],
    ) -> None:
        self.progress = progress
        self.device = torch.device(task.device)
        self.batch_size = len(batch.targets)
        self.loaded = [self._load(spec, task, batch) for spec in specs]

    def run(self, rounds: int, memories: Sequence[PeakMemory | None]) -> list[TrainingResult]:
        """Results by backend; ``memories`` are their peak memories, measured separately."""
        first_steps = self._compare_first_steps()
        timed = Rounds({one.spec.name: partial(self._times, one) for one in self.loaded}, self.progress)
        timed.warm_up(WARM_UP - 1)
        timed.measure(rounds)
        return [
            self._result(timed, one, memory, first)
            for one, memory, first in zip(self.loaded, memories, first_steps, strict=True)
        ]

    def _load(self, spec: BackendSpec, task: TrainingTask, batch: TrainingBatch) -> _Loaded:
        self.progress(f"{spec.name}: loading")
        runner = TrainingRunner(spec, task)
        return _Loaded(spec, runner, runner.prepare(batch))

    def _compare_first_steps(self) -> list[_FirstStep]:
        steps: list[_FirstStep] = []
        reference: dict[str, Tensor] | None = None
        for one in self.loaded:
            self.progress(f"{one.spec.name}: first step")
            forward, loss, backward, optimizer = one.runner.stages(one.batch)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # if masks are drawn at random, all of our backends draw the same
                losses = loss(forward(None))
            backward(losses)
            terms, gradients = one.runner.terms(losses), one.runner.gradients()
            optimizer(losses)
            if steps:
                errors = _term_errors(terms, steps[0].terms), _gradient_error(gradients, reference)
                steps.append(_FirstStep(terms, *errors))
            else:
                reference = gradients
                steps.append(_FirstStep(terms, None, None))
        return steps

    def _times(self, one: _Loaded, _: int) -> list[float]:
        return time_stages(one.runner.stages(one.batch), self.device)

    def _result(self, timed: Rounds, one: _Loaded, memory: PeakMemory | None, first: _FirstStep) -> TrainingResult:
        spec, own = one.spec, one.spec.file is None
        times = StepTimes(*timed.medians(spec.name))
        return TrainingResult(
            name=spec.name,
            precision=spec.precision if own else None,
            file=None if own else str(spec.file),
            milliseconds=times,
            images_per_second=self.batch_size * 1000 / times.total,
            speed=timed.speed(spec.name, self.loaded[0].spec.name),
            memory=memory,
            terms=first.terms,
            term_errors=first.term_errors,
            gradient_error=first.gradient_error,
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
