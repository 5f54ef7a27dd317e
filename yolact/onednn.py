"""The network for inference on CPUs: oneDNN's convolutions with what follows them in one operation.

PyTorch's own convolution reorders its weights at every call, and writes and reads each feature map again for bias,
activation and shortcut. Here weights are reordered once, and activations and sums are done while the convolution's
result is in the cache: the same operations that ``torch.compile`` uses, without needing a compiler. The widest 3x3
convolutions use Winograd's minimal filtering instead, which needs 2.25 multiplications per output instead of 9.
"""

from __future__ import annotations

import functools
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from yolact.models.backbone import DarknetBackbone, DarknetBlock, DeformableConv2d, ResNetBackbone
from yolact.models.fpn import FPN
from yolact.models.head import PredictionHead, per_anchor
from yolact.models.yolact import Yolact

Activation = Literal["none", "relu", "leaky_relu", "tanh"]

_InputSizes = dict[nn.Module, list[int]]
"""Shape of the input that a convolution will see, if it is always the same: the best order of its weights depends on
it, and a wrong one is slow."""

LEAKY_SLOPE = 0.1
"""Of Darknet's activation."""


@functools.cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions of that precision for this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.no_grad():
            # Without initial weights: drawing them would change the course of a training that validates.
            conv = nn.utils.skip_init(nn.Conv2d, 4, 4, 3, padding=1, dtype=dtype)
            _FusedConv(conv, "relu", {conv: [1, 4, 4, 4]})(torch.zeros(1, 4, 4, 4, dtype=dtype))
    except (AttributeError, RuntimeError):  # PyTorch does not promise these operations
        return False
    return True


class _FusedConv(nn.Module):
    """A convolution, an optional sum and an activation."""

    def __init__(self, conv: nn.Module, activation: Activation, sizes: _InputSizes) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        self.activation = activation
        self.scalars = [LEAKY_SLOPE] if activation == "leaky_relu" else []
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weight = conv.weight.detach()
        if conv in sizes:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, sizes[conv])
            conv.weight = None  # type: ignore[assignment]  # two copies of all weights would be in memory otherwise
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


OUTPUT_TILE, INPUT_TILE = 4, 6

POINTS = (0, 5 / 8, -5 / 8, 5 / 4, -5 / 4)
"""Where the polynomials are evaluated, besides infinity. Of the sets tried these round least: half of what the usual
0, 1, -1, 2, -2 (Lavin and Gray 2016) do."""

TILES_AT_ONCE = 330
"""Tiles that are transformed together: few enough that they stay in the processor's cache."""

WINOGRAD_CHANNELS = 192
WINOGRAD_PIXELS = 1200
"""Least input and output channels, and least area of the feature map, from which it is used. On a CPU with AVX-512 it was
faster than the direct convolution with 243 and 256 channels and not with 96 and 128; with 256 channels it was on 35 x 35
cells and more, and made no difference on 32 x 32."""


