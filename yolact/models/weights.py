"""Weights on disk: our own format, and what a backbone starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import get_model_weights

from yolact.config import ModelConfig
from yolact.errors import WeightsError
from yolact.files import replaced_file, write_json_atomic
from yolact.models.yolact import Yolact

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
FORMAT = 1


def save_model(model: Yolact, classes: list[str], directory: Path) -> None:
    """Write ``model.safetensors`` and ``model.json`` (configuration and class names), each whole or not at all.

    Raises:
        WeightsError: the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / WEIGHTS_FILE
    try:
        with replaced_file(path) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:  # a full disk, for example
        raise WeightsError(f"{path}: could not be written: {error}") from error
    description = {"format": FORMAT, "classes": classes, "model": model.config.model_dump()}
    write_json_atomic(directory / DESCRIPTION_FILE, description)


def load_model(directory: Path, device: torch.device | str = "cpu") -> tuple[Yolact, list[str]]:
    """Read a network that `save_model` wrote; it comes in evaluation mode, with its class names.

    Raises:
        WeightsError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    description = _read_description(directory / DESCRIPTION_FILE)
    classes = description["classes"]
    try:
        config = ModelConfig.model_validate(description["model"])
    except ValidationError as error:
        raise WeightsError(f"{directory / DESCRIPTION_FILE}: not a model of this version: {error}") from error
    model = Yolact(config, len(classes))
    path = directory / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. Run the train step first: dvc repro train") from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file, or cut short: {error}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path}: does not fit {DESCRIPTION_FILE}: {error}") from error
    return model.to(device).eval(), classes


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. Run the train step first: dvc repro train") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict) or not {"format", "classes", "model"} <= description.keys():
        raise WeightsError(f"{path}: needs the keys format, classes and model")
    if description["format"] != FORMAT:
        raise WeightsError(f"{path}: format {description['format']!r} is not known here; this version reads {FORMAT}")
    classes = description["classes"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{path}: classes must be a list of names, at least one (found {classes!r})")
    return description


def load_backbone_weights(model: Yolact) -> None:
    """Give the backbone the weights that ``model.config.backbone_weights`` names; ``none`` leaves it as it is.

    Raises:
        WeightsError: the weights cannot be downloaded or read, or do not fit the backbone.
    """
    source = model.config.backbone_weights
    if source == "none":
        return
    state = _imagenet_weights(model.config.backbone) if source == "imagenet" else _read_state_dict(Path(source))
    renamed = {_published_name(name): tensor for name, tensor in state.items() if not name.startswith("fc.")}
    expected = model.backbone.state_dict()
    for name in expected.keys() - renamed.keys():
        if name.endswith(".num_batches_tracked"):  # files from before PyTorch 0.4.1 lack it, and nothing here reads it
            renamed[name] = expected[name]
    missing = sorted(expected.keys() - renamed.keys())
    unknown = sorted(renamed.keys() - expected.keys())
    misfits = [
        f"{name} {tuple(renamed[name].shape)}"
        for name, tensor in expected.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown keys", unknown), ("has other shapes", misfits))
        if names
    ]
    if problems:
        raise WeightsError(
            f"model.backbone_weights: {source}: is not a torchvision {model.config.backbone}: {'; '.join(problems)}"
        )
    model.backbone.load_state_dict(renamed)


def _imagenet_weights(backbone: str) -> dict[str, Tensor]:
    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"model.backbone_weights: the ImageNet weights of {backbone} could not be downloaded ({error}). "
            "Download them elsewhere and name the file in model.backbone_weights, or set it to none."
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"model.backbone_weights: {path}: no such file") from None
    except Exception as error:  # torch.load raises many kinds for a damaged or unsafe file
        raise WeightsError(f"model.backbone_weights: {path}: not a readable state_dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"model.backbone_weights: {path}: holds no plain state_dict (names to tensors)")
    return state


def _published_name(name: str) -> str:
    """``layer3.0.conv1.weight`` (torchvision) -> ``layers.2.0.conv1.weight`` (published)."""
    for stage in range(4):
        name = name.replace(f"layer{stage + 1}.", f"layers.{stage}.", 1)
    return name
