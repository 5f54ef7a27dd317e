"""Image files: fully decoded, turned upright, downscaled to a maximum size, and hashed by content."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from yolact.formats.problems import Problem, ProblemError
from yolact.images import exif_orientation, has_deep_channels, turned_upright

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of image files that are read, in any case."""

MISSING_FILE = "missing file"
"""Kind of problem."""
MISSING_IMAGE = "missing image"
"""Kind of problem."""

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats of images that are read, by Pillow's names."""

KEPT_FORMATS = ("JPEG", "MPO", "PNG")
"""Formats that processed data may have; images of others are converted. MPO is a JPEG with further pictures, as phones
write."""

BITS_PER_SAMPLE = 258
"""TIFF's tag of the bits of each channel (TIFF 6.0, section 8)."""

LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
"""Compressions of TIFF that lose detail, by Pillow's names."""

OTHER_TYPES = {b"ftypavi": "AVIF", b"ftyphe": "HEIC", b"ftypmif1": "HEIC", b"ftypmsf1": "HEIC"}
"""Image types that are not read, by what their files have from byte 4 on (ISO 14496-12, section 4.3)."""

LFS_POINTER = b"version https://git-lfs.github.com/"
"""First bytes of a file that Git LFS has not fetched."""

HASH_ROWS, HASH_COLUMNS = 8, 9
"""Grey cells of the difference hash: 8 rows of 8 comparisons are 64 bits."""

JPEG_QUALITY = 95
"""JPEG quality of re-encoded images; nearly all VOC images were saved with 92 to 96."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, decoded once to check that it is complete."""

    file: str
    """Relative to the data set's folder."""
    width: int
    """Pixels as stored, before EXIF orientation is applied."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8; 1 if the file has none or an unknown one."""
    mode: str
    """Pillow's name of the pixel format, such as RGB, L or CMYK."""
    format: str
    """Pillow's name of the file format, such as JPEG."""
    lossless: bool
    """Whether the file has every pixel as it was saved."""
    difference_hash: int
    """64-bit hash of the upright image, see `difference_hash`."""
    data: bytes
    """The file's content."""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def stored_form(folder: Path, file: str) -> str | None:
    """A file's actual name in ``folder``: as given, or in Unicode's composed or decomposed form; None if missing.

    macOS's file systems, archives and lists decompose letters with accents (NFD), others compose them (NFC).
    """
    forms = dict.fromkeys((file, unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file)))
    return next((form for form in forms if os.path.isfile(folder / form)), None)


def read_bytes(root: Path, file: str, missing: str) -> bytes:
    """Read a file's content.

    Raises:
        ProblemError: it is missing (``missing`` says what to do), unreadable or empty.
    """
    try:
        data = (root / file).read_bytes()
    except FileNotFoundError:
        raise ProblemError([Problem(file, f"no such file; {missing}", kind=MISSING_FILE)]) from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the file"
        raise ProblemError([Problem(file, reason, kind="unreadable file")]) from None
    if not data:
        raise ProblemError([Problem(file, "is empty; replace the file", kind="empty file")])
    return data


def open_image(data: bytes, file: str, formats: tuple[str, ...]) -> Image.Image:
    """Read an image's header.

    Raises:
        ProblemError: the file is in none of the formats, or its header is damaged.
    """
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        reason = _not_an_image(data, formats)
    except Image.DecompressionBombError:
        largest = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000  # Pillow refuses images above twice its limit
        reason = f"is larger than {largest} megapixels; downscale the image and its masks"
    except Exception as error:  # decoders raise many types on damaged input
        reason = f"cannot be decoded ({type(error).__name__}: {error}); replace the file"
    raise ProblemError([Problem(file, reason, kind="file that is not a readable image")])


