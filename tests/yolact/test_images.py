"""Decoding: pixels, orientation, and what is rejected."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from yolact.errors import DataError
from yolact.images import (
    DecodingError,
    decode_image,
    exif_orientation,
    is_single_image,
    read_image,
    turned_upright,
)


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


# --- the other forms of an image, and damaged EXIF data -----------------------------------------------------------


def with_ascii_resolution_unit(pixels: np.ndarray, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation whose ResolutionUnit (0x0128) is text, which Pillow cannot write back."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(">HHI4s", 0x0128, 2, 2, b"2\0\0\0")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + struct.pack(">I", 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_an_image_with_odd_exif_data_is_turned_upright() -> None:
    data = with_ascii_resolution_unit(noise(5, 9), orientation=6)
    with Image.open(io.BytesIO(data)) as stored:
        stored_pixels = np.asarray(stored)
        with pytest.raises((struct.error, TypeError)):
            ImageOps.exif_transpose(stored)
    upright = np.rot90(stored_pixels, -1)
    assert np.array_equal(read_image(data).permute(1, 2, 0).numpy(), upright)
    assert np.array_equal(read_image(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy(), upright)


class Pipe(io.RawIOBase):
    """A download: it can be read once, from where it is."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.data.read(size)


@pytest.mark.parametrize("orientation", [1, 6])
def test_bytes_files_and_pil_images_are_read_as_their_path_is(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(5, 9), orientation=orientation).getvalue())
    data = path.read_bytes()
    at_its_end = io.BytesIO(data)
    at_its_end.seek(0, io.SEEK_END)
    expected = read_image(path)
    with path.open("rb") as opened, Image.open(path) as image:
        for form in (data, bytearray(data), memoryview(data), at_its_end, opened, image, Pipe(data), str(path)):
            assert is_single_image(form)
            assert torch.equal(read_image(form), expected), form


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pil_images_are_converted_to_rgb(mode: str) -> None:
    image = Image.fromarray(noise(5, 9)).convert(mode)
    assert np.array_equal(read_image(image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_damaged_images_of_every_form_are_named(tmp_path: Path) -> None:
    data = encoded(noise(60, 60)).getvalue()[:-600]
    (tmp_path / "cut.png").write_bytes(data)
    with (tmp_path / "cut.png").open("rb") as opened, Image.open(tmp_path / "cut.png") as image:
        for form, name in [(data, f"{len(data)} bytes"), (opened, "cut.png"), (image, "cut.png"), (b"", "0 bytes")]:
            with pytest.raises(DataError, match=f"{name}: cannot be read as an image: "):
                read_image(form)
    with pytest.raises(DataError, match="closed"):
        read_image(opened)
    with pytest.raises(DataError, match="16 or more bits per channel"):
        read_image(Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)))


@pytest.mark.parametrize("value", [None, 5, 0.5, object(), {"a.jpg": 1}, [[1, 2], [3, 4]], io.StringIO("text")])
def test_other_forms_are_rejected_with_those_that_are_accepted(value: object) -> None:
    with pytest.raises(TypeError, match=r"an image must be a path, bytes or .*\(H, W, 3\) uint8 RGB array.*; found "):
        read_image(value)  # type: ignore[arg-type]


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_content_never_ends_in_another_error(noise_bytes: bytes, place: int) -> None:
    data = bytearray(ODD)
    data[place : place + len(noise_bytes)] = noise_bytes
    with suppress(DataError):
        assert read_image(bytes(data)).shape[0] == 3


ODD = with_ascii_resolution_unit(noise(8, 8), orientation=6)
