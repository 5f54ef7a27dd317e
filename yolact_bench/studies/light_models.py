"""How fast are small networks on a CPU, in PyTorch and in ONNX Runtime?

    python -m yolact_bench.studies.light_models NETWORK ... [--bf16] [--training] [--rounds 30] [--threads 2]
        [--cpu-time] [--onnx FILE ...]

Each NETWORK is a preset, with other settings of ``model`` or without: ``lite0-320`` or
``lite0-320,backbone=resnet18,fpn_channels=96``; without a preset the settings differ from ``conf/base.yaml``. All
networks have 20 classes and random weights that find about 20 objects in the image
(`yolact_bench.speed.calibration`) and take turns, one image at a time. ``--onnx`` times other networks of one input
beside them, forward only, as a yardstick; `yolact_bench.studies.other_projects` measures them whole.

The times are ``forward``, the network only, and ``whole``, from an image to masks as large as the image; with
``--training`` also a whole training step of `BATCH` images with 8 objects each. The least of all rounds is the time on
an undisturbed machine, the median that on this one now.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from yolact.class_names import VOC_CLASSES
from yolact.errors import ExportError
from yolact.inference.export import export_onnx
from yolact.inference.network import Precision
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.predictor import Predictor
from yolact.inference.runtimes import open_session
from yolact.limits import usable_cpus
from yolact.models.complexity import measure_complexity
from yolact.models.yolact import Yolact
from yolact_bench.parity.losses import PUBLISHED_LOSS
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.calibration import calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.speed.rounds import Rounds, TimedRun
from yolact_bench.speed.training import OBJECTS
from yolact_bench.speed.training_backends import SgdSettings, TrainingRunner, TrainingTask, make_batch
from yolact_bench.studies.command import run_study
from yolact_bench.studies.networks import network_config

WARM_UP = 3

BATCH = 4
"""Images of a training step, as in the preset ``lite0-320``."""


def main(
    networks: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="PRESET, KEY=VALUE,... or both.")],
    bf16: Annotated[bool, typer.Option(help="Also in bfloat16; slow on CPUs without its instructions.")] = False,
    training: Annotated[bool, typer.Option(help="Also a training step, in float32.")] = False,
    rounds: int = 30,
    threads: Annotated[int, typer.Option(help="CPU threads; 0: all cores that it may use.")] = 0,
    cpu_time: Annotated[bool, typer.Option(help="CPU time of all threads: with one, on a busy machine.")] = False,
    onnx: Annotated[list[Path] | None, typer.Option(help="Another network's ONNX file; may be repeated.")] = None,
) -> None:
    """Print a table in Markdown."""
    clock = time.process_time if cpu_time else time.perf_counter
    torch.set_num_threads(threads or usable_cpus())
    image = read_images([])[0]
    runs: dict[str, TimedRun] = {}
    costs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for number, text in enumerate(networks):
            config = network_config(text)
            model = calibrated_network(config, len(VOC_CLASSES), image)
            size = measure_complexity(config, len(VOC_CLASSES))
            cost = f"{size.parameters / 1e6:.2f} | {size.backbone_flops / 2e9:.2f} | {size.flops / 2e9:.2f}"
            found = runtimes(model, image, Path(folder) / f"{number}.onnx", bf16)
            if training:
                found["PyTorch fp32"].append(training_step_of(model, image, Path(folder) / f"{number}.pth"))
            for name, stages in found.items():
                runs[f"{text} | {name}"] = timed(stages, clock)
                costs[f"{text} | {name}"] = cost
        for path in onnx or []:
            runs[f"{path.name} | onnxruntime"] = timed([forward_of_file(path)], clock)
        timing = Rounds(runs, lambda _: None)
        timing.warm_up(WARM_UP)
        timing.measure(rounds)
    columns = ["forward", "whole", f"training step of {BATCH}"][: 3 if training else 2]
    heads = ["params, M", "backbone, GMAC", "all, GMAC", *(f"{column}, ms (median)" for column in columns)]
    print(f"| network | runtime | {' | '.join(heads)} |")
    print(f"| --- | --- | {' | '.join(['---:'] * len(heads))} |")
    for name, times in timing.times.items():
        cells = [f"{min(stage):.1f} ({np.median(stage):.1f})" for stage in zip(*times, strict=True)]
        print(f"| {name} | {costs.get(name, ' | | ')} | {' | '.join([*cells, '', ''][: len(columns)])} |")


def runtimes(model: Yolact, image: np.ndarray, path: Path, bf16: bool) -> dict[str, list[Callable[[], object]]]:
    """Forward and whole of a network by runtime; ``path`` is for its ONNX file, without which it says why."""
    found: dict[str, list[Callable[[], object]]] = {}
    precisions: list[Precision] = ["fp32", "bf16"] if bf16 else ["fp32"]
    for precision in precisions:
        predictor = Predictor(model, VOC_CLASSES, precision=precision)
        found[f"PyTorch {precision}"] = [forward_of(predictor, image), whole_of(predictor, image)]
    try:
        export_onnx(model, VOC_CLASSES, path, batch=1)
    except ExportError as error:  # random weights can overflow on the noise with which the export is checked
        print(f"{model.config.backbone}: {error}", file=sys.stderr)
        return found
    found["onnxruntime"] = [forward_of_file(path), whole_of(OnnxPredictor(path), image)]
    return found


def forward_of(predictor: Predictor, image: np.ndarray) -> Callable[[], object]:
    """One run of its network."""
    inputs = predictor.preprocess([torch.from_numpy(image).permute(2, 0, 1)])
    return lambda: predictor.network(inputs)


def whole_of(predictor: Predictor | OnnxPredictor, image: np.ndarray) -> Callable[[], object]:
    """From the image to masks as large as it."""
    return lambda: predictor.predict(image).masks


def training_step_of(model: Yolact, image: np.ndarray, path: Path) -> Callable[[], object]:
    """One training step of a copy of the network with the published losses; ``path`` is for its weights."""
    torch.save(model.state_dict(), path)
    classes = model.num_classes
    task = TrainingTask(path, model.config, classes, PUBLISHED_LOSS, SgdSettings(), "cpu", torch.get_num_threads())
    runner = TrainingRunner(BackendSpec.own("fp32"), task)
    stages = runner.stages(runner.prepare(make_batch([image], BATCH, model.config.image_size, classes, OBJECTS, 0)))

    def run() -> None:
        value: object = None
        with torch.enable_grad():
            for stage in stages:
                value = stage(value)

    return run


def forward_of_file(path: Path) -> Callable[[], object]:
    """One run of an ONNX file with one float32 input of a fixed size, random in 0 to 1."""
    session = open_session(path, ["CPUExecutionProvider"])
    [given] = session.get_inputs()
    inputs = np.random.default_rng(0).random(given.shape, dtype=np.float32)
    return lambda: session.run(None, {given.name: inputs})


def timed(runs: Sequence[Callable[[], object]], clock: Callable[[], float]) -> TimedRun:
    """The milliseconds of each."""

    def run_all(_: int) -> list[float]:
        times = []
        for run in runs:
            start = clock()
            run()
            times.append((clock() - start) * 1000)
        return times

    return run_all


if __name__ == "__main__":
    run_study(main)
