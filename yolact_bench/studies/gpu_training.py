"""How fast is training on this machine's GPU, what share of the GPU's peak does it reach, and does the model learn?

    python -m yolact_bench.studies.gpu_training speed [--batches 8,16,32,64] [--precision bf16]
        [--image-size 550] [--compile]
    python -m yolact_bench.studies.gpu_training converge [VOC] [--epochs 100] [-S KEY=VALUE ...]

``speed`` runs steps of `yolact.engine.trainer.Trainer` itself, with the gradient norm, averaged weights if ``-S
train.ema_decay`` sets them, and batches that are copied during the previous step. Batches are drawn once and held in
memory, which measures the network; with ``--from-loader`` loader processes load each batch, as in a real run. The
weights are those of `yolact_bench.speed.calibration`. Each batch size runs in a new process.

``converge`` runs the steps ingest, preprocess, train and evaluate on a folder in PASCAL VOC format, with
`VOCdevkit/VOC2012` in it, or on the generated sample, in a folder of its own and with MLflow in a file there.

Both also run on a CPU with small settings, as a check. Both write a JSON file with all metrics.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table

from components.evaluate import step as evaluate
from components.ingest import step as ingest
from components.preprocess import step as preprocess
from components.train import training as train
from yolact.data.coco import CocoInstances
from yolact.data.loader import Batch, training_loader
from yolact.data.processed import EVAL, TRAIN, annotations_of
from yolact.devices import choose_device, prepare_device
from yolact.engine.advice import OutOfMemoryError
from yolact.engine.automatic import loader_processes
from yolact.engine.checkpoint import CheckpointStore
from yolact.engine.trainer import Metrics, SilentListener, Trainer
from yolact.files import write_json_atomic
from yolact.inference.machine import describe_machine
from yolact.models.complexity import measure_complexity
from yolact.models.yolact import Yolact
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.studies.command import run_study
from yolact_ops.settings.params import Params
from yolact_ops.settings.presets import choose
from yolact_ops.tracking.run_record import RunRecord
from yolact_ops.tracking.store import DEFAULT_TRACKING_URI

PRESET = "voc2012-r50"

PEAK_TFLOPS = (
    (r"H200 NVL|H100 NVL", 835.5),
    (r"H100 PCIe", 756.5),
    (r"H200|H100", 989.5),
    (r"A100", 312.0),
)
"""10^12 operations per second of dense bf16 or fp16 products, by the first pattern found in the GPU's name. From
NVIDIA's data sheets: H100 (SXM 1,979, PCIe 1,513, NVL 1,671) and H200 (SXM 1,979, NVL 1,671), which count sparse
products, twice as many, and A100 (312, dense). For another GPU, or fp32, use ``--peak-tflops``."""

PASSES_OF_FORWARD = 3
"""Operations of a training step over those of its forward pass: the backward pass multiplies by the weights and by the
inputs (Kaplan et al. 2020, section 2.1)."""

HELD_BATCHES = 4
"""Number of batches held in memory, which the steps use in turn."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Training on this machine's GPU: its speed, and whether the model learns.",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option("-S", metavar="KEY=VALUE", help="Set a key of params.yaml, with absolute paths; repeatable."),
]
Work = Annotated[Path, typer.Option(help="Folder for data and results.")]


@dataclass(frozen=True)
class SpeedTask:
    """The measurement of one process; picklable."""

    params: Params
    processed: Path
    steps: int
    """Steps per round."""
    rounds: int
    from_loader: bool
    peak_tflops: float | None
    folder: Path
    """Folder for checkpoints."""


@dataclass(frozen=True)
class Speed:
    """Results of one batch size; memory is the whole process's on a CPU, that of tensors on a GPU."""

    batch: int
    images_per_second: float
    """Median over the rounds."""
    slowest_round: float
    fastest_round: float
    data_wait: float
    """Share of the time spent waiting for the next batch, 0 to 1; median over the rounds."""
    peak_memory_gib: float | None
    tflops: float
    """10^12 floating-point operations per second, as `PASSES_OF_FORWARD` counts them."""
    share_of_peak: float | None
    """``tflops`` over the peak; None if the peak is unknown."""


