"""``/``: a page on which people try the model, its files, and generated examples."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from PIL import Image

from serving.errors import ApiError
from serving.images import MEDIA_TYPES
from serving.service import service_of
from yolact.settings import SampleConfig

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parents[1] / "page"
"""The page's files: HTML, style and modules, used as they are."""

_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
_TYPES[".svg"] = "image/svg+xml"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

EXAMPLES = (1, 2, 4, 6, 7, 9)
"""Seeds of the example images."""

_DRAWN = SampleConfig(seed=0, train_images=1, val_images=1, min_size=200, max_size=320, max_objects=3)


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page/options")
async def options(request: Request) -> dict[str, Any]:
    """What the page needs to know of the server's settings."""
    service = service_of(request)
    settings = service.settings
    return {
        "token": service.token is not None,
        "candidate": service.candidate is not None,
        "feedback_days": None if service.feedback is None else service.feedback.days,
        "max_body_mb": settings.max_body_mb,
        "max_megapixels": settings.max_megapixels,
        "media_types": MEDIA_TYPES,
        "examples": len(EXAMPLES),
    }


@router.get("/page/examples/{number}.jpg")
async def example(request: Request, number: int) -> Response:
    """A generated image."""
    if not 0 <= number < len(EXAMPLES):
        raise ApiError(404, f"there are {len(EXAMPLES)} examples, counted from 0")
    data = await service_of(request).in_thread("encoding", lambda: _example(EXAMPLES[number]))
    return Response(data, media_type="image/jpeg", headers={**HEADERS, "Cache-Control": "max-age=86400"})


@router.get("/page/{name}")
async def file(name: str) -> Response:
    """A file of the page."""
    if name not in {path.name for path in FOLDER.iterdir()}:
        raise ApiError(404, "Not Found")
    return _file(name)


def _file(name: str) -> Response:
    path = FOLDER / name
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=HEADERS)


@lru_cache(maxsize=len(EXAMPLES))
def _example(seed: int) -> bytes:
    """A JPEG of the project's own sample (`yolact.formats.sample`)."""
    from yolact.formats.sample.scenes import draw_image

    drawn = draw_image(np.random.default_rng(seed), _DRAWN)
    stream = io.BytesIO()
    Image.fromarray(drawn.pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()
