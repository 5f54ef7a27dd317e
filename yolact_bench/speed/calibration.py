"""Random weights that make a network behave like a trained one: it finds some objects, and most places are empty.

With plain random weights a network finds nothing or the maximum, which makes the times of NMS and masks meaningless.
The detections need not be correct; they only have to cause as much work as a trained network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.efficientnet import MBConv
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock

from yolact.boxes import SIZE_VARIANCE
from yolact.inference.postprocess import Candidates, detect
from yolact.models.backbones.darknet import DarknetBlock
from yolact.models.backbones.efficientnet_lite import MobileBlock
from yolact.models.backbones.resnet import BasicBlock, Bottleneck
from yolact.models.head import PredictionHead
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, ModelConfig
from yolact.structures import RawOutputs
from yolact.transforms import normalize, to_square

CLASS_LOGIT_SPREAD = 3.0
"""Standard deviation of the class logits, large enough for a few classes to dominate."""

BOX_SHARE = 0.1
"""Mean share of the image that a box covers. Without calibration most boxes would be small, as most anchors are."""

RESIDUAL_WEIGHT = 0.2
"""Weight of the last batch norm in each residual block. With 1, random blocks multiply rounding errors: in float32 a
ResNet-50's mask coefficients are then off by 1e-4, ten times as much as with this value."""

SCORES_PER_OBJECT = 100
"""Maximum number of scores above the threshold per object that remains after NMS."""

_RESIDUAL_BLOCKS = (
    *(BasicBlock, Bottleneck, DarknetBlock, MobileBlock),
    *(ResBottleneckBlock, MBConv, InvertedResidual),  # RegNet, EfficientNet, MobileNetV3
)
_PROJECTIONS = ("downsample", "proj")
"""Children of such blocks that are their shortcuts."""

ROUNDS = 3
"""Rounds of fitting the boxes' sizes and the background's bias, which depend on each other through NMS."""


def calibrated_network(
    config: ModelConfig, num_classes: int, image: np.ndarray, objects: int = 20, seed: int = 0
) -> Yolact:
    """A network with random weights that finds about ``objects`` objects in ``image`` with `DEFAULT_DETECTION`.

    The weights are drawn from ``seed``. Residual blocks are damped (`RESIDUAL_WEIGHT`), and batch norm uses the
    statistics of the image and its mirror image. The last convolutions of the heads are scaled to a standard deviation
    of 1 for offsets, mask coefficients before tanh and prototypes, and of `CLASS_LOGIT_SPREAD` for class logits. Then
    the background's bias is raised until few enough objects remain, and the bias of the boxes' sides until boxes cover
    `BOX_SHARE` of the image on average.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Yolact(config, num_classes).eval()
    square = to_square(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), config.image_size)
    with torch.no_grad():
        inputs = normalize(torch.stack([square, square.flip(2)]), model.backbone.normalization)
        _damp_residual_blocks(model)
        calibrate_batch_norm(model, lambda: model.tensors(inputs))
        outputs = _scale_heads(model, model(inputs[:1]))
        _fit_sizes_and_background(model, outputs, objects)
    return model


def _damp_residual_blocks(model: Yolact) -> None:
    for module in model.backbone.modules():
        if isinstance(module, _RESIDUAL_BLOCKS):
            # The last batch norm of a block is the one before the sum; that of a projection is in another branch.
            own = [norm for name, norm in module.named_modules() if _is_norm_of_branch(name, norm)]
            own[-1].weight.fill_(RESIDUAL_WEIGHT)


def _is_norm_of_branch(name: str, module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, nn.BatchNorm2d) and name.split(".")[0] not in _PROJECTIONS


def calibrate_batch_norm(model: nn.Module, run: Callable[[], object]) -> None:
    """Give batch norm the statistics of what ``run`` has ``model`` process."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # use the statistics of this batch
    run()
    for norm in norms:
        norm.eval()


