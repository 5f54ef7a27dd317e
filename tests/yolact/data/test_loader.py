"""Batches: which images in which order, independent of the number of loader processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory as pin_as_the_loader_does

from tests.loss_inputs import losses_of
from tests.small_networks import tiny_config
from yolact.data.coco import CocoInstances
from yolact.data.columns import CocoImage, CocoObject, Columns, Rows
from yolact.data.image_store import LooseImages
from yolact.data.loader import (
    AHEAD,
    Batch,
    EpochSampler,
    LookAhead,
    SampleKey,
    TrainingSet,
    collate,
    read_sample,
    repeat_factors,
    training_loader,
)
from yolact.errors import DataError, SettingsError
from yolact.losses.criterion import YolactLoss
from yolact.models.yolact import Yolact
from yolact.settings import PUBLISHED_AUGMENTATION, TrainConfig
from yolact.structures import targets_from_masks
from yolact.transforms import IMAGENET, normalize
from yolact_ops.settings.params import load_params

IMAGES = 5
EVERYTHING = PUBLISHED_AUGMENTATION
NOTHING = EVERYTHING.model_copy(update=dict.fromkeys(("photometric", "expand", "random_crop", "mirror"), False))
SIZE = 64


def train_config(repository: Path, **changes: Any) -> TrainConfig:
    """The base settings with all augmentations on, and the given changes."""
    config = load_params(repository / "conf" / "base.yaml").train
    return config.model_copy(update={"augment": EVERYTHING, "seed": 1, "batch_size": 2} | changes)


def uniform(length: int, batch_size: int, seed: int = 0, *, rank: int = 0, world_size: int = 1) -> EpochSampler:
    return EpochSampler(np.ones(length), batch_size, [SIZE], seed, rank=rank, world_size=world_size)


@pytest.fixture
def data(tmp_path: Path) -> CocoInstances:
    """Images 100, 101, ... of 24 x 20 pixels; image number k has k rectangles."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{image}.png")
        images.append({"id": 100 + image, "file_name": f"{image}.png", "width": 24, "height": 20})
        for number in range(image):
            polygon = [2 + number, 2, 14 + number, 2, 14 + number, 16, 2 + number, 16]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
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
def batches_of(data: CocoInstances, repository: Path) -> Callable[..., list[Batch]]:
    def load(
        *,
        workers: int = 0,
        seed: int = 1,
        epochs: tuple[int, ...] = (0,),
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **changes: Any,
    ) -> list[Batch]:
        config = train_config(repository, seed=seed, **changes)
        loader, sampler = training_loader(
            data, config, SIZE, workers=workers, pin=False, rank=rank, world_size=world_size
        )
        batches = []
        for epoch in epochs:
            sampler.epoch, sampler.start = epoch, start
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
def test_an_epoch_consists_of_full_batches_of_different_images(
    length: int, batch_size: int, seed: int, epoch: int
) -> None:
    sampler = uniform(length, batch_size, seed)
    sampler.epoch = epoch
    batches = list(sampler)
    keys = [key for batch in batches for key in batch]
    images = [key.image for key in keys]
    assert len(sampler) == len(batches) == max(length // batch_size, 1)
    assert {len(batch) for batch in batches} == {min(batch_size, length)}
    assert len(images) == len(set(images))
    assert set(images) <= set(range(length))
    assert {key.epoch for key in keys} == {epoch}
    if length % batch_size == 0 or length < batch_size:
        assert sorted(images) == list(range(length))


def test_every_image_is_left_out_of_some_epochs_only() -> None:
    sampler = uniform(5, 2)
    seen = set()
    for epoch in range(10):
        sampler.epoch = epoch
        seen |= {key.image for batch in sampler for key in batch}
    assert seen == set(range(5))


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = uniform(100, 10, seed)
        sampler.epoch = epoch
        return [key.image for batch in sampler for key in batch]

    np.random.seed(1)
    first = order(0, 0)
    np.random.seed(2)
    torch.manual_seed(2)
    assert order(0, 0) == first
    orders = [first, order(0, 1), order(0, 2), order(1, 0), order(1, 1), list(range(100))]
    assert len(set(map(tuple, orders))) == len(orders)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 8), st.integers(0, 3))