def _evaluation(coefficients: int) -> Tensor:
    """Matrix (6, coefficients), float64, that evaluates a polynomial at `POINTS` and at infinity (its last one)."""
    rows = [[point**power for power in range(coefficients)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (coefficients - 1) + [1.0]], dtype=torch.float64)


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, with ReLU or without, by minimal filtering F(4x4, 3x3).

    Along one axis, four outputs are ``A' [(G g) * (B' d)]`` for a kernel g and six inputs d, with the matrices of
    Toom-Cook multiplication, transposed (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308). The result differs from
    the direct convolution's by rounding: by some 1e-6 of the greatest value in float32, five times the direct
    convolution's own error in bfloat16.
    """

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"]) -> None:
        super().__init__()
        assert conv.bias is not None
        self.activation = activation
        dtype = conv.weight.dtype
        kernel = _evaluation(3)
        weight = torch.einsum("ik,ockl,jl->ijco", kernel, conv.weight.detach().double(), kernel)
        self.weight = weight.reshape(INPUT_TILE**2, conv.in_channels, conv.out_channels).to(dtype)
        self.bias = conv.bias.detach()
        # Both axes at once: vec(B' d B) = (B' kron B') vec(d).
        inward, outward = _evaluation(INPUT_TILE).inverse().T, _evaluation(OUTPUT_TILE).T
        self.to_input, self.to_output = torch.kron(inward, inward).to(dtype), torch.kron(outward, outward).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W), in channels_last."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // OUTPUT_TILE), -(-width // OUTPUT_TILE)
        padding = (1, columns * OUTPUT_TILE + 1 - width, 1, rows * OUTPUT_TILE + 1 - height)
        padded = F.pad(x, padding).permute(0, 2, 3, 1).contiguous()
        out = x.new_empty((batch, rows * OUTPUT_TILE, columns * OUTPUT_TILE, len(self.bias)))
        bands = -(-rows * columns // TILES_AT_ONCE)
        at_once = -(-rows // bands)  # bands of nearly equal height: a narrow one reads all kernels for little
        for image, result in zip(padded, out, strict=True):
            for first in range(0, rows, at_once):
                count = min(at_once, rows - first)
                band = image[first * OUTPUT_TILE : (first + count) * OUTPUT_TILE + INPUT_TILE - OUTPUT_TILE]
                target = result[first * OUTPUT_TILE : (first + count) * OUTPUT_TILE]
                self._convolve_band(band, target.view(count, OUTPUT_TILE, columns, OUTPUT_TILE, -1))
        return out.permute(0, 3, 1, 2)[:, :, :height, :width]

    def _convolve_band(self, band: Tensor, out: Tensor) -> None:
        """Fill ``out`` (rows, 4, columns, 4, out channels) from overlapping 6x6 tiles of ``band`` (h, w, channels)."""
        rows, _, columns, _, out_channels = out.shape
        tiles, channels = rows * columns, band.shape[2]
        along_h, along_w, along_c = band.stride()
        patches = band.as_strided(
            (INPUT_TILE, INPUT_TILE, rows, columns, channels),
            (along_h, along_w, along_h * OUTPUT_TILE, along_w * OUTPUT_TILE, along_c),
        )
        transformed = self.to_input @ patches.reshape(INPUT_TILE**2, tiles * channels)
        products = transformed.view(INPUT_TILE**2, tiles, channels) @ self.weight  # (36, tiles, out)
        del transformed  # 36 numbers for each tile and channel: 12 MiB with 330 tiles of 256 channels
        results = self.to_output @ products.view(INPUT_TILE**2, tiles * out_channels)
        results = results.view(OUTPUT_TILE, OUTPUT_TILE, rows, columns, out_channels)
        torch.add(results.permute(2, 0, 3, 1, 4), self.bias, out=out)
        if self.activation == "relu":
            out.relu_()


class _WideConv(nn.Module):
    """Winograd's convolution for large feature maps, the direct one for small ones."""

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"]) -> None:
        super().__init__()
        self.large = WinogradConv2d(conv, activation)
        self.small = _FusedConv(conv, activation, {})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.large if x.shape[2] * x.shape[3] >= WINOGRAD_PIXELS else self.small)(x)
        return out


def _conv(conv: nn.Module, activation: Literal["none", "relu"], area: int, sizes: _InputSizes) -> nn.Module:
    """The faster convolution for feature maps of up to ``area`` pixels.

    Only layers on P3 and finer are asked about: elsewhere Winograd's larger kernels would not pay.
    """
    assert isinstance(conv, nn.Conv2d)
    wide = conv.kernel_size == (3, 3) and min(conv.in_channels, conv.out_channels) >= WINOGRAD_CHANNELS
    if wide and area >= WINOGRAD_PIXELS:
        return _WideConv(conv, activation)
    return _FusedConv(conv, activation, sizes)


