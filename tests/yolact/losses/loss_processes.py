"""The loss of a batch, computed by one process or by several that share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.loss_inputs import ImageObjects, batch_for, losses_of, objects_of, published_loss
from tests.small_networks import tiny_config
from yolact.losses.criterion import Losses, YolactLoss, random_priorities
from yolact.models.maskiou import MaskIouNet
from yolact.models.yolact import Yolact
from yolact.structures import RawOutputs

SIDE = 64
ANCHORS = 30
Find = Callable[[slice, list[int]], dict[str, Tensor]]
FIELDS = ("boxes", "class_logits", "mask_coefficients", "prototypes", "semantic_logits")


def objects(count: int, seed: int) -> ImageObjects:
    """The given number of rectangles at random positions, of three classes."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 30, (count, 2), generator=generator)
    high = low + torch.randint(8, 30, (count, 2), generator=generator)
    masks = torch.zeros(count, SIDE, SIDE)
    for mask, (x1, y1), (x2, y2) in zip(masks, low.tolist(), high.tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.randint(0, 3, (count,), generator=generator).tolist()
    return objects_of((torch.cat([low, high], dim=1) / SIDE).tolist(), labels, masks)


def results(batch: slice, counts: list[int]) -> dict[str, Tensor]:
    """Terms of the loss, and gradients of outputs and mask re-scoring, of a part of the batch.

    Args:
        counts: objects in each of the whole batch's images.
    """
    generator = torch.Generator().manual_seed(0)
    images = [objects(count, seed) for seed, count in enumerate(counts)]
    whole = {
        "boxes": torch.randn(len(images), ANCHORS, 4, generator=generator),
        "class_logits": torch.randn(len(images), ANCHORS, 4, generator=generator),
        "mask_coefficients": torch.randn(len(images), ANCHORS, 5, generator=generator),
        "prototypes": torch.rand(len(images), SIDE, SIDE, 5, generator=generator),
        "semantic_logits": torch.randn(len(images), 3, SIDE // 2, SIDE // 2, generator=generator),
    }
    anchors = torch.cat(
        [torch.rand(ANCHORS, 2, generator=generator), torch.rand(ANCHORS, 2, generator=generator) * 0.4 + 0.1], dim=1
    )
    part = {name: tensor[batch].clone().requires_grad_() for name, tensor in whole.items()}
    outputs = RawOutputs(**part, anchors=anchors)
    torch.manual_seed(1)
    network = MaskIouNet(3)
    losses = loss_of_part(outputs, images, batch, network)
    losses.total.backward()
    found = {f"term {name}": term.detach() for name, term in losses.weighted.items()}
    found |= {f"output {name}": part[name].grad for name in FIELDS}
    return found | {f"network {name}": parameter.grad for name, parameter in network.named_parameters()}


def gradients(batch: slice, counts: list[int]) -> dict[str, Tensor]:
    """Gradients of all parameters of a network with frozen batch norm, for a part of the batch; arguments as for
    `results`.

    It computes in float64. In float32, the rounding of the network's own layers would exceed the tested differences.
    """
    torch.manual_seed(2)
    network = Yolact(tiny_config(backbone_weights="imagenet"), 3).double()
    images = torch.randn(len(counts), 3, SIDE, SIDE, dtype=torch.float64)
    outputs = network(images[batch])
    arrays = [objects(count, seed) for seed, count in enumerate(counts)]
    loss_of_part(outputs, arrays, batch, None).total.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def loss_of_part(outputs: RawOutputs, images: list[ImageObjects], batch: slice, network: MaskIouNet | None) -> Losses:
    """The loss of a part of the batch of ``images``; masks are drawn for the whole batch."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    criterion = YolactLoss(published_loss(max_masks_per_image=3), world_size)
    priorities = random_priorities(len(images), len(outputs.anchors), outputs.boxes.device)[batch]
    return losses_of(criterion, outputs, batch_for(outputs, images[batch]), network, priorities)


def _process(rank: int, processes: int, find: Find, counts: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    share = len(counts) // processes
    torch.save(find(slice(rank * share, (rank + 1) * share), counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shared_results(find: Find, processes: int, counts: list[int], folder: Path) -> list[dict[str, Tensor]]:
    """The results of each of ``processes`` for its equal share of the batch."""
    mp.spawn(_process, (processes, find, counts, str(folder)), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
