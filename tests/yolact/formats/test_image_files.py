"""Image files: turned upright, downscaled, hashed; and the same changes of masks."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils

from yolact.formats.image_files import as_png, bounded_size, read_image_file, redrawn, turned_mask
from yolact.formats.instances import instances_from_index_mask, redrawn_instance, reduced_mask
from yolact.formats.problems import ProblemError


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, as in real images."""
    cells = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def save(folder: Path, picture: Image.Image, orientation: int = 1, quality: int = 90, name: str = "a.jpg") -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(folder / name, exif=exif, quality=quality)
    return name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_as_a_viewer_turns_them(tmp_path: Path, orientation: int) -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:15, 10:40] = 1
    mask[5:30, 10:18] = 1
    save(tmp_path, Image.fromarray(np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2)), orientation)
    with Image.open(tmp_path / "a.jpg") as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored).convert("L")) > 127
    image = read_image_file(tmp_path, "a.jpg")
    assert (image.upright_size[1], image.upright_size[0]) == shown.shape
    written = np.asarray(Image.open(io.BytesIO(redrawn(image, image.upright_size))).convert("L")) > 127
    assert np.array_equal(written, shown)
    assert np.array_equal(turned_mask(mask, orientation), shown)
    (instance,) = instances_from_index_mask(mask, {1: 1})
    moved = redrawn_instance(instance, orientation, image.upright_size)
    assert moved is not None
    assert np.array_equal(mask_utils.decode(moved.rle()), shown)
    rows, columns = np.nonzero(shown)
    assert moved.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert moved.area == shown.sum()


def test_an_image_with_too_many_pixels_is_a_problem(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 14_000, 13_000, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(ProblemError, match=r"a\.png: is larger than 178 megapixels; downscale the image and its masks"):
        read_image_file(tmp_path, "a.png")


def test_a_redrawn_image_has_no_exif_data_and_shows_the_same(tmp_path: Path) -> None:
    save(tmp_path, scene(1200, 800), orientation=6)
    image = read_image_file(tmp_path, "a.jpg")
    with Image.open(io.BytesIO(redrawn(image, (200, 300)))) as small:
        assert (small.size, small.mode, small.format, len(small.getexif())) == ((200, 300), "RGB", "JPEG", 0)
        wanted = scene(1200, 800).transpose(Image.Transpose.ROTATE_270).resize((200, 300), Image.Resampling.BOX)
        assert np.abs(np.asarray(small, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 2


@pytest.mark.parametrize(
    ("size", "bound", "expected"),
    [
        ((500, 375), 768, (500, 375)),
        ((4000, 3000), 768, (768, 576)),
        ((3000, 4000), 1000, (750, 1000)),
        ((4000, 3), 100, (100, 1)),
        ((4000, 3000), None, (4000, 3000)),
    ],
)
def test_the_longer_side_is_limited_to_the_bound(
    size: tuple[int, int], bound: int | None, expected: tuple[int, int]
) -> None:
    assert bounded_size(size, bound) == expected


@given(
    np_st.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 2)),
    st.data(),
)
def test_downscaled_masks_have_the_pixels_that_are_more_than_half_covered(
    labels: np.ndarray, data: st.DataObject
) -> None:
    height, width = labels.shape
    size = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    reduced = [reduced_mask((labels == number).astype(np.uint8), size) for number in (1, 2)]
    for number, found in zip((1, 2), reduced, strict=True):
        # Fractions by enlarging each pixel to as many as there are cells, then averaging whole cells.
        fine = np.kron(labels == number, np.ones((size[1], size[0])))
        share = fine.reshape(size[1], height, size[0], width).mean(axis=(1, 3))
        assert not (found.astype(bool) & (share < 0.49)).any()
        assert not (~found.astype(bool) & (share > 0.51)).any()
    assert not (reduced[0] & reduced[1]).any()


def test_an_object_that_is_too_small_vanishes() -> None:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[50, 50] = 1
    (instance,) = instances_from_index_mask(mask, {1: 1})
    assert redrawn_instance(instance, 1, (10, 10)) is None


def bits_apart(folder: Path, first: str, second: str) -> int:
    hashes = [read_image_file(folder, name).difference_hash for name in (first, second)]
    return (hashes[0] ^ hashes[1]).bit_count()


def test_near_duplicates_have_nearly_equal_hashes(tmp_path: Path) -> None:
    save(tmp_path, scene(640, 480), name="a.jpg")
    save(tmp_path, scene(640, 480).resize((320, 240)), quality=50, name="small.jpg")
    save(tmp_path, scene(640, 480), name="a.png")
    save(tmp_path, scene(640, 480).transpose(Image.Transpose.ROTATE_90), orientation=6, name="turned.jpg")
    save(tmp_path, scene(640, 480, seed=1), name="other.jpg")
    assert max(bits_apart(tmp_path, "a.jpg", name) for name in ("small.jpg", "a.png", "turned.jpg")) <= 4
    assert bits_apart(tmp_path, "a.jpg", "other.jpg") > 10


def test_hash_bits_say_which_cell_is_brighter_than_its_left_neighbour(tmp_path: Path) -> None:
    cells = np.zeros((8, 9), dtype=np.uint8)
    cells[0, 4:] = 200  # one step up in the first row, after its fourth cell
    cells[7, 8] = 200  # and in the last row at the end
    Image.fromarray(np.kron(cells, np.ones((16, 16), dtype=np.uint8))).save(tmp_path / "a.png")
    assert read_image_file(tmp_path, "a.png").difference_hash == (1 << (63 - 3)) | 1


# Types


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("form", "options", "lossless"),
    [
        ("JPEG", {}, False),
        ("PNG", {}, True),
        ("WEBP", {}, False),
        ("WEBP", {"icc_profile": b"in its extended form"}, False),
        ("WEBP", {"lossless": True}, True),
        ("BMP", {}, True),
        ("TIFF", {}, True),
        ("TIFF", {"compression": "tiff_lzw"}, True),
        ("TIFF", {"compression": "jpeg"}, False),
    ],
)
def test_every_type_of_image_is_read_and_known_as_lossless_or_not(
    tmp_path: Path, form: str, options: dict[str, Any], lossless: bool
) -> None:
    picture = scene(120, 80)
    (tmp_path / "a").write_bytes(encoded(picture, form, **options))
    image = read_image_file(tmp_path, "a")
    assert (image.format, image.stored_size, image.lossless) == (form, (120, 80), lossless)
    with Image.open(io.BytesIO(as_png(image))) as written:
        difference = np.abs(np.asarray(written, dtype=int) - np.asarray(picture, dtype=int))
    assert difference.max() == 0 if lossless else difference.mean() < 5


