"""Read mask images: indices, stored as such or as colours that each mean an index; and masks of one object."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from yolact.formats.image_files import load_image, open_image, read_bytes
from yolact.formats.problems import Problem, ProblemError
from yolact.palette import voc_palette

VOID = 255
"""Index of the border around objects in SegmentationClass and SegmentationObject, which belongs to no class."""

SHOWN_COLOURS = 3
"""Maximum number of unknown colours that a message lists."""

MANY_COLOURS = 20
"""More unknown colours than these are those of smoothed edges, or the file is no mask. Our choice."""

MISSING_MASK = "each image needs its mask; draw it, or remove the id from the split file"

GREY, PALETTE = 0, 3
"""Colour types of a PNG (PNG specification, section 11.2.2)."""


def read_mask(
    root: Path, file: str, colours: Mapping[int, int] | None = None, named_in: str = "labelmap.txt"
) -> np.ndarray:
    """Read a mask PNG of 8-bit indices, with a palette or in grey, or of colours that each mean an index.

    Args:
        root: the data set's folder.
        file: the mask, relative to ``root``.
        colours: index by colour (0xRRGGBB), as a class list names them; None or empty: VOC's palette.
        named_in: name of the class list that has or may have colours, for messages; empty: the mask shows objects.

    Returns:
        (H, W) uint8 indices.

    Raises:
        ProblemError: the file is missing or damaged, or has unknown colours or renumbered indices.
    """
    image, depth, colour_type = _open_mask(root, file)
    if colour_type == GREY and depth != 8:
        reason = (
            f"is {depth}-bit grey, but a mask has one 8-bit index per pixel; save the PNG as 8-bit palette (Pillow "
            "mode P) or 8-bit grey (mode L)"
        )
        raise ProblemError([Problem(file, reason, "mask that is not 8-bit")])
    load_image(image, file)
    if colour_type == PALETTE:
        return _palette_indices(image, file, colours or {})
    if colour_type == GREY:
        return np.asarray(image)
    return _indices_of_colours(_opaque_pixels(image, file), file, colours or {}, named_in)


def read_numbers(root: Path, file: str) -> np.ndarray:
    """Read a mask whose pixels number the objects, as `read_mask`, but also of 16-bit grey.

    Returns:
        (H, W) uint8 or uint16; 0 is background, and 255 an object like any other.
    """
    image, depth, colour_type = _open_mask(root, file)
    if colour_type == GREY and depth == 16:
        load_image(image, file)
        return np.asarray(image).astype(np.uint16)
    return read_mask(root, file, named_in="")


def read_object(root: Path, file: str) -> np.ndarray:
    """Read a mask of one object: black is background, one other value the object, in any mode.

    Returns:
        (H, W) bool.

    Raises:
        ProblemError: the file is missing or damaged, or has more than one value besides black.
    """
    image, _, colour_type = _open_mask(root, file)
    load_image(image, file)
    if colour_type == PALETTE:
        pixels = np.asarray(image.convert("RGB"))
    elif colour_type == GREY:
        pixels = np.asarray(image)
    else:
        pixels = _opaque_pixels(image, file)
    values = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    others = np.unique(values[values > 0])
    if len(others) > 1:
        reason = (
            f"shows one object, but has {len(others)} values besides black (such as {others[0]} and {others[-1]}); "
            "draw each object into a file of its own, in one value and without smoothed edges"
        )
        raise ProblemError([Problem(file, reason, "object mask with several values")])
    return np.asarray(values > 0)


def _open_mask(root: Path, file: str) -> tuple[Image.Image, int, int]:
    """An opened PNG, its bit depth and its colour type.

    Both are read from the header chunk IHDR: Pillow scales grey of fewer bits to 0 to 255 and reports it as 8-bit.
    """
    data = read_bytes(root, file, MISSING_MASK)
    image = open_image(data, file, ("PNG",))
    return image, data[24], data[25]


def _palette_indices(image: Image.Image, file: str, colours: Mapping[int, int]) -> np.ndarray:
    mask = np.asarray(image)
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)  # (up to 256, 3)
    used = np.flatnonzero(np.bincount(mask.ravel()))
    if used[-1] >= len(palette):
        return mask
    if colours:
        codes = _codes(palette[used]).tolist()
        known = _with_void(colours)
        if all(code in known for code in codes):
            lookup = np.zeros(256, dtype=np.uint8)
            lookup[used] = [known[code] for code in codes]
            return lookup[mask]
    if _is_renumbered(palette, used):
        reason = (
            "has VOC's colours under other indices, as an editor does that rebuilds the palette; "
            "save it with VOC's own palette of 256 colours, which restores the indices"
        )
        raise ProblemError([Problem(file, reason, "mask with a rebuilt palette")])
    return mask


def _is_renumbered(palette: np.ndarray, used: np.ndarray) -> bool:
    """Whether all used colours of a palette image are VOC's, but not all at VOC's indices."""
    official = voc_palette()
    if np.array_equal(palette[used], official[used]):
        return False
    return all(code in _voc_colours() for code in _codes(palette[used]).tolist())


def _opaque_pixels(image: Image.Image, file: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image without transparent pixels."""
    if "A" in image.mode and np.asarray(image.getchannel("A")).min() < 255:
        reason = "has transparent pixels, which have no index; save the mask without transparency"
        raise ProblemError([Problem(file, reason, "mask with transparency")])
    return np.asarray(image.convert("RGB"))


