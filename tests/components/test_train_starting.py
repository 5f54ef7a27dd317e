"""Weights on S3 and on the web that training starts from, with real servers.

`test_register.py` has those in the registry.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights

from components.train.starting import load_start
from tests.servers.servers import FileServer, s3_server, serving, use_s3
from tests.small_networks import tiny_config
from yolact.errors import WeightsError
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_ops.transfer.download import DownloadError, ServerUnavailableError

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
    with pytest.raises(DownloadError, match=rf"^model\.initial_weights: {ADDRESS}/checkpoints/model.safe.*no file of"):
        load_start(other(initial_weights=f"{ADDRESS}/checkpoints"), CLASSES)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's empty folder of files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def use_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have torchvision name this address for its weights."""
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", address)


def standard(**settings: str) -> Yolact:
    torch.manual_seed(3)
    return Yolact(tiny_config(backbone_weights="imagenet", backbone_blocks=None, **settings), len(CLASSES))


def classifier_file(model: Yolact) -> bytes:
    """The backbone's weights, doubled, as a file of `torch.save`."""
    file = io.BytesIO()
    torch.save({name: tensor * 2 for name, tensor in model.backbone.state_dict().items()}, file)
    return file.getvalue()


def test_a_download_that_broke_off_is_resumed_by_the_next_run(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = standard()
    before, content = model.backbone.conv1.weight.clone(), classifier_file(model)
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr("yolact_ops.transfer.download.FIRST_PAUSE", 0)
    with serving(FileServer(content, cut_after=[len(content) // 2] + [0] * 5)) as server:
        use_address(monkeypatch, f"http://127.0.0.1:{server.port}/{name}")
        with pytest.raises(
            ServerUnavailableError, match=r"tried 5 times in a row.* received bytes are kept.*copy it into"
        ) as cut:
            load_start(model, CLASSES)
        assert str(cut.value).startswith("model.backbone_weights: http")
        assert not (hub / name).exists()
        load_start(model, CLASSES)
        assert server.requests[-1] == f"bytes={len(content) // 2}-"
        assert torch.equal(model.backbone.conv1.weight, before * 2)
        assert (hub / name).read_bytes() == content
        asked = len(server.requests)
        load_start(standard(), CLASSES)
        assert len(server.requests) == asked


def test_another_file_than_its_name_says_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(FileServer(b"<html>sign in</html>")) as server:
        use_address(monkeypatch, f"http://127.0.0.1:{server.port}/resnet18-f37072fd.pth")
        with pytest.raises(WeightsError, match=r"not the expected file: its SHA-256 begins with \w{8}, not f37072fd"):
            load_start(standard(), CLASSES)
    assert not list(hub.glob("**/*.pth"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub").write_text("a file where torch.hub has its folder")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"^model\.backbone_weights: .*hub.* copy it into .*TORCH_HOME moves"):
        load_start(standard(), CLASSES)
