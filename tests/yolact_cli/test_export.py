"""`yolact export`: a model's folder becomes a file for another runtime, with a summary of what is in it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner, Result

from tests.coloured_boxes import BLUE, RED, write_coloured_boxes
from tests.small_networks import tiny_config
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.models.weights import load_model, save_model
from yolact.models.yolact import Yolact
from yolact_cli.main import app

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def new_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)  # the repository has data/processed after `make demo`
    torch.manual_seed(6)
    save_model(Yolact(tiny_config(), 2), ["cat", "dog"], folder / "model")
    return folder / "model"


@pytest.fixture
def model_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return new_model(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A model's folder with ``model.onnx``, and the command that wrote it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_model(tmp_path_factory.mktemp("exported"), patch)
        return folder, run(folder, "--batch", 2, "--opset", 19)


def test_the_file_is_next_to_the_model_and_the_summary_lists_its_content(exported: tuple[Path, Result]) -> None:
    model_dir, result = exported
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    for fact in (
        "opset 19",
        "images (2, 3, 64, 64)",
        "boxes (2, 258, 4)",
        "scores (2, 258, 2)",
        "mask_coefficients (2, 258, 4)",
        "prototypes (2, 16, 16, 4)",
        "against the network, by onnxruntime with noise (no images: see --images): largest error",
    ):
        assert fact in printed
    assert f"OnnxPredictor('{model_dir / 'model.onnx'}')" in result.stdout
    predictor = OnnxPredictor(model_dir / "model.onnx")
    assert predictor.classes == ["cat", "dog"]
    assert predictor.predict(np.zeros((20, 30, 3), dtype=np.uint8)).image_size == (20, 30)


def engines(result: Result) -> list[dict[str, str]]:
    """Flags of the commands that the summary has for TensorRT."""
    assert result.exit_code == 0, result.output
    commands = [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  trtexec ")]
    return [dict(flag.removeprefix("--").split("=") for flag in command[1:] if "=" in flag) for command in commands]


def test_for_tensorrt_the_batch_is_one_and_needs_no_profile(model_dir: Path) -> None:
    result = run(model_dir, "--tensorrt")
    path = model_dir / "model.onnx"
    assert engines(result) == [{"onnx": str(path), "saveEngine": str(model_dir / "model.engine")}]
    assert "profile" not in result.stdout
    assert "--stronglyTyped" not in result.stdout
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == [1, 3, 64, 64]


def test_for_tensorrt_any_batch_comes_with_the_profile_that_its_engine_needs(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = Yolact(tiny_config(image_size=249, mask_rescoring=True), 2)
    save_model(model, ["cat", "dog"], tmp_path / "two words")
    result = run(tmp_path / "two words", "--tensorrt", "--batch", "any", "--precision", "fp16", "--data", "nowhere")
    found = engines(result)
    assert [Path(flags["onnx"]).name for flags in found] == ["model.onnx", "model.maskiou.onnx"]
    assert "needs an optimisation profile" in result.stdout
    assert [line.endswith("--stronglyTyped") for line in result.stdout.splitlines() if "trtexec" in line] == [
        True,
        False,  # it is float32 at every precision
    ]
    for flags in found:
        session = onnxruntime.InferenceSession(flags["onnx"])
        [given] = session.get_inputs()
        counts = []
        for kind in ("min", "opt", "max"):
            name, _, sizes = flags[f"{kind}Shapes"].partition(":")
            count, *others = map(int, sizes.split("x"))
            assert name == given.name
            assert others == given.shape[1:]
            counts.append(count)
        assert counts == sorted(counts)
        assert counts[0] == 1
        smallest_and_largest = (counts[0], counts[-1])
        for count in smallest_and_largest:
            inputs = np.zeros((count, *others), np.float32)
            assert {len(output) for output in session.run(None, {name: inputs})} == {count}


def test_yolact_predict_finds_with_the_file_what_it_finds_with_the_network(
    exported: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    found = []
    for model in (exported[0], exported[0] / "model.onnx"):
        options = ("--model", model, "--device", "cpu", "--score-threshold", 0.4, "--max-detections", 5)
        result = CliRunner().invoke(app, ["predict", "a.png", *map(str, options)])
        assert result.exit_code == 0, result.output
        assert json.loads(Path("predictions/predict.json").read_text())["model"] == str(model)
        found.append(json.loads(Path("predictions/detections.json").read_text()))
    network, file = found
    assert [row["category_id"] for row in file] == [row["category_id"] for row in network]
    for key, tolerance in (("score", 1e-4), ("bbox", 0.02)):
        np.testing.assert_allclose([row[key] for row in file], [row[key] for row in network], atol=tolerance)
    masks = [coco_mask.decode([row["segmentation"] for row in rows]) for rows in found]
    assert masks[0].shape == (40, 60, 5)
    assert np.mean(masks[0] != masks[1]) < 1e-3


def test_int8_is_calibrated_with_the_validation_images_and_evaluated(model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "processed"
    boxes = {number: [(RED, (4, 4, 30 + number, 40)), (BLUE, (34, 10, 60, 50))] for number in range(1, 4)}
    write_coloured_boxes(data / "eval/val.json", data / "eval/images", boxes)
    path = tmp_path / "int8.onnx"
    other = run(model_dir, "-o", path, "--precision", "int8", "--data", data, "--evaluate")
    assert other.exit_code == 1
    assert "val.json has other classes than the model" in " ".join(other.stderr.split())
    model, _ = load_model(model_dir)
    save_model(model, ["red", "blue"], model_dir)
    result = run(model_dir, "-o", path, "--precision", "int8", "--batch", 1, "--data", data, "--evaluate")
    assert result.exit_code == 0, result.output
    printed = " ".join(result.stdout.split())
    assert "by onnxruntime with 3 images: largest error" in printed
    assert "3 images of the val split" in printed
    for name in ("box AP", "box AP50", "mask AP", "mask AP50", "difference"):
        assert name in printed
    assert OnnxPredictor(path).classes == ["red", "blue"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "model.bin"], "model.bin: the file name must end in .onnx"),
        (["--precision", "bf16"], "precision 'bf16' cannot be exported; fp32, fp16, int8 can"),
        (
            ["--precision", "int8"],
            "--precision int8 needs images to calibrate with, and nowhere/eval/val.json does not",
        ),
        (["--images", "nowhere"], "--images nowhere: no images there"),
        (["--evaluate"], "nowhere/eval/val.json: no such file"),
        (["-o", "model.xml", "--tensorrt"], "--tensorrt is for .onnx files"),
        (["--opset", "11"], "opset 11: must be 18 to 23"),
        (["--batch", "0"], "--batch 0: must be a number of images, at least 1, or any"),
        (["--batch", "all"], "--batch all: must be a number of images, at least 1, or any"),
    ],
)
def test_wrong_options_are_refused_with_a_message(model_dir: Path, arguments: list[str], message: str) -> None:
    result = run(model_dir, "--data", "nowhere", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert sorted(path.name for path in model_dir.iterdir()) == ["model.json", "model.safetensors"]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'model.json'}: no such file" in result.stderr
