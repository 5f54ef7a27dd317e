"""Which model a prediction loads, and with which detection settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_networks import tiny_config
from yolact.errors import SettingsError
from yolact.inference.predictor import Predictor
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION
from yolact_ops.prediction import model as module
from yolact_ops.prediction.model import load_predictor

pytestmark = pytest.mark.usefixtures("one_thread")

OWN = DEFAULT_DETECTION.replace(nms="cross_class", nms_iou=0.6, score_threshold=0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(6)
    save_model(Yolact(tiny_config(), 2), ["cat", "dog"], tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_starts_from_the_published_settings(folder: Path) -> None:
    predictor, address = load_predictor(str(folder), nms_iou=0.4, batch_size=3)
    assert predictor.config == DEFAULT_DETECTION.replace(nms_iou=0.4)
    assert (address, predictor.classes, predictor.batch_size) == (str(folder), ["cat", "dog"], 3)


def test_a_folder_with_settings_of_its_own_uses_them(folder: Path) -> None:
    (folder / "detect.json").write_text(OWN.model_dump_json())
    assert load_predictor(str(folder), max_detections=7)[0].config == OWN.replace(max_detections=7)


def test_an_onnx_file_is_run_by_onnxruntime_on_the_device(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    opened: list[Any] = []

    def opening(path: Path, **options: Any) -> Predictor:
        opened.append((path, options))
        return Predictor.load(folder)

    monkeypatch.setattr(module, "OnnxPredictor", opening)
    load_predictor("x/model.onnx", device="cpu", batch_size=2, nms_iou=0.4)
    load_predictor("x/model.onnx")
    path = Path("x/model.onnx")
    assert opened == [
        (path, {"providers": ["CPUExecutionProvider"], "batch_size": 2, "nms_iou": 0.4}),
        (path, {"providers": None, "batch_size": 8}),
    ]
    with pytest.raises(SettingsError, match="has the precision that it was exported with"):
        load_predictor("x/model.onnx", precision="bf16")
    with pytest.raises(SettingsError, match="runs on auto or cpu or cuda"):
        load_predictor("x/model.onnx", device="mps")
