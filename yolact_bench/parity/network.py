"""Checks of the whole network: outputs in every mode, batch norm, single layers."""

from __future__ import annotations

import torch
from torch import Tensor

from yolact.errors import DataError
from yolact.inference.network import InferenceNetwork
from yolact.models.architecture import COUNTER
from yolact.models.yolact import Yolact
from yolact.structures import RawOutputs
from yolact_bench.parity.anchors import AnchorSettings
from yolact_bench.parity.detection import check_detection
from yolact_bench.parity.fixture import Fixture
from yolact_bench.parity.losses import check_network_losses
from yolact_bench.parity.report import Checks
from yolact_bench.parity.stored import FIELDS, input_size

STATE = "sd"
"""Folder of the network's state dict."""


def is_network(fixture: Fixture) -> bool:
    """Whether a file holds the weights of a network."""
    return fixture.has(STATE)


def check_network(checks: Checks) -> None:
    """Check everything in a file with a network's weights: outputs, detections, AP, single layers, losses."""
    fixture = checks.fixture
    network: Yolact | None = None
    with checks.part(f"{STATE} (building the network)"):
        network = build_network(fixture, batch_statistics=False)
    if network is not None:
        for folder, prefix in _outputs(fixture):
            with checks.part(folder):
                _check_outputs(checks, network, folder, fixture.tensor(prefix + "input"))
        with checks.part("bn_batch"):
            _check_batch_statistics(checks)
        with checks.part("dcn_unit"):
            _check_layer(checks, network)
        for folder in fixture.children():
            if folder.startswith("maskiou") and f"{folder}/input" in fixture:
                with checks.part(folder):
                    _check_maskiou(checks, network, folder)
    check_detection(checks, network)
    check_network_losses(checks, network)


def _outputs(fixture: Fixture) -> list[tuple[str, str]]:
    """Folders with outputs of the network, each with the prefix of its array ``input``."""
    folders = [("train", "")] if fixture.has("train") else []
    for folder in fixture.children():
        names = fixture.children(folder)
        if "input" in names and not FIELDS.keys().isdisjoint(names):
            folders.append((folder, f"{folder}/"))
    return folders


@torch.no_grad()
def _check_outputs(checks: Checks, network: Yolact, folder: str, images: Tensor) -> None:
    """Check the network in training mode with frozen batch norm, in evaluation mode, and prepared for inference."""
    fixture = checks.fixture
    runs: list[tuple[str, RawOutputs]] = [
        ("", network.train()(images)),
        (" (evaluation mode)", network.eval()(images)),
        (" (made ready for inference)", InferenceNetwork(network)(images)),
    ]
    for mode, outputs in runs:
        for theirs, ours in FIELDS.items():
            name, found = f"{folder}/{theirs}", getattr(outputs, ours)
            if name in fixture and found is not None:  # only training has semantic logits
                checks.value(name + mode, found, fixture.tensor(name))


@torch.no_grad()
def _check_batch_statistics(checks: Checks) -> None:
    """Check outputs and running statistics of one pass with batch norm in training mode."""
    fixture = checks.fixture
    if not fixture.has("bn_batch"):
        return
    network = build_network(fixture, batch_statistics=True)
    outputs = network.train()(fixture.tensor("input"))
    for theirs, ours in FIELDS.items():
        name = f"bn_batch/{theirs}"
        if name in fixture:
            checks.array(name, getattr(outputs, ours))
    state = network.state_dict()
    for key in fixture.children("bn_batch/after"):
        checks.array(f"bn_batch/after/{key}", state[key])


@torch.no_grad()
def _check_layer(checks: Checks, network: Yolact) -> None:
    """Check a single layer, which ``meta_json.dcn_unit.module`` names."""
    fixture = checks.fixture
    if fixture.has("dcn_unit"):
        layer = network.get_submodule(fixture.meta["dcn_unit", "module"])
        checks.array("dcn_unit/output", layer(fixture.tensor("dcn_unit/input")))


@torch.no_grad()
def _check_maskiou(checks: Checks, network: Yolact, folder: str) -> None:
    if network.maskiou_net is None:
        raise DataError(f"{folder} needs a network with mask re-scoring, whose weights are not in the file")
    masks = checks.fixture.tensor(f"{folder}/input").squeeze(1)  # (N, h, w)
    checks.array(f"{folder}/output", network.maskiou_net(masks))


def build_network(fixture: Fixture, *, batch_statistics: bool) -> Yolact:
    """The network with the file's weights.

    Args:
        batch_statistics: batch norm uses the batch's statistics in training mode; else it is frozen.

    Raises:
        WeightsError: this project cannot build a network with these weights.
    """
    state = {name: fixture.tensor(f"{STATE}/{name}") for name in fixture.children(STATE)}
    config = anchor_settings(fixture).model_config(state)
    config = config.model_copy(update={"backbone_weights": "none" if batch_statistics else "imagenet"})
    with torch.device("meta"):  # no random weights, which would only be overwritten
        network = Yolact(config, len(state["semantic_seg_conv.weight"]))
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith(COUNTER)}
    network.load_state_dict(counters | state, assign=True)  # outputs do not depend on counters, so a file may lack them
    return network


def anchor_settings(fixture: Fixture) -> AnchorSettings:
    """Settings of a network that its weights do not determine."""
    return AnchorSettings.of_stored(
        {
            "max_size": input_size(fixture),
            "pred_scales": fixture.meta["pred_scales"],
            "pred_aspect_ratios": fixture.meta["aspect_ratios"],
            "use_square_anchors": _square_anchors(fixture),
        }
    )


def _square_anchors(fixture: Fixture) -> bool:
    square = fixture.meta.get("variant", "square")
    if square is not None:
        return bool(square)
    sides = fixture.tensor("train/priors")[:, 2:]
    return bool((sides[:, 0] == sides[:, 1]).all())
