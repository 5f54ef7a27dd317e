"""Training backends that a benchmark compares: this project's losses and optimizer, and other implementations.

A file that ``yolact bench train --against FILE.py`` names has one function::

    def load_training(
        weights: Path, model: dict, num_classes: int, loss: dict, optimizer: dict, device: str
    ) -> object: ...

``weights``, ``model`` and ``device`` are as for inference, see `yolact_bench.speed.backends`. ``loss`` has the fields
of `settings.LossConfig`, ``optimizer`` those of SGD: ``lr``, ``momentum`` and ``weight_decay``. The backbone's batch
norm must be frozen: evaluation mode, no gradients. The returned object has the methods of the protocol
`TrainingBackend`. It may have two more, which are not timed:

``terms(losses)``
    What ``loss`` returned as a dict of floats for comparison: ``classification``, ``box``, ``mask`` and ``semantic``,
    weighted and normalised, and ``mask_iou`` with mask re-scoring.
``gradients()``
    After ``backward``: a dict of the parameters' gradients by their published names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from yolact.errors import SettingsError
from yolact.inference.network import Precision
from yolact.losses.criterion import Losses, YolactLoss, random_priorities
from yolact.models.yolact import Yolact
from yolact.settings import LossConfig, ModelConfig
from yolact.structures import RawOutputs, Targets, targets_from_masks
from yolact.transforms import normalize, to_square
from yolact_bench.speed.backends import BackendSpec
from yolact_bench.speed.evaluation import draw_boxes
from yolact_bench.speed.external import PROTOCOL, call, load_backend

TrainingStage = Literal["forward", "loss", "backward", "optimizer"]
TRAINING_STAGES: tuple[TrainingStage, ...] = ("forward", "loss", "backward", "optimizer")
METHODS = ("prepare", *TRAINING_STAGES)

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingBackend(Protocol):
    """The four stages of a training step."""

    def prepare(self, images: np.ndarray, targets: list[dict[str, np.ndarray]]) -> Any:
        """Convert a batch to the implementation's own form, on its device; not timed.

        Args:
            images: (B, 3, S, S) uint8 RGB.
            targets: for each image ``boxes`` (n, 4) float32 xyxy from 0 to 1; ``labels`` (n,) int64 from 0; ``masks``
                (n, S, S) uint8, 0 or 1. No crowd regions.
        """

    def forward(self, batch: Any) -> Any:
        """Run the network."""

    def loss(self, batch: Any, outputs: Any) -> Any:
        """Match anchors and compute all terms of the loss."""

    def backward(self, losses: Any) -> None:
        """Compute the gradients of the terms' sum; they replace those of the previous step."""

    def optimizer(self) -> None:
        """Update the weights."""


@dataclass(frozen=True)
class SgdSettings:
    """The optimizer of all backends: the published one, at the initial learning rate of its warm-up."""

    lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class TrainingTask:
    """The inputs of all backends."""

    weights: Path
    """A state_dict in a ``.pth`` file, float32."""
    model: ModelConfig
    num_classes: int
    loss: LossConfig
    sgd: SgdSettings
    device: str
    threads: int


@dataclass(frozen=True)
class TrainingBatch:
    """Images and synthetic objects, the same for every backend; see `TrainingBackend.prepare`."""

    images: np.ndarray
    targets: list[dict[str, np.ndarray]]


