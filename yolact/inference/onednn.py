"""The network for inference on CPUs: oneDNN's convolutions fused with what follows them.

PyTorch's own convolution reorders its weights at every call, and writes and rereads each feature map for bias,
activation and shortcut. Here weights are reordered once, and activations and sums are computed while the convolution's
result is in the cache: the same operations that ``torch.compile`` uses, without needing a compiler. The widest 3x3
convolutions use Winograd's minimal filtering instead, which needs 2.25 multiplications per output instead of 9.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.inference.winograd import EnlargingWinogradConv2d, ReorderedConv, WinogradConv2d
from yolact.models.backbones.base import Backbone
from yolact.models.backbones.darknet import Darknet, DarknetBlock
from yolact.models.backbones.deformable import DeformableConv2d
from yolact.models.backbones.resnet import BasicBlock, BasicResNet, Bottleneck, BottleneckResNet, ResNet
from yolact.models.fpn import FPN
from yolact.models.head import PredictionHead
from yolact.models.protonet import Protonet
from yolact.models.separable import SeparableConv2d
from yolact.models.yolact import Yolact

Activation = Literal["none", "relu", "leaky_relu", "hardtanh", "hardswish", "swish"]

_InputSizes = dict[nn.Module, list[int]]
"""Shape of each convolution's largest input: the fastest memory order of the weights depends on it, and other orders
are slow."""

LEAKY_SLOPE = 0.1
"""Negative slope of Darknet's activation."""


@functools.cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether PyTorch has oneDNN's fused convolutions with that dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.no_grad():
            conv = _conv_of(torch.zeros(4, 4, 3, 3, dtype=dtype), torch.zeros(4, dtype=dtype))
            _FusedConv(conv, "relu", {conv: [1, 4, 4, 4]})(torch.zeros(1, 4, 4, 4, dtype=dtype))
    except (AttributeError, RuntimeError):  # these operations are not part of PyTorch's public interface
        return False
    return True


class _FusedConv(ReorderedConv):
    """A convolution, an optional sum and an activation."""

    def __init__(
        self, conv: nn.Module, activation: Activation, sizes: _InputSizes, scalars: Sequence[float] = ()
    ) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        self.activation = activation
        self.scalars = [LEAKY_SLOPE] if activation == "leaky_relu" else list(scalars)
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weight = conv.weight.detach()
        self.input_size = sizes.get(conv)
        if self.input_size is not None:
            self._reorder()
            conv.weight = None  # type: ignore[assignment]  # otherwise all weights would be in memory twice
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, self.activation, self.scalars, None
        )
        return out

    def add_to(self, other: Tensor, x: Tensor) -> Tensor:
        """The activation of ``other`` + convolution of ``x``; written into ``other``."""
        activation = None if self.activation == "none" else self.activation
        out: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, self.weight, self.bias, *self.geometry, "add", 1.0, activation, self.scalars, None
        )
        return out


WINOGRAD_CHANNELS = 192
WINOGRAD_PIXELS = 1200
"""Winograd's convolution is used from this many input and output channels, and this area of the feature map. On a CPU
with AVX-512 it was faster than the direct convolution with 243 and 256 channels, not with 96; with 128 the network's
time was 1 to 2 % less in one measurement and 2 % more in another. With 256 channels it was faster on 35 x 35 cells and
more, and made no difference on 32 x 32."""


class _WideConv(nn.Module):
    """Winograd's convolution for large feature maps, the direct one for small ones."""

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"], height: int, width: int) -> None:
        super().__init__()
        self.large = WinogradConv2d(conv, activation, height, width)
        self.small = _FusedConv(conv, activation, {conv: [1, conv.in_channels, height, width]})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.large if x.shape[2] * x.shape[3] >= WINOGRAD_PIXELS else self.small)(x)
        return out