class SpeedRows(SilentListener):
    """Collects the speeds that the trainer reports: of the first step, of a warm-up round, and of the rounds."""

    def __init__(self) -> None:
        self.rows: list[Metrics] = []

    def on_speed(self, step: int, row: Metrics) -> None:
        """Collect a row."""
        self.rows.append(row)

    @property
    def measured(self) -> list[Metrics]:
        """The rows of the rounds: without the first step, which includes compiling, and the warm-up."""
        return self.rows[2:]


class HeldBatches:
    """Batches in memory, used in turn, instead of a loader."""

    def __init__(self, batches: Sequence[Batch], steps: int) -> None:
        self.batches = batches
        self.steps = steps

    def __iter__(self) -> Iterator[Batch]:
        return islice(cycle(self.batches), self.steps)


@app.command()
def speed(
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "8,16,32,64",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    image_size: Annotated[int, typer.Option(help="Side of the network's input, pixels.")] = 550,
    steps: Annotated[int, typer.Option(min=1, help="Steps per round.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the warm-up.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="Folder that preprocess wrote.", show_default="generated images")
    ] = None,
    from_loader: Annotated[bool, typer.Option("--from-loader", help="Let loader processes make each batch.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes, with --from-loader.")] = 8,
    peak_tflops: Annotated[
        float | None, typer.Option(help="Peak of this device in TFLOP/s.", show_default="by device name")
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("gpu_training"),
) -> None:
    """Measure training steps, one row per batch size."""
    work.mkdir(parents=True, exist_ok=True)
    processed = data or _generate(work)
    chosen = choose_device(device)
    peak = peak_tflops or known_peak(chosen, precision)
    rows: list[dict[str, Any]] = []
    for batch in map(int, batches.split(",")):
        params = _settings(
            f"train.batch_size={batch}",
            f"train.lr={1e-3 * batch / 8}",
            f"train.precision={precision}",
            f"train.log_every={steps}",
            "train.epochs=1",
            f"train.warmup_steps={steps * (1 + rounds)}",  # the whole run, to prevent divergence
            f"model.image_size={image_size}",
            "model.backbone_weights=imagenet",  # nothing is loaded; batch norm is frozen, as in a real run
            f"runtime.compile={str(compiled).lower()}",
            f"runtime.device={chosen}",
            f"runtime.workers={workers if from_loader else 0}",
            *(overrides or ()),
        )
        task = SpeedTask(params, processed, steps, rounds, from_loader, peak, work)
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
            found = executor.submit(measure_speed, task).result()
        rows.append({"batch": batch, "error": found} if isinstance(found, str) else asdict(found))
        settings = {"precision": precision, "image_size": image_size, "compile": compiled, "from_loader": from_loader}
        settings |= {"peak_tflops": peak, "steps": steps, "rounds": rounds, "overrides": overrides or []}
        result = {"machine": asdict(describe_machine(chosen)), "settings": settings, "batches": rows}
        write_json_atomic(work / "speed.json", result)
    _show_speed(rows, f"{_device_name(chosen)}, {precision}, {image_size} px{', compiled' if compiled else ''}")


def measure_speed(task: SpeedTask) -> Speed | str:
    """Run the task's training steps in this process; returns a message if memory ran out."""
    params = task.params
    device = choose_device(params.runtime.device)
    prepare_device(device, deterministic=params.runtime.deterministic)
    torch.manual_seed(params.train.seed)
    steps = 1 + task.steps * (1 + task.rounds)
    images = _repeated(CocoInstances.load(annotations_of(task.processed, "train")), params, steps)
    listener = SpeedRows()
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        store = CheckpointStore(Path(folder) / "checkpoints", 1, fingerprint="speed")
        image = images.read_image(images.images[0]).copy()  # PyTorch needs writable arrays
        model = calibrated_network(params.model, len(images.class_names), image).to(device)
        trainer = Trainer(model, images, params, Path(folder), store, _no_validation, listener, extra={})
        if not task.from_loader:
            trainer.loader = HeldBatches(list(islice(trainer.loader, HELD_BATCHES)), steps)  # type: ignore[assignment]
        try:
            trainer.fit()
        except OutOfMemoryError as error:
            return str(error)
    flops = PASSES_OF_FORWARD * measure_complexity(params.model, len(images.class_names)).flops
    return _speed(params.train.batch_size, listener.measured, flops, task.peak_tflops)


def _speed(batch: int, rounds: Sequence[Metrics], flops: int, peak_tflops: float | None) -> Speed:
    """Results from the trainer's row of each round; ``flops`` are per image."""
    rates = [row["images_per_second"] for row in rounds]
    tflops = statistics.median(rates) * flops / 1e12
    last = rounds[-1]
    return Speed(
        batch=batch,
        images_per_second=statistics.median(rates),
        slowest_round=min(rates),
        fastest_round=max(rates),
        data_wait=statistics.median(row["data_wait"] for row in rounds),
        peak_memory_gib=last.get("gpu_memory_gib", last.get("resident_memory_gib")),
        tflops=tflops,
        share_of_peak=tflops / peak_tflops if peak_tflops else None,
    )


def known_peak(device: torch.device, precision: str) -> float | None:
    """The GPU's entry in `PEAK_TFLOPS`, or None."""
    if device.type != "cuda" or precision == "fp32":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The entry of a GPU with that name, or None."""
    return next((peak for pattern, peak in PEAK_TFLOPS if re.search(pattern, name, re.IGNORECASE)), None)


def _no_validation(model: Yolact) -> Metrics:
    """Replacement for validation, which is not measured."""
    return {"mask_AP": 0.0}


def _repeated(data: CocoInstances, params: Params, steps: int) -> CocoInstances:
    """The images repeated until one epoch has ``steps`` steps."""
    return replace(data, images=list(islice(cycle(data.images), steps * params.train.batch_size)))


def _settings(*overrides: str) -> Params:
    return choose(PRESET, overrides=overrides)


def _generate(work: Path) -> Path:
    """Generate and preprocess images of VOC's size unless the folder has them; returns their folder."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "processed" / TRAIN).is_dir():
        sizes = [f"data.sample.{name}_size={side}" for name, side in (("min", 375), ("max", 500))]
        params = _settings("data.source=sample", "data.sample.train_images=256", "data.sample.val_images=4", *sizes)
        ingest.run(params, raw_dir=work / "raw", downloads_dir=work / "downloads")
        preprocess.run(params, raw_dir=work / "raw", processed_dir=work / "processed", report_dir=work / "report")
    return work / "processed"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _show_speed(rows: Sequence[dict[str, Any]], title: str) -> None:
    table = Table("batch", "images/s", "slowest, fastest round", "waiting", "GiB", "TFLOP/s", "of peak", title=title)
    for row in rows:
        if "error" in row:
            table.add_row(str(row["batch"]), row["error"])
            continue
        memory, share = row["peak_memory_gib"], row["share_of_peak"]
        table.add_row(
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            f"{row['slowest_round']:.1f}, {row['fastest_round']:.1f}",
            f"{row['data_wait']:.1%}",
            "-" if memory is None else f"{memory:.2f}",
            f"{row['tflops']:.3g}",
            "-" if share is None else f"{share:.1%}",
        )
    Console().print(table)


@app.command()
def converge(
    voc: Annotated[
        Path | None, typer.Argument(help="Folder with VOCdevkit/VOC2012 in it.", show_default="generated sample")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.")] = 100,
    preset: Annotated[str, typer.Option(help="Preset of the settings.")] = PRESET,
    overrides: Overrides = None,
    work: Work = Path("gpu_convergence"),
) -> None:
    """Train on real images and report AP, speed and the page with predictions."""
    source = yaml.safe_dump(str(voc.resolve()) if voc else "sample", default_flow_style=True).splitlines()[0]
    chosen = [f"data.source={source}", f"train.epochs={epochs}", "promote.min_first=0", *(overrides or ())]
    params = choose(preset, overrides=chosen)
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)  # the steps' folders and MLflow's file are relative to it
    os.environ["MLFLOW_TRACKING_URI"] = DEFAULT_TRACKING_URI
    seconds = _run_steps(params)
    result = {
        "machine": asdict(describe_machine(choose_device(params.runtime.device))),
        "settings": params.model_dump(mode="json", by_alias=True),
        "seconds": seconds,
        "loader_images_per_second": _loader_speed(params),
        **_training_speed(Path("models/run.json")),
        "evaluation": json.loads(Path("metrics/eval.json").read_text(encoding="utf-8")),
    }
    write_json_atomic(Path("converge.json"), result)
    _show_convergence(result)


def _run_steps(params: Params) -> dict[str, float]:
    """Run the steps in the current folder as `dvc repro` would; returns the seconds of each."""
    raw, processed, model = Path("data/raw"), Path("data/processed"), Path("models")
    steps = {
        "ingest": lambda: ingest.run(params, raw_dir=raw, downloads_dir=Path("data/downloads")),
        "preprocess": lambda: preprocess.run(
            params, raw_dir=raw, processed_dir=processed, report_dir=Path("reports/data")
        ),
        "train": lambda: train.run(
            params,
            train_data_dir=processed / TRAIN,
            eval_data_dir=processed / EVAL,
            model_dir=model,
            metrics_path=Path("metrics/train.json"),
            plots_dir=Path("plots/train"),
        ),
        "evaluate": lambda: evaluate.run(
            params,
            eval_data_dir=processed / EVAL,
            model_dir=model,
            metrics_path=Path("metrics/eval.json"),
            report_dir=Path("reports/eval"),
            plots_dir=Path("plots/eval"),
        ),
    }
    seconds = {}
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - began
    return seconds


def _loader_speed(params: Params) -> float:
    """Images per second of the run's loader processes alone, over the second epoch."""
    processed = Path("data/processed")
    data = CocoInstances.load(annotations_of(processed, "train"))
    loader, sampler = training_loader(
        data,
        params.train,
        params.model.image_size,
        workers=loader_processes(params.runtime.workers),
        pin=torch.cuda.is_available(),
        keep_aspect_ratio=params.model.keep_aspect_ratio,
    )
    for sampler.epoch in range(2):  # the first one starts the processes
        began = time.perf_counter()
        images = sum(len(batch.image_ids) for batch in loader)
    return images / (time.perf_counter() - began)


def _training_speed(record: Path) -> dict[str, float]:
    """Median speeds that the run logged to MLflow, except the first, which include the start-up."""
    from mlflow import MlflowClient

    run = RunRecord.read(record)
    client = MlflowClient(run.tracking_uri)
    metrics = {}
    for name in ("images_per_second", "data_wait"):
        history = sorted(client.get_metric_history(run.run_id, f"speed/{name}"), key=lambda metric: metric.step)
        values = [metric.value for metric in history]
        metrics[f"training_{name}"] = statistics.median(values[1:] or values)
    return metrics


def _show_convergence(result: dict[str, Any]) -> None:
    mask = result["evaluation"]["mask"]
    table = Table("mask", "AP", "AP50", title="Percent on the validation images")
    rows = {"all classes": mask}
    if "person" in mask["per_class"]:
        rows["person"] = mask["per_class"]["person"]
    for name, row in rows.items():
        table.add_row(name, *("-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("AP", "AP50")))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items()))
    console.print(
        f"training {result['training_images_per_second']:.1f} images/s, waiting for data "
        f"{result['training_data_wait']:.1%}; the loader alone {result['loader_images_per_second']:.1f} images/s"
    )
    console.print(f"predictions: {Path('reports/eval/index.html').resolve()}")


if __name__ == "__main__":
    run_study(app)
