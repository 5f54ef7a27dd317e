"""From photos to detections in each photo's own frame."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yolact.config import PUBLISHED_DETECTION, ModelConfig, load_params
from yolact.devices import choose_device
from yolact.errors import SettingsError, WeightsError
from yolact.models.weights import save_model
from yolact.models.yolact import Yolact
from yolact.predictor import Predictor
from yolact.structures import Detections, RawOutputs

CLASSES = ["circle", "square", "triangle"]
CONFIG = ModelConfig.model_validate(
    {
        "backbone": "resnet18",
        "backbone_weights": "none",
        "image_size": 64,
        "fpn_channels": 8,
        "num_prototypes": 4,
        "anchor_scales": [[8], [16], [24], [40], [60]],
        "anchor_ratios": [1, 0.5, 2],
        "square_anchors": False,
    }
)


@pytest.fixture(scope="module")
def model() -> Yolact:
    """Random weights, with the class scores spread out so that detections have a clear order."""
    torch.manual_seed(2)
    model = Yolact(CONFIG, len(CLASSES)).eval()
    with torch.no_grad():
        model.prediction_layers[0].conf_layer.weight.mul_(8)
    return model


@pytest.fixture
def predictor(model: Yolact) -> Predictor:
    return Predictor(model, CLASSES, PUBLISHED_DETECTION)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PHOTOS = [photo(40, 60, 1), photo(64, 64, 2), photo(90, 30, 3)]


def assert_same(first: Detections, second: Detections, tolerance: float = 0.0) -> None:
    assert first.labels.tolist() == second.labels.tolist()
    torch.testing.assert_close(first.boxes, second.boxes, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.scores, second.scores, atol=tolerance, rtol=0)
    assert (first.masks != second.masks).float().mean() <= tolerance


def test_photos_of_a_batch_are_found_as_if_alone(predictor: Predictor) -> None:
    together = predictor.predict(PHOTOS)
    assert len(together) == 3
    for found, image in zip(together, PHOTOS, strict=True):
        assert len(found) > 5
        [alone] = predictor.predict([image])
        assert_same(found, alone, tolerance=1e-3)


def test_detections_lie_in_their_own_photo(predictor: Predictor) -> None:
    for found, image in zip(predictor.predict(PHOTOS), PHOTOS, strict=True):
        height, width = image.shape[:2]
        assert found.masks.shape == (len(found), height, width)
        assert found.masks.dtype == torch.bool
        assert found.boxes.shape == (len(found), 4)
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert set(found.labels.tolist()) <= {0, 1, 2}


def test_predicting_twice_gives_the_same(predictor: Predictor) -> None:
    for first, second in zip(predictor.predict(PHOTOS), predictor.predict(PHOTOS), strict=True):
        assert_same(first, second)


def test_no_photos_no_detections(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_the_settings_of_detection_are_used(model: Yolact) -> None:
    few = Predictor(model, CLASSES, PUBLISHED_DETECTION.model_copy(update={"max_detections": 2}))
    assert len(few.predict(PHOTOS[:1])[0]) == 2
    strict = Predictor(model, CLASSES, PUBLISHED_DETECTION.model_copy(update={"score_threshold": 1.0}))
    [nothing] = strict.predict(PHOTOS[:1])
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, 40, 60)


def test_a_loaded_predictor_finds_the_same(predictor: Predictor, tmp_path: Path) -> None:
    save_model(predictor.model, CLASSES, tmp_path)
    loaded = Predictor.load(tmp_path, PUBLISHED_DETECTION, device="cpu")
    assert loaded.classes == CLASSES
    for first, second in zip(predictor.predict(PHOTOS), loaded.predict(PHOTOS), strict=True):
        assert_same(first, second)


def test_loading_from_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        Predictor.load(tmp_path, PUBLISHED_DETECTION, device="cpu")


def test_detections_may_be_changed_by_the_caller(predictor: Predictor) -> None:
    [found] = predictor.predict(PHOTOS[:1])
    before = found.boxes.clone()
    found.boxes *= 2
    assert torch.equal(found.boxes, before * 2)


class Stub(nn.Module):
    """A network that reports one square in the upper left quarter of whatever it sees, and remembers its input."""

    def __init__(self) -> None:
        super().__init__()
        self.config = CONFIG
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor) -> RawOutputs:
        self.seen.append((self.training, images))
        batch = len(images)
        prototypes = torch.full((batch, 16, 16, 1), -10.0)
        prototypes[:, :8, :8] = 10
        return RawOutputs(
            boxes=torch.zeros(batch, 1, 4),
            class_logits=torch.tensor([[[0.0, 0, 9, 0]]]).expand(batch, 1, 4),
            mask_coefficients=torch.ones(batch, 1, 1),
            prototypes=prototypes,
            anchors=torch.tensor([[0.25, 0.25, 0.5, 0.5]]),
            semantic_logits=None,
        )


@pytest.mark.parametrize(("height", "width"), [(32, 64), (48, 16)])
def test_masks_and_boxes_are_in_the_photos_frame(height: int, width: int) -> None:
    [found] = Predictor(Stub(), CLASSES, PUBLISHED_DETECTION).predict([photo(height, width)])
    assert found.labels.tolist() == [1]
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, width / 2, height / 2]]))
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[: height // 2, : width // 2] = True
    wrong = (found.masks[0] != expected).nonzero().tolist()
    assert wrong in ([], [[height // 2 - 1, width // 2 - 1]])  # enlarging bilinearly may round the one inner corner


def test_the_network_sees_normalised_squares_in_evaluation_mode() -> None:
    """One colour, so that resizing changes nothing: (value - mean) / deviation of ImageNet, red first."""
    network = Stub().train()
    image = np.empty((20, 50, 3), dtype=np.uint8)
    image[:] = (200, 100, 50)
    Predictor(network, CLASSES, PUBLISHED_DETECTION).predict([image, image])
    [(training, batch)] = network.seen
    assert training is False
    assert network.training  # as it was before
    assert batch.shape == (2, 3, 64, 64)
    expected = torch.tensor([(200 - 123.68) / 58.40, (100 - 116.78) / 57.12, (50 - 103.94) / 57.38])
    torch.testing.assert_close(batch, expected[None, :, None, None].expand(2, 3, 64, 64))


# --- devices --------------------------------------------------------------------------------------------------------


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(SettingsError, match="'cuda:1': this machine has 1 CUDA GPU"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="no Apple GPU"):
        choose_device("mps")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_photo_is_refused_with_its_shape_and_dtype(image: np.ndarray) -> None:
    config = load_params(Path(__file__).parents[2] / "conf" / "base.yaml").model
    small = config.model_copy(update={"backbone": "resnet18", "backbone_weights": "none", "image_size": 64})
    predictor = Predictor(Yolact(small, 2), ["a", "b"], PUBLISHED_DETECTION)
    with pytest.raises(ValueError, match=re.escape(f"found {image.shape} {image.dtype}")):
        predictor.predict([image])
