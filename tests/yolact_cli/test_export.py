"""`yolact export`: a model's folder becomes an ONNX file, with a summary of what is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.small_networks import tiny_config
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact_cli.main import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    torch.manual_seed(6)
    save_model(Yolact(tiny_config(), 2), ["cat", "dog"], tmp_path / "model")
    return tmp_path / "model"


def test_the_file_is_next_to_the_model_and_the_summary_lists_its_content(model_dir: Path) -> None:
    result = run(model_dir, "--batch", 2, "--opset", 19)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for fact in (
        "opset 19",
        "images (2, 3, 64, 64)",
        "boxes (2, 258, 4)",
        "scores (2, 258, 2)",
        "mask_coefficients (2, 258, 4)",
        "prototypes (2, 16, 16, 4)",
        "against the network, by onnxruntime: largest error",
    ):
        assert fact in printed
    assert f"OnnxPredictor('{model_dir / 'model.onnx'}')" in result.stdout
    predictor = OnnxPredictor(model_dir / "model.onnx")
    assert predictor.classes == ["cat", "dog"]
    assert predictor.predict(np.zeros((20, 30, 3), dtype=np.uint8)).image_size == (20, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "model.bin"], "model.bin: the file name must end in .onnx"),
        (["--precision", "int8"], "precision 'int8' cannot be exported"),
        (["--opset", "11"], "opset 11: must be 18 to 23"),
    ],
)
def test_wrong_options_are_refused_with_a_message(model_dir: Path, arguments: list[str], message: str) -> None:
    result = run(model_dir, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert sorted(path.name for path in model_dir.iterdir()) == ["model.json", "model.safetensors"]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'model.json'}: no such file" in result.stderr
