"""Import published checkpoints: infer the network from the file, and load its weights.

The published ``.pth`` files are plain state_dicts with the names that this project uses too. Names and shapes determine
the whole `ModelConfig` except the input size and the anchors; those come from the published configuration with the same
network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from yolact.errors import DataError, WeightsError
from yolact.models.architecture import Architecture
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.models.published import (
    COCO_SCALES,
    PUBLISHED_MODELS,
    REFERENCE_SIZE,
    PublishedModel,
    find_published,
    scaled,
    thirds,
)
from yolact.models.state_dicts import read_state_dict, shortened
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig

log = logging.getLogger(__name__)

DOWNSAMPLE_LAYERS = 2
"""Downsampling layers of the pyramid, for P6 and P7; files of version 1.0 have more, which it never used."""

_COPY = re.compile(r"backbone\.layer[1-4]\.")
"""The second copy of a ResNet in files of version 1.0, under torchvision's names."""


@dataclass(frozen=True)
class ImportedModel:
    """A network with the weights of a published checkpoint."""

    network: Yolact
    """In evaluation mode, on the CPU, in float32."""
    classes: list[str]
    published: str | None
    """The matching published configuration, with any classes; None if there is none."""
    dropped: list[str]
    """Tensors in the file that version 1.0 wrote and never used."""


def import_checkpoint(
    path: Path,
    *,
    model: str | None = None,
    image_size: int | None = None,
    anchor_scales: Sequence[Sequence[float]] | None = None,
    anchor_ratios: Sequence[float] | None = None,
    square_anchors: bool | None = None,
    classes: Sequence[str] | None = None,
) -> ImportedModel:
    """Read a checkpoint of the published code.

    Args:
        path: a ``.pth`` or safetensors file, see `read_state_dict`.
        model: name of the published configuration.
        image_size, anchor_scales, anchor_ratios, square_anchors: see `infer_model_config`.
        classes: names; by default COCO's for 80 classes, PASCAL VOC's for 20, else ``class_1``, ``class_2``, ...

    Raises:
        WeightsError: the file cannot be read, is not a complete, consistent YOLACT, contradicts ``model``, has values
            that are not finite, or has a different number of classes than there are names.
        SettingsError: there is no published configuration ``model``.
    """
    if path.name == WEIGHTS_FILE and (path.parent / DESCRIPTION_FILE).is_file():
        raise WeightsError(f"{path}: already is a model of this project; use the folder {path.parent} directly")
    state, dropped = without_unused(read_state_dict(path))
    try:
        config = infer_model_config(
            state,
            image_size=image_size,
            anchor_scales=anchor_scales,
            anchor_ratios=anchor_ratios,
            square_anchors=square_anchors,
            name_hint=path.name,
            model=model,
        )
        _check_finite(state)
        names = _class_names(len(state["semantic_seg_conv.weight"]), classes)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    network = _with_weights(config, len(names), state)
    published = next((known.name for known in PUBLISHED_MODELS.values() if known.model == config), None)
    return ImportedModel(network, names, published, dropped)


