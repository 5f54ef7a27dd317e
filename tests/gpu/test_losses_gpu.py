"""Matching and losses on a GPU: the results of the CPU, and not once does the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.loss_inputs import batch_for, losses_of, published_loss
from tests.yolact.losses.loss_processes import ANCHORS, FIELDS, SIDE, objects
from yolact.losses.criterion import YolactLoss
from yolact.models.maskiou import MaskIouNet
from yolact.structures import RawOutputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """PyTorch refuses every operation that makes the host wait."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def random_outputs(images: int) -> RawOutputs:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return RawOutputs(
        boxes=leaf(images, ANCHORS, 4),
        class_logits=leaf(images, ANCHORS, 4),
        mask_coefficients=leaf(images, ANCHORS, 5),
        prototypes=leaf(images, SIDE, SIDE, 5).abs(),
        anchors=torch.rand(ANCHORS, 4, generator=generator) * 0.5 + 0.2,
        semantic_logits=leaf(images, 3, SIDE // 2, SIDE // 2),
    )


def on(device: str, outputs: RawOutputs) -> RawOutputs:
    moved = {name: getattr(outputs, name).to(device).detach().requires_grad_() for name in FIELDS}
    return replace(outputs, **moved, anchors=outputs.anchors.to(device))


@pytest.mark.parametrize("counts", [[3, 0, 7], [0, 0]])
def test_loss_and_gradients_are_those_of_the_cpu_without_waiting(
    counts: list[int], request: pytest.FixtureRequest
) -> None:
    images = [objects(count, seed) for seed, count in enumerate(counts)]
    outputs = random_outputs(len(counts))
    targets = batch_for(outputs, images)
    torch.manual_seed(0)
    network = MaskIouNet(3)
    criterion = YolactLoss(published_loss())
    host = on("cpu", outputs)
    expected = losses_of(criterion, host, targets, network)
    expected.total.backward()

    device = on("cuda", outputs)
    network, moved = network.cuda(), targets.to("cuda")
    losses_of(criterion, device, moved, network).total.backward()  # libraries are loaded
    for name in FIELDS:
        getattr(device, name).grad = None
    request.getfixturevalue("no_waiting")
    found = losses_of(criterion, device, moved, network)
    found.total.backward()
    torch.cuda.set_sync_debug_mode("default")
    for name, term in expected.terms.items():
        assert found.terms[name].item() == pytest.approx(term.item(), rel=1e-4), name
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(device, name).grad.cpu(), getattr(host, name).grad, rtol=1e-3, atol=1e-5, msg=name
        )
