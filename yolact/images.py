"""Read image files and arrays as RGB pixels; rotate images to upright by their EXIF orientation."""

from __future__ import annotations

import base64
import binascii
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from yolact.errors import DataError

ImageInput = np.ndarray | Tensor | str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image
"""An (H, W, 3) uint8 RGB array, a (3, H, W) uint8 RGB tensor, the path, content or open binary file of an image, or a
PIL image."""

ACCEPTED = (
    "a path, bytes or an open binary file of an image, a PIL image, an (H, W, 3) uint8 RGB array or a (3, H, W) "
    "uint8 RGB tensor"
)
"""The forms of `ImageInput`, for messages."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag of the rotation or flip a viewer applies; 1: none, 5 to 8 swap width and height (EXIF 2.3, 4.6.4)."""

UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition of the stored pixels to upright, by EXIF orientation (Pillow rotates counter-clockwise)."""


class DecodingError(ValueError):
    """An image cannot be decoded to 8-bit RGB; the message says why, the caller names the file."""


def is_single_image(value: Any) -> bool:
    """Whether a value has one of the forms of `ImageInput`, right shape or not; four axes are several images."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim != 4
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(value, "read")


def read_image(image: ImageInput) -> Tensor:
    """Read an `ImageInput` as (3, H, W) uint8 RGB; files and PIL images are turned upright by their EXIF orientation.

    Raises:
        ValueError: an array or a tensor has the wrong shape or dtype.
        TypeError: it is none of the accepted forms.
        DataError: a file is missing or cannot be decoded.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or 0 in image.shape:
            raise ValueError(f"tensors must be (3, H, W) uint8 RGB, found {tuple(image.shape)} {image.dtype}")
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"images must be (H, W, 3) uint8 RGB arrays, found {image.shape} {image.dtype}")
        return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
    name = _name(image)
    try:
        pixels = _rgb(image) if isinstance(image, Image.Image) else decode_image(_file(image))
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except DecodingError as error:
        raise DataError(f"{name}: cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _name(image: Any) -> str:
    """What messages call an image."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"{len(image)} bytes"
    return str(getattr(image, "filename", None) or getattr(image, "name", None) or type(image).__name__)


def _file(image: Any) -> Path | IO[bytes]:
    """The file of an image given by its path, its content, or an open file, which is read from its start.

    Raises:
        TypeError: it is none of these.
        DecodingError: an open file cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        return Path(os.fspath(image))
    if hasattr(image, "read"):
        try:
            if hasattr(image, "seek"):
                with suppress(io.UnsupportedOperation):  # a pipe or a download is read from where it is
                    image.seek(0)
            image = image.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed, or text
            raise DecodingError(str(error)) from error
        if isinstance(image, str):
            raise TypeError(f"an image must be {ACCEPTED}; found a file opened as text: open it with mode 'rb'")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return io.BytesIO(image)
    raise TypeError(f"an image must be {ACCEPTED}; found {type(image).__name__}")


_WHITE_SPACE = str.maketrans("", "", " \t\n\r\f\v")


def decode_base64(text: str) -> bytes:
    """Decode base64, also with line breaks (RFC 2045).

    Raises:
        ValueError: it is not base64.
    """
    try:
        return base64.b64decode(text.translate(_WHITE_SPACE), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def decode_image(file: Path | IO[bytes], *, formats: tuple[str, ...] | None = None, upright: bool = True) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, read-only.

    Args:
        file: path or binary stream.
        formats: accepted formats, by Pillow's names; None: all.
        upright: apply the EXIF orientation; otherwise return the pixels as stored.

    Raises:
        FileNotFoundError: there is no such file.
        DecodingError: it is damaged, in another format, or has more than 8 bits per channel.
    """
    try:
        with Image.open(file, formats=formats) as image:
            return _rgb(image, upright=upright)
    except (FileNotFoundError, DecodingError):
        raise
    except Exception as error:  # decoders raise many types on damaged input
        raise DecodingError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image, *, upright: bool = True) -> np.ndarray:
    """The pixels of a PIL image as (H, W, 3) uint8 RGB, read-only.

    Raises:
        DecodingError: it is damaged, or has more than 8 bits per channel.
    """
    if has_deep_channels(image):
        raise DecodingError("it has 16 or more bits per channel; save it with 8 bits per channel")
    try:
        image.load()  # some decoders turn the pixels themselves and then clear the EXIF tag
        shown = turned_upright(image, exif_orientation(image)) if upright else image
        return np.asarray(shown if shown.mode == "RGB" else shown.convert("RGB"))
    except Exception as error:  # decoders raise many types on damaged input
        raise DecodingError(str(error) or type(error).__name__) from error


def has_deep_channels(image: Image.Image) -> bool:
    """Whether Pillow has more than 8 bits per channel; converting these to RGB would clip at 255."""
    return image.mode.startswith(("I", "F"))


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if it is missing or unknown, or the EXIF data is broken."""
    with suppress(Exception):  # decoders raise many types on broken EXIF data, but the pixels are usable
        orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
        return orientation if orientation in UPRIGHT else 1
    return 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a viewer shows it; the same object if there is nothing to turn."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
