"""The model to predict with: a folder, an exported file, a registered version, or a folder on S3."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from yolact.devices import choose_device
from yolact.errors import DataError, SettingsError
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.network import Precision
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.openvino_predictor import OpenVinoPredictor
from yolact.inference.predictor import ImagePredictor, Predictor
from yolact.models.file_names import DESCRIPTION_FILE
from yolact.models.weight_sources import is_address
from yolact.settings import DEFAULT_DETECTION, DetectConfig
from yolact_ops.registry.model_files import fetch_model
from yolact_ops.registry.packaged_model import read_detection
from yolact_ops.registry.versions import DETECT_FILE, fetch_files

DEFAULT_MODEL = "models"
"""Folder that training writes."""

EXPORTED_DEVICES: dict[str, dict[str, list[str] | None]] = {
    ".onnx": {"auto": None, "cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider"]},
    ".xml": {"auto": None, "cpu": None},
}
"""Devices for exported files by the end of their name, with onnxruntime's execution providers; None: its choice."""


def load_predictor(
    model: str, *, device: str = "auto", precision: Precision = "fp32", batch_size: int = 8, **changes: Any
) -> tuple[ImagePredictor, str]:
    """Load a model.

    Args:
        model: a folder with ``model.safetensors`` and ``model.json``, an exported file (``.onnx``, or ``.xml`` of
            OpenVINO), ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or such a folder as ``s3://BUCKET/KEY``.
        device: as ``runtime.device``; exported files know those of `EXPORTED_DEVICES`.
        precision: of the network; an exported file has its own.
        batch_size: images per forward pass.
        **changes: fields of the detection settings to override. A registered version has settings of its own;
            other models start from the published ones.

    Returns:
        The predictor, and the model's address with an alias replaced by the version.

    Raises:
        DataError: there is no such model.
        WeightsError, ExportError, RegistryError, TrackingError, DownloadError: it is damaged or cannot be fetched.
        SettingsError: a setting has a wrong value.
    """
    if Path(model).suffix in EXPORTED_DEVICES and not is_address(model):
        exported = load_exported(Path(model), device=device, precision=precision, batch_size=batch_size, **changes)
        return exported, model
    with tempfile.TemporaryDirectory() as temporary:
        address, folder = (model, Path(model)) if not is_address(model) else fetch_model(model, Path(temporary))
        if not (folder / DESCRIPTION_FILE).is_file():
            raise DataError(
                f"{model}: no model is there. Train one (yolact train DIR), or name one by --model: a folder with "
                f"{DESCRIPTION_FILE}, an .onnx or .xml file, or models:/yolact@champion"
            )
        config = _detection(address, folder).replace(**changes)
        predictor = Predictor.load(folder, config, device=device, precision=precision, batch_size=batch_size)
        return predictor, address


def _detection(address: str, folder: Path) -> DetectConfig:
    """The model's own detection settings, or the published ones."""
    if address.startswith("models:/"):
        name, _, version = address.removeprefix("models:/").rpartition("/")
        return read_detection(fetch_files(name, int(version), folder, f"artifacts/{DETECT_FILE}").parent)
    return read_detection(folder) if (folder / DETECT_FILE).is_file() else DEFAULT_DETECTION


def load_exported(path: Path, *, device: str, precision: str, **options: Any) -> ExportedPredictor:
    """Open an exported file, whose name ends in one of `EXPORTED_DEVICES`.

    Args:
        path, device, precision: as for `load_predictor`.
        **options: those that `OnnxPredictor` and `OpenVinoPredictor` share.

    Raises:
        ExportError: it is damaged, or its runtime is missing.
        SettingsError: the file cannot run on the device or in the precision, or an option has a wrong value.
    """
    providers = EXPORTED_DEVICES[path.suffix]
    if precision != "fp32":
        raise SettingsError(f"precision {precision}: {path} has the precision that it was exported with")
    if device not in providers:
        raise SettingsError(f"device {device}: a file in {path.suffix} runs on {' or '.join(providers)}")
    if path.suffix == ".xml":
        return OpenVinoPredictor(path, **options)
    choose_device(device)
    return OnnxPredictor(path, providers=providers[device], **options)
