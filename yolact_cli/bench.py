"""`yolact bench`: what was measured as tables for people or JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from yolact.devices import choose_device
from yolact.errors import SettingsError
from yolact.inference.machine import Machine
from yolact.inference.network import Precision
from yolact.models.published import PUBLISHED_MODELS, PublishedModel
from yolact.models.weights import load_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION, DetectConfig
from yolact_bench.parity.losses import PUBLISHED_LOSS
from yolact_bench.speed import evaluation, inference, loading, training
from yolact_bench.speed.agreement import Agreement
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.contestants import STAGES, Entry
from yolact_bench.speed.evaluation import EvaluationWork
from yolact_bench.speed.images import read_images
from yolact_bench.speed.inference import MEMORY_PROCESSES, ContestantResult, InferenceBenchmark
from yolact_bench.speed.learners import TRAINING_STAGES
from yolact_bench.speed.loading import LoadingBenchmark
from yolact_bench.speed.memory import PeakMemory
from yolact_bench.speed.training import LearnerResult, TrainingBenchmark

DETECTIONS: dict[str, DetectConfig] = {
    "default": DEFAULT_DETECTION,
    "published": PUBLISHED_DETECTION,
    # The published code does this too, when its masks are asked for with a score threshold.
    "published-no-tail": PUBLISHED_DETECTION.replace(low_score_tail=False),
}
"""Settings of detection that can be chosen."""

DEFAULT_MODEL = "yolact_resnet50"

DEFAULT_PRECISION = "fp32"

ROUNDS = 20

OBJECTS = 20
"""That random weights find."""


@dataclass(frozen=True)
class Options:
    """The options of `yolact bench`."""

    model_dir: Path | None
    model: str | None
    images: list[Path]
    device: str
    precision: str | None
    compile: bool
    detection: str | None
    batch: int | None
    rounds: int | None
    objects: int | None
    threads: int | None
    against: list[Path]
    memory: bool | None
    evaluation_work: bool
    loader: bool
    train: bool
    as_json: bool


def run(options: Options, console: Console | None = None) -> None:
    """Measure and print.

    Raises:
        SettingsError: an option is impossible, or a contestant cannot take part.
        DataError: a picture cannot be read.
        WeightsError: the model cannot be read.
    """
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name, measure, show = _chosen(options)
    with Console(stderr=True).status("starting") as status:  # silent where nobody watches
        result: Any = measure(options, device, status.update)
    if options.as_json:
        print(json.dumps({name: dataclasses.asdict(result)}, indent=2, default=_plain, allow_nan=False))
    else:
        show(result, console or Console(highlight=False))


def _chosen(options: Options) -> tuple[str, Callable[..., Any], Callable[..., None]]:
    """What is measured: its name, and the functions that measure and show it."""
    flags = {"--train": options.train, "--evaluation-work": options.evaluation_work, "--loader": options.loader}
    if sum(flags.values()) > 1:
        raise SettingsError(f"{' and '.join(flag for flag, on in flags.items() if on)}: one measurement at a time")
    if options.train:
        return "training", _measure_training, _show_training
    if options.evaluation_work:
        return "evaluation_work", _measure_evaluation, _show_evaluation
    if options.loader:
        return "loader", _measure_loading, _show_loading
    return "inference", _measure_inference, _show_inference


def _refuse(options: Options, measurement: str, reason: str, *without_meaning: str) -> None:
    """Refuse options that a measurement would not read, rather than leave the user to believe that they had a part."""
    given = {
        "MODEL_DIR": options.model_dir,
        "--model": options.model,
        "--image": options.images,
        "--against": options.against,
        "--precision": options.precision,
        "--compile": options.compile,
        "--detection": options.detection,
        "--batch": options.batch,
        "--objects": options.objects,
        "--memory": options.memory,
    }
    unread = [name for name in without_meaning if given[name]]
    if unread:
        raise SettingsError(f"{measurement} {reason}: leave out {', '.join(unread)}")


def _plain(value: Any) -> Any:
    assert isinstance(value, BaseModel)
    return value.model_dump(mode="json")


# --- Inference ------------------------------------------------------------------------------------------------------


def _measure_inference(options: Options, device: torch.device, progress: Callable[[str], None]) -> InferenceBenchmark:
    entries = _entries(options)
    detection = _detection(options.detection or ("published-no-tail" if options.against else "default"))
    images = read_images(options.images)
    progress("making the network")
    model, classes, weights = _network(options, images)
    return inference.measure(
        model,
        classes,
        images,
        entries,
        detection,
        weights=weights,
        device=device,
        batch=options.batch or 1,
        rounds=options.rounds or ROUNDS,
        memory=options.memory is not False,
        progress=progress,
    )


def _entries(options: Options) -> list[Entry]:
    """Other implementations first: the first of them is the reference."""
    precisions = (options.precision or DEFAULT_PRECISION).split(",")
    for precision in precisions:
        if precision not in get_args(Precision):
            raise SettingsError(f"--precision {precision}: unknown; there are {', '.join(get_args(Precision))}")
    entries = [Entry.other(file) for file in options.against]
    for compiled in (False, True) if options.compile else (False,):
        entries += [Entry.own(cast(Precision, precision), compile=compiled) for precision in precisions]
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise SettingsError(f"each contestant can take part once, found {', '.join(names)}")
    return entries


def _detection(name: str) -> DetectConfig:
    if name not in DETECTIONS:
        raise SettingsError(f"--detection {name}: unknown; there are {', '.join(DETECTIONS)}")
    return DETECTIONS[name]


def _network(options: Options, images: Sequence[np.ndarray]) -> tuple[Yolact, Sequence[str], str]:
    """The network, its classes' names and where its weights come from."""
    if options.model_dir is not None:
        if options.model is not None:
            raise SettingsError("MODEL_DIR and --model: a trained model or a published configuration, not both")
        return *load_model(options.model_dir), str(options.model_dir)
    name = options.model or DEFAULT_MODEL
    published = _published(name)
    objects = options.objects if options.objects and not options.train else OBJECTS
    model = calibrated_network(published.model, len(published.classes), images[0], objects)
    return model, published.classes, f"{name}, random weights that find about {objects} objects"