def without_unused(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state without the tensors that version 1.0 of the published code saved and never used, and their names.

    Its files have a second copy of a ResNet under torchvision's names (``backbone.layer1`` to ``backbone.layer4``), and
    more downsampling layers than the pyramid has levels.
    """
    published = any(name.startswith("backbone.layers.") for name in state)
    unused = [name for name in state if (published and _COPY.match(name)) or _is_unused_level(name)]
    return {name: tensor for name, tensor in state.items() if name not in set(unused)}, unused


def infer_model_config(
    state: Mapping[str, Tensor],
    *,
    image_size: int | None = None,
    anchor_scales: Sequence[Sequence[float]] | None = None,
    anchor_ratios: Sequence[float] | None = None,
    square_anchors: bool | None = None,
    name_hint: str | None = None,
    model: str | None = None,
) -> ModelConfig:
    """Infer the configuration of the network that has these tensors.

    Only names and shapes are read, so tensors may be on the device ``meta``. They do not determine the input size and
    the anchors; those not given come from a published configuration: ``model``, else one with the same network, else
    ``yolact_base`` or ``yolact_plus_base``, by anchors per cell. A warning is logged if others would fit as well.
    Anchor scales are for the published input size, and are scaled in proportion for another one.

    Args:
        state: all tensors of a network by published name, after `without_unused`.
        image_size: side of the network's input, pixels.
        anchor_scales: sides in those pixels, a list per level P3 to P7.
        anchor_ratios: width / height.
        square_anchors: see `ModelConfig`.
        name_hint: name of the file; among published configurations with the same network, the one with the longest
            name that the file name starts with is taken (``yolact_im700_54_800000.pth``).
        model: name of the published configuration that it must match, except the number of classes.

    Raises:
        WeightsError: the tensors are not those of a complete YOLACT, contradict each other, ``model`` or the given
            anchors, or no published configuration has as many anchors per cell.
        SettingsError: there is no published configuration ``model``.
    """
    architecture = Architecture.of_state(state)
    like = None if model is None else _named(architecture, model)
    if image_size is None or anchor_scales is None or anchor_ratios is None or square_anchors is None:
        like = like or _most_alike(architecture, name_hint or "", sized=image_size is not None)
        image_size = like.model.image_size if image_size is None else image_size
        anchor_scales = _anchor_scales(like.model, image_size) if anchor_scales is None else anchor_scales
        anchor_ratios = like.model.anchor_ratios if anchor_ratios is None else anchor_ratios
        square_anchors = like.model.square_anchors if square_anchors is None else square_anchors
    try:
        config = architecture.model_config(image_size, anchor_scales, anchor_ratios, square_anchors)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors()]
        raise WeightsError(f"does not give a valid network: {'; '.join(problems)}") from error
    if config.anchors_per_cell != architecture.anchors_per_cell:
        raise WeightsError(
            f"has {architecture.anchors_per_cell} anchors per cell; the scales and ratios given make "
            f"{config.anchors_per_cell}"
        )
    return config


def read_class_names(path: Path) -> list[str]:
    """Read class names from a text file, one per line; empty lines are skipped.

    Raises:
        DataError: the file is missing, is not UTF-8, or repeats a name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: has duplicate names: {shortened(twice)}")
    return names


def _is_unused_level(name: str) -> bool:
    downsample = re.match(r"fpn\.downsample_layers\.(\d{1,4})\.", name)
    return downsample is not None and int(downsample[1]) >= DOWNSAMPLE_LAYERS


def _named(architecture: Architecture, name: str) -> PublishedModel:
    """The published configuration with that name; it must have the same network."""
    published = find_published(name)
    differences = architecture.differences(Architecture.of_config(published.model, len(published.classes)))
    if differences:
        raise WeightsError(f"is not {name}: {'; '.join(differences)}")
    if len(published.classes) != architecture.num_classes:
        log.warning(
            "the weights have %d classes, not the %d of %s", architecture.num_classes, len(published.classes), name
        )
    return published


def _most_alike(architecture: Architecture, file_name: str, sized: bool) -> PublishedModel:
    """The published configuration to take anchors and image size from; warns if that is a guess.

    Args:
        sized: the image size is known, so configurations that differ only in it count as one.
    """
    number = architecture.num_classes
    same = [known for known in PUBLISHED_MODELS.values() if Architecture.of_config(known.model, number) == architecture]
    named = [known for known in same if _starts_with(file_name, known.name)]
    exact = [known for known in same if len(known.classes) == number]
    why, ways = "", ["the published configuration (--model NAME)"]
    if named:
        chosen = max(named, key=lambda known: len(known.name))
        if chosen not in exact:
            why = f"the file is named like it, though it has {number} classes"
    elif exact:
        chosen = exact[0]  # the one with the reference size
        if len(exact) > 1 and not sized:
            why = f"{', '.join(known.name for known in exact)} have the same keys and shapes"
    elif same:
        chosen = same[0]
        why = f"it has the same network, though {len(chosen.classes)} classes and not {number}"
    else:
        chosen = _same_anchors(architecture.anchors_per_cell)
        why = "no published configuration has this network, and that one has as many anchors per cell"
        ways = ["the anchors (arguments of import_checkpoint in Python)"]
    if why:
        log.warning(
            "the weights do not determine the %s, taken from %s: %s. If that is wrong, give %s",
            "anchors" if sized else "anchors and the image size",
            chosen.name,
            why,
            " or ".join(ways if sized else [*ways, "the image size (--image-size N)"]),
        )
    return chosen


def _same_anchors(per_cell: int) -> PublishedModel:
    for known in PUBLISHED_MODELS.values():
        if known.model.anchors_per_cell == per_cell:
            return known
    raise WeightsError(
        f"has {per_cell} anchors per cell, unlike any published configuration; give image_size, anchor_scales, "
        "anchor_ratios and square_anchors to yolact.models.checkpoints.import_checkpoint in Python"
    )


def _starts_with(file_name: str, name: str) -> bool:
    return re.match(rf"{re.escape(name)}(?![a-zA-Z0-9])", file_name) is not None


def _anchor_scales(like: ModelConfig, size: int) -> list[list[float]]:
    """Anchor scales of a published configuration, for another input size."""
    if size == like.image_size:
        return like.anchor_scales
    reference = [int(level[0]) for level in like.anchor_scales] if like.image_size == REFERENCE_SIZE else COCO_SCALES
    plain = scaled(reference, size)
    return plain if len(like.anchor_scales[0]) == 1 else thirds([scale for [scale] in plain])


def _check_finite(state: Mapping[str, Tensor]) -> None:
    faulty = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if faulty:
        raise WeightsError(f"has numbers that are not finite (NaN or infinity) in {shortened(faulty)}")


def _class_names(number: int, given: Sequence[str] | None) -> list[str]:
    if given is not None:
        if len(given) != number:
            raise WeightsError(f"has {number} classes, but {len(given)} class names are given")
        return list(given)
    known = {len(published.classes): published.classes for published in PUBLISHED_MODELS.values()}
    return list(known.get(number, [f"class_{index + 1}" for index in range(number)]))


def _with_weights(config: ModelConfig, num_classes: int, state: Mapping[str, Tensor]) -> Yolact:
    with torch.device("meta"):  # no random weights, which would only be overwritten
        network = Yolact(config, num_classes)
    tensors = {}
    for name, tensor in network.state_dict().items():
        value = state[name] if name in state else torch.zeros(())  # counters of batch norm may be missing
        tensors[name] = value.to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    network.load_state_dict(tensors, assign=True)
    return network.eval()