def _not_an_image(data: bytes, formats: Sequence[str]) -> str:
    *others, last = formats
    wanted = f"{', '.join(others)} or {last}" if others else last
    other = next((name for start, name in OTHER_TYPES.items() if data[4:].startswith(start)), None)
    if other:
        return (
            f"is a file of type {other}, which is not read; convert it to JPEG at its size, as with `magick "
            f"NAME.{other.lower()} NAME.jpg`, and correct its name in the annotations"
        )
    if data.startswith(LFS_POINTER):
        return "is only a pointer to a file that Git LFS keeps; fetch it with `git lfs pull`"
    return f"is not a {wanted} file (it begins with {data[:8]!r}); replace or convert it"


def load_image(image: Image.Image, file: str) -> None:
    """Decode all pixels.

    Raises:
        ProblemError: the file is damaged or truncated.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise many types on damaged input
        reason = f"cannot be decoded to its end ({error}): it is damaged or truncated; replace the file"
        raise ProblemError([Problem(file, reason, kind="damaged or truncated image")]) from None


def header_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Width and height of an image as stored and upright, from its header alone; None if that cannot be read."""
    try:
        with Image.open(path) as image:
            wide, high = image.size
            return (wide, high), (high, wide) if exif_orientation(image) >= 5 else (wide, high)
    except Exception:  # decoders raise many types on damaged input; reading the image reports it
        return None


