"""Batches: which photos in which order, the same ones whatever the number of loader processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory as pin_as_the_loader_does

from yolact.config import AugmentConfig
from yolact.data.coco import CocoInstances
from yolact.data.loader import Batch, EpochSampler, SampleKey, TrainingSet, collate, read_sample, training_loader
from yolact.errors import DataError

PHOTOS = 5
EVERYTHING = AugmentConfig(photometric=True, expand=True, random_crop=True, mirror=True)
NOTHING = AugmentConfig(photometric=False, expand=False, random_crop=False, mirror=False)


@pytest.fixture
def data(tmp_path: Path) -> CocoInstances:
    """Photos 100, 101, ... of 24 x 20 pixels; photo number k has k rectangles."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for photo in range(PHOTOS):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{photo}.png")
        images.append({"id": 100 + photo, "file_name": f"{photo}.png", "width": 24, "height": 20})
        for number in range(photo):
            polygon = [2 + number, 2, 14 + number, 2, 14 + number, 16, 2 + number, 16]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + photo,
                    "category_id": 1 + number % 2,
                    "bbox": [2 + number, 2, 12, 14],
                    "segmentation": [polygon],
                    "iscrowd": int(number == 3),
                }
            )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoInstances.load(path, tmp_path)


@pytest.fixture
def batches_of(data: CocoInstances) -> Callable[..., list[Batch]]:
    def load(*, workers: int = 0, seed: int = 1, epochs: tuple[int, ...] = (0,), batch_size: int = 2) -> list[Batch]:
        dataset = TrainingSet(data, EVERYTHING, 32, seed)
        loader, sampler = training_loader(dataset, batch_size, workers, pin=False)
        batches = []
        for epoch in epochs:
            sampler.epoch = epoch
            batches += list(loader)
        return batches

    return load


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.images, *(value for value in vars(batch.targets).values() if isinstance(value, torch.Tensor))]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.image_ids == b.image_ids
        and a.targets.counts == b.targets.counts
        and len(tensors(a)) == len(tensors(b))
        and all(map(torch.equal, tensors(a), tensors(b)))
        for a, b in zip(first, second, strict=True)
    )


