"""Weights on S3 that training starts from, with a real server; `test_register.py` has those in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from components.train.starting import load_start
from tests.servers.servers import s3_server, use_s3
from tests.small_networks import tiny_config
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_ops.tracking.store import TrackingError

CLASSES = ["cat", "dog"]
ADDRESS = "s3://weights/start/model"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bucket ``weights``."""
    return tmp_path_factory.mktemp("s3") / "weights"


@pytest.fixture(scope="module")
def saved(bucket: Path) -> Yolact:
    """A network whose folder is on S3, with other files beside it."""
    torch.manual_seed(1)
    network = Yolact(tiny_config(), len(CLASSES)).eval()
    folder = bucket / "start" / "model"
    save_model(network, CLASSES, folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"large")
    return network


@pytest.fixture(scope="module")
def server(bucket: Path, saved: Yolact) -> Iterator[str]:
    """Starts after the files are there: it does not see for minutes what is put into its folder later."""
    with s3_server(bucket.parent) as address:
        yield address


@pytest.fixture(autouse=True)
def credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, server)


def other(**settings: str) -> Yolact:
    torch.manual_seed(2)
    return Yolact(tiny_config(**settings), 3)


def test_a_whole_network_on_s3_gives_every_layer_that_fits(saved: Yolact, caplog: pytest.LogCaptureFixture) -> None:
    model = other(initial_weights=ADDRESS)
    with caplog.at_level("INFO"):
        assert load_start(model, ["a", "b", "c"]) == ADDRESS
    assert torch.equal(model.proto_net[0].weight, saved.proto_net[0].weight)
    assert f"layers loaded from {ADDRESS}" in caplog.text  # not from a temporary folder
    fresh = other()
    assert torch.equal(model.semantic_seg_conv.weight, fresh.semantic_seg_conv.weight)  # of another number of classes


@pytest.mark.parametrize("address", [ADDRESS, f"{ADDRESS}/model.safetensors"])
def test_the_backbone_of_a_network_on_s3_is_taken(saved: Yolact, address: str) -> None:
    model, fresh = other(backbone_weights=address), other()
    assert load_start(model, ["a", "b", "c"]) == address
    assert torch.equal(model.backbone.conv1.weight, saved.backbone.conv1.weight)
    assert torch.equal(model.proto_net[0].weight, fresh.proto_net[0].weight)


def test_an_address_without_weights_is_named(saved: Yolact) -> None:
    with pytest.raises(TrackingError, match=rf"fetch {ADDRESS}/checkpoints/model.safetensors"):
        load_start(other(initial_weights=f"{ADDRESS}/checkpoints"), CLASSES)
