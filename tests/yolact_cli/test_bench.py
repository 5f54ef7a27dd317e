"""`yolact bench`: tables, JSON, and errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from yolact.errors import SettingsError
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import ModelConfig
from yolact_bench.speed import loading
from yolact_cli import bench_options
from yolact_cli.main import app

CLASSES = ("circle", "square", "triangle")
CONFIG: ModelConfig = PUBLISHED_MODELS["yolact_resnet50"].model.model_copy(
    update={"backbone": "resnet18", "backbone_weights": "none", "image_size": 64, "fpn_channels": 8}
)
QUICK = ["--rounds", "2", "--threads", "1", "--device", "cpu"]
FAST = [*QUICK, "--no-memory"]

WRAPPER = """
from yolact_bench.speed.backends import BackendSpec, InferenceTask, YolactBackend
from yolact.settings import DetectConfig, ModelConfig

def load(weights, model, num_classes, detection, device):
    classes = tuple(str(label) for label in range(num_classes))
    task = InferenceTask(weights, ModelConfig(**model), classes, DetectConfig(**detection), device, 1)
    return YolactBackend(BackendSpec.own("fp32"), task)
"""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """`--threads` holds for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(Yolact(CONFIG, len(CLASSES)), list(CLASSES), folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.py"
    path.write_text(WRAPPER, encoding="utf-8")
    return path


def run(command: str, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["bench", command, *map(str, arguments)])


def test_the_table_has_every_stage_and_every_backend(model_dir: Path, image: Path, other: Path) -> None:
    result = run("inference", model_dir, "--image", image, "--against", other, "--precision", "fp32,bf16", *FAST)
    assert result.exit_code == 0, result.output
    for text in ("preprocess", "network", "nms", "masks", "total", "images per second", "speed", "1.00x"):
        assert text in result.stdout
    words = " ".join(result.stdout.split())
    assert "60 x 40" in words
    assert "yolact fp32 and other: equal within 0.0001" in words
    assert "yolact bf16 and other: NOT equal" in words
    assert f"PyTorch {torch.__version__}" in words


def test_json_has_the_metrics_and_what_they_were_measured_with(model_dir: Path, image: Path, other: Path) -> None:
    result = run("inference", model_dir, "--image", image, "--against", other, "--batch", "2", "--json", *FAST)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)["inference"]
    assert tree["reference"] == "other"
    reference, own = tree["backends"]
    assert (own["name"], own["precision"], own["compiled"], own["file"]) == ("yolact fp32", "fp32", False, None)
    assert reference["file"] == str(other)
    assert set(own["milliseconds"]) == {"preprocess", "network", "nms", "masks", "total"}
    assert reference["speed"] == 1
    assert own["memory"] is None
    assert own["agreement"]["equal"] is True
    assert reference["agreement"] is None
    settings = tree["settings"]
    assert settings["model"] == CONFIG.model_dump(mode="json")
    assert settings["images"] == [[40, 60]]
    assert (settings["batch"], settings["rounds"], settings["num_classes"]) == (2, 2, 3)
    assert settings["weights"] == str(model_dir)
    assert settings["detection"]["integer_boxes"] is True
    assert settings["detection"]["low_score_tail"] is False
    machine = tree["machine"]
    assert machine["threads"] == 1
    assert machine["torch"] == torch.__version__
    assert machine["gpu"] is None
    assert machine["date"].endswith("+00:00")


def test_without_another_implementation_our_settings_and_the_first_precision_are_the_reference(
    model_dir: Path, image: Path
) -> None:
    result = run("inference", model_dir, "--image", image, "--precision", "bf16,fp32", "--json", *FAST)
    tree = json.loads(result.stdout)["inference"]
    assert tree["reference"] == "yolact bf16"
    assert tree["settings"]["detection"]["integer_boxes"] is False


@pytest.mark.parametrize("name", ["default", "published", "published-no-tail"])
def test_the_detection_settings_can_be_selected(model_dir: Path, image: Path, name: str) -> None:
    result = run("inference", model_dir, "--image", image, "--detection", name, "--json", *FAST)
    detection = json.loads(result.stdout)["inference"]["settings"]["detection"]
    assert detection["integer_boxes"] is (name != "default")
    assert detection["low_score_tail"] is (name == "published")


def test_a_published_configuration_gets_random_weights(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(PUBLISHED_MODELS["yolact_resnet50"], name="small", model=CONFIG, classes=CLASSES)
    monkeypatch.setitem(PUBLISHED_MODELS, "small", small)
    result = run("inference", "--model", "small", "--image", image, "--objects", "4", "--json", *FAST)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)["inference"]
    assert tree["settings"]["weights"] == "small, random weights that find about 4 objects"
    assert tree["settings"]["num_classes"] == 3
    assert 3 <= tree["backends"][0]["detections"] <= 5


def test_evaluation_is_measured_without_a_network() -> None:
    result = run("evaluation", *QUICK)
    assert result.exit_code == 0, result.output
    assert "100 detections at 500 x 375" in result.stdout
    tree = json.loads(run("evaluation", "--json", *QUICK).stdout)["evaluation_work"]
    assert (tree["detections"], tree["width"], tree["height"]) == (100, 500, 375)
    assert tree["masks"] > 0
    assert tree["rle"] > 0
    assert tree["machine"]["threads"] == 1


