"""Checks of whole configurations without weights: key names, shapes, parameter counts, anchors.

Published configurations come from `yolact.models.published`. Others are inferred: the network from its keys and shapes,
the anchors from the settings stored next to their counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from yolact.errors import DataError
from yolact.models.anchors import pyramid_anchors
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.yolact import Yolact
from yolact.settings import PYRAMID_LEVELS, ModelConfig
from yolact_bench.parity.anchors import AnchorSettings
from yolact_bench.parity.fixture import Fixture
from yolact_bench.parity.report import Checks

ANCHOR_KEYS = {"num_priors", "pred_scales", "pred_aspect_ratios", "max_size"}
"""Settings that identify a list of configurations with their anchors."""


def is_state_dict_shapes(fixture: Fixture) -> bool:
    """Whether JSON holds configurations, each with its keys and their shapes."""
    return _is_table(fixture.tree) and all(
        isinstance(shape, list) and all(isinstance(side, int) for side in shape)
        for shapes in fixture.tree.values()
        for shape in shapes.values()
    )


def is_anchor_settings(fixture: Fixture) -> bool:
    """Whether JSON holds configurations, each with its anchor settings."""
    return _is_table(fixture.tree) and all(settings.keys() >= ANCHOR_KEYS for settings in fixture.tree.values())


def _is_table(tree: Any) -> bool:
    return isinstance(tree, dict) and bool(tree) and all(isinstance(row, dict) and row for row in tree.values())


def is_anchor_rows(fixture: Fixture) -> bool:
    """Whether a file holds single anchors of configurations."""
    return any(f"{name}/index" in fixture and f"{name}/rows" in fixture for name in fixture.children())


class Configurations:
    """Configurations by name, from all files of a directory."""

    def __init__(self, fixtures: Iterable[Fixture]) -> None:
        self.stored: dict[str, dict[str, Any]] = {}
        self.shapes: dict[str, dict[str, list[int]]] = {}
        self._networks: dict[str, Yolact] = {}
        for fixture in fixtures:
            if is_anchor_settings(fixture):
                self.stored |= fixture.tree
            elif is_state_dict_shapes(fixture):
                self.shapes |= fixture.tree

    def anchor_settings(self, name: str) -> AnchorSettings | None:
        """Anchor settings of the published configuration with this name, else the stored ones; None without either."""
        if name in PUBLISHED_MODELS:
            return AnchorSettings.of_model(PUBLISHED_MODELS[name].model)
        return AnchorSettings.of_stored(self.stored[name]) if name in self.stored else None

    def anchors(self, name: str) -> Tensor:
        """Anchors (A, 4) of a configuration for its square input.

        Raises:
            DataError: its settings are unknown.
        """
        settings = self.anchor_settings(name)
        if settings is None:
            raise DataError(f"{name} is not a published configuration, and no JSON file here has its anchor settings")
        size = settings.image_size
        levels = Yolact.level_sizes(size, size)
        return pyramid_anchors(levels, settings.scales, settings.ratios, size, settings.square)

    def network(self, name: str) -> Yolact | None:
        """A configuration's network on the meta device; None if its architecture is unknown."""
        if name not in self._networks and (name in PUBLISHED_MODELS or name in self.shapes):
            with torch.device("meta"):
                self._networks[name] = self._build(name)
        return self._networks.get(name)

    def _build(self, name: str) -> Yolact:
        if name in PUBLISHED_MODELS:
            return Yolact(PUBLISHED_MODELS[name].model, len(PUBLISHED_MODELS[name].classes))
        state = {key: torch.empty(shape) for key, shape in self.shapes[name].items()}
        return Yolact(self._inferred(name, state), len(state["semantic_seg_conv.weight"]))

    def _inferred(self, name: str, state: dict[str, Tensor]) -> ModelConfig:
        settings = self.anchor_settings(name)
        if settings is None:  # keys and shapes depend on the number of anchors per cell alone
            per_cell = len(state["prediction_layers.0.bbox_layer.bias"]) // 4
            settings = AnchorSettings(550, [[1.0] * per_cell] * PYRAMID_LEVELS, [1.0], square=True)
        return settings.model_config(state)