def _published(name: str) -> PublishedModel:
    if name not in PUBLISHED_MODELS:
        raise SettingsError(f"--model {name}: unknown; there are {', '.join(PUBLISHED_MODELS)}")
    return PUBLISHED_MODELS[name]


def _show_inference(result: InferenceBenchmark, console: Console) -> None:
    contestants = result.contestants
    table = Table(title=f"{result.settings.weights}, batch {result.settings.batch}")
    table.add_column("milliseconds for a batch")
    for contestant in contestants:
        table.add_column(contestant.name, justify="right")
    for name in (*STAGES, "total"):
        times = (getattr(contestant.milliseconds, name) for contestant in contestants)
        table.add_row(name, *(f"{time:.1f}" for time in times), end_section=name in ("masks", "total"))
    table.add_row("images per second", *(f"{contestant.images_per_second:.1f}" for contestant in contestants))
    table.add_row("speed", *(f"{contestant.speed:.2f}x" for contestant in contestants))
    table.add_row("peak memory, MiB", *(_memory(contestant.memory) for contestant in contestants))
    console.print(table)
    sizes = ", ".join(dict.fromkeys(f"{width} x {height}" for height, width in result.settings.images))
    console.print(
        f"Images: {sizes}; {contestants[0].detections:g} detections each by {result.reference}. "
        f"Medians of {result.settings.rounds} rounds; speed is that of {result.reference} times so much."
    )
    kinds = {contestant.memory.kind for contestant in contestants if contestant.memory}
    if kinds:
        processes = f"{MEMORY_PROCESSES} processes" if "resident" in kinds else "a process"
        console.print(f"Memory: each in {processes} of its own, during inference (while loading).")
    for contestant in contestants:
        if contestant.agreement is not None:
            console.print(_agreement_line(contestant, contestant.agreement, result.reference))
    console.print(_machine_line(result.machine))


def _memory(memory: PeakMemory | None) -> str:
    return "-" if memory is None else f"{memory.work:.0f} ({memory.loading:.0f})"


def _agreement_line(contestant: ContestantResult, agreement: Agreement, reference: str) -> str:
    verdict = (
        f"equal within {agreement.tolerance:g}" if agreement.equal else f"NOT equal within {agreement.tolerance:g}"
    )
    raw = "not compared"
    if agreement.raw_errors is not None:
        errors = agreement.raw_errors.values()
        raw = "shapes differ or no numbers" if None in errors else f"{max(filter(None, errors), default=0.0):.1e}"
    return (
        f"{contestant.name} and {reference}: {verdict}. Raw outputs {raw}; {agreement.matched} of "
        f"{agreement.reference_detections} detections found again, {agreement.unmatched} without partner; scores "
        f"{agreement.score_difference:.1e}, boxes {agreement.box_difference:.2g} px, mask pixels "
        f"{agreement.mask_difference:.1e}."
    )


# --- Training -------------------------------------------------------------------------------------------------------