def _suits_winograd(conv: nn.Module, height: int, width: int) -> bool:
    """Whether Winograd's convolution is faster for feature maps of that size."""
    return (
        isinstance(conv, nn.Conv2d)
        and (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
        and min(conv.in_channels, conv.out_channels) >= WINOGRAD_CHANNELS
        and height * width >= WINOGRAD_PIXELS
    )


def _conv(conv: nn.Module, activation: Literal["none", "relu"], sizes: _InputSizes) -> nn.Module:
    """The faster form of a convolution with a single input size; a separable one is two convolutions."""
    if isinstance(conv, SeparableConv2d):
        first = _FusedConv(cast(nn.Module, conv.depthwise), "none", sizes)
        return nn.Sequential(first, _FusedConv(cast(nn.Module, conv.pointwise), activation, sizes))
    assert isinstance(conv, nn.Conv2d)
    if _suits_winograd(conv, *sizes[conv][2:]):
        winograd = WinogradConv2d(conv, activation, *sizes[conv][2:])
        conv.weight = None  # type: ignore[assignment]  # as in _FusedConv
        return winograd
    return _FusedConv(conv, activation, sizes)


def _backbone_conv(conv: nn.Module, sizes: _InputSizes) -> nn.Module:
    """`_conv` in bfloat16, the direct convolution in float32: there Winograd's kernels, four times as large, do not pay
    off (42 MiB for 4 % of a ResNet-50's time at 550 pixels)."""
    assert isinstance(conv, nn.Conv2d)
    return _conv(conv, "relu", sizes) if conv.weight.dtype == torch.bfloat16 else _FusedConv(conv, "relu", sizes)


def _convs(block: BasicBlock | Bottleneck) -> list[nn.Module]:
    """The convolutions of the residual branch, in order."""
    return [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]


class _Block(nn.Module):
    """A ResNet's residual block with folded batch norm."""

    def __init__(self, block: BasicBlock | Bottleneck, sizes: _InputSizes) -> None:
        super().__init__()
        *before, last = _convs(block)
        self.before = nn.ModuleList(
            nn.Sequential(conv, nn.ReLU(inplace=True))
            if isinstance(conv, DeformableConv2d)
            else _backbone_conv(conv, sizes)
            for conv in before
        )
        self.last = _FusedConv(last, "relu", sizes)
        self.shortcut = None if block.downsample is None else _FusedConv(block.downsample[0], "none", sizes)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self.before:
            out = conv(out)
        # Writes into its input when there is no shortcut convolution.
        return self.last.add_to(x if self.shortcut is None else self.shortcut(x), out)


class _DarknetBlock(nn.Module):
    def __init__(self, block: DarknetBlock, sizes: _InputSizes) -> None:
        super().__init__()
        self.conv1 = _FusedConv(block.conv1[0], "leaky_relu", sizes)
        self.conv2 = _FusedConv(block.conv2[0], "leaky_relu", sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)).add_(x)


def _darknet_stage(stage: nn.Module, sizes: _InputSizes) -> nn.Sequential:
    down, *blocks = cast(nn.Sequential, stage)
    first = _FusedConv(cast(nn.Sequential, down)[0], "leaky_relu", sizes)
    return nn.Sequential(first, *(_DarknetBlock(cast(DarknetBlock, block), sizes) for block in blocks))


def _last_three(x: Tensor, stages: nn.ModuleList) -> list[Tensor]:
    """C3, C4 and C5; earlier, larger maps are freed as soon as possible."""
    features: list[Tensor] = []
    for stage in stages:
        x = stage(x)
        features = [*features[-2:], x]
    return features


class _ResNet(nn.Module):
    def __init__(self, backbone: ResNet, sizes: _InputSizes) -> None:
        super().__init__()
        self.stem = _FusedConv(backbone.conv1, "relu", sizes)
        self.maxpool = backbone.maxpool
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(_Block(cast(BasicBlock | Bottleneck, block), sizes) for block in cast(nn.Sequential, stage))
            )
            for stage in backbone.layers
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return _last_three(self.maxpool(self.stem(images)), self.stages)


