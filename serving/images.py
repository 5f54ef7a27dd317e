"""Decode the images of a request within limits."""

from __future__ import annotations

import io
from threading import Lock
from typing import Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from serving.errors import OverloadedError
from serving.metrics import Metrics
from yolact.errors import DataError
from yolact.images import DecodingError, decode_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Accepted formats, by Pillow's names. Of an animation the first frame is used."""
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")

_UNKNOWN = "it is not a JPEG, PNG, WebP, GIF or BMP image"


class Memory:
    """The memory that request bodies and decoded images may take together. Safe between threads."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit = limit
        self.used = 0
        self._lock = Lock()
        self._gauge = metrics.memory

    def change(self, size: int) -> None:
        """Take ``size`` bytes, or give them back if it is negative.

        Raises:
            OverloadedError: there is not as much left.
        """
        with self._lock:
            if size > 0 and self.used + size > self.limit:
                raise OverloadedError("the memory for requests is full", 1)
            self.used += size
            self._gauge.set(self.used)


class Share:
    """What one request takes of `Memory`; a context that gives it back at its end."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = 0
        self._ended = False
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            self._memory.change(-self._size)

    def add(self, size: int) -> None:
        """Take ``size`` bytes more.

        Raises:
            OverloadedError: there is not as much left, or the request has ended meanwhile.
        """
        with self._lock:
            if self._ended:
                raise OverloadedError("the request has ended", 1)
            self._memory.change(size)
            self._size += size


def decode(data: bytes, max_pixels: int, share: Share) -> Tensor:
    """Decode an image to (3, H, W) uint8 RGB, upright as its EXIF orientation says.

    Raises:
        DataError: it is not an image of an accepted format, damaged, too large, or has 16 bits per channel.
        OverloadedError: there is no memory for it.
    """
    if not data:
        raise DataError("it is empty")
    width, height = _size(data)
    _check_size(width, height, max_pixels)
    share.add(3 * width * height)
    try:
        pixels = decode_image(io.BytesIO(data), formats=FORMATS)
    except DecodingError as error:
        raise DataError(f"it cannot be decoded: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def from_pixels(pixels: np.ndarray, max_pixels: int, share: Share) -> Tensor:
    """(H, W, 3) uint8 RGB pixels as a (3, H, W) tensor of their own.

    Raises:
        DataError: there are too many.
        OverloadedError: there is no memory for them.
    """
    height, width = pixels.shape[:2]
    _check_size(width, height, max_pixels)
    share.add(pixels.size)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        found = f"{width * height / 1e6:.1f} megapixels ({width}x{height})"
        raise DataError(f"it has {found}; at most {max_pixels / 1e6:g} are accepted")


def _size(data: bytes) -> tuple[int, int]:
    """Width and height that the image's header states."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        raise DataError("it has far too many pixels") from None
    except UnidentifiedImageError:
        raise DataError(_UNKNOWN) from None
    except Exception as error:  # decoders raise many types on damaged input
        raise DataError(f"its header cannot be read: {error or type(error).__name__}") from error


def reduced(image: Tensor, side: int) -> Tensor:
    """The (3, H, W) uint8 image with a longer side of at most ``side`` pixels."""
    height, width = image.shape[1:]
    size = reduced_size(height, width, side)
    if size == (height, width):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    smaller = np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2))
    return torch.from_numpy(smaller).permute(2, 0, 1)


def reduced_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with a longer side of at most ``side`` pixels; also the size of masks with this resolution."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