def make_batch(
    images: list[np.ndarray], batch: int, size: int, num_classes: int, objects: int, seed: int
) -> TrainingBatch:
    """Generate a batch of images with ``objects`` ellipses each, in boxes from `draw_boxes`.

    The images' content does not matter for the time of a step; the objects' size and number do.

    Args:
        images: (H, W, 3) uint8 RGB, used in turn.
        size: side S of the network's input, pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = [(to_square(torch.from_numpy(image).permute(2, 0, 1), size) + 0.5).byte() for image in images]
    targets = []
    for _ in range(batch):
        boxes = draw_boxes(objects, generator)
        targets.append(
            {
                "boxes": boxes.numpy(),
                "labels": torch.randint(0, num_classes, (objects,), generator=generator).numpy(),
                "masks": _ellipses(boxes, size).numpy(),
            }
        )
    inputs = torch.stack([squares[index % len(squares)] for index in range(batch)])
    return TrainingBatch(inputs.numpy(), targets)


def _ellipses(boxes: Tensor, size: int) -> Tensor:
    """(n, size, size) uint8 masks of the ellipses in (n, 4) relative xyxy boxes."""
    centres, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    pixels = (torch.arange(size) + 0.5) / size
    x, y = ((pixels[:, None, None] - centres) / radii).unbind(2)  # (size, n)
    return (x.T[:, None, :] ** 2 + y.T[:, :, None] ** 2 <= 1).to(torch.uint8)


class YolactTrainingBackend:
    """Our network, losses and optimizer as training uses them: channels_last, autocast, frozen batch norm."""

    def __init__(self, spec: BackendSpec, task: TrainingTask) -> None:
        self.device = torch.device(task.device)
        with torch.device("meta"):
            model = Yolact(task.model, task.num_classes)
        model.load_state_dict(torch.load(task.weights, "cpu", weights_only=True), assign=True)
        self.network = freeze_batch_norm(model.to(self.device).to(memory_format=torch.channels_last).train())
        self.precision = spec.precision
        self.criterion = YolactLoss(task.loss)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.sgd = torch.optim.SGD(parameters, **asdict(task.sgd), fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16")

    def prepare(self, images: np.ndarray, targets: list[dict[str, np.ndarray]]) -> tuple[Tensor, Targets]:
        """See `TrainingBackend`."""
        config = self.network.config
        height, width = Yolact.level_sizes(config.image_size, config.image_size)[0]
        boxes, labels, masks = (
            [torch.from_numpy(image[name]) for image in targets] for name in ("boxes", "labels", "masks")
        )
        crowd = [torch.zeros(len(rows), dtype=torch.bool) for rows in boxes]
        size = (2 * height, 2 * width)
        bundle = targets_from_masks(boxes, labels, masks, crowd, self.network.num_classes, size, (height, width))
        inputs = normalize(torch.from_numpy(images).to(self.device), self.network.backbone.normalization)
        return inputs.contiguous(memory_format=torch.channels_last), bundle.to(self.device)

    def forward(self, batch: tuple[Tensor, Targets]) -> RawOutputs:
        """See `TrainingBackend`."""
        with self._autocast():
            outputs: RawOutputs = self.network(batch[0])
        return outputs

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    def loss(self, batch: tuple[Tensor, Targets], outputs: RawOutputs) -> Losses:
        """See `TrainingBackend`."""
        targets = batch[1]
        matches = self.criterion.match(targets, outputs.anchors)
        priorities = random_priorities(len(batch[0]), len(outputs.anchors), self.device)
        losses: Losses = self.criterion(outputs, targets, matches, priorities, self.network.maskiou_net)
        return losses

    def backward(self, losses: Losses) -> None:
        """See `TrainingBackend`."""
        self.sgd.zero_grad(set_to_none=True)
        self.scaler.scale(losses.total).backward()

    def optimizer(self) -> None:
        """See `TrainingBackend`."""
        self.scaler.step(self.sgd)
        self.scaler.update()

    def terms(self, losses: Losses) -> dict[str, float]:
        """See the module's docstring."""
        return {name: term.item() for name, term in losses.weighted.items()}

    def gradients(self) -> dict[str, Tensor]:
        """See the module's docstring."""
        scale = self.scaler.get_scale()
        named = self.network.named_parameters()
        return {name: parameter.grad / scale for name, parameter in named if parameter.grad is not None}


def freeze_batch_norm(network: Yolact) -> Yolact:
    """Freeze the backbone's batch norm, as in a pretrained network: evaluation mode, no gradients."""
    for module in network.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return network


class TrainingRunner:
    """Loads a backend and runs its stages; errors in another implementation name its file and line.

    Raises:
        SettingsError: the backend's file is missing or does not follow the protocol.
    """

    def __init__(self, spec: BackendSpec, task: TrainingTask) -> None:
        self.name = spec.name
        self.file = spec.file
        self.backend: Any = YolactTrainingBackend(spec, task) if spec.file is None else _load_file(spec.file, task)

    def prepare(self, batch: TrainingBatch) -> Any:
        """The batch in the backend's own form."""
        return call(self.file, self.backend.prepare, batch.images, batch.targets)

    def stages(self, batch: Any) -> list[Callable[[Any], Any]]:
        """The four stages of a step; each takes the previous stage's result, the first None.

        ``loss`` and ``backward`` both return the losses.
        """
        backend = self.backend

        def backward(losses: Any) -> Any:
            backend.backward(losses)
            return losses

        methods: list[Callable[[Any], Any]] = [
            lambda _: backend.forward(batch),
            lambda outputs: backend.loss(batch, outputs),
            backward,
            lambda _: backend.optimizer(),
        ]
        return [partial(call, self.file, method) for method in methods]

    def terms(self, losses: Any) -> dict[str, float] | None:
        """The terms of the loss by name; None if the backend does not report them.

        Raises:
            SettingsError: a term is not a finite number.
        """
        method = getattr(self.backend, "terms", None)
        if method is None:
            return None
        try:
            terms = {str(name): float(value) for name, value in call(self.file, method, losses).items()}
        except (AttributeError, TypeError, ValueError):
            raise SettingsError(f"--against {self.file}: terms must return a dict of floats; {PROTOCOL}") from None
        if not all(map(math.isfinite, terms.values())):
            raise SettingsError(f"{self.name}: the loss of the first step is not finite: {terms}")
        return terms

    def gradients(self) -> dict[str, Tensor] | None:
        """Float32 copies of the gradients on the CPU, by parameter name; None if the backend does not report them."""
        method = getattr(self.backend, "gradients", None)
        if method is None:
            return None
        return {name: value.detach().float().cpu().clone() for name, value in call(self.file, method).items()}


def _load_file(file: Path, task: TrainingTask) -> Any:
    return load_backend(
        file,
        "load_training",
        METHODS,
        weights=task.weights,
        model=task.model.model_dump(mode="json"),
        num_classes=task.num_classes,
        loss=task.loss.model_dump(mode="json"),
        optimizer=asdict(task.sgd),
        device=task.device,
    )