class _Block(nn.Module):
    """A residual block of a ResNet whose batch norm is folded."""

    def __init__(self, block: BasicBlock | Bottleneck, sizes: _InputSizes) -> None:
        super().__init__()
        *before, last = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        self.before = nn.ModuleList(
            nn.Sequential(conv, nn.ReLU(inplace=True))
            if isinstance(conv, DeformableConv2d)
            else _FusedConv(conv, "relu", sizes)
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


class _ResNet(nn.Module):
    def __init__(self, backbone: ResNetBackbone, sizes: _InputSizes) -> None:
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
        features = [self.maxpool(self.stem(images))]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[-3:]


class _Darknet(nn.Module):
    def __init__(self, backbone: DarknetBackbone, sizes: _InputSizes) -> None:
        super().__init__()
        self.stem = _FusedConv(backbone._preconv[0], "leaky_relu", sizes)
        self.stages = nn.ModuleList(_darknet_stage(stage, sizes) for stage in backbone.layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[-3:]


class _Pyramid(nn.Module):
    def __init__(self, fpn: FPN, sizes: _InputSizes) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_FusedConv(conv, "none", sizes) for conv in fpn.lat_layers)
        *coarse, finest = fpn.pred_layers
        self.smooths = nn.ModuleList(
            [*(_FusedConv(conv, "relu", sizes) for conv in coarse), _conv(finest, "relu", _area(sizes[finest]), sizes)]
        )
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
    def __init__(self, head: nn.Module, largest: int) -> None:
        super().__init__()
        assert isinstance(head, PredictionHead)
        # Levels of several sizes pass, so no order of the weights is the best. In bfloat16, Winograd's rounding in the
        # head cost a tenth of a point of mask AP; in the protonet it cost nothing (docs/accuracy.md).
        largest = largest if head.conf_layer.weight.dtype == torch.float32 else 0
        self.upfeature = _conv(head.upfeature[0], "relu", largest, {})
        self.bbox_layer = _FusedConv(head.bbox_layer, "none", {})
        self.conf_layer = _conv(head.conf_layer, "none", largest, {})
        self.mask_layer = _FusedConv(head.mask_layer, "tanh", {})
        self.sizes = (4, head.num_classes + 1, head.num_prototypes)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.upfeature(level)
        boxes, classes, coefficients = self.sizes
        return (
            per_anchor(self.bbox_layer(shared), boxes),
            per_anchor(self.conf_layer(shared), classes),
            per_anchor(self.mask_layer(shared), coefficients),
        )


def _input_sizes(network: Yolact) -> _InputSizes:
    """Shapes in front of the backbone's, pyramid's and protonet's convolutions for one photo."""
    sizes: _InputSizes = {}
    convs = [
        module
        for part in (network.backbone, network.fpn, network.proto_net)
        for module in part.modules()
        if isinstance(module, nn.Conv2d)
    ]
    hooks = [
        conv.register_forward_pre_hook(lambda module, args: sizes.__setitem__(module, list(args[0].shape)))
        for conv in convs
    ]
    size, dtype = network.config.image_size, next(network.parameters()).dtype
    with torch.no_grad():
        network.tensors(torch.zeros((1, 3, size, size), dtype=dtype).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return sizes


def _area(size: list[int]) -> int:
    return size[2] * size[3]


class OneDnnNetwork(nn.Module):
    """A `Yolact` with folded batch norm, in evaluation mode and channels_last, rebuilt from fused operations.

    The network given is used up.
    """

    def __init__(self, network: Yolact) -> None:
        super().__init__()
        sizes = _input_sizes(network)
        backbone = network.backbone
        self.backbone = _ResNet(backbone, sizes) if isinstance(backbone, ResNetBackbone) else _Darknet(backbone, sizes)
        self.fpn = _Pyramid(network.fpn, sizes)
        convs = [layer for layer in network.proto_net if isinstance(layer, nn.Conv2d)]
        self.head = _Head(network.prediction_layers[0], largest=_area(sizes[convs[0]]))
        *before, last, to_prototypes = (_conv(conv, "relu", _area(sizes[conv]), sizes) for conv in convs)
        self.proto_before = nn.Sequential(*before)
        self.proto_after = nn.Sequential(last, to_prototypes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encoded boxes, class logits, mask coefficients and prototypes, as `Yolact.tensors`."""
        pyramid = self.fpn(self.backbone(images))
        levels = [self.head(level) for level in pyramid]
        boxes, class_logits, mask_coefficients = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        small = self.proto_before(pyramid[0])
        large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        return boxes, class_logits, mask_coefficients, self.proto_after(large).permute(0, 2, 3, 1)