def test_the_parts_of_all_processes_are_the_batch_of_one(
    length: int, batch_size: int, world_size: int, epoch: int
) -> None:
    assume(world_size <= min(batch_size, length))
    samplers = [uniform(length, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = uniform(length, batch_size)
    for sampler in (*samplers, alone):
        sampler.epoch = epoch
    for whole, *parts in zip(alone, *samplers, strict=True):
        assert [key for part in parts for key in part] == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= 1


@pytest.mark.parametrize(("length", "batch_size"), [(3, 8), (20, 3), (0, 8)])
def test_processes_without_an_image_are_rejected(length: int, batch_size: int) -> None:
    with pytest.raises(SettingsError, match=rf"4 processes cannot share a batch of {min(length, batch_size)} "):
        uniform(length, batch_size, rank=0, world_size=4)


@given(st.integers(1, 30), st.integers(1, 10), st.integers(0, 12))
def test_a_pass_can_start_at_any_batch_of_the_epoch(length: int, batch_size: int, start: int) -> None:
    sampler = uniform(length, batch_size)
    whole = list(sampler)
    sampler.start = start
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)


def test_each_batch_has_one_size_that_depends_on_seed_epoch_and_batch() -> None:
    def sizes(seed: int, epoch: int, **part: int) -> list[int]:
        sampler = EpochSampler(np.ones(400), 4, [64, 96, 128], seed, **({"rank": 0, "world_size": 1} | part))
        sampler.epoch = epoch
        batches = list(sampler)
        assert all(len({key.size for key in batch}) == 1 for batch in batches)
        return [batch[0].size for batch in batches]

    first = sizes(0, 0)
    assert sizes(0, 0, rank=1, world_size=2) == first
    assert len({tuple(first), tuple(sizes(0, 1)), tuple(sizes(1, 0))}) == 3
    assert all(first.count(size) == pytest.approx(100 / 3, abs=4 * 4.7) for size in (64, 96, 128))


# --- Images of rare classes


def labelled(*images: list[int], classes: int, crowd: tuple[int, ...] = ()) -> CocoInstances:
    """Images with objects of these labels; those of labels in ``crowd`` are crowd regions."""
    objects = [[CocoObject(label, (0, 0, 1, 1), label in crowd, []) for label in labels] for labels in images]
    arrays = [CocoImage(image, "", 1, 1) for image in range(len(images))]
    categories = [(label, str(label)) for label in range(classes)]
    return CocoInstances.of_rows(Rows([Columns.of(arrays, objects)]), categories, LooseImages(Path()), Path())


def test_repeat_factors_by_hand() -> None:
    """Of 8 images 6 have class 0, 1 has class 1, 2 have class 2; the crowd's class 3 does not count."""
    images = [[0], [0], [0], [0], [0, 2], [0, 1, 1], [2, 3], []]
    data = labelled(*images, classes=5, crowd=(3,))
    rare, seldom = (0.5 / (1 / 8)) ** 0.5, (0.5 / (2 / 8)) ** 0.5
    assert repeat_factors(data, 0.5).tolist() == pytest.approx([1, 1, 1, 1, seldom, rare, seldom, 1])
    assert repeat_factors(data, 1e-3).tolist() == [1] * 8


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(64, 384), min_size=1, max_size=30), st.integers(1, 10), st.integers(0, 5), st.integers(0, 5)
)
def test_an_epoch_draws_each_image_according_to_its_repeat_factor(
    parts: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    factors = np.array(parts) / 64
    sampler = EpochSampler(factors, batch_size, [SIZE], seed, rank=0, world_size=1)
    sampler.epoch = epoch
    keys = [key for batch in sampler for key in batch]
    images = sum(parts) // 64
    batch = min(batch_size, images)
    assert len(keys) == images // batch * batch
    assert len({(key.image, key.copy) for key in keys}) == len(keys)
    counts = np.bincount([key.image for key in keys], minlength=len(factors))
    assert (counts <= np.ceil(factors)).all()
    # What is missing was in the last batch, or was the one image more that an epoch may have.
    assert (np.floor(factors) - counts).clip(min=0).sum() <= images % batch + 1


def test_over_many_epochs_images_are_drawn_in_proportion_to_their_factors() -> None:
    factors = np.array([1, 1.25, 2.5, 1, 3.75, 1, 1.5, 1])
    sampler = EpochSampler(factors, 13, [SIZE], 0, rank=0, world_size=1)  # their sum is 13
    counts = np.zeros(8)
    for epoch in range(1000):
        sampler.epoch = epoch
        [batch] = sampler
        counts += np.bincount([key.image for key in batch], minlength=8)
    assert counts / 1000 == pytest.approx(factors, abs=4 * 0.5 / 1000**0.5)


def test_copies_of_an_image_are_augmented_differently(data: CocoInstances) -> None:
    dataset = TrainingSet(data, EVERYTHING, seed=0)
    first, again, second = (dataset[SampleKey(0, 4, copy, SIZE)] for copy in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, second.images)


def test_class_balanced_sampling_draws_rare_classes_more_often(
    batches_of: Callable[..., list[Batch]],
) -> None:
    """Class dog is in images 2, 3 and 4 of 5, cat in 1 to 4."""
    balanced = batches_of(sampling="class_balanced", repeat_threshold=1.0, batch_size=1, epochs=tuple(range(12)))
    shown = [batch.image_ids[0] for batch in balanced]
    factor = (5 / 3) ** 0.5
    assert len(shown) == 12 * int(1 + (5 / 4) ** 0.5 + 3 * factor)
    assert shown.count(103) > shown.count(100)
    assert len(batches_of(sampling="uniform", repeat_threshold=1.0, batch_size=1)) == IMAGES


@pytest.fixture
def loader_of(repository: Path) -> Callable[..., None]:
    def load(data: CocoInstances, *, rank: int = 0, **changes: Any) -> None:
        config = train_config(repository, sampling="class_balanced", **changes)
        training_loader(data, config, SIZE, workers=0, pin=False, rank=rank, world_size=rank + 1)

    return load


def test_balancing_that_changes_nothing_names_the_rarest_class_and_its_share(
    loader_of: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Of 8 images 1 has class 1, none has class 3."""
    data = labelled([0], [0], [0], [0], [0, 2], [0, 1, 1], [2], [], classes=4)
    loader_of(data, repeat_threshold=1e-3)
    [message] = caplog.messages
    assert "the rarest class, 1, is in a share of 0.125 of the images" in message
    assert "train.repeat_threshold, 0.001" in message
    assert "Set a repeat_threshold above that share" in message


def test_balancing_that_has_an_effect_gives_no_warning(
    loader_of: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    data = labelled([0], [0], [0], [0], [0, 2], [0, 1, 1], [2], [], classes=4)
    loader_of(data, repeat_threshold=0.2)
    assert caplog.messages == []
    loader_of(data, repeat_threshold=1e-3, rank=1)  # the first process has said it
    assert caplog.messages == []


def test_no_threshold_is_suggested_if_every_image_has_every_class(
    loader_of: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    loader_of(labelled([0, 1], [0, 1], classes=2), repeat_threshold=1.0)
    assert "No class is rarer than another" in caplog.text


def test_the_base_settings_balance_data_with_classes_as_rare_as_those_of_voc(repository: Path) -> None:
    """The 20th class, in 4 of 100 images, is drawn sqrt(0.1 / 0.04) times as often."""
    data = labelled(*[[0]] * 96, *[[19]] * 4, classes=20)
    threshold = load_params(repository / "conf" / "base.yaml").train.repeat_threshold
    assert repeat_factors(data, threshold).tolist() == pytest.approx([1] * 96 + [2.5**0.5] * 4)


# --- Content


def test_a_sample_is_the_stored_image_with_its_objects(data: CocoInstances, tmp_path: Path) -> None:
    sample = read_sample(data, 4)
    assert np.array_equal(sample.image, np.asarray(Image.open(tmp_path / "4.png")))
    assert sample.boxes.tolist() == [[2 + k, 2, 14 + k, 16] for k in range(4)]
    assert sample.labels.tolist() == [0, 1, 0, 1]
    assert sample.crowd.tolist() == [False, False, False, True]
    expected = np.zeros((4, 20, 24), dtype=np.uint8)
    for number, mask in enumerate(expected):
        mask[2:16, 2 + number : 14 + number] = 1
    assert np.array_equal(coco_mask.decode(sample.masks).transpose(2, 0, 1), expected)


def test_a_sample_of_an_image_without_objects_is_empty(data: CocoInstances) -> None:
    sample = read_sample(data, 0)
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == sample.crowd.shape == (0,)
    assert sample.masks == []


def test_a_batch_holds_images_targets_and_ids_of_the_same_images(data: CocoInstances) -> None:
    dataset = TrainingSet(data, NOTHING, seed=0)
    batch = collate([dataset[SampleKey(0, image, 0, 72)] for image in (3, 0, 2)])
    assert batch.images.shape == (3, 3, 72, 72)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == [103, 100, 102]
    targets = batch.targets
    assert targets.counts == [3, 0, 2]
    assert targets.images.tolist() == [0, 0, 0, 2, 2]
    assert targets.labels.tolist() == [0, 1, 0, 0, 1]
    assert targets.masks.shape == (5, 18, 18)
    assert targets.semantic.shape == (3, 2, 9, 9)
    assert targets.boxes.shape == (5, 4)
    assert torch.allclose(targets.boxes[3], torch.tensor([2 / 24, 2 / 20, 14 / 24, 16 / 20]))


def test_a_batch_matches_targets_from_input_sized_masks(data: CocoInstances) -> None:
    """72 pixels are 3 and 3.6 times the image's sides, so the full mask can be built by hand."""
    dataset = TrainingSet(data, NOTHING, seed=0)
    batch = collate([dataset[SampleKey(0, image, 0, 72)] for image in (4, 0, 1)])
    boxes, labels, masks, crowd = [], [], [], []
    for image in (4, 0, 1):
        sample = read_sample(data, image)
        boxes.append(torch.from_numpy(sample.boxes / [24, 20, 24, 20]))
        labels.append(torch.from_numpy(sample.labels))
        crowd.append(torch.from_numpy(sample.crowd))
        masks.append(torch.zeros(image, 72, 72, dtype=torch.uint8))
        for number, mask in enumerate(masks[-1]):
            mask[7:58, 3 * (2 + number) : 3 * (14 + number)] = 1  # rows 7.2 to 57.6
    expected = targets_from_masks(boxes, labels, masks, crowd, 2, (18, 18), (9, 9))
    for name, value in vars(expected).items():
        found = getattr(batch.targets, name)
        if name == "masks":
            value, found = value[~expected.crowd], found[~expected.crowd]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def write_data(folder: Path, *images: list[list[int]], height: int = 100, width: int = 120) -> CocoInstances:
    """Images with rectangles [x, y, width, height] of one class."""
    arrays, annotations = [], []
    for number, boxes in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        arrays.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for x, y, w, h in boxes:
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
            annotations.append(row | {"segmentation": [polygon], "iscrowd": 0})
    tree = {"images": arrays, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "train.json").write_text(json.dumps(tree))
    return CocoInstances.load(folder / "train.json", folder)


def test_an_image_with_six_hundred_objects_of_a_single_class_is_loaded(tmp_path: Path) -> None:
    boxes = [[4 * column, 5 * row, 3, 4] for row in range(20) for column in range(30)]
    dataset = TrainingSet(write_data(tmp_path, boxes), NOTHING, seed=0)
    targets = dataset[SampleKey(0, 0, 0, 480)].targets
    assert targets.counts == [600]
    assert targets.masks.shape == (600, 120, 120)
    assert targets.masks.flatten(1).any(dim=1).all()
    union = targets.masks.amax(dim=0)
    assert union.float().mean() == pytest.approx(0.6, abs=0.05)
    assert targets.semantic.shape == (1, 1, 60, 60)


@pytest.mark.parametrize("box", [[10, 20, 1, 60], [10, 20, 60, 1], [50, 50, 1, 1], [0, 0, 120, 100]])
def test_slivers_and_tiny_boxes_are_loaded_with_every_change(tmp_path: Path, box: list[int]) -> None:
    dataset = TrainingSet(write_data(tmp_path, [box, [5, 5, 90, 80]]), EVERYTHING, seed=0)
    for epoch in range(25):
        targets = dataset[SampleKey(epoch, 0, 0, 64)].targets
        sides = targets.boxes[:, 2:] - targets.boxes[:, :2]
        assert (sides * 64 > 1 - 1e-4).all()
        assert len(targets.masks) == len(targets.labels) == targets.counts[0]


def test_images_without_objects_are_batches_too(tmp_path: Path) -> None:
    dataset = TrainingSet(write_data(tmp_path, [], []), EVERYTHING, seed=0)
    targets = collate([dataset[SampleKey(0, image, 0, 64)] for image in (0, 1)]).targets
    assert targets.counts == [0, 0]
    assert targets.boxes.shape == (0, 4)
    assert targets.masks.shape == (0, 16, 16)
    assert targets.images.dtype == targets.labels.dtype == torch.int64
    assert targets.semantic.shape == (2, 1, 8, 8)
    assert not targets.semantic.any()


def test_a_damaged_mask_is_reported_with_its_image(data: CocoInstances, tmp_path: Path) -> None:
    tree = json.loads((tmp_path / "train.json").read_text())
    tree["annotations"][0]["segmentation"] = {"size": [20, 24], "counts": "garbage!!"}
    (tmp_path / "train.json").write_text(json.dumps(tree))
    damaged = CocoInstances.load(tmp_path / "train.json", tmp_path)
    with pytest.raises(DataError, match=r"1\.png: .*cannot be decoded"):
        TrainingSet(damaged, NOTHING, seed=0)[SampleKey(0, 1, 0, SIZE)]


# --- Repeatability


def test_loader_processes_do_not_change_the_batches(batches_of: Callable[..., list[Batch]]) -> None:
    sizes = {"augment": EVERYTHING.model_copy(update={"image_sizes": [64, 80]})}
    alone = batches_of(workers=0, epochs=(0, 1), **sizes)
    assert {batch.images.shape[-1] for batch in alone} == {64, 80}
    for workers in (1, 2):
        assert same(alone, batches_of(workers=workers, epochs=(0, 1), **sizes))


@pytest.mark.parametrize("workers", [1, 3, 50])
@pytest.mark.parametrize("size", [1, 5, 16, 20])
def test_a_loader_process_begins_to_fetch_enough_images_ahead_and_each_once(workers: int, size: int) -> None:
    sampler = uniform(100, size)
    expected = list(sampler)
    found = list(LookAhead(sampler, workers))
    assert found == expected
    assert len(LookAhead(sampler, workers)) == len(expected)
    for worker in range(workers):
        own = found[worker::workers]
        announced: list[SampleKey] = []
        for place, batch in enumerate(own):
            announced += batch.announced
            assert set(batch) <= set(announced)
            rest = [key for later in own[place + 1 :] for key in later]
            assert set(rest[:AHEAD]) <= set(announced)
            assert len(set(announced) & set(rest)) < AHEAD + size
        assert sorted(announced) == sorted(key for batch in own for key in batch)


def test_two_processes_load_the_batches_of_one(batches_of: Callable[..., list[Batch]]) -> None:
    alone = batches_of(batch_size=4, epochs=(0, 3))
    parts = [batches_of(batch_size=4, epochs=(0, 3), rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(part.image_ids) for part in parts[0] + parts[1]] == [2] * 2 * len(alone)
    assert same(alone, [collate(list(both)) for both in zip(*parts, strict=True)])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_resumed_in_the_middle(batches_of: Callable[..., list[Batch]], workers: int) -> None:
    whole = batches_of(batch_size=1, epochs=(2,))
    assert len(whole) == IMAGES
    assert same(whole[3:], batches_of(batch_size=1, epochs=(2,), start=3, workers=workers))


class ThreadCount(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return torch.get_num_threads()

    def __len__(self) -> int:
        return 1


def test_a_loader_process_uses_one_thread(data: CocoInstances, repository: Path) -> None:
    loader, _ = training_loader(data, train_config(repository, batch_size=1), SIZE, workers=1, pin=False)
    counting = DataLoader(ThreadCount(), num_workers=1, collate_fn=list, worker_init_fn=loader.worker_init_fn)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(counting) == [[1]]
    finally:
        torch.set_num_threads(before)


def test_batches_depend_on_seed_and_epoch(batches_of: Callable[..., list[Batch]]) -> None:
    first = batches_of(seed=1, epochs=(0,), batch_size=IMAGES)
    np.random.seed(7)
    torch.manual_seed(7)
    assert same(first, batches_of(seed=1, epochs=(0,), batch_size=IMAGES))
    for seed, epoch in ((1, 1), (2, 0)):
        other = batches_of(seed=seed, epochs=(epoch,), batch_size=IMAGES)
        for image_id in range(100, 100 + IMAGES):  # not only in another order
            one, two = (batch[0].images[batch[0].image_ids.index(image_id)] for batch in (first, other))
            assert not torch.equal(one, two)


def test_an_epoch_is_the_same_whichever_epochs_came_before(batches_of: Callable[..., list[Batch]]) -> None:
    in_a_row = batches_of(epochs=(0, 1, 2))
    assert same(in_a_row[4:], batches_of(epochs=(2,)))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_does_not_change_the_global_random_state(batches_of: Callable[..., list[Batch]], workers: int) -> None:
    """Otherwise the loss's draws would depend on when a run was resumed: loader processes are seeded once per
    process."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches_of(workers=workers, epochs=(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_smaller_than_a_batch_is_one_batch(batches_of: Callable[..., list[Batch]]) -> None:
    batches = batches_of(batch_size=8, epochs=(0,))
    assert [sorted(batch.image_ids) for batch in batches] == [[100, 101, 102, 103, 104]]


@pytest.mark.parametrize("size", [64, 100, 137])
def test_a_network_learns_from_batches_of_every_size(data: CocoInstances, repository: Path, size: int) -> None:
    """Anchors are relative to the image, so the same boxes fit them at every size."""
    config = train_config(repository, batch_size=IMAGES, augment=EVERYTHING.model_copy(update={"image_sizes": [size]}))
    loader, _ = training_loader(data, config, 64, workers=0, pin=False)
    [batch] = loader
    model = Yolact(tiny_config(image_size=64), len(data.class_names))
    outputs = model(normalize(batch.images, IMAGENET))
    assert batch.images.shape[-2:] == (size, size)
    assert outputs.prototypes.shape[1:3] == batch.targets.masks.shape[1:]
    assert outputs.semantic_logits is not None
    assert outputs.semantic_logits.shape == batch.targets.semantic.shape
    losses = losses_of(YolactLoss(config.loss), outputs, batch.targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert losses.terms["mask"] > 0


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
def test_batches_are_pinned_on_a_gpu(data: CocoInstances, repository: Path) -> None:
    loader, _ = training_loader(data, train_config(repository, batch_size=3), SIZE, workers=0, pin=True)
    batch = next(iter(loader))
    assert all(tensor.is_pinned() for tensor in tensors(batch) if tensor.numel())


# --- Images made of several

MIXED = EVERYTHING.model_copy(update={"copy_paste": 0.7, "mosaic": 0.5, "mosaic_until": 0.5})


def test_mixed_images_do_not_depend_on_workers_or_on_where_an_epoch_starts(
    batches_of: Callable[..., list[Batch]],
) -> None:
    alone = batches_of(augment=MIXED, epochs=(0, 4))
    assert not same(alone, batches_of(epochs=(0, 4)))
    assert same(alone, batches_of(augment=MIXED, epochs=(0, 4), workers=2))
    assert same(alone[1:2], batches_of(augment=MIXED, start=1))
    parts = [batches_of(augment=MIXED, rank=rank, world_size=2) for rank in range(2)]
    for whole, *shares in zip(alone[:2], *parts, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)


def test_the_last_epochs_have_no_mosaics(data: CocoInstances, repository: Path) -> None:
    """Of 4 epochs, half: epochs 0 and 1. Only there a sample is made of four images."""
    always = NOTHING.model_copy(update={"mosaic": 1.0, "mosaic_until": 0.5})
    loader, sampler = training_loader(
        data, train_config(repository, augment=always, epochs=4), SIZE, workers=0, pin=False
    )
    plain, order = training_loader(data, train_config(repository, augment=NOTHING), SIZE, workers=0, pin=False)
    for epoch in range(4):
        sampler.epoch = order.epoch = epoch
        mixed, whole = (next(iter(batches)) for batches in (loader, plain))
        assert torch.equal(mixed.images, whole.images) == (epoch >= 2)


def test_targets_at_twice_the_prototypes_size(batches_of: Callable[..., list[Batch]], repository: Path) -> None:
    loss = train_config(repository).loss.model_copy(update={"mask_upsampling": 2})
    fine, coarse = batches_of(loss=loss), batches_of()
    assert {batch.targets.masks.shape[1] for batch in fine} == {32}
    assert {batch.targets.masks.shape[1] for batch in coarse} == {16}
    for one, other in zip(fine, coarse, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.semantic, other.targets.semantic)
