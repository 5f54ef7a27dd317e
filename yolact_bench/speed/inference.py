"""Inference from images to full-size masks: time by stage, peak memory, and agreement between backends."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolact.errors import ExportError
from yolact.inference.export import export_onnx
from yolact.inference.machine import Machine, describe_machine
from yolact.inference.openvino_export import export_openvino
from yolact.models.yolact import Yolact
from yolact.settings import DetectConfig, ModelConfig
from yolact_bench.speed.agreement import Agreement, compare
from yolact_bench.speed.backends import BackendSpec, Found, InferenceRunner, InferenceTask
from yolact_bench.speed.memory import PeakMemory, measure_memory
from yolact_bench.speed.process import Process, last_of_turn, prepare
from yolact_bench.speed.rounds import Rounds, enough_memory, time_stages

WARM_UP = 5
"""Turns of each backend before the first round."""

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
    leave_out: Callable[[str], None] | None = None,
) -> InferenceBenchmark:
    """Detect with several backends, which have the same weights and images, in alternating rounds.

    Each backend has a process of its own, which stays until the end (`yolact_bench.speed.process`).

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
        leave_out: receives a line about each backend whose export fails, which is then not measured; None: that is an
            error.

    Raises:
        SettingsError: a backend cannot be loaded or does not follow the protocol, its process is killed, or the GPU
            runs out of memory.
        ExportError: the network cannot be exported for a runtime, or the runtime is missing.
    """
    with tempfile.TemporaryDirectory(prefix="yolact-bench-") as folder, torch.no_grad(), enough_memory(batch):
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)

        def export(spec: BackendSpec) -> BackendSpec:
            return exported(spec, Path(folder), model, classes, images, batch, progress)

        specs = list(_exportable(specs, export, leave_out))
        task = InferenceTask(path, model.config, tuple(classes), detection, str(device), torch.get_num_threads())
        machine = describe_machine(device)
        # First, while no other backend's process needs memory.
        memories = _memories(task, images, specs, batch, progress) if memory else [None] * len(specs)
        timed, outcomes = _take_turns(task, images, specs, batch, rounds, progress, cpu_time=cpu_time)
    reference, expected = specs[0].name, outcomes[0]
    results = [
        _result(
            spec,
            timed.medians(spec.name),
            timed.speed(spec.name, reference),
            outcome,
            None if outcome is expected else outcome.agreement(expected, integer_boxes=detection.integer_boxes),
            memory,
        )
        for spec, outcome, memory in zip(specs, outcomes, memories, strict=True)
    ]
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
    return InferenceBenchmark(machine, settings, reference, results)


def _exportable(
    specs: Sequence[BackendSpec],
    export: Callable[[BackendSpec], BackendSpec],
    leave_out: Callable[[str], None] | None,
) -> Iterator[BackendSpec]:
    """The backends with their exported networks; for ``leave_out`` see `measure`."""
    for spec in specs:
        try:
            yield export(spec)
        except ExportError as error:
            if leave_out is None:
                raise
            _, _, reason = str(error).partition(": ")  # without the temporary file
            leave_out(f"{spec.name}: left out: {reason or error}")


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
    if spec.runtime == "openvino":
        export, path = export_openvino, folder / f"{name}.xml"
    else:
        export, path = export_onnx, folder / f"{name}.onnx"
    export(model, classes, path, batch=batch, precision=spec.export_precision, images=images)
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
class Outcome:
    """A backend's results for the first batch."""

    raw: dict[str, Tensor] | None
    found: list[Found]

    def agreement(self, reference: Outcome, *, integer_boxes: bool) -> Agreement:
        """See `compare`."""
        return compare(self.found, reference.found, self.raw, reference.raw, integer_boxes=integer_boxes)


class LoadedBackend:
    """A backend in this process, with the images as its own reader returns them."""

    @torch.no_grad()
    def __init__(
        self, spec: BackendSpec, task: InferenceTask, images: Sequence[np.ndarray], batch: int, *, cpu_time: bool
    ) -> None:
        self._device, self._batch, self._cpu_time = torch.device(task.device), batch, cpu_time
        self._runner = InferenceRunner(spec, task)
        self._images = [self._runner.read(image) for image in images]
        self._all_sizes = [image.shape[:2] for image in images]

    @torch.no_grad()
    def turn(self, number: int) -> list[float]:
        """Milliseconds of each stage for a batch, see `last_of_turn`."""
        return last_of_turn(lambda: time_stages(self._stages(number), self._device, cpu_time=self._cpu_time))

    @torch.no_grad()
    def outcome(self) -> Outcome:
        """The results for the first batch."""
        preprocess, network, nms, masks = self._stages(0)
        raw = network(preprocess(None))
        outputs = self._runner.raw_outputs(raw)  # before the network runs again: CUDA graphs reuse their memory
        return Outcome(outputs, self._runner.found(masks(nms(raw)), self._sizes(0)))

    def _stages(self, number: int) -> list[Callable[[Any], Any]]:
        images = [self._images[index] for index in _indices(number, self._batch, len(self._images))]
        return self._runner.stages(images, self._sizes(number))

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        return [self._all_sizes[index] for index in _indices(number, self._batch, len(self._images))]


def _take_turns(
    task: InferenceTask,
    images: Sequence[np.ndarray],
    specs: Sequence[BackendSpec],
    batch: int,
    rounds: int,
    progress: Callable[[str], None],
    *,
    cpu_time: bool,
) -> tuple[Rounds, list[Outcome]]:
    """Times and results of all backends, each in a process of its own."""
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for spec in specs:
            progress(f"{spec.name}: loading")
            process = Process(spec.name, _load, spec, task, images, batch, cpu_time)
            processes[spec.name] = stack.enter_context(process)
        turns = {name: partial(process.call, LoadedBackend.turn) for name, process in processes.items()}
        timed = Rounds(turns, progress)
        timed.warm_up(WARM_UP)
        timed.measure(rounds)
        progress("comparing results")
        pickled = [process.call(_pickled_outcome) for process in processes.values()]
    return timed, [pickle.loads(each) for each in pickled]  # noqa: S301 - of our own processes


def _load(
    spec: BackendSpec, task: InferenceTask, images: Sequence[np.ndarray], batch: int, cpu_time: bool
) -> LoadedBackend:
    prepare(torch.device(task.device), task.threads)
    return LoadedBackend(spec, task, images, batch, cpu_time=cpu_time)


def _pickled_outcome(backend: LoadedBackend) -> bytes:
    """As bytes, because processes pass tensors in shared memory, of which containers have little."""
    return pickle.dumps(backend.outcome())


def _result(
    spec: BackendSpec,
    medians: Sequence[float],
    speed: float,
    outcome: Outcome,
    agreement: Agreement | None,
    memory: PeakMemory | None,
) -> InferenceResult:
    own, batch = spec.file is None, len(outcome.found)
    times = StageTimes(*medians)
    return InferenceResult(
        name=spec.name,
        precision=(spec.export_precision if spec.runtime else spec.precision) if own else None,
        compiled=spec.compile if own else None,
        file=None if own else str(spec.file),
        milliseconds=times,
        images_per_second=batch * 1000 / times.total,
        speed=speed,
        detections=sum(len(found.scores) for found in outcome.found) / batch,
        memory=memory,
        agreement=agreement,
    )
