"""Save and load models in this project's own format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yolact.errors import WeightsError
from yolact.files import replaced_file, write_json_atomic
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE, category_ids_of
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig

FORMAT = 2

ADDED_SETTINGS = {"keep_aspect_ratio": False, "separable_convs": False, "head_convs": 1, "protonet_convs": 3}
"""Settings that models of format 2 may lack, with the value used before the setting existed."""

MAKE_ONE = "Train one (`dvc repro train`) or import one (`yolact import-weights FILE`)"


def save_model(model: Yolact, classes: list[str], directory: Path, category_ids: Sequence[int] | None = None) -> None:
    """Write ``model.safetensors`` and ``model.json`` (configuration, class names and category ids), each atomically.

    Args:
        model: the network.
        classes: name of label 0, 1, ...
        directory: where to write.
        category_ids: COCO's category id of label 0, 1, ...; None for 1, 2, ...

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
    description = {"format": FORMAT, "classes": classes, "category_ids": list(category_ids or ())}
    description |= {"category_ids": category_ids_of(description), "model": model.config.model_dump()}
    write_json_atomic(directory / DESCRIPTION_FILE, description)


def read_category_ids(directory: Path) -> list[int]:
    """COCO's category id of each label of a model that `save_model` wrote.

    Raises:
        WeightsError: ``model.json`` is missing or damaged.
    """
    return category_ids_of(_read_description(directory / DESCRIPTION_FILE))


@dataclass(frozen=True)
class SavedModel:
    """The content of a model folder."""

    config: ModelConfig
    classes: list[str]
    tensors: dict[str, Tensor]


def read_saved(directory: Path) -> SavedModel:
    """Read the files that `save_model` wrote, without building the network.

    Raises:
        WeightsError: a file is missing, corrupt, or from another version.
    """
    description = _read_description(directory / DESCRIPTION_FILE)
    try:
        config = ModelConfig.model_validate(ADDED_SETTINGS | description["model"])
    except ValidationError as error:
        raise WeightsError(f"{directory / DESCRIPTION_FILE}: not a model of this version: {error}") from error
    path = directory / WEIGHTS_FILE
    try:
        with path.open("rb"):  # for safetensors, a file without permission is no file
            tensors = load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file. {MAKE_ONE}") from None
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file, or truncated: {error}") from error
    return SavedModel(config, description["classes"], tensors)


def load_model(directory: Path, device: torch.device | str = "cpu") -> tuple[Yolact, list[str]]:
    """Read a network that `save_model` wrote, in evaluation mode, and its class names.

    Raises:
        WeightsError: a file is missing or corrupt, or the weights do not fit the configuration.
    """
    saved = read_saved(directory)
    with torch.device("meta"):  # random weights would waste time and memory
        model = Yolact(saved.config, len(saved.classes))
    try:
        model.load_state_dict(saved.tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{directory / WEIGHTS_FILE}: does not fit {DESCRIPTION_FILE}: {error}") from error
    return model.to(device).eval(), saved.classes


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{path}: no such file. {MAKE_ONE}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error
    if not isinstance(description, dict) or not {"format", "classes", "model"} <= description.keys():
        raise WeightsError(f"{path}: needs the keys format, classes and model")
    if description["format"] != FORMAT:
        raise WeightsError(
            f"{path}: has format {description['format']!r}, but this version reads {FORMAT}. {MAKE_ONE} with it"
        )
    if not isinstance(description["model"], dict):
        raise WeightsError(f"{path}: model must be an object with settings (found {description['model']!r})")
    classes = description["classes"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise WeightsError(f"{path}: classes must be a list of names, at least one (found {classes!r})")
    ids = description.get("category_ids", [])  # absent from models written before ids were kept
    whole = isinstance(ids, list) and all(isinstance(number, int) for number in ids)
    if not whole or (ids and len(set(ids)) != len(classes)):
        raise WeightsError(f"{path}: category_ids must be {len(classes)} different whole numbers (found {ids!r})")
    return description