@pytest.mark.parametrize(
    ("form", "mode"),
    [*((form, mode) for form in ("BMP", "TIFF", "WEBP") for mode in ("L", "1", "P", "RGBA")), ("TIFF", "CMYK")],
)
def test_modes_other_than_rgb_are_converted(tmp_path: Path, form: str, mode: str) -> None:
    picture = scene(64, 48).convert(mode)
    options = {"lossless": True} if form == "WEBP" else {}
    (tmp_path / "a").write_bytes(encoded(picture, form, **options))
    with Image.open(io.BytesIO(as_png(read_image_file(tmp_path, "a")))) as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(("form", "what"), [("TIFF", "has 2 pages"), ("WEBP", "is an animation of 2 frames")])
def test_several_pages_or_frames_are_a_problem(tmp_path: Path, form: str, what: str) -> None:
    first, second = scene(64, 48), scene(64, 48).transpose(Image.Transpose.ROTATE_180)
    (tmp_path / "a").write_bytes(encoded(first, form, save_all=True, append_images=[second]))
    with pytest.raises(ProblemError, match=f"a: {what}; save the .* that the masks were drawn on"):
        read_image_file(tmp_path, "a")


def tiff_of_16_bits() -> bytes:
    """4 x 3 pixels in RGB with 16 bits per channel (TIFF 6.0, section 6), which Pillow cannot write."""
    pixels = bytes(4 * 3 * 3 * 2)
    after = 8 + 2 + 12 * 9 + 4
    short, long = 3, 4
    entries = [
        *((256, short, 1, 4), (257, short, 1, 3), (258, short, 3, after), (259, short, 1, 1), (262, short, 1, 2)),
        *((273, long, 1, after + 6), (277, short, 1, 3), (278, short, 1, 3), (279, long, 1, len(pixels))),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + table + bytes(4) + struct.pack("<3H", 16, 16, 16) + pixels


def test_tiff_of_16_bits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grey.tif").write_bytes(encoded(Image.new("I;16", (4, 3)), "TIFF"))
    (tmp_path / "colours.tif").write_bytes(tiff_of_16_bits())
    for name in ("grey.tif", "colours.tif"):
        with pytest.raises(ProblemError, match="has 16 or more bits per channel; save it with 8 bits"):
            read_image_file(tmp_path, name)


def test_tiff_with_an_orientation_is_read_upright_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = scene(60, 40)
    (tmp_path / "a.tif").write_bytes(encoded(picture, "TIFF", exif=exif))
    image = read_image_file(tmp_path, "a.tif")
    assert (image.stored_size, image.orientation) == ((40, 60), 1)
    with Image.open(io.BytesIO(as_png(image))) as written:
        assert np.array_equal(np.asarray(written), np.asarray(picture.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif"])
def test_types_that_are_not_read_are_named_with_a_way_to_convert_them(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "a").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    name = "AVIF" if brand == b"avif" else "HEIC"
    with pytest.raises(ProblemError, match=f"is a file of type {name}, which is not read; convert it to"):
        read_image_file(tmp_path, "a")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n")
    with pytest.raises(ProblemError, match="fetch it with `git lfs pull`"):
        read_image_file(tmp_path, "a.jpg")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), form=st.sampled_from(["TIFF", "WEBP", "BMP"]))
def test_damaged_files_are_problems_and_never_crash(data: st.DataObject, form: str) -> None:
    whole = bytearray(encoded(scene(24, 16), form))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 300)))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about damaged tags
        (Path(folder) / "a").write_bytes(damaged)
        with suppress(ProblemError):
            image = read_image_file(Path(folder), "a")
            redrawn(image, image.upright_size)
            as_png(image)
