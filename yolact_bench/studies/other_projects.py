"""How fast are this project's networks on a CPU beside those of other projects, from an image to full-size masks?

    python -m yolact_bench.studies.other_projects [NETWORK ...] [--others yolo26n-seg,rfdetr-seg-nano,...]
        [--sizes 320,640] [--image FILE] [--bf16] [--rounds 10] [--minutes 7] [--threads 2]

Each NETWORK is one of ours, as in `yolact_bench.studies.light_models`; the default is the presets. Other projects are
measured if they are installed, for which an environment of its own is best: neither ultralytics, which is under the
AGPL, nor rfdetr is a dependency of this project::

    python -m venv others
    others/bin/pip install -e '.[export,openvino]' ultralytics onnxslim rfdetr

All networks have random weights and one image, batch 1. Each has a process of its own, and all take turns, as
`yolact_bench.speed.process` describes. The least of all turns is the time on an undisturbed machine, the median that on
this one now. The memory is the largest resident size of the process while it runs, libraries included. All processes
stay until the end: about 0.5 GB of memory each, besides what they share.

Every network finds about ``--objects`` objects: ours as `yolact_bench.speed.calibration` describes, the others through
a score threshold between the last object that is kept and the first that is not, chosen for each runtime. For that
scores and masks must differ between objects: the outputs of ultralytics' new networks are equal to the last digit, and
objects without a pixel are dropped, so class logits and mask coefficients get the spread of our class logits.
torchvision's batch norm gets the statistics of the image, without which values grow from block to block.

Otherwise all have their defaults, except that ultralytics gives PyTorch one thread less than there are cores, which is
undone here. Its PyTorch form pads an image to a multiple of 32 pixels, the exported form to a square.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from yolact.class_names import VOC_CLASSES
from yolact.errors import SettingsError
from yolact.settings import DEFAULT_DETECTION, ModelConfig
from yolact.transforms import to_square
from yolact_bench.speed.backends import BackendSpec, InferenceTask
from yolact_bench.speed.calibration import CLASS_LOGIT_SPREAD, calibrate_batch_norm, calibrated_network
from yolact_bench.speed.images import read_images
from yolact_bench.speed.inference import OneBatch, exported
from yolact_bench.speed.memory import PeakMemory, Work, load_measured
from yolact_bench.speed.process import Process, in_new_process, last_of_turn
from yolact_bench.speed.rounds import Rounds, TimedRun, time_stages
from yolact_bench.studies.command import run_study
from yolact_bench.studies.networks import network_config

OURS = ("sample-cpu", "lite0-320", "lite2-512", "regnet-550", "voc2012-r50")
OTHERS = {
    "yolo26n-seg": "ultralytics",
    "yolo11n-seg": "ultralytics",
    "yolov8s-seg": "ultralytics",
    "rfdetr-seg-nano": "rfdetr",
    "maskrcnn-resnet50": "torchvision",
}
"""Networks of other projects, and the package of each."""
LIBRARIES = ("torch", "onnxruntime", "openvino", "nncf", *sorted(set(OTHERS.values())))

OWN_SIZES = {"rfdetr-seg-nano": 312, "maskrcnn-resnet50": 800}

Detections = tuple[Any, Any]
"""Scores (N,) and masks (N, H, W) as large as the image; tensors or arrays."""

Detector = Callable[[float], Detections]
"""Takes the score threshold; computes everything from the image on."""


@dataclass(frozen=True)
class Row:
    """A network in a runtime."""

    network: str
    size: int
    """The input's longer side, pixels; Mask R-CNN's shorter one."""
    runtime: str
    work: Work

    @property
    def name(self) -> str:
        """Beginning of the row in the table."""
        return f"{self.network} | {self.size} | {self.runtime}"


@dataclass(frozen=True)
class Our:
    """One of this project's backends, as `Work`."""

    batch: OneBatch

    def load(self) -> Callable[[], Detections]:
        """See `Work`."""
        run = self.batch.load()

        def detect() -> Detections:
            [(_, scores, _, masks)] = run()
            return scores, masks

        return detect