def _indices_of_colours(pixels: np.ndarray, file: str, colours: Mapping[int, int], named_in: str) -> np.ndarray:
    """Index of each pixel's colour.

    Raises:
        ProblemError: a colour is unknown.
    """
    codes = _codes(pixels).ravel()
    # Look up runs of equal pixels: there are a hundred times fewer of them.
    starts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1))
    lengths = np.diff(starts, append=codes.size)
    used, inverse = np.unique(codes[starts], return_inverse=True)
    known = _with_void(colours) if colours else _voc_colours()
    if not colours and not all(code in known for code in used.tolist()) and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])  # indices in grey, saved as RGB
    unknown = [place for place, code in enumerate(used.tolist()) if code not in known]
    if unknown:
        counts = np.bincount(inverse, weights=lengths).astype(np.int64)
        found = {int(used[place]): int(counts[place]) for place in unknown}
        raise ProblemError([_unknown_colours(file, found, codes.size, named_in, listed=bool(colours))])
    indices = np.array([known[code] for code in used.tolist()], dtype=np.uint8)
    return np.repeat(indices[inverse], lengths).reshape(pixels.shape[:2])


def _unknown_colours(file: str, found: Mapping[int, int], size: int, named_in: str, *, listed: bool) -> Problem:
    """The problem of colours that mean no index; ``found`` has the pixels by colour."""
    most = sorted(found, key=lambda code: (-found[code], code))[:SHOWN_COLOURS]
    shown = ", ".join(f"{code >> 16},{code >> 8 & 255},{code & 255} ({found[code]} pixels)" for code in most)
    more = f" and {len(found) - len(most)} more" if len(found) > len(most) else ""
    if listed:
        what, way = f"that {named_in} does not name", f"add them to {named_in}"
    elif named_in:
        what = "not in VOC's palette"
        way = f"list the classes with their colours in {named_in}, one such as bolt:250,50,83:: per line"
    else:
        what, way = "not in VOC's palette", "save the number of each object (1, 2, …) as 8-bit palette or grey"
    pixels = sum(found.values())
    if len(found) > MANY_COLOURS:
        way += "; so many colours come from smoothed edges: save masks without smoothing, and never as JPEG"
    number = f"{len(found)} colours" if len(found) > 1 else "a colour"
    reason = f"has {number} on {pixels} of {size} pixels {what}: {shown}{more}; {way}"
    return Problem(file, reason, "mask with unknown colours")


def _codes(colours: np.ndarray) -> np.ndarray:
    """0xRRGGBB of colours, (..., 3) uint8 to (...) int32."""
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


@cache
def _voc_colours() -> Mapping[int, int]:
    """Index by colour in VOC's palette, whose 256 colours differ."""
    return {code: index for index, code in enumerate(_codes(voc_palette()).tolist())}


def _with_void(colours: Mapping[int, int]) -> Mapping[int, int]:
    return {int(_codes(voc_palette()[VOID])): VOID, **colours}
