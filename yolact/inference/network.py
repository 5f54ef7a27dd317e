"""A network prepared for inference: the same function in fewer, cheaper operations.

Batch norm is folded into the convolutions before it, tensors use the memory format that is fastest on the device, and
weights have the chosen precision. On CPUs the network is rebuilt from fused operations (`yolact.inference.onednn`).
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import sys
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from yolact.devices import check_compiler
from yolact.errors import SettingsError
from yolact.inference import onednn
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.maskiou import MaskIouNet
from yolact.models.separable import SeparableConv2d
from yolact.models.yolact import Yolact
from yolact.structures import RawOutputs

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_PIXELS = 2**19
"""Input pixels that run through the network at once on a CPU. A ResNet's largest feature maps have 64 bytes for each
(float32), so they stay within the 32 MiB up to which glibc keeps freed memory (mallopt(3), M_MMAP_THRESHOLD); larger
ones would be mapped and cleared again in each run."""


class InferenceNetwork:
    """A network for inference; later changes to the original do not affect it.

    Args:
        model: the network, on the device to run on.
        precision: dtype of weights and features. Anchors, and everything after the network, are float32.
        compile: compile the network with ``torch.compile``. The first run of each input shape then takes minutes; on
            CPUs a C++ compiler is needed.
        in_place: convert ``model`` itself instead of a copy, to save memory.

    Raises:
        SettingsError: the precision is unknown or not supported on the device, or there is no compiler.
    """

    def __init__(
        self, model: Yolact, precision: Precision = "fp32", *, compile: bool = False, in_place: bool = False
    ) -> None:
        self.device = next(model.parameters()).device
        self.dtype = _dtype(precision, self.device)
        # On Apple GPUs some operations are wrong or slow in channels_last.
        self.memory_format = torch.contiguous_format if self.device.type == "mps" else torch.channels_last
        self.config = model.config
        self.normalization = model.backbone.normalization
        network = (model if in_place else copy.deepcopy(model)).cpu().eval().requires_grad_(False)
        self.maskiou_net: MaskIouNet | None = network.maskiou_net
        """In float32: the network is small, and its output multiplies the scores."""
        if self.maskiou_net is not None:
            self.maskiou_net.to(self.device)
        network.maskiou_net = None
        fold_batch_norm(network)
        network.to(self.device, self.dtype).to(memory_format=self.memory_format)
        self._anchors = network.anchors
        self._tensors: Callable[[Tensor], tuple[Tensor, ...]] = network.tensors
        self._compiled = compile
        if compile:
            check_compiler(self.device, "compile")
            # With "reduce-overhead" CUDA graphs replay the whole network without launching its kernels one by one.
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._tensors = torch.compile(network.tensors, mode=mode, dynamic=False)
        elif self.device.type == "cpu" and onednn.is_available(self.dtype):
            self._tensors = onednn.OneDnnNetwork(network)
            _return_freed_memory()

    def __getstate__(self) -> dict[str, Any]:
        if self._compiled:
            raise TypeError("a compiled network cannot be copied or pickled; load and compile it in each process")
        return self.__dict__

    def __call__(self, images: Tensor) -> RawOutputs:
        """Run (B, 3, S, S) normalised float32 images; the outputs have the network's precision."""
        images = images.to(self.device, self.dtype).contiguous(memory_format=self.memory_format)
        with torch.no_grad():  # not inference_mode: callers may take gradients through the outputs later
            boxes, class_logits, mask_coefficients, prototypes = self._run(images)
        anchors = self._anchors(Yolact.level_sizes(images.shape[2], images.shape[3]), images.device)
        return RawOutputs(boxes, class_logits, mask_coefficients, prototypes, anchors, semantic_logits=None)

    def images_at_once(self, height: int, width: int) -> int | None:
        """How many images of this size, pixels, run at once: on a CPU `CPU_PIXELS`; None for any number."""
        if self.device.type != "cpu" or self._compiled:
            return None
        return max(1, CPU_PIXELS // (height * width))

    def _run(self, images: Tensor) -> list[Tensor]:
        """Boxes, class logits, mask coefficients and prototypes."""
        at_once = self.images_at_once(images.shape[2], images.shape[3])
        if at_once is None:
            return list(self._tensors(images)[:4])
        parts = images.split(at_once)
        outputs = [self._tensors(part)[:4] for part in parts]
        return list(outputs[0]) if len(outputs) == 1 else [torch.cat(tensors) for tensors in zip(*outputs, strict=True)]


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in DTYPES:
        raise SettingsError(f"precision {precision!r} is unknown; choose one of {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError(
            "precision 'fp16' needs a GPU; on a CPU use bf16 (fast on CPUs with bf16 instructions) or fp32"
        )
    return DTYPES[precision]


def _return_freed_memory() -> None:
    """Return freed memory to the system; glibc otherwise keeps it, too fragmented for feature maps."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def fold_batch_norm(network: Yolact) -> None:
    """Fold batch norm into the convolutions before it, in place: the pairs that the backbone declares, and those of
    separable convolutions.

    The network must be in evaluation mode.
    """
    backbone = network.backbone
    for conv_name, norm_name in backbone.conv_norm_pairs():
        conv, norm = backbone.get_submodule(conv_name), backbone.get_submodule(norm_name)
        if not (isinstance(conv, (nn.Conv2d, DeformableConv2d)) and isinstance(norm, nn.BatchNorm2d)):
            raise TypeError(
                f"{type(backbone).__name__}.conv_norm_pairs: {conv_name}, {norm_name} are not a convolution "
                "and a batch norm"
            )
        fold_into(conv, norm)
        backbone.set_submodule(norm_name, nn.Identity())
    for module in list(network.modules()):
        if isinstance(module, SeparableConv2d):
            fold_into(cast(nn.Conv2d, module.pointwise), cast(nn.BatchNorm2d, module.norm))
            module.norm = nn.Identity()


def fold_into(conv: nn.Conv2d | DeformableConv2d, norm: nn.BatchNorm2d) -> None:
    """Change a convolution's weights and bias to include the batch norm after it.

    ``g (w x + b - mean) / sqrt(var + eps) + beta`` is a convolution with other weights and bias.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # rounded once, at the end
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    conv.weight = nn.Parameter((conv.weight.double() * gain.view(-1, 1, 1, 1)).float(), requires_grad=False)
    conv.bias = nn.Parameter((gain * bias + norm.bias.double()).float(), requires_grad=False)
