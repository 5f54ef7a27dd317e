"""Winograd's minimal filtering: 3x3 convolutions with 2.25 multiplications per output and channel instead of 9.

Along one axis, four outputs are ``A' [(G g) * (B' d)]`` for a kernel g and six inputs d, with the matrices of Toom-Cook
multiplication, transposed (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308): F(4, 3). In two dimensions a tile of
4x4 outputs takes 6x6 inputs, and all tiles together are 36 matrix products, channels by channels.

Letters in shapes: T tiles (rows x columns of them), I and O input and output channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUT_TILE, INPUT_TILE = 4, 6
PRODUCTS = INPUT_TILE**2

POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)
"""Where the polynomials are evaluated, besides infinity. Of the sets tried these round least: half of what the usual
0, 1, -1, 2, -2 (Lavin and Gray 2016) do, in bfloat16 and in float32."""

TILES_AT_ONCE = 330
"""Tiles that are transformed together: few enough that they stay in the processor's cache."""

KERNELS_AT_ONCE = 16
"""Output channels whose kernels are transformed together; few, to need little memory."""

Edge = Literal["first", "inner", "last"]
"""Where in its row or column of tiles a tile is."""


def _evaluation(coefficients: int) -> Tensor:
    """Matrix (6, coefficients), float64, that evaluates a polynomial at `POINTS` and at infinity (its last one)."""
    rows = [[point**power for power in range(coefficients)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (coefficients - 1) + [1.0]], dtype=torch.float64)