def _scale_heads(model: Yolact, outputs: RawOutputs) -> RawOutputs:
    """Scale the last convolutions; returns the network's new outputs (biases are still zero)."""
    boxes = 1 / outputs.boxes.std()
    classes = CLASS_LOGIT_SPREAD / outputs.class_logits.std()
    before_tanh = outputs.mask_coefficients.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    coefficients = 1 / before_tanh.std()
    prototypes = 1 / outputs.prototypes.std()
    head = cast(PredictionHead, model.prediction_layers[0])
    last = cast(nn.Conv2d, model.proto_net[-2])
    for convolution, factor in (
        (head.bbox_layer, boxes),
        (head.conf_layer, classes),
        (head.mask_layer, coefficients),
        (last, prototypes),
    ):
        convolution.weight *= factor
    return RawOutputs(
        boxes=outputs.boxes * boxes,
        class_logits=outputs.class_logits * classes,
        mask_coefficients=(before_tanh * coefficients).tanh(),
        prototypes=outputs.prototypes * prototypes,
        anchors=outputs.anchors,
        semantic_logits=None,
    )


def _fit_sizes_and_background(model: Yolact, outputs: RawOutputs, objects: int) -> None:
    """Set the biases of box sizes and of the background; ``outputs`` are those of one image at zero biases."""
    size = model.config.image_size
    enlargement, background = 0.0, _background_for(outputs, objects, size)
    for _ in range(ROUNDS):
        found = _find(outputs, background, size)
        if not len(found.scores):
            break
        share = _mean_share(found)
        more = math.log(BOX_SHARE / share) / 2 / SIZE_VARIANCE
        enlargement += more
        outputs = replace(outputs, boxes=outputs.boxes + torch.tensor([0, 0, more, more]))
        background = _background_for(outputs, objects, size)
    head = cast(PredictionHead, model.prediction_layers[0])
    for convolution, per_anchor, changed, value in (
        (head.conf_layer, outputs.class_logits.shape[2], slice(0, 1), background),
        (head.bbox_layer, 4, slice(2, 4), enlargement),
    ):
        assert convolution.bias is not None
        convolution.bias.view(-1, per_anchor)[:, changed] = value


def _background_for(outputs: RawOutputs, objects: int, image_size: int) -> float:
    """The background bias that leaves about ``objects`` objects, none of them just at the threshold."""
    limits = _greatest_backgrounds(outputs)[: objects * SCORES_PER_OBJECT]
    low, high = 0, len(limits) - 1  # with a bias between limits n - 1 and n, n scores pass
    while high - low > 1:
        middle = (low + high) // 2
        found = len(_find(outputs, _between(limits, middle), image_size).scores)
        low, high = (low, middle) if found > objects else (middle, high)
    return _between(limits, low)


def _greatest_backgrounds(outputs: RawOutputs) -> Tensor:
    """The largest background bias at which a score passes, for each anchor and class, in descending order.

    ``exp(l_c) / (exp(l_0 + bias) + sum_k exp(l_k)) > t``, solved for the bias.
    """
    logits = outputs.class_logits[0].double()
    of_class = logits[:, 1:].exp()
    room = of_class / DEFAULT_DETECTION.score_threshold - of_class.sum(dim=1, keepdim=True)
    limits = room.clamp(min=0).log() - logits[:, :1]
    return limits[limits.isfinite()].sort(descending=True).values


def _between(limits: Tensor, index: int) -> float:
    return float(limits[max(index - 1, 0) : index + 1].mean())


def _find(outputs: RawOutputs, background: float, image_size: int) -> Candidates:
    logits = outputs.class_logits.clone()
    logits[..., 0] += background
    return detect(replace(outputs, class_logits=logits), DEFAULT_DETECTION, image_size)[0]


def _mean_share(candidates: Candidates) -> float:
    """Mean share of the image that a box covers."""
    left, top, right, bottom = candidates.boxes.clamp(0, 1).unbind(1)
    return float(((right - left) * (bottom - top)).mean())
