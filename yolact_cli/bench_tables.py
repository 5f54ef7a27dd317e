"""Results of `yolact bench` as tables or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from yolact.inference.machine import Machine
from yolact_bench.speed.agreement import Agreement
from yolact_bench.speed.backends import STAGES
from yolact_bench.speed.evaluation import EvaluationWork
from yolact_bench.speed.inference import MEMORY_PROCESSES, InferenceBenchmark, InferenceResult
from yolact_bench.speed.loading import LoadingBenchmark
from yolact_bench.speed.memory import PeakMemory
from yolact_bench.speed.training import TrainingBenchmark, TrainingResult
from yolact_bench.speed.training_backends import TRAINING_STAGES
from yolact_cli.output import print_json


def print_inference(result: InferenceBenchmark, *, as_json: bool) -> None:
    """Print times by stage, peak memory and agreement of all backends."""
    _print("inference", result, _show_inference, as_json=as_json)


def print_training(result: TrainingBenchmark, *, as_json: bool) -> None:
    """Print times by stage, peak memory and differences of the first step of all backends."""
    _print("training", result, _show_training, as_json=as_json)


def print_loading(result: LoadingBenchmark, *, as_json: bool) -> None:
    """Print times by stage of the training data loader, and those of other augmentations."""
    _print("loader", result, _show_loading, as_json=as_json)


def print_evaluation(result: EvaluationWork, *, as_json: bool) -> None:
    """Print times of masks and RLE."""
    _print("evaluation_work", result, _show_evaluation, as_json=as_json)


def _print(name: str, result: Any, show: Callable[[Any, Console], None], *, as_json: bool) -> None:
    if as_json:
        print_json({name: dataclasses.asdict(result)}, default=_plain)
    else:
        show(result, Console(highlight=False))


def _plain(value: Any) -> Any:
    assert isinstance(value, BaseModel)
    return value.model_dump(mode="json")


def _show_inference(result: InferenceBenchmark, console: Console) -> None:
    backends = result.backends
    title = f"{result.settings.weights}, batch {result.settings.batch}"
    unit = "milliseconds of CPU time per batch" if result.settings.cpu_time else "milliseconds per batch"
    console.print(_stage_table(title, unit, STAGES, backends, decimals=1))
    sizes = ", ".join(dict.fromkeys(f"{width} x {height}" for height, width in result.settings.images))
    console.print(
        f"Images: {sizes}; {backends[0].detections:g} detections each by {result.reference}. "
        f"Medians of {result.settings.rounds} rounds; speed is relative to {result.reference}."
    )
    kinds = {backend.memory.kind for backend in backends if backend.memory}
    if kinds:
        processes = f"{MEMORY_PROCESSES} processes" if "resident" in kinds else "a process"
        console.print(f"Memory: each in {processes} of its own, during inference (while loading).")
    for backend in backends:
        if backend.agreement is not None:
            console.print(_agreement_line(backend, backend.agreement, result.reference))
    console.print(_machine_line(result.machine))


def _stage_table(
    title: str,
    unit: str,
    stages: Sequence[str],
    backends: Sequence[InferenceResult] | Sequence[TrainingResult],
    decimals: int,
) -> Table:
    """A column per backend: times by stage, images per second with ``decimals``, relative speed and peak memory."""
    table = Table(title=title)
    table.add_column(unit)
    for backend in backends:
        table.add_column(backend.name, justify="right")
    for name in (*stages, "total"):
        times = (getattr(backend.milliseconds, name) for backend in backends)
        table.add_row(name, *(f"{time:.1f}" for time in times), end_section=name in (stages[-1], "total"))
    table.add_row("images per second", *(f"{backend.images_per_second:.{decimals}f}" for backend in backends))
    table.add_row("speed", *(f"{backend.speed:.2f}x" for backend in backends))
    table.add_row("peak memory, MiB", *(_memory(backend.memory) for backend in backends))
    return table


def _memory(memory: PeakMemory | None) -> str:
    return "-" if memory is None else f"{memory.work:.0f} ({memory.loading:.0f})"


def _agreement_line(backend: InferenceResult, agreement: Agreement, reference: str) -> str:
    verdict = (
        f"equal within {agreement.tolerance:g}" if agreement.equal else f"NOT equal within {agreement.tolerance:g}"
    )
    raw = "not compared"
    if agreement.raw_errors is not None:
        errors = agreement.raw_errors.values()
        raw = (
            "have other shapes or are not finite" if None in errors else f"{max(filter(None, errors), default=0.0):.1e}"
        )
    return (
        f"{backend.name} and {reference}: {verdict}. Raw outputs {raw}; {agreement.matched} of "
        f"{agreement.reference_detections} detections matched, {agreement.unmatched} unmatched; scores "
        f"{agreement.score_difference:.1e}, boxes {agreement.box_difference:.2g} px, mask pixels "
        f"{agreement.mask_difference:.1e}."
    )


def _show_training(result: TrainingBenchmark, console: Console) -> None:
    backends, settings = result.backends, result.settings
    title = f"training, {settings.weights}, {settings.model.image_size} px, batch {settings.batch}"
    console.print(_stage_table(title, "milliseconds per step", TRAINING_STAGES, backends, decimals=2))
    console.print(
        f"{settings.objects} synthetic objects per image. Medians of {settings.rounds} rounds; speed is "
        f"relative to {result.reference}."
    )
    if any(backend.memory for backend in backends):
        console.print("Memory: each in a process of its own, during training (while loading).")
    for backend in backends[1:]:
        console.print(_first_step_line(backend, result.reference))
    console.print(_machine_line(result.machine))


def _first_step_line(backend: TrainingResult, reference: str) -> str:
    terms = "not compared"
    if backend.term_errors is not None:
        terms = ", ".join(
            f"{name} {'missing' if error is None else f'{error:.1e}'}" for name, error in backend.term_errors.items()
        )
    gradients = "not compared" if backend.gradient_error is None else f"{backend.gradient_error:.1e}"
    return f"First step of {backend.name} and {reference}, relative differences: {terms}; gradients {gradients}."


def _show_evaluation(result: EvaluationWork, console: Console) -> None:
    table = Table("milliseconds per image", "masks", "RLE", "total")
    name = f"{result.detections} detections at {result.width} x {result.height}"
    table.add_row(name, f"{result.masks:.2f}", f"{result.rle:.2f}", f"{result.total:.2f}")
    console.print(table)
    console.print(f"Medians of {result.rounds} rounds; boxes of COCO's distribution of sizes, smooth random masks.")
    console.print(_machine_line(result.machine))


def _show_loading(result: LoadingBenchmark, console: Console) -> None:
    times = result.milliseconds
    table = Table(title=f"Training data on one core, {result.data}, input {result.image_size}")
    table.add_column("milliseconds per image")
    for name in ("yolact", *(other.name for other in result.against)):
        table.add_column(name, justify="right")
    blank = [""] * len(result.against)
    table.add_row("decode", f"{times.decode:.2f}", *blank)
    table.add_row("colours", f"{times.colors:.2f}", *blank)
    table.add_row("geometry", f"{times.geometry:.2f}", *blank)
    table.add_row("masks", f"{times.masks:.2f}", *blank, end_section=True)
    table.add_row("all but decode", f"{times.augmentation:.2f}", *(f"{o.milliseconds:.2f}" for o in result.against))
    table.add_row("total", f"{times.total:.2f}", *blank, end_section=True)
    table.add_row("images per second", f"{result.images_per_second:.0f}", *blank)
    rates = (f"{other.images_per_second:.0f}" for other in result.against)
    table.add_row("of decoded images", f"{result.augmentation_per_second:.0f}", *rates)
    if result.against:
        table.add_row("speed of yolact", "", *(f"{other.speed:.2f}x" for other in result.against))
    console.print(table)
    console.print(
        f"{result.images} images of {result.width:.0f} x {result.height:.0f} with {result.objects:.1f} objects on "
        f"average. Means over {result.variants} randomly augmented images, medians of {result.rounds} rounds."
    )
    console.print(_machine_line(result.machine))


def _machine_line(machine: Machine) -> str:
    device = f"{machine.gpu}, CUDA {machine.cuda}, " if machine.gpu else ""
    return (
        f"{machine.date}: {device}{machine.processor}, {machine.instructions}, {machine.cores} cores, "
        f"{machine.threads} threads, load {machine.load_average}; PyTorch {machine.torch}, Python {machine.python}"
    )
