"""Targets of a batch from masks at the input's size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.loss_inputs import ImageObjects, batch_of, objects_of
from yolact.structures import downsample_masks


def random_masks(count: int, side: int, seed: int) -> Tensor:
    """Blobs: a coarse random grid, enlarged."""
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0] > 0.5).to(torch.uint8)


def plain_reduction(mask: Tensor, height: int, width: int) -> list[list[int]]:
    """Bilinear with half-pixel centres, then more than a half; in Python's floats."""

    def places(size: int, target: int) -> list[tuple[int, int, float]]:
        rows = []
        for index in range(target):
            centre = max((index + 0.5) * size / target - 0.5, 0)
            first = int(centre)
            rows.append((first, min(first + 1, size - 1), centre - first))
        return rows

    values = mask.tolist()
    return [
        [
            int(
                (1 - y) * ((1 - x) * values[top][left] + x * values[top][right])
                + y * ((1 - x) * values[bottom][left] + x * values[bottom][right])
                > 0.5 + 1e-6
            )
            for left, right, x in places(mask.shape[1], width)
        ]
        for top, bottom, y in places(mask.shape[0], height)
    ]


@pytest.mark.parametrize("size", [(10, 10), (7, 9), (5, 5), (20, 20)])
def test_masks_are_reduced_bilinearly_and_need_more_than_half(size: tuple[int, int]) -> None:
    masks = random_masks(4, 20, seed=1)
    assert downsample_masks(masks, *size).tolist() == [plain_reduction(mask, *size) for mask in masks]


@pytest.fixture
def images() -> list[ImageObjects]:
    """Two objects and a crowd region between them; nothing; and one object."""
    first = objects_of(
        [[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1]], [1, -1, 1], random_masks(3, 16, 2), [False, True, False]
    )
    nothing = objects_of([], [], torch.zeros(0, 16, 16))
    return [first, nothing, objects_of([[0.1, 0.2, 0.3, 0.4]], [0], random_masks(1, 16, 3))]


def test_objects_of_all_images_are_concatenated(images: list[ImageObjects]) -> None:
    targets = batch_of(images, 2, (8, 8), (4, 4))
    assert targets.counts == [3, 0, 1]
    assert targets.images.tolist() == [0, 0, 0, 2]
    assert targets.labels.tolist() == [1, -1, 1, 0]
    assert targets.crowd.tolist() == [False, True, False, False]
    assert torch.equal(targets.boxes, torch.cat([image.boxes for image in images]))
    assert torch.equal(targets.masks, downsample_masks(torch.cat([image.masks for image in images]), 8, 8))
    assert (targets.boxes.dtype, targets.masks.dtype, targets.semantic.dtype) == (
        torch.float32,
        torch.uint8,
        torch.uint8,
    )


def test_the_semantic_map_is_the_union_of_each_class_without_crowd_regions(images: list[ImageObjects]) -> None:
    semantic = batch_of(images, 3, (8, 8), (4, 4)).semantic
    first, _, last = (downsample_masks(image.masks, 4, 4) for image in images)
    expected = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    expected[0, 1] = first[0] | first[2]
    expected[2, 0] = last[0]
    assert torch.equal(semantic, expected)


def test_a_batch_without_objects_has_empty_targets_and_a_semantic_map() -> None:
    targets = batch_of([objects_of([], [], torch.zeros(0, 16, 16))] * 2, 3, (8, 8), (4, 4))
    assert targets.counts == [0, 0]
    assert targets.boxes.shape == (0, 4)
    assert targets.images.shape == targets.labels.shape == targets.crowd.shape == (0,)
    assert targets.masks.shape == (0, 8, 8)
    assert targets.semantic.shape == (2, 3, 4, 4)
    assert not targets.semantic.any()


def test_targets_move_to_a_device_as_a_whole(images: list[ImageObjects]) -> None:
    moved = batch_of(images, 2, (8, 8)).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert len(tensors) == 6
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.counts == [3, 0, 1]
