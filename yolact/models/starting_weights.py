"""Load the weights that training starts from: a backbone's, or every layer of another network that fits."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from yolact.backbone_registry import find_backbone
from yolact.errors import WeightsError
from yolact.models.architecture import missing_names
from yolact.models.backbones.base import Backbone
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.file_names import DESCRIPTION_FILE
from yolact.models.state_dicts import read_state_dict, shortened
from yolact.models.weight_sources import check_weight_sources
from yolact.models.weights import SavedModel, read_saved
from yolact.models.yolact import Yolact
from yolact.settings import IMAGENET_VERSIONS, ModelConfig

log = logging.getLogger(__name__)

_BACKBONE = "backbone."
"""Prefix of the backbone's tensors in a network's."""

INPUT_SETTINGS = ("image_size", "keep_aspect_ratio", "anchor_scales", "anchor_ratios", "square_anchors")
"""Settings that affect what the tensors learned but not their shapes."""


def load_starting_weights(model: Yolact, classes: Sequence[str], path: Path | None = None) -> None:
    """Load the weights that the network's configuration names: ``initial_weights``, or else ``backbone_weights``.

    Args:
        model: the network.
        classes: its class names.
        path: where the named weights are; None: the name is their path.

    Raises:
        WeightsError: see `load_initial_weights`, `load_backbone_weights` and `check_weight_sources`.
    """
    if path is None:
        check_weight_sources(model.config)
    if model.config.initial_weights != "none":
        load_initial_weights(model, classes, path)
    else:
        load_backbone_weights(model, path)


# --- a whole network -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitialWeights:
    """Which layers were loaded from another network."""

    taken: list[str]
    """Layers with weights from the file."""
    reinitialised: list[str]
    """Layers, or whole modules, that keep their random weights, each with the reason."""
    unused: list[str]
    """Layers, or whole modules, that only the file has."""


def load_initial_weights(model: Yolact, classes: Sequence[str], path: Path | None = None) -> InitialWeights:
    """Load every layer that fits, by name and shape, from the folder ``model.config.initial_weights``.

    The other layers keep their weights. A layer is skipped as a whole if one of its tensors has another shape; if the
    file lacks some of its tensors, the others are loaded, so a deformable convolution can start from a plain one.
    Skipped layers are logged.

    Args:
        model: the network.
        classes: its class names; a warning is logged if the file has as many with other names.
        path: see `load_starting_weights`.

    Raises:
        WeightsError: the folder has no readable model, or its backbone belongs to another family.
    """
    name = model.config.initial_weights
    try:
        saved = read_saved(path or Path(name))
    except WeightsError as error:
        raise WeightsError(f"model.initial_weights: {error}") from error
    own = model.state_dict()
    fitting, result = _match_layers(own, saved.tensors)
    fits = any(layer.startswith(_BACKBONE) for layer in result.taken)
    if not fits or not _same_family(saved.config.backbone, model.config.backbone):
        raise WeightsError(
            f"model.initial_weights: {name}: its backbone ({saved.config.backbone}) does not match this network's "
            f"({model.config.backbone}); copy the settings of section model from its {DESCRIPTION_FILE}"
        )
    model.load_state_dict(own | fitting)
    _report(name, result, len(_by_layer(own)))
    _warn_of_other_meaning(name, saved, model.config, classes)
    return result


def _match_layers(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], InitialWeights]:
    """The saved tensors that fit, and the outcome for each layer."""
    own_layers, saved_layers = _by_layer(own), _by_layer(saved)
    fitting: dict[str, Tensor] = {}
    result = InitialWeights([], [], _topmost(saved_layers.keys() - own_layers.keys(), own_layers))
    for layer, names in own_layers.items():
        present = [name for name in names if name in saved]
        misfits = [name for name in present if saved[name].shape != own[name].shape]
        if misfits:
            result.reinitialised.append(f"{layer} ({_change(saved[misfits[0]], own[misfits[0]])})")
        elif present:
            fitting |= {name: saved[name] for name in present}
            result.taken.append(layer)
            result.reinitialised.extend(f"{name} (not in the file)" for name in missing_names(present, names))
    absent = _topmost(own_layers.keys() - saved_layers.keys(), saved_layers)
    result.reinitialised.extend(f"{module} (not in the file)" for module in absent)
    return fitting, result


def _by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by layer."""
    layers: dict[str, list[str]] = defaultdict(list)
    for name in names:
        layers[name.rpartition(".")[0]].append(name)
    return dict(layers)


def _topmost(layers: Iterable[str], others: Iterable[str]) -> list[str]:
    """The largest modules that contain these layers and none of the others, sorted."""
    shared = {module for layer in others for module in _modules(layer)}
    return sorted({next((m for m in _modules(layer) if m not in shared), layer) for layer in layers})