def _measure_training(options: Options, device: torch.device, progress: Callable[[str], None]) -> TrainingBenchmark:
    _refuse(options, "--train", "measures training steps, which have neither", "--compile", "--detection")
    entries = _entries(options)
    images = read_images(options.images)
    progress("making the network")
    model, _, weights = _network(options, images)
    return training.measure(
        model,
        images,
        entries,
        PUBLISHED_LOSS,
        weights=weights,
        device=device,
        batch=options.batch or 2,
        objects=options.objects or training.OBJECTS,
        rounds=options.rounds or 5,
        memory=options.memory is not False,
        progress=progress,
    )


def _show_training(result: TrainingBenchmark, console: Console) -> None:
    learners, settings = result.learners, result.settings
    table = Table(title=f"training, {settings.weights}, {settings.model.image_size} px, batch {settings.batch}")
    table.add_column("milliseconds for a step")
    for learner in learners:
        table.add_column(learner.name, justify="right")
    for name in (*TRAINING_STAGES, "total"):
        times = (getattr(learner.milliseconds, name) for learner in learners)
        table.add_row(name, *(f"{time:.1f}" for time in times), end_section=name in ("optimizer", "total"))
    table.add_row("images per second", *(f"{learner.images_per_second:.2f}" for learner in learners))
    table.add_row("speed", *(f"{learner.speed:.2f}x" for learner in learners))
    table.add_row("peak memory, MiB", *(_memory(learner.memory) for learner in learners))
    console.print(table)
    console.print(
        f"{settings.objects} made-up objects in each image. Medians of {settings.rounds} rounds; speed is that of "
        f"{result.reference} times so much."
    )
    if any(learner.memory for learner in learners):
        console.print("Memory: each in a process of its own, during training (while loading).")
    for learner in learners[1:]:
        console.print(_first_step_line(learner, result.reference))
    console.print(_machine_line(result.machine))


def _first_step_line(learner: LearnerResult, reference: str) -> str:
    terms = "not compared"
    if learner.term_errors is not None:
        terms = ", ".join(
            f"{name} {'missing' if error is None else f'{error:.1e}'}" for name, error in learner.term_errors.items()
        )
    gradients = "not compared" if learner.gradient_error is None else f"{learner.gradient_error:.1e}"
    return f"First step of {learner.name} and {reference}, relative differences: {terms}; gradients {gradients}."


# --- Evaluation work ------------------------------------------------------------------------------------------------


def _measure_evaluation(options: Options, device: torch.device, progress: Callable[[str], None]) -> EvaluationWork:
    _refuse(
        options,
        "--evaluation-work",
        "runs no network",
        *("MODEL_DIR", "--model", "--image", "--against"),
        *("--precision", "--compile", "--batch", "--objects", "--memory"),
    )
    progress("evaluation work")
    return evaluation.measure(
        device=device, rounds=options.rounds or ROUNDS, detection=_detection(options.detection or "default")
    )


def _show_evaluation(result: EvaluationWork, console: Console) -> None:
    table = Table("milliseconds for a image", "masks", "RLE", "total")
    name = f"{result.detections} detections at {result.width} x {result.height}"
    table.add_row(name, f"{result.masks:.2f}", f"{result.rle:.2f}", f"{result.total:.2f}")
    console.print(table)
    console.print(f"Medians of {result.rounds} rounds; boxes of COCO's distribution of sizes, smooth random masks.")
    console.print(_machine_line(result.machine))


# --- Loading --------------------------------------------------------------------------------------------------------


def _measure_loading(options: Options, device: torch.device, progress: Callable[[str], None]) -> LoadingBenchmark:
    if options.images:
        raise SettingsError("--loader reads images with their masks: name a folder that preprocess wrote, not --image")
    _refuse(
        options,
        "--loader",
        "reads and changes one image at a time, and runs no network",
        *("--precision", "--compile", "--detection", "--batch", "--objects", "--memory"),
    )
    size = _published(options.model or DEFAULT_MODEL).model.image_size
    return loading.measure(
        options.model_dir, image_size=size, rounds=options.rounds or ROUNDS, against=options.against, progress=progress
    )


def _show_loading(result: LoadingBenchmark, console: Console) -> None:
    times = result.milliseconds
    table = Table(title=f"Training data on one core, {result.data}, input {result.image_size}")
    table.add_column("milliseconds for a image")
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
        f"{result.images} images of {result.width:.0f} x {result.height:.0f} with {result.objects:.1f} objects in the "
        f"mean. Means over {result.variants} images, each changed at random, medians of {result.rounds} rounds."
    )
    console.print(_machine_line(result.machine))


def _machine_line(machine: Machine) -> str:
    device = f"{machine.gpu}, CUDA {machine.cuda}, " if machine.gpu else ""
    return (
        f"{machine.date}: {device}{machine.processor}, {machine.instructions}, {machine.cores} cores, "
        f"{machine.threads} threads, load {machine.load_average}; PyTorch {machine.torch}, Python {machine.python}"
    )
