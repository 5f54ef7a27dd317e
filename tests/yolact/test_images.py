"""Decoding: pixels, orientation, and what is rejected."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from yolact.images import DecodingError, decode_image, exif_orientation, read_image, turned_upright


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG", orientation: int | None = None) -> io.BytesIO:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, exif=exif)
    file.seek(0)
    return file


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_as_by_pillow(orientation: int, format: str) -> None:
    file = encoded(noise(5, 9), format, orientation)
    with Image.open(file) as stored:
        as_stored, expected = np.asarray(stored), np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(decode_image(file), expected)
    assert np.array_equal(decode_image(file, upright=False), as_stored)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    pixels = noise(5, 9)
    file = encoded(pixels, orientation=orientation)
    assert np.array_equal(decode_image(file), pixels)
    with Image.open(file) as image:
        assert exif_orientation(image) == 1
        assert turned_upright(image, orientation) is image


def test_broken_exif_data_does_not_make_the_pixels_unusable() -> None:
    pixels = noise(5, 9)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(decode_image(file), pixels)


@pytest.mark.parametrize("upright", [True, False])
def test_more_than_8_bits_per_channel_are_rejected(upright: bool) -> None:
    file = encoded(np.full((4, 4), 40000, dtype=np.uint16))
    with pytest.raises(DecodingError, match="16 or more bits per channel"):
        decode_image(file, upright=upright)


def test_only_the_requested_formats_are_decoded() -> None:
    file = encoded(noise(4, 4), "BMP")
    assert decode_image(file).shape == (4, 4, 3)
    with pytest.raises(DecodingError, match="cannot identify"):
        decode_image(file, formats=("JPEG", "PNG"))


def test_a_missing_file_and_a_damaged_one_differ(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "none.jpg")
    (tmp_path / "cut.png").write_bytes(encoded(noise(60, 60)).getvalue()[:-600])
    with pytest.raises(DecodingError):
        decode_image(tmp_path / "cut.png")


def test_a_read_image_can_be_written_to(tmp_path: Path) -> None:
    """PyTorch warns about read-only memory, and in-place transforms would write into it."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(4, 6)).getvalue())
    read_image(path).zero_()


@pytest.mark.parametrize("format", ["WEBP", "BMP", "TIFF"])
def test_paths_of_the_types_that_preprocess_converts_are_read(tmp_path: Path, format: str) -> None:
    pixels = noise(6, 9)
    options = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(pixels).save(tmp_path / "a", format, **options)
    assert np.array_equal(read_image(tmp_path / "a").permute(1, 2, 0).numpy(), pixels)