def read_image_file(root: Path, file: str) -> ImageFile:
    """Read an image and decode it in full, which detects damage.

    Raises:
        ProblemError: it is missing, damaged, not in one of `READ_FORMATS`, has several frames or pages, or more than 8
            bits per channel.
    """
    data = read_bytes(root, file, "add the image")
    image = open_image(data, file, READ_FORMATS)
    width, height = image.size
    mode, form, lossless = image.mode, str(image.format), is_lossless(image, data)
    if _is_deep(image, data):
        reason = "has 16 or more bits per channel; save it with 8 bits per channel"
        raise ProblemError([Problem(file, reason, kind="16 or more bits per channel")])
    frames = _frames(image, file)
    if form != "MPO" and frames > 1:
        what, one = (
            (f"has {frames} pages", "page") if form == "TIFF" else (f"is an animation of {frames} frames", "frame")
        )
        reason = f"{what.format(frames)}; save the {one} that the masks were drawn on as a still image"
        raise ProblemError([Problem(file, reason, kind="animation, or several pages")])
    if form in ("JPEG", "MPO"):
        # Grey at 1/8 of the size, or what the hash needs: libjpeg still reads the whole file, but faster.
        image.draft("L", (max(width // 8, 4 * HASH_COLUMNS), max(height // 8, 4 * HASH_ROWS)))
    load_image(image, file)
    orientation = exif_orientation(image)  # after loading: Pillow turns the pixels of TIFF itself and clears the tag
    upright = turned_upright(_grey(image, file), orientation)
    return ImageFile(file, width, height, orientation, mode, form, lossless, difference_hash(upright), data)


def _frames(image: Image.Image, file: str) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception as error:  # decoders raise many types on damaged input
        reason = f"cannot be decoded ({type(error).__name__}: {error}); replace the file"
        raise ProblemError([Problem(file, reason, kind="damaged or truncated image")]) from None


def _grey(image: Image.Image, file: str) -> Image.Image:
    try:
        return image.convert("L")
    except ValueError:
        reason = f"has the colours {image.mode}, which are not read; save it in RGB"
        raise ProblemError([Problem(file, reason, kind="colours that are not read")]) from None


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a channel has 16 bits or more; Pillow reads colours of 16 bits as RGB of their upper 8."""
    if isinstance(image, TiffImageFile):
        return has_deep_channels(image) or max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)), default=1) > 8
    # The bit depth is in the PNG's header chunk IHDR (PNG specification, section 11.2.2).
    return has_deep_channels(image) or (image.format == "PNG" and data[24] == 16)


def is_lossless(image: Image.Image, data: bytes) -> bool:
    """Whether a file's format keeps every pixel."""
    if image.format == "WEBP":
        return b"VP8 " not in _riff_chunks(data)  # lossy; VP8L is lossless (RFC 9649, section 2)
    if image.format == "TIFF":
        return image.info.get("compression") not in LOSSY_TIFF
    return image.format not in ("JPEG", "MPO")


def _riff_chunks(data: bytes) -> set[bytes]:
    """Names of a RIFF file's chunks: each a name, its length (32 bits, little-endian), and content padded to even."""
    names, start = set(), 12
    while start + 8 <= len(data):
        names.add(data[start : start + 4])
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + length + length % 2
    return names


def difference_hash(grey: Image.Image) -> int:
    """Perceptual hash, 64 bits: nearly equal for copies of one image in other sizes and qualities.

    Each bit says whether a cell of a 9 x 8 grid of mean grey levels is brighter than its left neighbour (dHash;
    N. Krawetz, "Kind of Like That", 2013). The first cell's bit is the highest.
    """
    cells = np.asarray(grey.resize((HASH_COLUMNS, HASH_ROWS), Image.Resampling.BOX))  # (8, 9)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def bounded_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Width and height with the longer one limited to ``max_side``; unchanged if neither is longer, or without a limit.

    The aspect ratio is kept up to rounding, and no side is below 1 pixel.
    """
    longest = max(size)
    if max_side is None or longest <= max_side:
        return size
    return max(1, round(size[0] * max_side / longest)), max(1, round(size[1] * max_side / longest))


def redrawn(image: ImageFile, size: tuple[int, int]) -> bytes:
    """Encode the image as a new JPEG file: upright, without EXIF data, at ``size``.

    Args:
        image: the image file.
        size: width and height of the upright result, at most those of the image.

    Raises:
        ProblemError: the pixels cannot be decoded.
    """
    decoded = open_image(image.data, image.file, READ_FORMATS)
    stored = size if image.orientation < 5 else (size[1], size[0])
    # libjpeg decodes to 1/2, 1/4 or 1/8 of the size faster; the filter below does the rest.
    decoded.draft(None, (2 * stored[0], 2 * stored[1]))
    load_image(decoded, image.file)
    upright = turned_upright(decoded.convert("RGB").resize(stored, Image.Resampling.LANCZOS), image.orientation)
    written = io.BytesIO()
    upright.save(written, "JPEG", quality=JPEG_QUALITY)
    return written.getvalue()


def as_png(image: ImageFile) -> bytes:
    """Encode the image as a PNG file with the same pixels, in RGB or grey.

    Raises:
        ProblemError: the pixels cannot be decoded.
    """
    decoded = open_image(image.data, image.file, READ_FORMATS)
    load_image(decoded, image.file)
    written = io.BytesIO()
    decoded.convert("L" if decoded.mode in ("1", "L") else "RGB").save(written, "PNG")
    return written.getvalue()


def turned_mask(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask (H, W), turned as `yolact.images.turned_upright` turns an image; a view, not a copy."""
    turns = {
        2: lambda: mask[:, ::-1],
        3: lambda: mask[::-1, ::-1],
        4: lambda: mask[::-1],
        5: lambda: mask.T,
        6: lambda: mask[::-1].T,
        7: lambda: mask[::-1, ::-1].T,
        8: lambda: mask.T[::-1],
    }
    return np.asarray(turns[orientation]()) if orientation in turns else mask


def image_warnings(image: ImageFile) -> Sequence[Problem]:
    """Warnings about a usable image."""
    if image.mode != "CMYK":
        return []
    reason = "has CMYK colours, which are read without their colour profile"
    return [Problem(image.file, reason, kind="CMYK colours, read without their colour profile")]


def size_problems(image: ImageFile, masks: Mapping[str, np.ndarray]) -> list[Problem]:
    """Problems of masks, by file, unless all have the image's size as stored or all its upright size."""
    sizes = {file: (mask.shape[1], mask.shape[0]) for file, mask in masks.items()}
    if set(sizes.values()) == {image.upright_size}:
        return []
    wide, high = image.stored_size
    reason = f"pixels, but the image is {wide} x {high}; save the mask at the image's size, without smoothing"
    return [
        Problem(
            file, f"is {size[0]} x {size[1]} {reason} (nearest neighbour)", kind="mask of another size than its image"
        )
        for file, size in sizes.items()
        if size != image.stored_size
    ]