def _both_axes(along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """The matrix that transforms a tile's rows by one matrix and its columns by the other, on flattened tiles."""
    return torch.kron(along_rows, along_columns)


INWARD, OUTWARD = _evaluation(INPUT_TILE).inverse().T, _evaluation(OUTPUT_TILE).T
"""B' (6, 6) and A' (4, 6) of one axis, float64."""


class _Winograd(nn.Module):
    """The kernel, and what follows once a band of tiles is transformed."""

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"]) -> None:
        super().__init__()
        assert conv.bias is not None
        self.activation = activation
        dtype = conv.weight.dtype
        self.weight = _transformed_kernels(conv.weight.detach())
        self.bias = conv.bias.detach()
        self.to_output = _both_axes(OUTWARD, OUTWARD).to(dtype)

    def _room(self, rows: int, columns: int) -> list[Tensor]:
        """Two flat tensors, each with room for 36 values of each channel of a band's tiles."""
        tiles = max(count for _, count in _bands(rows, columns)) * columns
        return [self.weight.new_empty(PRODUCTS * tiles * max(self.weight.shape[1:])) for _ in range(2)]

    def _finish_band(self, transformed: Tensor, room: Tensor, out: Tensor) -> None:
        """Fill ``out`` (rows, 4, columns, 4, O) from the transformed tiles (36, T, I), which are overwritten."""
        rows, _, columns, _, channels = out.shape
        tiles = rows * columns
        products = _part(room, PRODUCTS, tiles, channels)
        torch.bmm(transformed, self.weight, out=products)
        results = _part(transformed.view(-1), OUTPUT_TILE**2, tiles * channels)
        torch.mm(self.to_output, products.view(PRODUCTS, -1), out=results)
        results = results.view(OUTPUT_TILE, OUTPUT_TILE, rows, columns, channels)
        torch.add(results.permute(2, 0, 3, 1, 4), self.bias, out=out)
        if self.activation == "relu":
            out.relu_()


def _transformed_kernels(weight: Tensor) -> Tensor:
    """(36, I, O) of (O, I, 3, 3), computed in float64 and rounded once."""
    out_channels, in_channels = weight.shape[:2]
    both = _both_axes(_evaluation(3), _evaluation(3))  # (36, 9)
    transformed = torch.empty((PRODUCTS, in_channels, out_channels), dtype=weight.dtype)
    for first in range(0, out_channels, KERNELS_AT_ONCE):
        kernels = weight[first : first + KERNELS_AT_ONCE].double().permute(2, 3, 1, 0)  # (3, 3, I, o)
        part = both @ kernels.reshape(9, -1)
        transformed[:, :, first : first + KERNELS_AT_ONCE] = part.view(PRODUCTS, in_channels, -1)
    return transformed


def _part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a flat tensor, in that shape."""
    return memory[: math.prod(shape)].view(shape)


def _patches(band: Tensor, size: int, stride: int, rows: int, columns: int) -> Tensor:
    """View (size, size, rows, columns, I) of the overlapping patches of a contiguous (h, w, I) band."""
    along_h, along_w, along_c = band.stride()
    shape = (size, size, rows, columns, band.shape[2])
    return band.as_strided(shape, (along_h, along_w, along_h * stride, along_w * stride, along_c))


def _bands(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of bands of about `TILES_AT_ONCE` tiles.

    They are of nearly equal height: a narrow one would read all kernels for little.
    """
    bands = -(-rows * columns // TILES_AT_ONCE)
    at_once = -(-rows // bands)
    for first in range(0, rows, at_once):
        yield first, min(at_once, rows - first)


class WinogradConv2d(_Winograd):
    """A 3x3 convolution of stride 1 and padding 1, with ReLU or without.

    The result differs from the direct convolution's by rounding: by some 1e-6 of the greatest value in float32, eight
    times the direct convolution's own error in bfloat16 (root mean square).
    """

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"]) -> None:
        super().__init__(conv, activation)
        self.to_input = _both_axes(INWARD, INWARD).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, O, H, W), in channels_last."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // OUTPUT_TILE), -(-width // OUTPUT_TILE)
        padding = (1, columns * OUTPUT_TILE + 1 - width, 1, rows * OUTPUT_TILE + 1 - height)
        padded = F.pad(x, padding).permute(0, 2, 3, 1).contiguous()
        out = x.new_empty((batch, rows * OUTPUT_TILE, columns * OUTPUT_TILE, len(self.bias)))
        one, other = self._room(rows, columns)
        for image, result in zip(padded, out.view(batch, rows, OUTPUT_TILE, columns, OUTPUT_TILE, -1), strict=True):
            for first, count in _bands(rows, columns):
                tiles = count * columns
                patches = _patches(image[first * OUTPUT_TILE :], INPUT_TILE, OUTPUT_TILE, count, columns)
                gathered = _part(one, *patches.shape).copy_(patches).view(PRODUCTS, -1)
                transformed = _part(other, PRODUCTS, tiles * channels)
                torch.mm(self.to_input, gathered, out=transformed)
                self._finish_band(transformed.view(PRODUCTS, tiles, channels), one, result[first : first + count])
        return out.permute(0, 3, 1, 2)[:, :, :height, :width]


SOURCE_TILE, SOURCE_STRIDE = 4, 2
"""Pixels of the small map that a tile of the enlarged one is made of along one axis, and between two tiles."""


def _enlarge(edge: Edge, *, odd: int) -> Tensor:
    """Matrix (6, 4), float64: six pixels of an enlarged axis, of which a tile makes four outputs, from four small ones.

    Bilinear with half-pixel centres: pixels 2i - 1 and 2i of the enlarged axis lie between i - 1 and i of the small
    one, a quarter from the nearer. What lies outside the enlarged axis is the convolution's padding: zero.

    Args:
        edge: a first tile begins outside; a last one ends there.
        odd: 1 when the small axis has an odd number of pixels, so that half of the last tile lies outside; else 0.
    """
    near, far = 0.75, 0.25
    matrix = torch.zeros(INPUT_TILE, SOURCE_TILE, dtype=torch.float64)
    for pixel in range(INPUT_TILE):
        left = pixel // 2
        matrix[pixel, left], matrix[pixel, left + 1] = (far, near) if pixel % 2 else (near, far)
    if edge == "first":
        matrix[0] = 0
    if edge == "last":
        matrix[3 if odd else 5 :] = 0
    return matrix


class EnlargingWinogradConv2d(_Winograd):
    """A map enlarged twofold (bilinear, as ``nn.Upsample``), then a 3x3 convolution with ReLU, then ``head``.

    The enlarging is linear, so it is part of the transform of the input: a tile is transformed from 4x4 pixels of the
    small map instead of 6x6 of the large one, and neither the enlarged map nor the convolution's output is ever whole
    in memory.

    Args:
        conv: the 3x3 convolution, stride 1, padding 1.
        head: maps (1, O, h, w) to (1, K, h, w), each pixel by itself: a 1x1 convolution.
    """

    def __init__(self, conv: nn.Conv2d, head: nn.Module) -> None:
        super().__init__(conv, "relu")
        self.head = head
        self._to_input: dict[tuple[Edge, Edge, int, int], Tensor] = {}

    def _matrix(self, row: Edge, column: Edge, odd_rows: int, odd_columns: int) -> Tensor:
        """(36, 16) that transforms small patches at that place."""
        key = (row, column, odd_rows, odd_columns)
        if key not in self._to_input:
            along_rows = INWARD @ _enlarge(row, odd=odd_rows)
            along_columns = INWARD @ _enlarge(column, odd=odd_columns)
            self._to_input[key] = _both_axes(along_rows, along_columns).to(self.weight.dtype)
        return self._to_input[key]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, h, w), h and w at least 3, to (B, K, 2h, 2w), in channels_last."""
        height, width = x.shape[2:]
        rows, columns = -(-height // SOURCE_STRIDE), -(-width // SOURCE_STRIDE)
        # Beyond its edge the small map goes on with its last pixel, as bilinear enlarging has it.
        padding = (1, SOURCE_STRIDE * columns + 1 - width, 1, SOURCE_STRIDE * rows + 1 - height)
        padded = F.pad(x, padding, mode="replicate").permute(0, 2, 3, 1).contiguous()
        one, other = self._room(rows, columns)
        images = []
        for image in padded:
            bands = []
            for first, count in _bands(rows, columns):
                patches = _patches(image[first * SOURCE_STRIDE :], SOURCE_TILE, SOURCE_STRIDE, count, columns)
                transformed = _part(other, PRODUCTS, count, columns, x.shape[1])
                self._transform(patches, one, transformed, first == 0, first + count == rows, height % 2, width % 2)
                band = x.new_empty((count, OUTPUT_TILE, columns, OUTPUT_TILE, len(self.bias)))
                self._finish_band(transformed.flatten(1, 2), one, band)
                large = band.view(1, count * OUTPUT_TILE, columns * OUTPUT_TILE, -1).permute(0, 3, 1, 2)
                bands.append(self.head(large))  # (1, K, 4 * count, 4 * columns)
            images.append(torch.cat(bands, dim=2)[:, :, : 2 * height, : 2 * width])
        return torch.cat(images)

    def _transform(
        self, patches: Tensor, room: Tensor, out: Tensor, at_top: bool, at_foot: bool, odd_rows: int, odd_columns: int
    ) -> None:
        """Fill ``out`` (36, rows, columns, I) from (4, 4, rows, columns, I): all as inner tiles, then the edges."""
        gathered = _part(room, *patches.shape).copy_(patches)
        inner = self._matrix("inner", "inner", odd_rows, odd_columns)
        torch.mm(inner, gathered.view(SOURCE_TILE**2, -1), out=out.view(PRODUCTS, -1))
        rows, columns = patches.shape[2:4]
        for row, row_slice in _parts(rows, at_top, at_foot):
            for column, column_slice in _parts(columns, True, True):
                if (row, column) != ("inner", "inner"):
                    part = gathered[:, :, row_slice, column_slice]
                    matrix = self._matrix(row, column, odd_rows, odd_columns)
                    result = matrix @ part.reshape(SOURCE_TILE**2, -1)
                    out[:, row_slice, column_slice] = result.view(PRODUCTS, *part.shape[2:])


def _parts(count: int, has_first: bool, has_last: bool) -> list[tuple[Edge, slice]]:
    """Which of ``count`` tiles in a row are at its edges and which are not; none of the parts is empty."""
    start, stop = int(has_first), count - int(has_last)
    parts: list[tuple[Edge, slice]] = [("first", slice(0, 1))] if has_first else []
    if start < stop:
        parts.append(("inner", slice(start, stop)))
    if has_last:
        parts.append(("last", slice(stop, count)))
    return parts
