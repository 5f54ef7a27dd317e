"""Winograd's minimal filtering: 3x3 convolutions with 2.25 multiplications per output and channel instead of 9.

Along one axis, four outputs are ``A' [(G g) * (B' d)]`` for a kernel g and six inputs d, with the matrices of Toom-Cook
multiplication, transposed (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308): F(4, 3). In two dimensions a tile of
4x4 outputs takes 6x6 inputs, and all tiles together are 36 matrix products, channels by channels.

Letters in shapes: T tiles (rows x columns of them), I and O input and output channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUT_TILE, INPUT_TILE = 4, 6
PRODUCTS = INPUT_TILE**2

POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)
"""Where the polynomials are evaluated, in addition to infinity. Of the sets tried these have the smallest rounding
error: half that of the usual 0, 1, -1, 2, -2 (Lavin and Gray 2016), in bfloat16 and in float32."""

TILES_AT_ONCE = 200
"""Tiles whose products are computed together: enough to amortise reading all kernels, few enough to stay in the
last-level cache."""

TILES_TRANSFORMED_AT_ONCE = 36
"""Tiles that are transformed together: they fit into the L2 cache."""

KERNELS_AT_ONCE = 16
"""Output channels whose kernels are transformed at a time; few, to save memory."""

CHANNELS_IN_STEP = 64
"""Output channels are padded with zeros to a multiple of this, four AVX-512 registers: oneDNN takes 1.3 times as long
for 352 output channels as for 384."""


def _evaluation(coefficients: int) -> Tensor:
    """Matrix (6, coefficients), float64, that evaluates a polynomial at `POINTS` and at infinity (its last one)."""
    rows = [[point**power for power in range(coefficients)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (coefficients - 1) + [1.0]], dtype=torch.float64)


def _both_axes(along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """One matrix that transforms flattened tiles: rows by the first matrix, columns by the second."""
    return torch.kron(along_rows, along_columns)


INWARD, OUTWARD = _evaluation(INPUT_TILE).inverse().T, _evaluation(OUTPUT_TILE).T
"""B' (6, 6) and A' (4, 6) of one axis, float64."""


class ReorderedConv(nn.Module):
    """A convolution whose weights oneDNN has reordered; copied and pickled as plain weights, and reordered again."""

    geometry: tuple[object, ...]
    """Padding, stride, dilation and groups."""
    input_size: list[int] | None
    """Shape of the input that the order is best for; None if the weights are not reordered."""
    weight: Tensor

    def _reorder(self) -> None:
        if self.input_size is not None:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, self.input_size)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.input_size is not None:
            state["weight"] = self.weight.to_dense(self.weight.dtype)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reorder()


class _Winograd(ReorderedConv):
    """The transformed kernels, and the transforms and products of one image's tiles.

    Tiles are contiguous in memory, (T, 36, channels), so that work on a few of them stays in the cache. Their products
    are one convolution with 1x1 kernels in 36 groups: oneDNN computes it faster than a batch of matrix products.
    """

    geometry = ((0, 0), (1, 1), (1, 1), PRODUCTS)
    """That of the convolution that computes the products."""

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"], tiles: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.activation = activation
        self.out_channels, self.in_channels = conv.out_channels, conv.in_channels
        self.product_channels = -(-conv.out_channels // CHANNELS_IN_STEP) * CHANNELS_IN_STEP
        self.weight = _transformed_kernels(conv.weight.detach(), self.product_channels)
        # The fastest memory order of the kernels depends on the number of tiles; another one is converted at each call.
        self.input_size = [1, PRODUCTS * conv.in_channels, tiles, 1]
        self._reorder()
        self.bias = conv.bias.detach()
        self.to_output = _both_axes(OUTWARD, OUTWARD).to(conv.weight.dtype)  # (16, 36)

    def _fill(self, patches: Tensor, to_input: Tensor, out: Tensor) -> None:
        """Convolve the tiles of some rows.

        Args:
            patches: (rows, columns, h, w, I) view of the image's overlapping patches.
            to_input: (rows * columns, 36, h * w), the transform of each patch.
            out: (rows, 4, columns, 4, O), filled in place.
        """
        rows, columns = patches.shape[:2]
        tiles, pixels = rows * columns, to_input.shape[2]
        at_once = max(1, TILES_TRANSFORMED_AT_ONCE // columns)  # rows
        room = out.new_empty(at_once * columns * max(pixels * self.in_channels, OUTPUT_TILE**2 * self.product_channels))
        transformed = out.new_empty((tiles, PRODUCTS, self.in_channels))
        for some in _slices(rows, at_once):
            of_tiles = slice(some.start * columns, some.stop * columns)
            gathered = _part(room, *patches[some].shape).copy_(patches[some]).view(-1, pixels, self.in_channels)
            torch.bmm(to_input[of_tiles], gathered, out=transformed[of_tiles])
        products = self._products(transformed)
        to_output = self.to_output.expand(tiles, -1, -1)
        for some in _slices(rows, at_once):
            of_tiles = slice(some.start * columns, some.stop * columns)
            results = _part(room, of_tiles.stop - of_tiles.start, OUTPUT_TILE**2, self.product_channels)
            torch.bmm(to_output[of_tiles], products[of_tiles], out=results)
            results = results.view(-1, columns, OUTPUT_TILE, OUTPUT_TILE, self.product_channels)
            torch.add(results[..., : self.out_channels].transpose(1, 2), self.bias, out=out[some])
            if self.activation == "relu":
                out[some].relu_()

    def _products(self, transformed: Tensor) -> Tensor:
        """Map (T, 36, I) to (T, 36, O): each of the 36 by its own matrix."""
        as_image = transformed.view(1, len(transformed), 1, -1).permute(0, 3, 1, 2)  # (1, 36 * I, T, 1)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            as_image, self.weight, None, *self.geometry, "none", [], None
        )
        return out.permute(0, 2, 3, 1).reshape(len(transformed), PRODUCTS, -1)


def _transformed_kernels(weight: Tensor, out_channels: int) -> Tensor:
    """Map (O, I, 3, 3) to (36 * out_channels, I, 1, 1), computed in float64 and rounded once; zeros beyond O."""
    given, in_channels = weight.shape[:2]
    both = _both_axes(_evaluation(3), _evaluation(3))  # (36, 9)
    transformed = weight.new_zeros((PRODUCTS, out_channels, in_channels))
    for some in _slices(given, KERNELS_AT_ONCE):
        kernels = weight[some].double().permute(2, 3, 0, 1)  # (3, 3, o, I)
        transformed[:, some] = (both @ kernels.reshape(9, -1)).view(PRODUCTS, *kernels.shape[2:]).to(weight.dtype)
    return transformed.view(-1, in_channels, 1, 1)


def _part(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a flat tensor, viewed in that shape."""
    return memory[: math.prod(shape)].view(shape)


