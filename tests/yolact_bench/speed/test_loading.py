"""`yolact_bench.speed.loading`: times by stage, data, other augmentations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from yolact.data.coco import CocoInstances, decode_masks
from yolact.errors import DataError, SettingsError
from yolact_bench.speed import loading
from yolact_bench.speed.loading import LoadingBenchmark, measure, write_images

OTHER = """
import numpy as np
import time

class Augmentation:
    def __init__(self, image_size):
        self.image_size = image_size

    def read(self, image):
        return image[..., ::-1].copy()

    def augment(self, image, boxes, labels, masks, crowd):
        assert self.image_size == 64
        assert image.shape == (375, 500, 3) and image.dtype == np.uint8
        assert boxes.shape == (3, 4) and 0 <= boxes.min() and boxes.max() <= 1
        assert masks.shape == (3, 375, 500) and masks.max() == 1
        assert labels.shape == crowd.shape == (3,) and not crowd.any()
        image[:], boxes[:], masks[:], labels[:] = 0, 0, 0, 0
        time.sleep(0.05)

def load_augmentation(image_size, seed):
    return Augmentation(image_size)
"""


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "CANDIDATES", 8)
    monkeypatch.setattr(loading, "VARIANTS", 4)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LoadingBenchmark:
    file = tmp_path_factory.mktemp("against") / "other.py"
    file.write_text(OTHER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "CANDIDATES", 8)
        patch.setattr(loading, "VARIANTS", 4)
        return measure(None, image_size=64, rounds=2, against=[file])


def test_every_stage_is_measured(result: LoadingBenchmark) -> None:
    times = result.milliseconds
    assert min(times.decode, times.colors, times.geometry, times.masks) > 0
    assert times.augmentation == pytest.approx(times.colors + times.geometry + times.masks, rel=0.3)
    assert result.images_per_second == pytest.approx(1000 / times.total)
    assert result.augmentation_per_second == pytest.approx(1000 / times.augmentation)
    assert (result.width, result.height, result.objects) == (500, 375, 3)
    assert (result.rounds, result.variants, result.image_size) == (2, 4, 64)


def test_another_augmentation_gets_its_own_decoded_images(result: LoadingBenchmark) -> None:
    [other] = result.against  # it has checked its arguments and overwritten them
    assert other.name == "other"
    assert other.milliseconds >= 50
    assert other.images_per_second == pytest.approx(1000 / other.milliseconds)


def test_it_is_measured_with_one_thread_as_in_a_worker(result: LoadingBenchmark) -> None:
    assert result.machine.threads == 1


def test_generated_images_have_three_objects_with_tight_boxes(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = CocoInstances.load(tmp_path / "train/train.json", tmp_path / "train/images")
    assert data.images
    for image in data.images:
        assert data.read_image(image).shape == (375, 500, 3)
        masks = decode_masks(data.objects[image.id], 375, 500)
        assert len(masks) == 3
        for item, mask in zip(data.objects[image.id], masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_given_folder_is_measured(tmp_path: Path) -> None:
    write_images(tmp_path)
    threads = torch.get_num_threads()
    found = measure(tmp_path, image_size=64, rounds=1, against=[])
    assert found.data == str(tmp_path)
    assert found.against == []
    assert torch.get_num_threads() == threads


def test_a_folder_without_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json: no such file"):
        measure(tmp_path, image_size=64, rounds=1, against=[])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no function load_augmentation"),
        ("def load_augmentation(image_size, seed):\n    raise KeyError('cv2')", "KeyError: 'cv2'"),
        ("def load_augmentation(image_size, seed):\n    return 1", "has no method augment"),
        (OTHER.replace("self.image_size == 64", "False"), r"AssertionError.*other\.py:13"),
    ],
)
def test_a_file_that_breaks_the_protocol_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "other.py"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=rf"--against .*other\.py: {'.*' + said}"):
        measure(None, image_size=64, rounds=1, against=[file])
