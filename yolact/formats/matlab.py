"""Numeric fields of a struct in a MATLAB file of version 5 to 7, read without trusting any size stated in it.

scipy's reader does trust them, and a wrong one makes it read out of bounds and crash Python. Format: "MAT-File Format",
MathWorks, chapter 1 ("Level 5 MAT-File Format"): elements of a tag (type, size) and data; the parts of an array and the
fields of a struct are nested elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np

INT8, INT32, UINT32, MATRIX, COMPRESSED, UTF8 = 1, 5, 6, 14, 15, 16
"""Element types (table 1-1)."""

NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
"""Dtype by numeric element type (table 1-1)."""

STRUCT, NUMBER_CLASSES = 2, range(6, 16)
"""Array classes (table 1-3); the numeric ones are double, single and the integers of 8 to 64 bits."""

COMPLEX = 0x0800
"""Flag of a complex array."""

MAX_CONTENT = 1 << 27
"""Maximum unpacked size of a file's compressed elements together, bytes; 128 MiB are the 16-bit object numbers of 64
megapixels. Our choice: a damaged file can demand a thousand times its own size."""


class MatlabError(ValueError):
    """The file does not have what was requested."""


def read_struct(data: bytes, name: str, fields: Collection[str]) -> dict[str, np.ndarray]:
    """Read fields of a 1 x 1 struct, each a numeric matrix in its stored dtype; other fields are skipped.

    Args:
        data: the file's content.
        name: name of the struct.
        fields: names of the fields.

    Raises:
        MatlabError: it is not a MATLAB file of version 5 to 7, is damaged, or lacks the struct or a field.
    """
    if data[124:128] != b"\x00\x01IM":
        raise MatlabError("not a MATLAB file of version 5 to 7; save it with MATLAB's -v7")
    for content in _arrays(memoryview(data)[128:]):
        parts = _elements(content)
        array_class, _, dimensions, found = _header(parts)
        if found != name:
            continue
        if array_class != STRUCT or math.prod(dimensions) != 1:
            raise MatlabError(f"{name} is not a struct of one element")
        matrices = _matrices(parts)
        missing = sorted(set(fields) - matrices.keys())
        if missing:
            raise MatlabError(f"{name} has no field {missing[0]}")
        return {field: _numbers(matrices[field], f"{name}.{field}") for field in fields}
    raise MatlabError(f"there is no {name}")


def _arrays(data: memoryview) -> Iterator[memoryview]:
    """The content of each array in a file; the checksums of compressed ones are verified."""
    left = MAX_CONTENT
    for kind, content in _elements(data):
        if kind != COMPRESSED:
            yield _matrix(kind, content)
            continue
        whole = _decompressed(content, left)
        left -= len(whole)
        for inner, part in _elements(memoryview(whole)):
            yield _matrix(inner, part)


def _matrix(kind: int, content: memoryview) -> memoryview:
    if kind != MATRIX:
        raise MatlabError(f"an element has type {kind}, not that of an array")
    return content


def _decompressed(content: memoryview, most: int) -> bytes:
    reader = zlib.decompressobj()
    try:
        whole = reader.decompress(content, most + 1)
    except zlib.error as error:
        raise MatlabError(f"a compressed element is damaged: {error}") from None
    if len(whole) > most:
        raise MatlabError(f"it unpacks to more than {MAX_CONTENT >> 20} MiB")
    if not reader.eof:
        raise MatlabError("a compressed element is truncated")
    return whole


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element; the tag itself can contain up to four bytes of data."""
    start = 0
    while start < len(data):
        if len(data) - start < 8:
            raise MatlabError("an element is truncated")
        kind, size = struct.unpack_from("<II", data, start)
        first, room = start + 8, len(data) - start - 8
        if kind >> 16:
            kind, size, first, room = kind & 0xFFFF, kind >> 16, start + 4, 4
        if size > room:
            raise MatlabError(f"an element states {size} bytes, but {room} are left")
        yield kind, data[first : first + size]
        start = first + size
        start += 0 if kind == COMPRESSED else -start % 8


def _next(parts: Iterator[tuple[int, memoryview]], kinds: tuple[int, ...], what: str) -> memoryview:
    kind, content = next(parts, (0, memoryview(b"")))
    if kind not in kinds:
        raise MatlabError(f"an array has no {what}")
    return content


def _header(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, bool, tuple[int, ...], str]:
    """Class, whether complex, dimensions and name of an array, from its first three parts."""
    flags = _next(parts, (UINT32,), "flags")
    dimensions = _next(parts, (INT32, UINT32), "dimensions")
    name = _next(parts, (INT8, UTF8), "name")
    if len(flags) != 8 or len(dimensions) < 8 or len(dimensions) % 4:
        raise MatlabError("an array's flags or dimensions are damaged")
    (word,) = struct.unpack_from("<I", flags)
    sizes = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
    if min(sizes) < 0:
        raise MatlabError(f"an array has the dimensions {sizes[:4]}")
    return word & 0xFF, bool(word & COMPLEX), sizes, bytes(name).decode("latin-1")


def _matrices(parts: Iterator[tuple[int, memoryview]]) -> dict[str, memoryview]:
    """The content of each field of a 1 x 1 struct, from its parts after the header."""
    length = _next(parts, (INT32,), "length of field names")
    names = _next(parts, (INT8,), "field names")
    (size,) = struct.unpack("<i", length) if len(length) == 4 else (0,)
    if size < 1 or len(names) % size:
        raise MatlabError("a struct's field names are damaged")
    places = range(0, len(names), size)
    return {
        bytes(names[start : start + size]).split(b"\0")[0].decode("latin-1"): _next(parts, (MATRIX,), "field content")
        for start in places
    }


def _numbers(content: memoryview, name: str) -> np.ndarray:
    """A numeric matrix; MATLAB stores integers of any class in the smallest type that fits them."""
    if not len(content):
        return np.zeros((0, 0))  # an array without a value may be a bare tag
    parts = _elements(content)
    array_class, is_complex, dimensions, _ = _header(parts)
    if array_class not in NUMBER_CLASSES or is_complex or len(dimensions) != 2:
        raise MatlabError(f"{name} is not a matrix of real numbers")
    kind, values = next(parts, (0, memoryview(b"")))
    if kind not in NUMBERS:
        raise MatlabError(f"{name} has elements of type {kind}, which are not numeric")
    dtype = np.dtype(NUMBERS[kind])
    if math.prod(dimensions) * dtype.itemsize != len(values):
        rows, columns = dimensions
        raise MatlabError(f"{name} states {rows} x {columns} numbers of {dtype.itemsize} bytes, but has {len(values)}")
    return np.frombuffer(values, dtype).reshape(dimensions, order="F")
