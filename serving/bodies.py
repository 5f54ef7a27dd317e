"""Read the body of a request within limits, and find the images in it."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, parse_options_header
from starlette.requests import ClientDisconnect

from serving.errors import ApiError
from serving.images import MEDIA_TYPES, Share
from serving.settings import BYTES_PER_CHARACTER, BYTES_PER_VALUE, ServerSettings
from yolact.images import decode_base64

MAX_JSON_CONTAINERS = 2_000_000
"""Lists and objects in a JSON body: each takes up to a hundred times the memory of its two characters."""

MAX_FIELDS = 100
"""Fields of a form that are no files; they are ignored."""

MAX_NAME = 200
"""Characters of an image's name that come back in the answer."""

_DATA_URL = re.compile(r"\s*data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class Upload:
    """An image of a request, not decoded yet."""

    name: str | None
    data: bytes = b""
    pixels: np.ndarray | None = None
    """(H, W, 3) uint8 RGB, instead of encoded data."""
    error: str | None = None
    """Why there is neither."""


def parsed_size(body: bytes) -> int:
    """Memory that parsing a body takes, at most, bytes; `MAX_JSON_CONTAINERS` bounds that of lists and objects."""
    return BYTES_PER_CHARACTER * len(body) + BYTES_PER_VALUE * body.count(b",")


async def read_body(request: Request, settings: ServerSettings, share: Share, limit: int | None = None) -> bytes:
    """The whole body.

    Args:
        request: whose body it is.
        settings: the limits.
        share: the request's memory.
        limit: of this body, bytes; None for ``settings.max_body_bytes``.

    Raises:
        ApiError: it is too large (refused as soon as that is known), too slow, or the client went away.
        OverloadedError: there is no memory for it.
    """
    limit = limit or settings.max_body_bytes
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                share.add(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {settings.body_timeout:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the client closed the connection") from None
    return b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit / 1e6:g} MB; send fewer or smaller images",
        {"Connection": "close"},
    )


def media_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """The body's media type in lower case, and its parameters."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    return kind.decode("latin-1").lower(), options


def is_image(kind: str) -> bool:
    """Whether a body of this media type is an image itself."""
    return kind in MEDIA_TYPES or kind == "application/octet-stream"


def find_uploads(body: bytes, kind: str, options: dict[bytes, bytes], max_images: int) -> list[Upload]:
    """The images in a body: multipart, JSON, or one image itself.

    Raises:
        ApiError: the body is not what its type says, or has too many images or none.
    """
    if kind == "multipart/form-data":
        uploads = _from_multipart(body, options.get(b"boundary", b""), max_images)
    elif kind == "application/json":
        uploads = _from_json(parse_json(body), max_images)
    elif is_image(kind):
        if not body:
            raise ApiError(400, "the body is empty; send an image")
        return [Upload(None, body)]
    else:
        found = f"content type {kind!r}" if kind else "there is no content type"
        raise ApiError(
            415,
            f"{found}; send multipart/form-data with files, application/json, or an image "
            f"as application/octet-stream or {', '.join(MEDIA_TYPES)}",
        )
    if len(uploads) > max_images:
        raise _too_many(len(uploads), max_images)
    return uploads


def _too_many(found: int, limit: int) -> ApiError:
    return ApiError(413, f"{found} images; a request may have at most {limit}")


def _from_multipart(body: bytes, boundary: bytes, max_images: int) -> list[Upload]:
    uploads: list[Upload] = []
    fields = 0

    def on_file(file: File) -> None:
        if len(uploads) == max_images:
            raise ApiError(413, f"more than {max_images} images; a request may have at most {max_images}")
        file.file_object.seek(0)
        name = (file.file_name or b"").decode("utf-8", errors="replace")
        uploads.append(Upload(name[:MAX_NAME] or None, file.file_object.read()))
        file.close()

    def on_field(_: Any) -> None:
        nonlocal fields
        fields += 1
        if fields > MAX_FIELDS:
            raise ApiError(413, f"the form has more than {MAX_FIELDS} fields that are no files")

    try:
        limits = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=limits)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError, AssertionError) as error:
        raise ApiError(400, f"not a form with files: {error}") from error
    if not uploads:
        also = f"; fields without a file name: {fields}" if fields else ""
        raise ApiError(400, f"the form has no files{also}. Send each image as a file: curl -F images=@a.jpg")
    return uploads


def parse_json(body: bytes) -> Any:
    """A JSON body.

    Raises:
        ApiError: it is no JSON, or too deep or too wide.
    """
    if body.count(b"[") + body.count(b"{") > MAX_JSON_CONTAINERS:
        raise ApiError(400, f"the JSON has more than {MAX_JSON_CONTAINERS} lists and objects")
    try:
        return json.loads(body)
    except RecursionError:
        raise ApiError(400, "the JSON is too deeply nested") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


_FORM = '{"images": [image, ...]}, each image base64 text, a data URL, or {"data": ..., "name": ...}'


def _from_json(tree: Any, max_images: int) -> list[Upload]:
    if not isinstance(tree, dict) or set(tree) != {"images"} or not isinstance(tree["images"], list):
        found = (
            f"an object with {', '.join(map(repr, list(tree)[:5]))}" if isinstance(tree, dict) else type(tree).__name__
        )
        raise ApiError(400, f"the JSON must be {_FORM}; found {found[:300]}")
    if len(tree["images"]) > max_images:
        raise _too_many(len(tree["images"]), max_images)
    return [_from_value(value) for value in tree["images"]]


def _from_value(value: Any) -> Upload:
    name = None
    if isinstance(value, dict):
        if not {"data"} <= set(value) <= {"data", "name"} or not isinstance(value.get("name", ""), str):
            return Upload(None, error="it must be base64 text, a data URL, or {'data': ..., 'name': ...}")
        name, value = value.get("name"), value["data"]
        name = name[:MAX_NAME] if name else None
    if not isinstance(value, str):
        return Upload(name, error=f"it must be base64 text or a data URL; found {type(value).__name__}")
    try:
        return Upload(name, from_base64(value))
    except ValueError as error:
        return Upload(name, error=f"it is not base64: {error}")


def from_base64(text: str) -> bytes:
    """Decode base64 text, also with line breaks and as a data URL.

    Raises:
        ValueError: it is neither.
    """
    if prefix := _DATA_URL.match(text):
        text = text[prefix.end() :]
    elif text.lstrip()[:5].lower() == "data:":
        raise ValueError("a data URL must say ;base64,")
    return decode_base64(text)