class _Darknet(nn.Module):
    def __init__(self, backbone: Darknet, sizes: _InputSizes) -> None:
        super().__init__()
        self.stem = _FusedConv(backbone._preconv[0], "leaky_relu", sizes)
        self.stages = nn.ModuleList(_darknet_stage(stage, sizes) for stage in backbone.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        return _last_three(self.stem(images), self.stages)


AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest accepted norm of a fused backbone's error, relative to the norm of its features. A wrong fusion is far above,
rounding far below."""


class _OtherBackbone(nn.Module):
    """A backbone of another class: within its ``nn.Sequential`` modules, convolutions are fused with their activations.

    Only in those that it runs as a whole: where it runs their layers itself, it may treat them by their class. One
    random image is run both ways; if that fails or the features differ, the backbone stays as it is.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        parameter = next(backbone.parameters())
        generator = torch.Generator().manual_seed(0)  # of its own: see `_conv_of`
        image = torch.randn(1, 3, image_size, image_size, generator=generator).to(parameter.dtype)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            sizes, sequences, expected = _recorded(backbone, image)
            fused = copy.deepcopy(backbone)
            matching = dict(zip(backbone.modules(), fused.modules(), strict=True))
            sizes = {matching[conv]: size for conv, size in sizes.items()}
            for sequence in sequences:
                _fuse_sequence(cast(nn.Sequential, matching[sequence]), sizes)
            self.backbone = fused if _agree(fused, image, expected) else backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        return [feature.contiguous(memory_format=torch.channels_last) for feature in self.backbone(images)]


def _agree(fused: Backbone, image: Tensor, expected: Sequence[Tensor]) -> bool:
    """Whether a fused backbone computes these features, but for rounding."""
    try:
        features = fused(image)
    except (AttributeError, RuntimeError):  # it reads attributes or weights of its convolutions
        return False
    tolerance = AGREEMENT[image.dtype]
    pairs = zip(features, expected, strict=True)
    return all((one - other).float().norm() <= tolerance * other.float().norm() for one, other in pairs)


def _recorded(backbone: Backbone, image: Tensor) -> tuple[_InputSizes, Sequence[nn.Module], Sequence[Tensor]]:
    """What runs exactly once for an image: the input shape of each convolution, and the ``nn.Sequential`` modules that
    run their layers themselves; and the features."""
    found: dict[nn.Module, list[list[int]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.setdefault(module, []).append(list(inputs[0].shape))

    hooks = [
        module.register_forward_pre_hook(record)
        for module in backbone.modules()
        if type(module) is nn.Conv2d or type(module).forward is nn.Sequential.forward
    ]
    try:
        features = backbone(image)
    finally:
        for hook in hooks:
            hook.remove()
    once = {module: shapes[0] for module, shapes in found.items() if len(shapes) == 1}
    sequences = [module for module in once if isinstance(module, nn.Sequential)]
    return {conv: shape for conv, shape in once.items() if conv not in sequences}, sequences, features


def _fuse_sequence(sequence: nn.Sequential, sizes: _InputSizes) -> None:
    """Fuse the convolutions of a sequence with the activations directly after them, in place."""
    layers = [name for name, layer in sequence.named_children() if not isinstance(layer, nn.Identity)]
    for name, following in zip(layers, [*layers[1:], None], strict=True):
        conv = sequence._modules[name]
        if not isinstance(conv, nn.Conv2d) or conv not in sizes or conv.padding_mode != "zeros":
            continue
        fused = None if following is None else _fusible(sequence._modules[following])
        if fused is not None:
            sequence._modules[cast(str, following)] = nn.Identity()
        activation, scalars = fused or ("none", [])
        sequence._modules[name] = _FusedConv(conv, activation, sizes, scalars)


def _fusible(layer: nn.Module | None) -> tuple[Activation, list[float]] | None:
    """oneDNN's name and numbers of an activation that it can compute with a convolution; None for other layers."""
    if type(layer) is nn.ReLU:
        return "relu", []
    if isinstance(layer, nn.Hardtanh):  # nn.ReLU6 is one
        return "hardtanh", [layer.min_val, layer.max_val]
    if type(layer) is nn.Hardswish:
        return "hardswish", []
    return ("swish", []) if type(layer) is nn.SiLU else None


def supports(backbone: Backbone) -> bool:
    """Whether the backbone is one of those that are rebuilt layer by layer; others keep their structure.

    Subclasses are not: they may compute something else.
    """
    return type(backbone) in (BasicResNet, BottleneckResNet, Darknet)


def _backbone(backbone: Backbone, sizes: _InputSizes, image_size: int) -> nn.Module:
    if not supports(backbone):
        return _OtherBackbone(backbone, image_size)
    return _Darknet(backbone, sizes) if isinstance(backbone, Darknet) else _ResNet(cast(ResNet, backbone), sizes)


class _Pyramid(nn.Module):
    def __init__(self, fpn: FPN, sizes: _InputSizes) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_FusedConv(conv, "none", sizes) for conv in fpn.lat_layers)
        self.smooths = nn.ModuleList(_conv(conv, "relu", sizes) for conv in fpn.pred_layers)
        self.downsamples = nn.ModuleList(_FusedConv(conv, "none", sizes) for conv in fpn.downsample_layers)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        pyramid: list[Tensor] = []
        merged: Tensor | None = None
        for lateral, smooth, feature in zip(self.laterals, self.smooths, reversed(features), strict=True):
            assert isinstance(lateral, _FusedConv)
            if merged is None:
                merged = lateral(feature)
            else:
                enlarged = F.interpolate(merged, size=feature.shape[-2:], mode="bilinear", align_corners=False)
                merged = lateral.add_to(enlarged, feature)
            pyramid.insert(0, smooth(merged))
        for downsample in self.downsamples:
            pyramid.append(downsample(pyramid[-1]))
        return pyramid


class _Head(nn.Module):
    """The shared head, level by level; its last three convolutions read the same map, so they are merged into one.

    Args:
        head: the network's head; its weights are moved.
        largest: height and width of the first level. oneDNN chooses the same memory order of the weights for the
            smaller levels (on AVX-512, with 256 to 384 channels and sides from 88 down to 5).
    """

    def __init__(self, head: nn.Module, largest: Sequence[int]) -> None:
        super().__init__()
        assert isinstance(head, PredictionHead)
        convs = [layer for layer in head.upfeature if not isinstance(layer, nn.ReLU)]
        self.upfeature = nn.Sequential(*(self._conv(conv, "relu", largest) for conv in convs))
        layers = (head.bbox_layer, head.conf_layer, head.mask_layer)
        self.channels = [layer.out_channels for layer in layers]
        self.sizes = (4, head.num_classes + 1, head.num_prototypes)
        self.outputs = self._conv(_joined(layers), "none", largest)
        for layer in layers:
            layer.weight = None  # type: ignore[assignment]  # as in _FusedConv

    @staticmethod
    def _conv(conv: nn.Module, activation: Literal["none", "relu"], largest: Sequence[int]) -> nn.Module:
        if _suits_winograd(conv, *largest):
            return _WideConv(cast(nn.Conv2d, conv), activation, *largest)
        parts = [part for part in conv.modules() if isinstance(part, nn.Conv2d)]  # two of a separable convolution
        return _conv(conv, activation, {part: [1, part.in_channels, *largest] for part in parts})

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Encoded boxes (B, A, 4), class logits (B, A, C + 1) and mask coefficients (B, A, K) of all levels."""
        batch = len(pyramid[0])
        anchors = [level.shape[2] * level.shape[3] * self.channels[0] // self.sizes[0] for level in pyramid]
        predicted = [pyramid[0].new_empty((batch, sum(anchors), size)) for size in self.sizes]
        of_levels = zip(*(tensor.split(anchors, dim=1) for tensor in predicted), strict=True)
        for level, places in zip(pyramid, of_levels, strict=True):
            outputs = self.outputs(self.upfeature(level)).permute(0, 2, 3, 1).split(self.channels, dim=3)
            for output, place in zip(outputs, places, strict=True):
                place.view(output.shape).copy_(output)
        predicted[2].tanh_()
        return predicted


def _joined(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Merge convolutions that read the same map into one."""
    weight = torch.cat([conv.weight for conv in convs]).contiguous(memory_format=torch.channels_last)
    return _conv_of(weight, torch.cat([cast(Tensor, conv.bias) for conv in convs]))


def _conv_of(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with these weights, and with padding that keeps the map's size.

    No initial weights are drawn: that would change the random state of a training run that validates.
    """
    outputs, inputs, kernel = weight.shape[:3]
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, device="meta")
    conv.weight, conv.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return conv


def _protonet(protonet: Protonet, sizes: _InputSizes) -> nn.Sequential:
    *before, last, to_prototypes = (layer for layer in protonet if not isinstance(layer, nn.ReLU | nn.Upsample))
    layers = [_conv(conv, "relu", sizes) for conv in before]
    height, width = sizes[to_prototypes][2:]
    if _suits_winograd(last, height, width):
        assert isinstance(last, nn.Conv2d)
        head = _FusedConv(to_prototypes, "relu", {})
        layers.append(EnlargingWinogradConv2d(last, head, height // 2, width // 2))
        last.weight = None  # type: ignore[assignment]  # as in _FusedConv
    else:
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        layers += [enlarge, _conv(last, "relu", sizes), _FusedConv(to_prototypes, "relu", sizes)]
    return nn.Sequential(*layers)


def _input_sizes(network: Yolact) -> _InputSizes:
    """Input shapes of the backbone's, pyramid's and protonet's convolutions for one image.

    They are computed, not measured: on the device "meta" PyTorch would load its compiler, which takes seconds and some
    150 MiB.
    """
    sizes: _InputSizes = {}

    def through(convs: Iterable[nn.Module], side: int) -> int:
        """Record input shapes; returns the side of a square map after these modules. Stride 2 halves it, rounding
        up."""
        for conv in convs:
            if isinstance(conv, SeparableConv2d):
                side = through(conv, side)
            elif isinstance(conv, nn.Conv2d):
                sizes[conv] = [1, conv.in_channels, side, side]
                side = -(-side // conv.stride[0])
            elif isinstance(conv, DeformableConv2d):
                side = -(-side // conv.stride)
            elif isinstance(conv, nn.MaxPool2d):
                side = -(-side // cast(int, conv.stride))
            elif isinstance(conv, nn.Upsample):
                side = int(side * cast(float, conv.scale_factor))
        return side

    backbone, image_size = network.backbone, network.config.image_size
    if supports(backbone):
        if isinstance(backbone, Darknet):
            side = through(backbone._preconv, image_size)
            for stage in backbone.layers:
                side = through(stage.modules(), side)
        else:
            assert isinstance(backbone, ResNet)
            side = through([backbone.conv1, backbone.maxpool], image_size)
            for stage in backbone.layers:
                for block in cast(nn.Sequential, stage):
                    assert isinstance(block, BasicBlock | Bottleneck)
                    if block.downsample is not None:
                        through(block.downsample, side)
                    side = through(_convs(block), side)
    c3, c4, c5 = (side for side, _ in network.level_sizes(image_size, image_size)[:3])
    fpn = network.fpn
    for lateral, smooth, side in zip(fpn.lat_layers, fpn.pred_layers, (c5, c4, c3), strict=True):
        through([lateral, smooth], side)
    through(fpn.downsample_layers, c5)
    through(network.proto_net, c3)
    return sizes


class OneDnnNetwork(nn.Module):
    """A `Yolact` with folded batch norm, in evaluation mode and channels_last, rebuilt from fused operations.

    Of a backbone of another class only convolutions and their activations are fused (`_OtherBackbone`). The weights of
    ``network`` are moved, not copied; those of such a backbone are copied.
    """

    def __init__(self, network: Yolact) -> None:
        super().__init__()
        sizes = _input_sizes(network)
        self.backbone = _backbone(network.backbone, sizes, network.config.image_size)
        self.fpn = _Pyramid(network.fpn, sizes)
        side = network.config.image_size
        self.head = _Head(network.prediction_layers[0], largest=network.level_sizes(side, side)[0])
        self.protonet = _protonet(network.proto_net, sizes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encoded boxes, class logits, mask coefficients and prototypes, as `Yolact.tensors`."""
        pyramid = self.fpn(self.backbone(images))
        prototypes = self.protonet(pyramid[0]).permute(0, 2, 3, 1)
        boxes, class_logits, mask_coefficients = self.head(pyramid)
        return boxes, class_logits, mask_coefficients, prototypes
