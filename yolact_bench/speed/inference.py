"""Inference from images to full-size masks: time by stage, peak memory, and agreement between backends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.inference.export import export_onnx
from yolact.inference.export_format import ExportPrecision
from yolact.inference.machine import Machine, describe_machine
from yolact.inference.openvino_export import export_openvino
from yolact.models.yolact import Yolact
from yolact.settings import DetectConfig, ModelConfig
from yolact_bench.speed.agreement import Agreement, compare
from yolact_bench.speed.backends import BackendSpec, Found, InferenceRunner, InferenceTask
from yolact_bench.speed.memory import PeakMemory, measure_memory
from yolact_bench.speed.rounds import Rounds, time_stages, tuned_gpu

WARM_UP = 5
"""Runs of each backend before the first round."""

MEMORY_PROCESSES = 3
"""Processes that measure each backend's memory on a CPU."""


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
class InferenceResult:
    """One backend's results."""

    name: str
    precision: str | None
    """None for another implementation, which chooses its own."""
    compiled: bool | None
    file: str | None
    milliseconds: StageTimes
    """Medians over the rounds, each computed separately."""
    images_per_second: float
    """Batch size over the median total."""
    speed: float
    """Median over the rounds of the reference's total over this one's in the same round."""
    detections: float
    """Per image, mean over the first batch."""
    memory: PeakMemory | None
    agreement: Agreement | None
    """Agreement with the reference; None for the reference itself."""


@dataclass(frozen=True)
class InferenceSettings:
    """The measured workload."""

    weights: str
    """Their origin."""
    model: ModelConfig
    num_classes: int
    detection: DetectConfig
    images: list[tuple[int, int]]
    """Height and width in pixels; batches use them in turn."""
    batch: int
    rounds: int
    warm_up: int
    cpu_time: bool
    """Whether times are CPU time of all threads, instead of elapsed time."""
    cudnn_benchmark: bool
    """Whether cuDNN benchmarked its algorithms (on GPUs, for all backends)."""


@dataclass(frozen=True)
class InferenceBenchmark:
    """Results of `measure`."""

    machine: Machine
    settings: InferenceSettings
    reference: str
    """Name of the first backend."""
    backends: list[InferenceResult]


def measure(
    model: Yolact,
    classes: Sequence[str],
    images: Sequence[np.ndarray],
    specs: Sequence[BackendSpec],
    detection: DetectConfig,
    *,
    weights: str,
    device: torch.device,
    batch: int = 1,
    rounds: int = 20,
    memory: bool = True,
    cpu_time: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> InferenceBenchmark:
    """Detect with several backends, which have the same weights and images, in alternating rounds.

    Args:
        model: the network, on the CPU; all backends use its weights.
        classes: names by label.
        images: (H, W, 3) uint8 RGB; batches use them in turn.
        specs: at least one; the first is the reference for speed and agreement.
        detection: settings of all backends; other implementations follow them as far as they can.
        weights: origin of the weights, for the record.
        device: where all backends run.
        memory: also measure peak memory, in new processes for each backend (`MEMORY_PROCESSES`).
        cpu_time: measure CPU time of all threads instead of elapsed time.
        progress: receives a line about the current activity.

    Raises:
        SettingsError: a backend cannot be loaded or does not follow the protocol, or the GPU runs out of memory.
        ExportError: the network cannot be exported for a runtime, or the runtime is missing.
    """
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder, torch.no_grad(), tuned_gpu(device, batch):
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)
        specs = [exported(spec, Path(folder), model, classes, images, batch, progress) for spec in specs]
        task = InferenceTask(path, model.config, tuple(classes), detection, str(device), torch.get_num_threads())
        machine = describe_machine(device)
        # Before any backend is loaded here: other implementations may leave state that a new process inherits.
        memories = _memories(task, images, specs, batch, progress) if memory else [None] * len(specs)
        comparison = _Comparison(task, images, specs, batch, progress, cpu_time=cpu_time)
        results = comparison.run(rounds, memories)
    settings = InferenceSettings(
        weights=weights,
        model=model.config,
        num_classes=len(classes),
        detection=detection,
        images=[(image.shape[0], image.shape[1]) for image in images],
        batch=batch,
        rounds=rounds,
        warm_up=WARM_UP,
        cpu_time=cpu_time,
        cudnn_benchmark=device.type == "cuda",
    )
    return InferenceBenchmark(machine, settings, specs[0].name, results)


def exported(
    spec: BackendSpec,
    folder: Path,
    model: Yolact,
    classes: Sequence[str],
    images: Sequence[np.ndarray],
    batch: int,
    progress: Callable[[str], None],
) -> BackendSpec:
    """A backend with its exported network, for this batch size; int8 is calibrated with these images.

    Raises:
        ExportError: the network cannot be exported for the runtime, or the runtime is missing.
    """
    if spec.runtime is None:
        return spec
    progress(f"{spec.name}: exporting")
    name = spec.name.replace(" ", "-")
    precision: ExportPrecision = "int8" if spec.int8 else "fp32"
    if spec.runtime == "openvino":
        export, path = export_openvino, folder / f"{name}.xml"
    else:
        export, path = export_onnx, folder / f"{name}.onnx"
    export(model, classes, path, batch=batch, precision=precision, images=images)
    return replace(spec, exported=path)


