"""Masks for the losses equal those of the two full steps, image to input and input to prototypes, in every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from yolact.crop import Crop, View, visible_part
from yolact.data.target_masks import Grids, reduce_masks
from yolact.masks import Rle
from yolact.models.yolact import Yolact
from yolact.structures import Targets, targets_from_masks
from yolact_bench.parity.resizing import resize_masks

CLASSES = 3


@dataclass
class Scene:
    masks: np.ndarray
    """(N, H, W) uint8."""
    labels: np.ndarray
    crop: Crop
    size: int


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Up to four objects, solid or frayed, and a crop inside the image, across its border, around it or outside it."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    masks = np.zeros((draw(st.integers(0, 4)), height, width), dtype=np.uint8)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    for mask in masks:
        top, left = rng.integers(height), rng.integers(width)
        part = mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)]
        part[:] = rng.random(part.shape) < rng.choice([0.5, 0.9, 1])
    crop = Crop(
        left=draw(st.integers(-width, width)),
        top=draw(st.integers(-height, height)),
        width=draw(st.integers(1, 2 * width)),
        height=draw(st.integers(1, 2 * height)),
        mirrored=draw(st.booleans()),
    )
    return Scene(masks, rng.integers(0, CLASSES, len(masks)), crop, draw(st.integers(64, 130)))


def run_lengths(masks: np.ndarray) -> list[Rle]:
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]


def input_sized(scene: Scene) -> np.ndarray:
    """The masks (N, S, S) of the objects in the network's input."""
    count, height, width = scene.masks.shape
    full = np.zeros((count, scene.size, scene.size), dtype=np.uint8)
    part = visible_part(scene.crop, height, width, scene.size)
    if part is not None:
        seen = scene.masks[:, part.source_rows, part.source_columns]
        full[:, part.target_rows, part.target_columns] = resize_masks(seen, part.shape)
    return full[:, :, ::-1].copy() if scene.crop.mirrored else full


def reference(scene: Scene, full: np.ndarray) -> Targets:
    grids = Grids.of_input(scene.size)
    count = len(full)
    return targets_from_masks(
        [torch.zeros(count, 4)],
        [torch.from_numpy(scene.labels)],
        [torch.from_numpy(full)],
        [torch.zeros(count, dtype=torch.bool)],
        CLASSES,
        (grids.masks, grids.masks),
        (grids.semantic, grids.semantic),
    )


def reduced(scene: Scene, crowd: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    count, height, width = scene.masks.shape
    masks, semantic = reduce_masks(
        run_lengths(scene.masks),
        scene.labels,
        np.zeros(count, dtype=bool) if crowd is None else crowd,
        View.of(scene.crop, height, width, scene.size),
        CLASSES,
    )
    return torch.from_numpy(masks), torch.from_numpy(semantic)


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_masks_match_the_two_full_steps_in_every_crop(scene: Scene) -> None:
    expected = reference(scene, input_sized(scene))
    masks, semantic = reduced(scene)
    assert torch.equal(masks, expected.masks)
    assert torch.equal(semantic, expected.semantic[0])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("crop", [Crop(0, 0, 500, 375), Crop(-333, -120, 1100, 825), Crop(141, 33, 217, 300)])
def test_masks_match_the_published_pipeline(crop: Crop, mirrored: bool) -> None:
    """Computed by torch in double precision; pixels so close to one half that rounding decides are excluded."""
    rows, columns = np.mgrid[0:375, 0:500]
    discs = ((150, 260, 90), (200, 330, 60), (37, 300, 4))
    masks = np.stack([(rows - y) ** 2 + (columns - x) ** 2 <= r * r for y, x, r in discs]).astype(np.uint8)
    size, grids = 550, Grids.of_input(550)
    part = visible_part(crop, 375, 500, size)
    assert part is not None
    seen = torch.from_numpy(masks[:, part.source_rows, part.source_columns])[None].double()
    levels = F.interpolate(seen, size=part.shape, mode="bilinear", align_corners=False)[0]
    assert ((levels - 0.5).abs() < 1e-9).float().mean() < 1e-3
    full = torch.zeros(3, size, size, dtype=torch.float64)
    full[:, part.target_rows, part.target_columns] = (levels + 1e-9 >= 0.5).double()
    full = full.flip(-1) if mirrored else full
    values = F.interpolate(full[None], size=(grids.masks, grids.masks), mode="bilinear", align_corners=False)[0]
    decided = (values - 0.5).abs() > 1e-4
    assert decided.float().mean() > 0.99

    found, _ = reduced(Scene(masks, np.zeros(3, dtype=np.int64), Crop(**(vars(crop) | {"mirrored": mirrored})), size))
    assert found.any()
    assert torch.equal(found.bool()[decided], (values > 0.5)[decided])


def test_crowd_regions_are_not_decoded_and_have_no_class() -> None:
    masks = np.ones((2, 20, 20), dtype=np.uint8)
    masks[1, :10] = 0
    damaged: list[Rle] = [{"size": [20, 20], "counts": "garbage!!"}, *run_lengths(masks[1:])]
    found, semantic = reduce_masks(
        damaged,
        np.array([0, 1]),
        np.array([True, False]),
        View.of(Crop(0, 0, 20, 20), 20, 20, 64),
        CLASSES,
    )
    assert not found[0].any()
    assert found[1, 8:].all()
    assert not found[1, :8].any()
    assert semantic.reshape(CLASSES, -1).sum(axis=1).tolist() == [0, 32, 0]


def test_masks_of_a_class_are_merged() -> None:
    masks = np.zeros((3, 16, 16), dtype=np.uint8)
    masks[0, :8, :8] = masks[1, 8:, 8:] = masks[2, :, :] = 1
    _, semantic = reduced(Scene(masks, np.array([2, 2, 0]), Crop(0, 0, 16, 16), 128))
    expected = np.zeros((16, 16))
    expected[:8, :8] = expected[8:, 8:] = 1
    assert np.array_equal(semantic[2], expected)
    assert semantic[0].all()
    assert not semantic[1].any()


@pytest.mark.parametrize("size", [64, 65, 138, 249, 550, 551, 700])
def test_grids_are_the_networks(size: int) -> None:
    [(cells, _), *_] = Yolact.level_sizes(size, size)
    assert Grids.of_input(size) == Grids(size, 2 * cells, cells)
