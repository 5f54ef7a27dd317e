"""Open an exported file in the runtime that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from yolact.errors import SettingsError
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.openvino_predictor import OpenVinoPredictor
from yolact.inference.predictor import DetectChanges
from yolact.settings import DEFAULT_DETECTION, DetectConfig

RUNTIMES: dict[str, type[OnnxPredictor] | type[OpenVinoPredictor]] = {".onnx": OnnxPredictor, ".xml": OpenVinoPredictor}
"""Predictors by the end of the file's name."""


def open_exported(
    path: Path,
    config: DetectConfig = DEFAULT_DETECTION,
    *,
    threads: int | None = None,
    batch_size: int = 8,
    **changes: Unpack[DetectChanges],
) -> ExportedPredictor:
    """A predictor for a file that `yolact export` wrote: ``.onnx`` in onnxruntime, ``.xml`` in OpenVINO.

    Raises:
        SettingsError: the name has another end, or a setting has a wrong value.
        ExportError: see `ExportedPredictor`.
    """
    runtime = RUNTIMES.get(path.suffix)
    if runtime is None:
        raise SettingsError(f"{path}: an exported model's name ends in {' or '.join(RUNTIMES)}")
    return runtime(path, config, threads=threads, batch_size=batch_size, **changes)