def check_state_dicts(checks: Checks, configurations: Configurations) -> None:
    """Check keys and shapes of every configuration."""
    for name, expected in checks.fixture.tree.items():
        with checks.part(f"{name} (keys and shapes)"):
            for key in expected:
                checks.fixture.value(f"{name}/{key}")
            network = configurations.network(name)
            assert network is not None
            found = {key: list(value.shape) for key, value in network.state_dict().items()}
            keys = sorted(found.keys() | expected.keys())
            equal = [found.get(key) == expected.get(key) for key in keys]
            wrong = [key for key, same in zip(keys, equal, strict=True) if not same]
            note = f"differ: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}" if wrong else ""
            checks.value(f"{name} (keys and shapes)", equal, [True] * len(keys), note=note)


def check_anchor_settings(checks: Checks, configurations: Configurations) -> None:
    """Check the anchors of every configuration, and everything else stored about its network."""
    for name in checks.fixture.tree:
        with checks.part(name):
            _check_anchors(checks, name, configurations)
        with checks.part(f"{name} (network)"):
            _check_network(checks, name, configurations)


def _check_anchors(checks: Checks, name: str, configurations: Configurations) -> None:
    fixture = checks.fixture
    settings, stored = configurations.anchor_settings(name), AnchorSettings.of_stored(fixture.tree[name])
    assert settings is not None
    for key, ours, theirs in (
        ("max_size", settings.image_size, stored.image_size),
        ("pred_scales", settings.scales, stored.scales),
        ("pred_aspect_ratios", settings.ratios, stored.ratios),
        ("use_square_anchors", settings.square, stored.square),
        ("preapply_sqrt", False, fixture.tree[name].get("preapply_sqrt")),
        ("use_pixel_scales", True, fixture.tree[name].get("use_pixel_scales")),
    ):
        if f"{name}/{key}" in fixture:
            fixture.value(f"{name}/{key}")
            if name in PUBLISHED_MODELS:  # else ours are the stored ones
                checks.value(f"{name}/{key}", ours, theirs)
    anchors = configurations.anchors(name)
    exact = anchors.double()
    checks.array(f"{name}/num_priors", len(anchors))
    checks.array(f"{name}/column_sums", exact.sum(dim=0))
    checks.array(f"{name}/column_sums_of_squares", exact.square().sum(dim=0))


def _check_network(checks: Checks, name: str, configurations: Configurations) -> None:
    """Check the numbers of classes and parameters, and the shapes of outputs."""
    network = configurations.network(name)
    if network is None:
        return
    size = network.config.image_size
    with torch.no_grad(), torch.device("meta"):
        outputs = network.train()(torch.zeros(1, 3, size, size))
    assert outputs.semantic_logits is not None
    last = len(network.config.blocks)  # C3 to C5 are the last three stages
    if f"{name}/num_priors" in checks.fixture:
        expected = checks.fixture.tensor(f"{name}/num_priors")
        checks.value(f"{name}/num_priors (predictions)", outputs.boxes.shape[1], expected)
    for key, found in (
        ("num_classes_with_background", network.num_classes + 1),
        ("parameters", sum(parameter.numel() for parameter in network.parameters())),
        ("proto_shape", list(outputs.prototypes.shape)),
        ("segm_shape", list(outputs.semantic_logits.shape)),
        ("selected_layers", list(range(last - 3, last))),
    ):
        if f"{name}/{key}" in checks.fixture:
            checks.array(f"{name}/{key}", found)


def check_anchor_rows(checks: Checks, configurations: Configurations) -> None:
    """Check single anchors of every configuration."""
    fixture = checks.fixture
    for name in fixture.children():
        if fixture.has(name):
            with checks.part(f"{name}/rows"):
                index, rows = fixture.tensor(f"{name}/index"), fixture.tensor(f"{name}/rows")
                checks.value(f"{name}/rows", configurations.anchors(name)[index], rows)