# --- Order


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_full_batches_of_different_photos(length: int, batch_size: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(length, batch_size, seed)
    sampler.epoch = epoch
    batches = list(sampler)
    keys = [key for batch in batches for key in batch]
    photos = [key.photo for key in keys]
    assert len(sampler) == len(batches) == max(length // batch_size, 1)
    assert {len(batch) for batch in batches} == {min(batch_size, length)}
    assert len(photos) == len(set(photos))
    assert set(photos) <= set(range(length))
    assert {key.epoch for key in keys} == {epoch}
    if length % batch_size == 0 or length < batch_size:
        assert sorted(photos) == list(range(length))


def test_every_photo_is_left_out_of_some_epoch_only() -> None:
    sampler = EpochSampler(5, 2, seed=0)
    seen = set()
    for epoch in range(10):
        sampler.epoch = epoch
        seen |= {key.photo for batch in sampler for key in batch}
    assert seen == set(range(5))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(100, 10, seed)
        sampler.epoch = epoch
        return [key.photo for batch in sampler for key in batch]

    np.random.seed(1)
    first = order(0, 0)
    np.random.seed(2)
    torch.manual_seed(2)
    assert order(0, 0) == first
    orders = [first, order(0, 1), order(0, 2), order(1, 0), order(1, 1), list(range(100))]
    assert len(set(map(tuple, orders))) == len(orders)


# --- Content


def test_a_sample_is_the_stored_photo_with_its_objects(data: CocoInstances, tmp_path: Path) -> None:
    sample = read_sample(data, 4)
    assert np.array_equal(sample.image, np.asarray(Image.open(tmp_path / "4.png")))
    assert sample.boxes.tolist() == [[2 + k, 2, 14 + k, 16] for k in range(4)]
    assert sample.labels.tolist() == [0, 1, 0, 1]
    assert sample.crowd.tolist() == [False, False, False, True]
    expected = np.zeros((4, 20, 24), dtype=np.uint8)
    for number, mask in enumerate(expected):
        mask[2:16, 2 + number : 14 + number] = 1
    assert np.array_equal(sample.masks, expected)


def test_a_sample_of_a_photo_without_objects_is_empty(data: CocoInstances) -> None:
    sample = read_sample(data, 0)
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == sample.crowd.shape == (0,)
    assert sample.masks.shape == (0, 20, 24)


def test_a_batch_holds_images_targets_and_ids_of_the_same_photos(data: CocoInstances) -> None:
    dataset = TrainingSet(data, NOTHING, 32, seed=0)
    batch = collate([dataset[SampleKey(0, photo)] for photo in (3, 0, 2)], num_classes=3)
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == [103, 100, 102]
    assert batch.targets.counts == [3, 0, 2]
    assert batch.targets.images.tolist() == [0, 0, 0, 2, 2]
    assert batch.targets.masks.shape == (5, 8, 8)
    assert batch.targets.semantic.shape == (3, 3, 4, 4)
    box = torch.tensor([2 / 24, 2 / 20, 14 / 24, 16 / 20])
    assert torch.allclose(batch.targets.boxes[3], box)


def test_a_damaged_mask_is_reported_with_its_photo(data: CocoInstances, tmp_path: Path) -> None:
    tree = json.loads((tmp_path / "train.json").read_text())
    tree["annotations"][0]["segmentation"] = {"size": [20, 24], "counts": "garbage!!"}
    (tmp_path / "train.json").write_text(json.dumps(tree))
    damaged = CocoInstances.load(tmp_path / "train.json", tmp_path)
    with pytest.raises(DataError, match=r"1\.png: .*cannot be decoded"):
        read_sample(damaged, 1)


# --- Repeatability


def test_loader_processes_do_not_change_the_batches(batches_of: Callable[..., list[Batch]]) -> None:
    assert same(batches_of(workers=0, epochs=(0, 1)), batches_of(workers=2, epochs=(0, 1)))


def test_batches_depend_on_seed_and_epoch(batches_of: Callable[..., list[Batch]]) -> None:
    first = batches_of(seed=1, epochs=(0,), batch_size=PHOTOS)
    np.random.seed(7)
    torch.manual_seed(7)
    assert same(first, batches_of(seed=1, epochs=(0,), batch_size=PHOTOS))
    for seed, epoch in ((1, 1), (2, 0)):
        other = batches_of(seed=seed, epochs=(epoch,), batch_size=PHOTOS)
        for image_id in range(100, 100 + PHOTOS):  # not only in another order
            one, two = (batch[0].images[batch[0].image_ids.index(image_id)] for batch in (first, other))
            assert not torch.equal(one, two)


def test_an_epoch_is_the_same_whichever_epochs_came_before(batches_of: Callable[..., list[Batch]]) -> None:
    in_a_row = batches_of(epochs=(0, 1, 2))
    assert same(in_a_row[4:], batches_of(epochs=(2,)))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(batches_of: Callable[..., list[Batch]], workers: int) -> None:
    """Else what the loss draws would depend on when a run was resumed: loader processes are seeded once a process."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches_of(workers=workers, epochs=(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_smaller_than_a_batch_is_one_batch(batches_of: Callable[..., list[Batch]]) -> None:
    batches = batches_of(batch_size=8, epochs=(0,))
    assert [sorted(batch.image_ids) for batch in batches] == [[100, 101, 102, 103, 104]]


# --- Page-locked memory


def test_the_loader_can_pin_whole_batches(
    batches_of: Callable[..., list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the function that `DataLoader` calls; without a GPU a stand-in copies the tensor."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = batches_of(batch_size=3)[0]
    result = pin_as_the_loader_does(batch)
    assert same([result], [batch])
    assert {id(tensor) for tensor in tensors(result)} == {id(tensor) for tensor in pinned}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU, and none is here")
def test_batches_arrive_pinned_where_there_is_a_gpu(data: CocoInstances) -> None:
    loader, _ = training_loader(TrainingSet(data, NOTHING, 32, seed=0), 3, 0, pin=True)
    batch = next(iter(loader))
    assert all(tensor.is_pinned() for tensor in tensors(batch) if tensor.numel())
