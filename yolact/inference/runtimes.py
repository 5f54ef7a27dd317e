"""Optional runtimes: importing their libraries, and opening exported files with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from yolact.errors import ExportError, SettingsError

EXTRAS = {"openvino": "openvino", "nncf": "openvino"}
"""The package's extra that a library belongs to; that of the others is ``export``."""

OPENVINO_SECTION = "yolact"
"""Section of an OpenVINO file's runtime information with the metadata."""


def require(*names: str) -> Any:
    """Import libraries that only exported networks need; returns the last one.

    Raises:
        ExportError: a library is missing or cannot be loaded.
    """
    module = None
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"{name} is needed for this and cannot be imported ({error}). To install it: pip install "
                f"'yolact-pipeline[{EXTRAS.get(name, 'export')}]'"
            ) from error
    return module


def open_session(
    path: Path, providers: Sequence[str] | None = None, threads: int | None = None, *, literal: bool = False
) -> Any:
    """Open an onnxruntime session for a file.

    Args:
        providers: onnxruntime's execution providers, best first; None for all available ones.
        threads: CPU threads; None for as many as PyTorch uses.
        literal: run each operator as it stands in the file. Otherwise onnxruntime replaces quantised convolutions by
            int8 kernels, whose sums saturate with 8-bit weights on CPUs without VNNI instructions.

    Raises:
        ExportError: onnxruntime is missing, or cannot load the file.
        SettingsError: onnxruntime does not have a provider.
    """
    onnxruntime = require("onnxruntime")
    _check_exists(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only: it warns about each constant that it folds
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    available = onnxruntime.get_available_providers()
    unknown = [name for name in providers or [] if name not in available]
    if unknown:
        raise SettingsError(f"providers: onnxruntime has no {', '.join(unknown)} here; it has {', '.join(available)}")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers or available))
    except Exception as error:  # its exceptions have no common base class
        raise ExportError(f"{path}: onnxruntime cannot load it: {error}") from error


def open_openvino(path: Path, device: str = "CPU", threads: int | None = None, *, exact: bool = False) -> Any:
    """Compile an OpenVINO file (``.xml``, with its ``.bin`` beside it) for a device.

    Args:
        device: OpenVINO's name of a device: CPU, GPU, NPU, AUTO.
        threads: CPU threads; None for as many as PyTorch uses.
        exact: compute in float32. Without it OpenVINO chooses: on CPUs with bfloat16 units, bfloat16.

    Raises:
        ExportError: OpenVINO is missing, or cannot load the file.
        SettingsError: there is no such device.
    """
    core = require("openvino").Core()
    available = core.available_devices
    if device.split(".")[0] not in {name.split(".")[0] for name in available} | {"AUTO"}:
        raise SettingsError(f"device {device}: OpenVINO has none here; it has {', '.join([*available, 'AUTO'])}")
    options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        options["INFERENCE_NUM_THREADS"] = threads or torch.get_num_threads()
    if exact:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    return _loaded(path, lambda: core.compile_model(core.read_model(path), device, options))


def openvino_metadata(path: Path) -> dict[str, str]:
    """What `yolact export` stored in an OpenVINO file about its network; empty for another file.

    Raises:
        ExportError: OpenVINO is missing, or cannot load the file.
    """
    core = require("openvino").Core()
    model = _loaded(path, lambda: core.read_model(path))
    if not model.has_rt_info([OPENVINO_SECTION]):
        return {}
    names = model.get_rt_info([OPENVINO_SECTION]).astype(dict)
    return {name: model.get_rt_info([OPENVINO_SECTION, name]).astype(str) for name in names}


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    """What OpenVINO makes of a file."""
    _check_exists(path)
    try:
        return load()
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot load it: {error}") from error


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise ExportError(f"{path}: no such file; `yolact export` writes it")