@dataclass(frozen=True)
class Other:
    """Another project's network, as `Work`; its score threshold leaves ``objects``."""

    network: str
    size: int
    """Input of ultralytics' networks, pixels."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    objects: int
    threads: int
    folder: Path
    """For files of its project."""
    file: Path | None = None
    """The exported network, if it is to run."""

    def load(self) -> Callable[[], Detections]:
        """See `Work`."""
        torch.manual_seed(0)
        detect = DETECTORS[OTHERS[self.network]](self)
        threshold = threshold_for(np.asarray(detect(0.0)[0]), self.objects)
        torch.set_num_threads(self.threads)  # libraries may have set another number
        return lambda: detect(threshold)


def threshold_for(scores: np.ndarray, objects: int) -> float:
    """The threshold between the ``objects`` highest scores and the next one; 0 if there is none.

    Detectors that visit objects by descending score, as greedy NMS does, keep the same ones with a higher threshold,
    as far as they are above it.
    """
    scores = np.sort(scores.astype(np.float64))[::-1]
    return float(scores[objects - 1 : objects + 1].mean()) if len(scores) > objects else 0.0


def main(
    networks: Annotated[
        list[str] | None, typer.Argument(metavar="[NETWORK...]", help=f"Default: {' '.join(OURS)}.", show_default=False)
    ] = None,
    others: Annotated[
        str, typer.Option(help="Networks of other projects, separated by commas; empty: none.")
    ] = ",".join(OTHERS),
    sizes: Annotated[str, typer.Option(help="Inputs of ultralytics' networks, pixels.")] = "320,640",
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The image.", show_default="a generated one")
    ] = None,
    bf16: Annotated[bool, typer.Option(help="Ours also in bfloat16; slow on CPUs without its instructions.")] = False,
    objects: Annotated[int, typer.Option(min=1, help="Objects that each network finds, roughly.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each network.")] = 10,
    minutes: Annotated[float, typer.Option(help="Start no round but the first after this time.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Print a table in Markdown, the fastest first; exit with 1 if a network could not be measured."""
    end = time.monotonic() + 60 * minutes
    names = [name for name in others.split(",") if name]
    if unknown := [name for name in names if name not in OTHERS]:
        raise SettingsError(f"--others {unknown[0]}: unknown; there are {', '.join(OTHERS)}")
    configs = {text: network_config(text) for text in networks or OURS}
    [pixels] = read_images([image]) if image else read_images([])
    torch.set_num_threads(threads)
    failures: list[str] = []
    processes: dict[str, Network] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="yolact-bench-")))
        rows: list[Row] = []
        for text, config in configs.items():
            rows += our_rows(text, config, folder, pixels, objects, failures, bf16=bf16)
        for name in names:
            if find_spec(OTHERS[name]) is None:
                progress(f"{name}: left out, because {OTHERS[name]} is not installed")
            else:
                task = Other(name, 0, pixels, objects, threads, folder)
                rows += other_rows(task, [int(size) for size in sizes.split(",")], failures)
        for row in rows:
            with noting(row.name, failures):
                network = Network(row.name, row.work, threads, pixels.shape[:2])
                processes[row.name] = stack.enter_context(network)
        runs: dict[str, TimedRun] = {name: process.turn for name, process in processes.items()}
        timing = Rounds(runs, lambda _: None)
        done = 0
        while done < rounds and (not done or time.monotonic() < end):
            done += 1
            progress(f"round {done} of at most {rounds}")
            timing.measure(1)
    print(f"{', '.join(versions())}; {threads} threads, {done} rounds, {pixels.shape[1]} x {pixels.shape[0]} pixels\n")
    print("| network | input, px | runtime | objects | least, ms | median, ms | memory, MiB |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, process in sorted(processes.items(), key=lambda item: np.median(timing.totals(item[0]))):
        least, middle = min(timing.totals(name)), np.median(timing.totals(name))
        print(f"| {name} | {process.objects} | {least:.1f} | {middle:.1f} | {process.memory.work:.0f} |")
    if failures:
        print("\n".join(failures), file=sys.stderr)
        raise typer.Exit(1)


def progress(text: str) -> None:
    """Say what is done now."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def noting(name: str, failures: list[str]) -> Iterator[None]:
    """Note that a network could not be measured, and go on with the others."""
    progress(name)
    try:
        yield
    except Exception as error:  # other projects' code may raise anything
        failures.append(f"{name}: not measured: {type(error).__name__}: {error}")


def versions() -> Iterator[str]:
    """The installed libraries."""
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def our_rows(
    text: str, config: ModelConfig, folder: Path, image: np.ndarray, objects: int, failures: list[str], *, bf16: bool
) -> list[Row]:
    """One of this project's networks in all runtimes that are installed."""
    progress(text)
    model = calibrated_network(config, len(VOC_CLASSES), image, objects)
    folder = Path(tempfile.mkdtemp(dir=folder))
    torch.save(model.state_dict(), folder / "weights.pth")
    threads = torch.get_num_threads()
    task = InferenceTask(folder / "weights.pth", config, VOC_CLASSES, DEFAULT_DETECTION, "cpu", threads)
    specs = {"PyTorch fp32": BackendSpec.own("fp32")}
    if bf16:
        specs["PyTorch bf16"] = BackendSpec.own("bf16")
    specs["ONNX Runtime fp32"] = BackendSpec.in_runtime("onnxruntime")
    if find_spec("nncf") is not None:
        specs["OpenVINO int8"] = BackendSpec.in_runtime("openvino", "int8")
    rows = []
    for runtime, spec in specs.items():
        with noting(f"{text}, {runtime}", failures):
            spec = exported(spec, folder, model, VOC_CLASSES, [image], 1, progress)
            rows.append(Row(text, config.image_size, runtime, Our(OneBatch(spec, task, [image]))))
    return rows


def other_rows(task: Other, sizes: Sequence[int], failures: list[str]) -> list[Row]:
    """Another project's network in its runtimes; ``sizes`` are those of ultralytics' networks."""
    if OTHERS[task.network] != "ultralytics":
        return [Row(task.network, OWN_SIZES[task.network], "PyTorch fp32", task)]
    rows = []
    for size in sizes:
        sized = replace(task, size=size)
        rows.append(Row(task.network, size, "PyTorch fp32", sized))
        with noting(f"{task.network}, {size} px, export", failures):
            file = in_new_process(export_ultralytics, sized)
            rows.append(Row(task.network, size, "ONNX Runtime fp32", replace(sized, file=file)))
    return rows


def ultralytics_network(task: Other) -> Any:
    """Its network with random weights."""
    # Nothing is installed, reported, printed or stored in the home folder.
    quiet = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    os.environ.update(quiet, YOLO_CONFIG_DIR=str(task.folder))
    from ultralytics import YOLO

    if task.file:
        return YOLO(task.file, task="segment")
    torch.manual_seed(0)
    yolo = YOLO(f"{task.network}.yaml", task="segment", verbose=False)
    network = yolo.model.eval()
    inputs = to_square(torch.from_numpy(task.image).permute(2, 0, 1), task.size)[None] / 255
    spread_outputs(network, {len(yolo.names), network.model[-1].nm}, lambda: network(inputs))
    return yolo


def spread_outputs(network: nn.Module, channels: set[int], run: Callable[[], object]) -> None:
    """Scale the last convolutions to an output of standard deviation `CLASS_LOGIT_SPREAD`, their bias not counted.

    Args:
        network: its last convolutions are those of 1 x 1 with a bias.
        channels: numbers of output channels of those to scale.
        run: has the network process an image.
    """

    def scale(convolution: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        # Not from the output: next to the bias, small values are rounded away.
        convolution.weight *= CLASS_LOGIT_SPREAD / F.conv2d(inputs[0], convolution.weight).std()

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    last = [module for module in convolutions if module.bias is not None and module.out_channels in channels]
    hooks = [module.register_forward_pre_hook(scale) for module in last]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()


def export_ultralytics(task: Other) -> Path:
    """Write its ONNX file."""
    folder = Path(tempfile.mkdtemp(dir=task.folder))
    yolo = ultralytics_network(task)
    os.chdir(folder)  # ultralytics writes there
    return folder / yolo.export(format="onnx", imgsz=task.size)


def ultralytics_detector(task: Other) -> Detector:
    """Its prediction with masks as large as the image."""
    yolo = ultralytics_network(task)
    image = np.ascontiguousarray(task.image[..., ::-1])  # as OpenCV reads

    def detect(threshold: float) -> Detections:
        [found] = yolo.predict(image, imgsz=task.size, conf=threshold, retina_masks=True, verbose=False, device="cpu")
        return found.boxes.conf, found.masks.data if found.masks else np.empty((0, *image.shape[:2]))

    return detect


def rfdetr_detector(task: Other) -> Detector:
    """RF-DETR's prediction."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from rfdetr import RFDETRSegNano

    network = RFDETRSegNano(pretrain_weights=None, device="cpu")

    def detect(threshold: float) -> Detections:
        found = network.predict(task.image, threshold=threshold, include_source_image=False)
        return found.confidence, found.mask

    return detect


def torchvision_detector(task: Other) -> Detector:
    """torchvision's prediction, its masks thresholded."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()

    def detect(threshold: float) -> Detections:
        network.roi_heads.score_thresh = threshold
        with torch.no_grad():
            [found] = network([torch.from_numpy(task.image).permute(2, 0, 1) / 255])
        return found["scores"], found["masks"].squeeze(1) > 0.5

    calibrate_batch_norm(network, lambda: detect(1.0))
    return detect


DETECTORS: dict[str, Callable[[Other], Detector]] = {
    "ultralytics": ultralytics_detector,
    "rfdetr": rfdetr_detector,
    "torchvision": torchvision_detector,
}


class Network(Process):
    """A network in a process of its own.

    Args:
        name: its row, for errors.
        work: its `Work.load` returns a function that makes `Detections`.
        threads: PyTorch's threads.
        size: the image's height and width, pixels.

    Raises:
        SettingsError: the process was killed, or the masks are not as large as the image.
    """

    def __init__(self, name: str, work: Work, threads: int, size: tuple[int, ...]) -> None:
        super().__init__(name, load_measured, work, torch.device("cpu"), threads)
        try:
            self.memory, self.objects, masks = self.call(first_result)
            if self.objects and masks != size:
                raise SettingsError(f"its masks have {masks} pixels, the image {size}")
        except BaseException:
            self.close()
            raise

    def turn(self, _: int) -> list[float]:
        """Milliseconds of the last run of a turn."""
        return [self.call(time_turn)]


Loaded = tuple[PeakMemory, Callable[[], Any]]
"""In a network's process: its peak memory, and what makes its detections."""


def first_result(loaded: Loaded) -> tuple[PeakMemory, int, tuple[int, ...]]:
    """A network's peak memory, number of objects, and height and width of the masks."""
    memory, detect = loaded
    scores, masks = detect()
    return memory, len(scores), tuple(masks.shape[1:])


def time_turn(loaded: Loaded) -> float:
    """Milliseconds of the last run of a turn."""
    [milliseconds] = last_of_turn(lambda: time_stages([lambda _: loaded[1]()], torch.device("cpu")))
    return milliseconds


if __name__ == "__main__":
    run_study(main)