def _patches(image: Tensor, size: int, stride: int, rows: int, columns: int) -> Tensor:
    """View (rows, columns, size, size, I) of the overlapping patches of a contiguous (h, w, I) image."""
    along_h, along_w, along_c = image.stride()
    shape = (rows, columns, size, size, image.shape[2])
    return image.as_strided(shape, (along_h * stride, along_w * stride, along_h, along_w, along_c))


def _slices(count: int, at_once: int) -> Iterator[slice]:
    """Slices of ``at_once`` elements that cover ``count``; the last may be shorter."""
    for first in range(0, count, at_once):
        yield slice(first, min(first + at_once, count))


def _tiles(height: int, width: int, stride: int) -> int:
    """Tiles in the first band of a map of that size, with a tile at every ``stride`` pixels."""
    rows, columns = -(-height // stride), -(-width // stride)
    return next(_bands(rows, columns)).stop * columns


def _bands(rows: int, columns: int) -> Iterator[slice]:
    """Bands of rows with about `TILES_AT_ONCE` tiles.

    Their heights are nearly equal: a narrow band would read all kernels for little work.
    """
    bands = -(-rows * columns // TILES_AT_ONCE)
    return _slices(rows, -(-rows // bands))


class WinogradConv2d(_Winograd):
    """A 3x3 convolution of stride 1 and padding 1, with or without ReLU.

    The result differs from the direct convolution's by rounding: by about 1e-6 of the largest value in float32, by
    eight times the direct convolution's own error in bfloat16 (root mean square).

    Args:
        conv: the convolution.
        activation: applied to the result.
        height, width: size of the input maps, if known. Others work too, some slowly.
    """

    def __init__(self, conv: nn.Conv2d, activation: Literal["none", "relu"], height: int = 64, width: int = 64) -> None:
        super().__init__(conv, activation, _tiles(height, width, OUTPUT_TILE))
        self.to_input = _both_axes(INWARD, INWARD).to(conv.weight.dtype)  # (36, 36)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, O, H, W), in channels_last."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // OUTPUT_TILE), -(-width // OUTPUT_TILE)
        padding = (1, columns * OUTPUT_TILE + 1 - width, 1, rows * OUTPUT_TILE + 1 - height)
        padded = F.pad(x, padding).permute(0, 2, 3, 1).contiguous()
        out = x.new_empty((batch, rows * OUTPUT_TILE, columns * OUTPUT_TILE, self.out_channels))
        for image, result in zip(padded, out.view(batch, rows, OUTPUT_TILE, columns, OUTPUT_TILE, -1), strict=True):
            patches = _patches(image, INPUT_TILE, OUTPUT_TILE, rows, columns)
            for band in _bands(rows, columns):
                to_input = self.to_input.expand((band.stop - band.start) * columns, -1, -1)
                self._fill(patches[band], to_input, result[band])
        return out.permute(0, 3, 1, 2)[:, :, :height, :width]


SOURCE_TILE, SOURCE_STRIDE = 4, 2
"""Pixels of the small map that a tile of the enlarged map depends on along one axis, and the distance between tiles."""


def _enlarge(tile: int, tiles: int, pixels: int) -> Tensor:
    """Matrix (6, 4), float64: the six pixels of an enlarged axis that a tile reads, from four small pixels.

    Bilinear with half-pixel centres: pixels 2i - 1 and 2i of the enlarged axis lie between i - 1 and i of the small
    one, a quarter from the nearer. Outside the enlarged axis is the convolution's padding: zero.

    Args:
        tile: index of the tile, below ``tiles``.
        pixels: length of the small axis; if odd, half of the last tile is outside.
    """
    near, far = 0.75, 0.25
    matrix = torch.zeros(INPUT_TILE, SOURCE_TILE, dtype=torch.float64)
    for pixel in range(INPUT_TILE):
        left = pixel // 2
        matrix[pixel, left], matrix[pixel, left + 1] = (far, near) if pixel % 2 else (near, far)
    if tile == 0:
        matrix[0] = 0
    if tile == tiles - 1:
        matrix[3 if pixels % 2 else 5 :] = 0
    return matrix


class EnlargingWinogradConv2d(_Winograd):
    """Bilinear upsampling by 2 (as ``nn.Upsample``), then a 3x3 convolution with ReLU, then ``head``.

    The upsampling is linear, so it is merged into the input transform: a tile is transformed from 4x4 pixels of the
    small map instead of 6x6 of the large one, and neither the enlarged map nor the convolution's output is ever fully
    in memory.

    Args:
        conv: the 3x3 convolution, stride 1, padding 1.
        head: maps (1, O, h, w) to (1, K, h, w), pixel by pixel: a 1x1 convolution.
        height, width: size of the small maps, as in `WinogradConv2d`.
    """

    def __init__(self, conv: nn.Conv2d, head: nn.Module, height: int = 64, width: int = 64) -> None:
        super().__init__(conv, "relu", _tiles(height, width, SOURCE_STRIDE))
        self.head = head
        self._to_input: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, h, w), h and w at least 3, to (B, K, 2h, 2w), in channels_last."""
        height, width = x.shape[2:]
        rows, columns = -(-height // SOURCE_STRIDE), -(-width // SOURCE_STRIDE)
        # Past its edge the small map repeats its last pixel, as in bilinear upsampling.
        padding = (1, SOURCE_STRIDE * columns + 1 - width, 1, SOURCE_STRIDE * rows + 1 - height)
        padded = F.pad(x, padding, mode="replicate").permute(0, 2, 3, 1).contiguous()
        to_input = self._matrices(height, width, rows, columns)
        images = []
        for image in padded:
            patches = _patches(image, SOURCE_TILE, SOURCE_STRIDE, rows, columns)
            bands = []
            for band in _bands(rows, columns):
                count = band.stop - band.start
                enlarged = x.new_empty((count, OUTPUT_TILE, columns, OUTPUT_TILE, self.out_channels))
                self._fill(patches[band], to_input[band].flatten(0, 1), enlarged)
                large = enlarged.view(1, count * OUTPUT_TILE, columns * OUTPUT_TILE, -1).permute(0, 3, 1, 2)
                bands.append(self.head(large))  # (1, K, 4 * count, 4 * columns)
            images.append(torch.cat(bands, dim=2)[:, :, : 2 * height, : 2 * width])
        return torch.cat(images)

    def _matrices(self, height: int, width: int, rows: int, columns: int) -> Tensor:
        """(rows, columns, 36, 16): the transform of each tile's small pixels, at the edges and inside."""
        if (height, width) not in self._to_input:
            along_rows = torch.stack([INWARD @ _enlarge(row, rows, height) for row in range(rows)])
            along_columns = torch.stack([INWARD @ _enlarge(column, columns, width) for column in range(columns)])
            both = torch.einsum("rij,ckl->rcikjl", along_rows, along_columns)  # (rows, columns, 6, 6, 4, 4)
            self._to_input[height, width] = both.reshape(rows, columns, PRODUCTS, -1).to(self.bias.dtype)
        return self._to_input[height, width]
