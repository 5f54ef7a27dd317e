"""Self-contained HTML pages: templates, and images embedded in the page."""

from __future__ import annotations

import base64
import io
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from yolact_ops.reports.formatting import percent

EMBEDDED_WIDTH = 1000
"""Maximum width of an embedded image, pixels."""


def render_page(template: Path, **content: Any) -> str:
    """Render a template that extends ``page.html.j2``; undefined names are errors, and text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["percent"] = partial(percent, missing="\N{EN DASH}")
    return environment.get_template(template.name).render(**content)


def data_uri(data: bytes, kind: str) -> str:
    """An image file as a data URI; ``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg_bytes(picture: np.ndarray, quality: int) -> bytes:
    """An image, (H, W, 3) uint8 RGB, as a JPEG file."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="JPEG", quality=quality)
    return data.getvalue()


def narrowed(picture: np.ndarray, width: int) -> np.ndarray:
    """An image, (H, W, 3) uint8 RGB, downscaled to at most ``width`` pixels in width."""
    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """``wanted`` distinct indices (or all, if fewer) from 0 to ``total`` - 1, evenly spaced."""
    count = min(total, wanted)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]
