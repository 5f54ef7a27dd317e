"""Detections through onnxruntime match those of the network itself."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.yolact.networks import trained_like
from yolact.errors import ExportError, SettingsError
from yolact.inference.detections import Detections
from yolact.inference.export import export_onnx
from yolact.inference.exported_predictor import detections_from_outputs
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, PUBLISHED_DETECTION, DetectConfig
from yolact.transforms import to_square

CLASSES = ["circle", "square", "triangle"]
IMAGES = [
    np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed, shape in enumerate([(40, 60), (64, 64), (90, 30)])
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Yolact:
    return trained_like("basic blocks")


@pytest.fixture(scope="module")
def path(model: Yolact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(model, CLASSES, tmp_path_factory.mktemp("any") / "model.onnx").path


@pytest.fixture(scope="module")
def rescored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Yolact, Path]:
    """A YOLACT++ network, for two images at once."""
    model = trained_like("deformable", mask_rescoring=True, image_size=249)
    return model, export_onnx(model, CLASSES, tmp_path_factory.mktemp("two") / "model.onnx", batch=2).path


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    """The same objects, best first; two with scores equal up to rounding may be swapped."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 5
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
        distance = (one.boxes[None] - other.boxes[:, None]).abs().amax(dim=2)  # (expected, found), pixels
        distance += 1000 * (one.labels[None] != other.labels[:, None])
        nearest, rows = distance.min(dim=1)
        assert sorted(rows.tolist()) == list(range(len(one)))
        assert nearest.max() <= (1 if other.boxes.frac().abs().max() == 0 else 0.01)  # a whole pixel may round off
        torch.testing.assert_close(one.scores[rows], other.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.mask_scores[rows], other.mask_scores, atol=1e-4, rtol=0)
        assert one.masks.shape == other.masks.shape
        assert (one.masks[rows] != other.masks).float().mean() < 1e-3
        assert one.image_size == other.image_size
        assert one.class_names == other.class_names == tuple(CLASSES)


@pytest.mark.parametrize(
    "config",
    [
        DEFAULT_DETECTION,
        PUBLISHED_DETECTION,
        DEFAULT_DETECTION.replace(nms="cross_class"),
        PUBLISHED_DETECTION.replace(nms="traditional"),
    ],
    ids=["default", "published", "cross-class", "traditional"],
)
def test_detections_match_the_predictor(model: Yolact, path: Path, config: DetectConfig) -> None:
    assert_same(OnnxPredictor(path, config).predict(IMAGES), Predictor(model, CLASSES, config).predict(IMAGES))


def test_detection_and_mask_settings_can_be_changed(model: Yolact, path: Path) -> None:
    found = OnnxPredictor(path, score_threshold=0.3, mask_resolution="prototypes", batch_size=2, threads=1)
    expected = Predictor(model, CLASSES, DEFAULT_DETECTION.replace(score_threshold=0.3), mask_resolution="prototypes")
    assert_same(found.predict(IMAGES), expected.predict(IMAGES))


def test_the_aspect_ratio_is_kept_if_the_predictor_keeps_it(tmp_path: Path) -> None:
    model = trained_like("basic blocks", keep_aspect_ratio=True)
    exported = export_onnx(model, CLASSES, tmp_path / "model.onnx").path
    assert_same(OnnxPredictor(exported).predict(IMAGES), Predictor(model, CLASSES).predict(IMAGES))


def test_a_single_image_gives_its_detections(path: Path) -> None:
    predictor = OnnxPredictor(path)
    assert_same([predictor.predict(IMAGES[0])], predictor.predict(IMAGES[:1]))


def test_rescored_masks_and_a_batch_that_is_not_full(rescored: tuple[Yolact, Path]) -> None:
    model, path = rescored
    predictor = OnnxPredictor(path, batch_size=8)
    assert predictor.batch_size == 2
    found = predictor.predict(IMAGES)
    assert_same(found, Predictor(model, CLASSES).predict(IMAGES))
    assert not torch.equal(found[0].mask_scores, found[0].scores)


def test_copies_and_pickled_predictors_find_the_same(rescored: tuple[Yolact, Path]) -> None:
    predictor = OnnxPredictor(rescored[1], score_threshold=0.1)
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert_same(other.predict(IMAGES), predictor.predict(IMAGES))


def test_a_forked_process_says_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are not there after a fork, and it would wait for them."""
    predictor = OnnxPredictor(path)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ExportError, match=r"forked.*open it in each process, or start processes with spawn"):
        predictor.predict(IMAGES)


def test_outputs_of_any_runtime_become_detections(model: Yolact, path: Path) -> None:
    images = torch.stack([to_square(torch.from_numpy(image).permute(2, 0, 1), 64) for image in IMAGES])
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
    sizes = [(image.shape[0], image.shape[1]) for image in IMAGES]
    found = detections_from_outputs(outputs, sizes, CLASSES, image_size=64)
    assert_same(found, Predictor(model, CLASSES).predict(IMAGES))
    del outputs["scores"]
    with pytest.raises(ValueError, match="scores missing; found boxes, mask_coefficients, prototypes"):
        detections_from_outputs(outputs, sizes, CLASSES, image_size=64)


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx: no such file; `yolact export` writes it"):
        OnnxPredictor(tmp_path / "none.onnx")


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match=r"model\.onnx: onnxruntime cannot load it"):
        OnnxPredictor(tmp_path / "model.onnx")


def test_another_network_is_rejected(path: Path, tmp_path: Path) -> None:
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"other\.onnx: not written by this version.s `yolact export`"):
        OnnxPredictor(tmp_path / "other.onnx")


def test_damaged_metadata_is_rejected(path: Path, tmp_path: Path) -> None:
    proto = onnx.load(path)
    for entry in proto.metadata_props:
        entry.value = "{}" if entry.key == "model" else entry.value
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"other\.onnx: its metadata is damaged"):
        OnnxPredictor(tmp_path / "other.onnx")


def test_a_missing_rescoring_network_is_named(rescored: tuple[Yolact, Path], tmp_path: Path) -> None:
    alone = tmp_path / "model.onnx"
    alone.write_bytes(rescored[1].read_bytes())
    with pytest.raises(ExportError, match=r"model\.maskiou\.onnx: no such file"):
        OnnxPredictor(alone)


def test_an_unavailable_provider_is_rejected(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"onnxruntime has no Abacus here; it has .*CPUExecutionProvider"):
        OnnxPredictor(path, providers=["Abacus"])
