"""What the steps' HTML reports share: the page around them, and pictures inside it, so that it needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

EMBEDDED_WIDTH = 1000
"""Pixels; pictures inside a page are no wider."""


def render_page(template: Path, **content: Any) -> str:
    """Fill a template that extends ``page.html.j2``; what it names must be there, and text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["percent"] = _percent
    return environment.get_template(template.name).render(**content)


def data_uri(data: bytes, kind: str) -> str:
    """An image file as an address that holds it; ``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg_bytes(picture: np.ndarray, quality: int) -> bytes:
    """A picture, (H, W, 3) uint8 RGB, as a JPEG file."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="JPEG", quality=quality)
    return data.getvalue()


def narrowed(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture, (H, W, 3) uint8 RGB, reduced to a width in pixels where it is wider."""
    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """``wanted`` different indices (or all, if fewer) of 0 to ``total`` - 1, each in the middle of its even share."""
    count = min(total, wanted)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def _percent(value: float | None) -> str:
    """As in the papers: 0 to 100 with one decimal."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.1f}"