def _memories(
    task: InferenceTask,
    images: Sequence[np.ndarray],
    specs: Sequence[BackendSpec],
    batch: int,
    progress: Callable[[str], None],
) -> list[PeakMemory | None]:
    first = [images[index] for index in _indices(0, batch, len(images))]
    peaks: list[PeakMemory | None] = []
    for spec in specs:
        progress(f"{spec.name}: measuring memory")
        work, device = OneBatch(spec, task, first), torch.device(task.device)
        peaks.append(measure_memory(spec.name, work, device, task.threads, MEMORY_PROCESSES))
    return peaks


@dataclass(frozen=True)
class OneBatch:
    """One batch through all stages, as `yolact_bench.speed.memory.Work`."""

    spec: BackendSpec
    task: InferenceTask
    images: list[np.ndarray]

    def load(self) -> Callable[[], Any]:
        """See `yolact_bench.speed.memory.Work`; the function returns what the stage ``masks`` does."""
        runner = InferenceRunner(self.spec, self.task)
        sizes = [image.shape[:2] for image in self.images]

        def run() -> Any:
            value = None
            with torch.no_grad():
                for stage in runner.stages([runner.read(image) for image in self.images], sizes):
                    value = stage(value)
            return value

        return run


def _indices(number: int, batch: int, images: int) -> list[int]:
    """Which of the images are in batch ``number``."""
    return [(number * batch + index) % images for index in range(batch)]


@dataclass(frozen=True)
class _Loaded:
    """A loaded backend."""

    spec: BackendSpec
    runner: InferenceRunner
    images: list[Any]
    """The images as its own reader returns them."""


@dataclass(frozen=True)
class _Outcome:
    """A backend's results for the first batch."""

    raw: dict[str, Tensor] | None
    found: list[Found]


class _Comparison:
    """Loads the backends, times them in alternating rounds and compares their results."""

    def __init__(
        self,
        task: InferenceTask,
        images: Sequence[np.ndarray],
        specs: Sequence[BackendSpec],
        batch: int,
        progress: Callable[[str], None],
        *,
        cpu_time: bool,
    ) -> None:
        self.cpu_time = cpu_time
        self.task = task
        self.images = images
        self.batch = batch
        self.progress = progress
        self.device = torch.device(task.device)
        self.loaded = [self._load(spec) for spec in specs]

    def run(self, rounds: int, memories: Sequence[PeakMemory | None]) -> list[InferenceResult]:
        """Results by backend; ``memories`` are their peak memories, measured separately."""
        timed = Rounds({one.spec.name: partial(self._times, one) for one in self.loaded}, self.progress)
        timed.warm_up(WARM_UP)
        timed.measure(rounds)
        self.progress("comparing results")
        outcomes = [self._outcome(one) for one in self.loaded]
        return [
            self._result(timed, one, memory, outcome, outcomes[0])
            for one, memory, outcome in zip(self.loaded, memories, outcomes, strict=True)
        ]

    def _load(self, spec: BackendSpec) -> _Loaded:
        self.progress(f"{spec.name}: loading")
        runner = InferenceRunner(spec, self.task)
        return _Loaded(spec, runner, [runner.read(image) for image in self.images])

    def _times(self, one: _Loaded, number: int) -> list[float]:
        return time_stages(self._stages(one, number), self.device, cpu_time=self.cpu_time)

    def _stages(self, one: _Loaded, number: int) -> list[Callable[[Any], Any]]:
        images = [one.images[index] for index in _indices(number, self.batch, len(self.images))]
        return one.runner.stages(images, self._sizes(number))

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        return [self.images[index].shape[:2] for index in _indices(number, self.batch, len(self.images))]

    def _outcome(self, one: _Loaded) -> _Outcome:
        preprocess, network, nms, masks = self._stages(one, 0)
        raw = network(preprocess(None))
        outputs = one.runner.raw_outputs(raw)  # before the network runs again: CUDA graphs reuse their memory
        return _Outcome(outputs, one.runner.found(masks(nms(raw)), self._sizes(0)))

    def _result(
        self, timed: Rounds, one: _Loaded, memory: PeakMemory | None, outcome: _Outcome, reference: _Outcome
    ) -> InferenceResult:
        spec, own = one.spec, one.spec.file is None
        times = StageTimes(*timed.medians(spec.name))
        return InferenceResult(
            name=spec.name,
            precision=("int8" if spec.int8 else spec.precision) if own else None,
            compiled=spec.compile if own else None,
            file=None if own else str(spec.file),
            milliseconds=times,
            images_per_second=self.batch * 1000 / times.total,
            speed=timed.speed(spec.name, self.loaded[0].spec.name),
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
