"""Image files and arrays as RGB pixels: which formats are decoded or rejected, and how images are rotated upright."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from yolact.errors import DataError

ImageInput = np.ndarray | Tensor | str | Path
"""An (H, W, 3) uint8 RGB array, a (3, H, W) uint8 RGB tensor, or the path of an image file."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag of the rotation that a viewer applies; 1 is none, 5 to 8 swap width and height (EXIF 2.3, 4.6.4)."""

UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that rotates the stored pixels upright, by EXIF orientation (Pillow rotates counter-clockwise)."""


class DecodingError(ValueError):
    """An image cannot be decoded to 8-bit RGB; the message says why, the caller names the file."""


def read_image(image: ImageInput) -> Tensor:
    """An `ImageInput` as (3, H, W) uint8 RGB; files are rotated upright according to their EXIF orientation.

    Raises:
        ValueError: an array or a tensor has another shape or dtype.
        DataError: a file is missing or cannot be decoded.
    """
    if isinstance(image, (str, Path)):
        try:
            pixels = decode_image(Path(image))
        except FileNotFoundError:
            raise DataError(f"{image}: no such image") from None
        except DecodingError as error:
            raise DataError(f"{image}: cannot be read as an image: {error}") from error
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or 0 in image.shape:
            raise ValueError(f"tensors must be (3, H, W) uint8 RGB, found {tuple(image.shape)} {image.dtype}")
        return image
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"images must be (H, W, 3) uint8 RGB arrays, found {image.shape} {image.dtype}")
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)


def decode_image(file: Path | IO[bytes], *, formats: tuple[str, ...] | None = None, upright: bool = True) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, read-only.

    Args:
        file: its path or content.
        formats: Pillow's names of the accepted formats; None accepts all.
        upright: rotate the pixels according to the EXIF orientation; else return them as stored.

    Raises:
        FileNotFoundError: there is no such file.
        DecodingError: it is damaged, in another format, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file, formats=formats) as image:
            if has_deep_channels(image):
                raise DecodingError("it has 16 or more bits a channel; save it with 8 bits a channel")
            image.load()  # the decoders of some formats rotate the pixels themselves and then clear the EXIF tag
            shown = turned_upright(image, exif_orientation(image)) if upright else image
            return np.asarray(shown if shown.mode == "RGB" else shown.convert("RGB"))
    except (FileNotFoundError, DecodingError):
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise DecodingError(str(error)) from error


def has_deep_channels(image: Image.Image) -> bool:
    """Whether Pillow holds the pixels with more than 8 bits a channel; converting them to RGB would clip at 255."""
    return image.mode.startswith(("I", "F"))


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if the file has none, an unknown number, or broken EXIF data."""
    with suppress(Exception):  # decoders raise many types on broken EXIF data, which does not make the pixels unusable
        orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
        return orientation if orientation in UPRIGHT else 1
    return 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a viewer shows it; unchanged if no rotation is needed."""
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
