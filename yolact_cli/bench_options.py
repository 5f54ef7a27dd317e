"""The options of `yolact bench` as objects: backends, networks, detection settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from rich.console import Console

from yolact.class_names import VOC_CLASSES
from yolact.devices import choose_device
from yolact.errors import SettingsError
from yolact.inference.network import Precision
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.weights import load_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION, DetectConfig, ModelConfig
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.calibration import calibrated_network
from yolact_ops.settings.presets import choose

DETECTIONS: dict[str, DetectConfig] = {
    "default": DEFAULT_DETECTION,
    "published": PUBLISHED_DETECTION,
    # The published code does this too when it is called with a score threshold.
    "published-no-tail": PUBLISHED_DETECTION.replace(low_score_tail=False),
}
"""Detection settings by the name in ``--detection``."""


def prepare(device: str, threads: int | None) -> torch.device:
    """Choose the device, and the number of PyTorch's threads for the whole process.

    Raises:
        SettingsError: there is no such device.
    """
    chosen = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    return chosen


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows a progress line in the terminal; silent without a terminal."""
    with Console(stderr=True).status("starting") as status:
        yield status.update


RUNTIMES = {
    "onnxruntime": (BackendSpec.in_runtime("onnxruntime"), "onnxruntime"),
    "onnxruntime-fp16": (BackendSpec.in_runtime("onnxruntime", "fp16"), "onnxruntime"),
    "onnxruntime-int8": (BackendSpec.in_runtime("onnxruntime", "int8"), "onnxruntime"),
    "openvino": (BackendSpec.in_runtime("openvino"), "openvino"),
    "openvino-fp16": (BackendSpec.in_runtime("openvino", "fp16"), "openvino"),
    "openvino-int8": (BackendSpec.in_runtime("openvino", "int8"), "nncf"),
}
"""Backends by the name in ``--runtime``, and the library that each needs."""


def runtime_specs(runtimes: str, device: torch.device) -> tuple[list[BackendSpec], list[str]]:
    """The runtimes to compare, and with ``all`` those that are left out because a library is not installed.

    Raises:
        SettingsError: a name is unknown, or the device is not the CPU.
    """
    if not runtimes:
        return [], []
    if device.type != "cpu":
        raise SettingsError(f"--runtime {runtimes}: other runtimes are measured on the CPU; add --device cpu")
    names = list(RUNTIMES) if runtimes == "all" else runtimes.split(",")
    for name in names:
        if name not in RUNTIMES:
            raise SettingsError(f"--runtime {name}: unknown; there are {', '.join(RUNTIMES)}, and all")
    missing = [name for name in names if runtimes == "all" and find_spec(RUNTIMES[name][1]) is None]
    specs = [RUNTIMES[name][0] for name in names if name not in missing]
    return specs, [f"{name}: left out, because {RUNTIMES[name][1]} is not installed" for name in missing]


def backend_specs(
    precision: str, against: Sequence[Path], *, compile: bool = False, runtimes: Sequence[BackendSpec] = ()
) -> list[BackendSpec]:
    """The backends to compare, other implementations first: the first one is the reference.

    Raises:
        SettingsError: a precision is unknown, or a backend is named twice.
    """
    precisions = precision.split(",")
    for name in precisions:
        if name not in get_args(Precision):
            raise SettingsError(f"--precision {name}: unknown; there are {', '.join(get_args(Precision))}")
    specs = [BackendSpec.other(file) for file in against]
    for compiled in (False, True) if compile else (False,):
        specs += [BackendSpec.own(cast(Precision, name), compile=compiled) for name in precisions]
    specs += runtimes
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise SettingsError(f"each backend can be measured only once, found {', '.join(names)}")
    return specs


def find_detection(name: str) -> DetectConfig:
    """Detection settings by name.

    Raises:
        SettingsError: the name is unknown.
    """
    if name not in DETECTIONS:
        raise SettingsError(f"--detection {name}: unknown; there are {', '.join(DETECTIONS)}")
    return DETECTIONS[name]


def find_network(name: str) -> tuple[ModelConfig, Sequence[str]]:
    """The network of a published configuration with its classes, or of another preset with VOC's.

    Raises:
        SettingsError: there is no such preset.
    """
    published = PUBLISHED_MODELS.get(name)
    return (published.model, published.classes) if published else (choose(name).model, VOC_CLASSES)


def build_network(
    model_dir: Path | None, model: str, image: np.ndarray, objects: int
) -> tuple[Yolact, Sequence[str], str]:
    """A trained network, or that of a preset with random weights that find some objects in ``image``.

    Args:
        model_dir: folder of a trained model; None for a preset.
        model: name of a published configuration, or of another preset, which then has VOC's classes.
        image: (H, W, 3) uint8 RGB.
        objects: how many objects random weights find there, roughly.

    Returns:
        The network, its class names and the origin of its weights.

    Raises:
        WeightsError: the trained model cannot be read.
        SettingsError: there is no such preset.
    """
    if model_dir is not None:
        return *load_model(model_dir), str(model_dir)
    config, classes = find_network(model)
    network = calibrated_network(config, len(classes), image, objects)
    return network, classes, f"{model}, random weights that find about {objects} objects"
