"""`yolact import-weights`: a published checkpoint becomes a model of this project, with a summary of what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from tests.small_networks import tiny_config
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.weights import load_model
from yolact.models.yolact import Yolact
from yolact_cli.main import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["import-weights", *map(str, arguments)])


def text(result: Result) -> str:
    """What was printed, without how it is laid out."""
    return " ".join(result.stdout.split())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(6)
    return Yolact(tiny_config(backbone_blocks=None), 2).state_dict()


@pytest.fixture
def checkpoint(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of version 1.0 in the working directory."""
    monkeypatch.chdir(tmp_path)
    legacy = {
        "backbone.layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3),
        "fpn.downsample_layers.2.bias": torch.zeros(8),
    }
    path = Path("yolact_mine_3_4000.pth")
    torch.save(legacy | state, path, _use_new_zipfile_serialization=False)
    return path


def test_the_model_is_in_a_folder_named_like_the_file_by_default(checkpoint: Path, state: dict[str, Tensor]) -> None:
    assert run(checkpoint).exit_code == 0
    assert run(checkpoint, "-o", "here").exit_code == 0
    for folder in (Path("models/imported/yolact_mine_3_4000"), Path("here")):
        assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
        model, classes = load_model(folder)
        assert classes == ["class_1", "class_2"]
        assert model.config.image_size == 550
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_summary_says_what_it_is_what_was_left_out_and_what_to_do_next(
    checkpoint: Path, state: dict[str, Tensor]
) -> None:
    result = run(checkpoint, "--image-size", 64, "-o", "a model")
    printed = text(result)
    counted = sum(tensor.numel() for name, tensor in state.items() if not re.search("running|num_batches", name))
    for fact in (
        "network none of the published ones",
        "backbone ResNet-18",
        "mask re-scoring no",
        "input 64 x 64 pixels",
        "anchors 3 per cell; squares",
        "anchor scales 2; 5; 11; 22; 44 pixels",  # 24, 48, 96, 192 and 384 of 550, truncated
        "classes 2: class_1, class_2",
        f"parameters {counted:,}",
        "left out 2 tensors that version 1.0 saved and never used",
        "written to a model",
        "Predictor.load('a model').predict(\"image.jpg\")",
        "yolact preset use voc2012-r50 -S 'model.initial_weights=a model'",
        "copy the other model settings from a model/model.json to section model of params.yaml",
    ):
        assert fact in printed


def test_a_published_network_is_named(
    state: dict[str, Tensor], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small one in the place of the published one."""
    published = PUBLISHED_MODELS["yolact_base"]
    config = tiny_config(
        backbone_blocks=None, backbone_weights="imagenet", anchor_scales=[[8, 9, 10.123]] * 5, anchor_ratios=[1]
    )
    monkeypatch.setitem(
        PUBLISHED_MODELS, "small", type(published)(**(vars(published) | {"name": "small", "model": config}))
    )
    printed = text(run(checkpoint, "--model", "small"))
    assert "network small" in printed
    assert "anchors 3 per cell; ratios 1" in printed
    assert "anchor scales 8, 9, 10.12; 8, 9, 10.12;" in printed
    assert "yolact preset use voc2012-r50 --model small -S model.initial_weights=models/imported/" in printed
    assert "params.yaml" not in printed


def test_other_depths_and_deformable_blocks_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(
        backbone="resnet50", deformable_blocks=[[], [0], [0], [0]], anchor_scales=[[8, 9, 10]] * 5, image_size=256,
        mask_rescoring=True,
    )  # fmt: skip
    torch.save(Yolact(config, 2).state_dict(), "plus.pth")
    printed = text(run("plus.pth", "--image-size", 256))
    assert "backbone as ResNet-50, with 1, 1, 1, 1 blocks; 3 deformable" in printed
    assert "mask re-scoring yes" in printed
    assert "anchors 9 per cell; ratios 1, 0.5, 2" in printed


def test_a_guess_is_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(checkpoint)
    assert "the weights do not determine the anchors and the image size, taken from yolact_base" in caplog.text


def test_class_names_come_from_a_file(checkpoint: Path) -> None:
    Path("names.txt").write_text("[cat]\ndog\n")
    assert "classes 2: [cat], dog" in text(run(checkpoint, "--classes", "names.txt", "-o", "out"))
    assert json.loads(Path("out/model.json").read_text())["classes"] == ["[cat]", "dog"]


def test_an_existing_model_is_replaced(checkpoint: Path) -> None:
    run(checkpoint, "-o", "out")
    run(checkpoint, "-o", "out", "--image-size", 96)
    assert load_model(Path("out"))[0].config.image_size == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pth"], "nowhere.pth: no such file"),
        (["text.pth"], "text.pth: is not a file of PyTorch weights; it is text"),
        (["yolact_mine_3_4000.pth", "-o", "text.pth"], "text.pth: is a file, not a folder; name a folder with -o"),
        (["yolact_mine_3_4000.pth", "-o", "text.pth/out"], "text.pth/out: Not a directory"),
        (["yolact_mine_3_4000.pth", "--model", "yolact_bas"], "no published configuration 'yolact_bas'; did you mean"),
        (["yolact_mine_3_4000.pth", "--model", "yolact_base"], "yolact_mine_3_4000.pth: is not yolact_base: backbone"),
        (["yolact_mine_3_4000.pth", "--classes", "none.txt"], "none.txt: no such file"),
        (["yolact_mine_3_4000.pth", "--classes", "text.pth"], "has 2 classes, but 1 class names are given"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(checkpoint: Path, arguments: list[str], message: str) -> None:
    Path("text.pth").write_text("cat\n")
    before = sorted(Path().rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before


def test_a_trained_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    result = CliRunner().invoke(app, ["import-weights", str(tmp_path / "some.pth"), "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "trained here" in result.output
    assert "name another folder with -o" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