def test_loading_is_measured_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CANDIDATES", 8)
    monkeypatch.setattr(loading, "VARIANTS", 2)
    result = run("loader", "--rounds", "2")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for text in ("decode", "colours", "geometry", "masks", "total", "images per second", "500 x 375 with 3.0 objects"):
        assert text in words
    tree = json.loads(run("loader", "--json", "--model", "yolact_im400", "--rounds", "2").stdout)["loader"]
    assert tree["image_size"] == 400
    assert tree["images_per_second"] == pytest.approx(1000 / tree["milliseconds"]["total"])
    assert tree["machine"]["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loader", "nowhere"], "nowhere/train/train.json: no such file"),
        (["loader", "--model", "yolact"], "no preset 'yolact'"),
        (["inference", "--precision", "fp32,int8"], "--precision int8: unknown; there are fp32, bf16, fp16"),
        (
            ["train", "--precision", "fp32,fp32"],
            "each backend can be measured only once, found yolact fp32,",
        ),
        (["inference", "--detection", "best"], "--detection best: unknown; there are default, published, "),
        (["evaluation", "--detection", "best"], "--detection best: unknown; there are default, published, "),
        (["inference", "--model", "yolact"], "no preset 'yolact'"),
        (["inference", "somewhere", "--model", "yolact_base"], "MODEL_DIR and --model: name a trained model or"),
        (["train", "somewhere", "--model", "yolact_base"], "MODEL_DIR and --model: name a trained model or"),
        (["inference", "--image", "nowhere.jpg"], "nowhere.jpg"),
        (["inference", "nowhere"], "nowhere/model.json: no such file"),
        (["inference", "--device", "gpu"], "device 'gpu' is unknown; use auto, cpu, cuda, cuda:N or mps"),
        (
            ["inference", "--runtime", "caffe"],
            "--runtime caffe: unknown; there are onnxruntime, onnxruntime-fp16",
        ),
        (["evaluation", "--device", "cuda"], "device 'cuda': this machine has 0 CUDA GPUs"),
    ],
)
def test_user_errors_are_printed_without_a_traceback(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_all_runtimes_are_those_that_are_installed_and_the_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_options, "find_spec", lambda name: None if name in ("openvino", "nncf") else name)
    specs, left_out = bench_options.runtime_specs("all", torch.device("cpu"))
    assert [spec.name for spec in specs] == ["onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8"]
    assert left_out == [
        "openvino: left out, because openvino is not installed",
        "openvino-fp16: left out, because openvino is not installed",
        "openvino-int8: left out, because nncf is not installed",
    ]
    with pytest.raises(SettingsError, match="other runtimes are measured on the CPU; add --device cpu"):
        bench_options.runtime_specs("onnxruntime", torch.device("cuda"))


def test_a_runtime_that_is_not_installed_is_named(
    model_dir: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("inference", model_dir, "--image", image, "--runtime", "openvino", *FAST)
    assert result.exit_code == 1
    assert "openvino is needed for this and cannot be imported" in result.stderr
    assert "pip install 'yolact-pipeline[openvino" in result.stderr


def test_a_file_that_does_not_follow_the_protocol_is_refused(model_dir: Path, image: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.touch()
    result = run("inference", model_dir, "--image", image, "--against", empty, *FAST)
    assert result.exit_code == 1
    assert result.stderr.strip() == f"--against {empty}: has no function load; docs/benchmarks.md has the protocol"


TRAINER = """
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.training_backends import SgdSettings, TrainingTask, YolactTrainingBackend
from yolact.settings import LossConfig, ModelConfig

def load_training(weights, model, num_classes, loss, optimizer, device):
    task = TrainingTask(
        weights, ModelConfig(**model), num_classes, LossConfig(**loss), SgdSettings(**optimizer), device, 1
    )
    return YolactTrainingBackend(BackendSpec.own("fp32"), task)
"""


def test_training_is_measured_stage_by_stage_against_another_implementation(model_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(TRAINER, encoding="utf-8")
    options = ("--precision", "fp32,bf16", "--against", other, "--objects", "2", *FAST)
    result = run("train", model_dir, *options)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for text in ("forward", "loss", "backward", "optimizer", "total", "images per second", "1.00x", "batch 2"):
        assert text in words
    assert "First step of yolact fp32 and other, relative differences: classification 0.0e+00, box" in words
    assert "First step of yolact bf16 and other" in words


def test_training_metrics_are_printed_as_json(model_dir: Path) -> None:
    result = run("train", model_dir, "--batch", "1", "--json", *FAST)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)["training"]
    [backend] = tree["backends"]
    assert set(backend["milliseconds"]) == {"forward", "loss", "backward", "optimizer", "total"}
    assert (tree["settings"]["batch"], tree["settings"]["rounds"], tree["settings"]["objects"]) == (1, 2, 8)
    assert set(backend["terms"]) == {"classification", "box", "mask", "semantic"}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train", "--compile"),
        ("train", "--detection"),
        ("loader", "--precision"),
        ("loader", "--image"),
        ("loader", "--device"),
        ("evaluation", "--model"),
        ("evaluation", "--against"),
        ("evaluation", "--no-memory"),
    ],
)
def test_each_command_knows_only_the_options_that_it_reads(command: str, option: str) -> None:
    result = run(command, option, "x")
    assert result.exit_code == 2
    assert "No such option" in result.stderr
    assert option in result.stderr