def _modules(layer: str) -> Iterator[str]:
    """``a.b.c``: a, a.b, a.b.c."""
    return itertools.accumulate(layer.split("."), "{}.{}".format)


def _change(saved: Tensor, own: Tensor) -> str:
    """How a weight's two shapes differ, for the log."""
    before, after = tuple(saved.shape), tuple(own.shape)
    if before[1:] == after[1:]:
        return f"{before[0]} -> {after[0]} channels"
    if before[:1] + before[2:] == after[:1] + after[2:]:
        return f"{before[1]} -> {after[1]} input channels"
    return f"{before} -> {after}"


def _same_family(backbone: str, other: str) -> bool:
    """Whether they differ at most in their blocks."""
    ours, theirs = find_backbone(backbone), find_backbone(other)
    return ours == theirs or (ours.implementation == theirs.implementation and not ours.fixed)


def _report(source: str, result: InitialWeights, layers: int) -> None:
    log.info("model.initial_weights: %d of %d layers loaded from %s", len(result.taken), layers, source)
    if result.reinitialised:
        log.info("reinitialised: %s", ", ".join(result.reinitialised))
    if result.unused:
        log.info("not in this network, ignored: %s", ", ".join(result.unused))


def _warn_of_other_meaning(source: str, saved: SavedModel, config: ModelConfig, classes: Sequence[str]) -> None:
    """Warn about classes and input settings that differ: equal shapes do not mean equal semantics."""
    others = [(theirs, ours) for theirs, ours in zip(saved.classes, classes, strict=False) if theirs != ours]
    if len(saved.classes) == len(classes) and others:
        log.warning(
            "model.initial_weights: %s also has %d classes, but %d with other names: its weights for %r initialise "
            "those for %r",
            source,
            len(classes),
            len(others),
            *others[0],
        )
    settings = [name for name in INPUT_SETTINGS if getattr(saved.config, name) != getattr(config, name)]
    if settings:
        log.warning("model.initial_weights: %s was trained with other %s", source, ", ".join(settings))


# --- a backbone ------------------------------------------------------------------------------------------------------


def load_backbone_weights(model: Yolact, path: Path | None = None) -> None:
    """Load the backbone's weights that ``model.config.backbone_weights`` names; ``none`` keeps the random ones.

    A file may have the backbone's own names, those that `Backbone.rename_weights` knows, or a whole network's, of which
    the backbone is taken. If it has no deformable convolutions but the backbone does, they take the weights of the
    plain ones and the rest stays zero, as published.

    Args:
        model: the network.
        path: see `load_starting_weights`.

    Raises:
        WeightsError: the weights cannot be downloaded or read, or do not fit the backbone.
    """
    source = model.config.backbone_weights
    if source == "none":
        return
    backbone = model.backbone
    state = _imagenet_weights(model) if source in IMAGENET_VERSIONS else _read_backbone(path or Path(source))
    own = {name.removeprefix(_BACKBONE): tensor for name, tensor in state.items() if name.startswith(_BACKBONE)}
    renamed = backbone.rename_weights(own or state)
    problems = _misfits(renamed, backbone)
    if problems:
        raise WeightsError(f"model.backbone_weights: {source}: does not fit {model.config.backbone}: {problems}")
    backbone.load_state_dict(backbone.state_dict() | renamed)


def _misfits(state: Mapping[str, Tensor], backbone: Backbone) -> str:
    """Why a state does not fit the backbone; empty if it does."""
    own = backbone.state_dict()
    missing = missing_names(state, own)
    if not any(".conv_offset_mask." in name for name in state):
        deformable = _deformable_only(backbone)
        missing = [name for name in missing if name not in deformable]
    shapes = [
        f"{name} {tuple(state[name].shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return "; ".join(
        f"{what}: {shortened(names)}"
        for what, names in (
            ("lacks", missing),
            ("has unknown keys", [name for name in state if name not in own]),
            ("has other shapes", shapes),
        )
        if names
    )


def _deformable_only(backbone: Backbone) -> set[str]:
    """Names of the tensors that only deformable convolutions have, not plain ones without bias."""
    layers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, DeformableConv2d)]
    return {f"{name}.{tensor}" for name, module in layers for tensor in module.state_dict() if tensor != "weight"}


def _imagenet_weights(model: Yolact) -> dict[str, Tensor]:
    name, source = model.config.backbone, model.config.backbone_weights
    try:
        return model.backbone.imagenet_weights(name, IMAGENET_VERSIONS[source])
    except WeightsError as error:
        raise WeightsError(f"model.backbone_weights: {source}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"model.backbone_weights: the ImageNet weights of {name} could not be downloaded or read "
            f"({error}). Download them elsewhere and name the file in model.backbone_weights, or set it to none."
        ) from error


def _read_backbone(path: Path) -> dict[str, Tensor]:
    try:
        return read_state_dict(path)
    except WeightsError as error:
        raise WeightsError(f"model.backbone_weights: {error}") from error
