"""Parameters and FLOPs, against a hand count of every convolution."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from tests.small_networks import tiny_config
from yolact.models.complexity import count_flops, count_parameters, measure_complexity
from yolact.models.published import PUBLISHED_MODELS
from yolact.models.yolact import Yolact

BOTTLENECKS = {
    "backbone": "resnet50",
    "fpn_channels": 8,
    "num_prototypes": 4,
    "anchor_scales": [[8], [16], [24], [40], [60]],
    "anchor_ratios": [1, 0.5, 2],
}
CLASSES = 3


def halves(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size


def convolutions(
    height: int,
    width: int,
    blocks: tuple[int, ...],
    channels: int = 8,
    prototypes: int = 4,
    anchors: int = 3,
    classes: int = CLASSES,
) -> Iterator[tuple[int, int, int, int]]:
    """Every convolution of a bottleneck YOLACT: output cells, channels in and out, kernel side. Written out by hand."""
    cells = [halves(height, n) * halves(width, n) for n in range(8)]  # at strides 1 to 128
    yield cells[1], 3, 64, 7
    entering = 64
    for stage, count in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        here = cells[2 + stage]
        for block in range(count):
            strided = stage > 0 and block == 0
            yield cells[1 + stage] if strided else here, entering, inner, 1
            yield here, inner, inner, 3  # the stride is in this one
            yield here, inner, outer, 1
            if block == 0:
                yield here, entering, outer, 1  # shortcut
            entering = outer
    for level, deep in ((3, 512), (4, 1024), (5, 2048)):
        yield cells[level], deep, channels, 1
        yield cells[level], channels, channels, 3
    for level in (6, 7):
        yield cells[level], channels, channels, 3
    for _ in range(3):
        yield cells[3], channels, channels, 3
    enlarged = 4 * cells[3]
    yield enlarged, channels, channels, 3
    yield enlarged, channels, prototypes, 1
    for level in range(3, 8):
        yield cells[level], channels, channels, 3
        for values in (4, classes + 1, prototypes):
            yield cells[level], channels, anchors * values, 3


def flops(layers: Iterator[tuple[int, int, int, int]]) -> int:
    return sum(2 * cells * wide_in * wide_out * kernel**2 for cells, wide_in, wide_out, kernel in layers)


def tiny(**changes: object) -> Yolact:
    return Yolact(tiny_config(**(BOTTLENECKS | changes)), CLASSES)


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 3, 1)])
def test_every_convolution_of_the_network_is_counted(blocks: tuple[int, ...]) -> None:
    assert count_flops(tiny(backbone_blocks=list(blocks))) == flops(convolutions(64, 64, blocks))


@pytest.mark.parametrize(("height", "width"), [(128, 64), (96, 160), (70, 70)])
def test_the_input_can_have_another_size(height: int, width: int) -> None:
    model = tiny(backbone_blocks=[1, 1, 1, 1])
    assert count_flops(model, height, width) == flops(convolutions(height, width, (1, 1, 1, 1)))


def test_a_deformable_convolution_costs_its_offsets_and_its_samples_more() -> None:
    plain = count_flops(tiny(backbone_blocks=[1, 1, 1, 1]))
    deformable = count_flops(tiny(backbone_blocks=[1, 1, 1, 1], deformable_blocks=[[], [0], [], [0]]))
    offsets = 2 * 9 * (8 * 8 * 128 + 2 * 2 * 512) * 27
    samples = 8 * 9 * (8 * 8 * 128 + 2 * 2 * 512)  # four products, three sums and the modulation for each of nine
    assert deformable == plain + offsets + samples


def test_the_resnet_50_of_the_paper_takes_118_gflops() -> None:
    published = PUBLISHED_MODELS["yolact_resnet50"]
    counted = measure_complexity(published.model, len(published.classes))
    by_hand = flops(
        convolutions(550, 550, (3, 4, 6, 3), channels=256, prototypes=32, anchors=3, classes=len(published.classes))
    )
    assert counted.flops == by_hand
    assert counted.flops // 10**9 == 118


def test_the_semantic_branch_costs_nothing_in_a_network_that_is_training() -> None:
    model = tiny(backbone_blocks=[1, 1, 1, 1]).train()
    assert count_flops(model) == flops(convolutions(64, 64, (1, 1, 1, 1)))


def test_counting_does_not_modify_the_network() -> None:
    model = tiny(backbone_blocks=[1, 1, 1, 1]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rescoring_is_counted_separately_for_one_mask() -> None:
    config = tiny_config(**(BOTTLENECKS | {"image_size": 256, "mask_rescoring": True}))
    with_it = measure_complexity(config, CLASSES)
    without = measure_complexity(config.model_copy(update={"mask_rescoring": False}), CLASSES)
    # 64 x 64 prototypes, halved without padding: 31, 15, 7, 3, 1.
    layers = [(31, 1, 8, 3), (15, 8, 16, 3), (7, 16, 32, 3), (3, 32, 64, 3), (1, 64, 128, 3), (1, 128, CLASSES, 1)]
    assert with_it.rescoring_flops == flops((side**2, *rest) for side, *rest in layers)
    assert without.rescoring_flops == 0
    assert with_it.flops == without.flops


def test_anchors_and_prototypes_match_the_network() -> None:
    measured = measure_complexity(tiny_config(**BOTTLENECKS), CLASSES)
    assert measured.anchors == 3 * (64 + 16 + 4 + 1 + 1)
    assert measured.prototypes == (16, 16, 4)


def test_parameters_are_weights_and_biases_without_statistics() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), DeformConv2d(5, 7, 3, bias=False))
    assert count_parameters(layer) == (5 * 3 * 9 + 5) + (5 + 5) + 7 * 5 * 9


def test_measuring_counts_the_parameters_of_the_real_network() -> None:
    config = tiny_config(**BOTTLENECKS)
    real = Yolact(config, CLASSES)
    assert measure_complexity(config, CLASSES).parameters == sum(p.numel() for p in real.parameters())
