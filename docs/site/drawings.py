"""Draws the pictures of docs/yolact.md: `python docs/site/drawings.py` writes them beside that page.

The second one is computed: its prototypes are simple functions of the place, and its masks follow from them by the
paper's equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
INK, GREY, BLUE, ORANGE, GREEN = "#14213d", "#6b7280", "#dbe7f7", "#fde3b4", "#d5ecd9"
CELLS = 26
"""Rows and columns of the drawn maps."""
SIDE = 104
"""Side of a drawn map, in units of the drawing."""

Map = Callable[[float, float], float]
"""A value for each place: x and y from 0 to 1, the latter downwards."""


def network() -> str:
    """From the image to classes, boxes and masks. The numbers are those of ResNet-50 at 550 px (docs/models.md)."""
    per_anchor = ("C + 1 class scores", "4 box offsets", "32 coefficients")
    parts = [
        _box(20, 118, 96, 84, BLUE, "image", "550 x 550 x 3"),
        _box(150, 118, 110, 84, BLUE, "backbone", "C3, C4, C5"),
        _box(294, 118, 110, 84, BLUE, "pyramid", "P3 to P7"),
        _box(456, 20, 140, 84, ORANGE, "protonet", "on P3"),
        _box(456, 216, 140, 84, GREEN, "prediction head", "on P3 to P7, shared"),
        _box(640, 20, 170, 84, ORANGE, "32 prototypes", "138 x 138, once per image"),
        _box(640, 170, 170, 176, GREEN, "19,248 anchors", "with each:", *per_anchor),
        _box(858, 170, 100, 176, GREEN, "Fast NMS", "best 100"),
        _box(858, 20, 100, 84, ORANGE, "assembly", "P c, sigmoid,", "crop"),
        _box(1002, 20, 92, 84, BLUE, "masks"),
        _box(1002, 170, 92, 176, BLUE, "detections", "class, score,", "box"),
    ]
    arrows = [
        (116, 160, 150, 160),
        (260, 160, 294, 160),
        (596, 62, 640, 62),
        (596, 258, 640, 258),
        (810, 62, 858, 62),
        (810, 258, 858, 258),
        (908, 170, 908, 104),
        (958, 62, 1002, 62),
        (958, 258, 1002, 258),
    ]
    parts += [_arrow(*ends) for ends in arrows]
    parts += [_path("M404 160 H430 V62 H456"), _path("M404 160 H430 V258 H456")]
    parts.append(_text(916, 141, "boxes, coefficients", 13, GREY, "start"))
    return _svg(1114, 366, parts, "YOLACT: an image passes backbone and pyramid; protonet and head work side by side")


def masks() -> str:
    """Two neighbouring objects of one class, from the same prototypes by different coefficients."""
    prototypes: list[Map] = [
        lambda x, y: 24 * max(0.0, 0.5 - x),
        lambda x, y: 24 * max(0.0, x - 0.5),
        lambda x, y: 16 if _inside(x, y, 0.3) or _inside(x, y, 0.7) else 0,
        lambda x, y: 16,
    ]
    names = ("left of the middle", "right of the middle", "on any object", "everywhere")
    left, right = (0.9, -0.9, 0.9, -0.9), (-0.9, 0.9, 0.9, -0.9)
    parts = [_text(20, 26, "prototypes, 0 or more: the same for all objects", 15, INK, "start")]
    step = SIDE + 46
    for index, (prototype, name) in enumerate(zip(prototypes, names, strict=True)):
        x = 20 + index * step
        parts += [_map(x, 44, prototype, 18), _text(x + SIDE / 2, 44 + SIDE + 20, name, 13, GREY)]
    for row, (name, coefficients, centre) in enumerate((("left object", left, 0.3), ("right object", right, 0.7))):
        y = 216 + row * 176
        parts.append(_text(20, y, f"coefficients of the {name}, -1 to 1", 15, INK, "start"))
        for index, value in enumerate(coefficients):
            parts.append(_text(20 + index * step + SIDE / 2, y + 66, f"{value:+.1f}", 26, INK))
            if index:
                parts.append(_text(20 + index * step - 23, y + 64, "+", 20, GREY))
        total = _sum(prototypes, coefficients)
        x = 20 + 4 * step + 10
        parts += [_arrow(x - 44, y + 58, x - 10, y + 58)]
        parts += [_map(x, y + 6, lambda a, b, total=total: _sigmoid(total(a, b)), 1)]
        parts.append(_text(x + SIDE / 2, y + 6 + SIDE + 20, "sum, then sigmoid", 13, GREY))
        parts.append(_arrow(x + SIDE + 10, y + 58, x + SIDE + 44, y + 58))
        cropped = _cropped(total, centre)
        parts += [_map(x + SIDE + 54, y + 6, cropped, 1), _frame(x + SIDE + 54, y + 6, centre)]
        parts.append(_text(x + SIDE + 54 + SIDE / 2, y + 6 + SIDE + 20, "cropped to its box", 13, GREY))
    return _svg(920, 540, parts, "Two masks as sums of the same four prototypes with different coefficients")


def _inside(x: float, y: float, centre: float) -> bool:
    """Whether a place is on the object around ``centre``: an ellipse."""
    return ((x - centre) / 0.17) ** 2 + ((y - 0.5) / 0.32) ** 2 <= 1


def _sum(prototypes: Sequence[Map], coefficients: Sequence[float]) -> Map:
    return lambda x, y: sum(c * prototype(x, y) for c, prototype in zip(coefficients, prototypes, strict=True))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _cropped(total: Map, centre: float) -> Map:
    left, right, top, bottom = centre - 0.2, centre + 0.2, 0.15, 0.85
    return lambda x, y: _sigmoid(total(x, y)) if left <= x <= right and top <= y <= bottom else 0


def _frame(x: float, y: float, centre: float) -> str:
    return (
        f'<rect x="{x + (centre - 0.2) * SIDE:.1f}" y="{y + 0.15 * SIDE:.1f}" width="{0.4 * SIDE:.1f}" '
        f'height="{0.7 * SIDE:.1f}" fill="none" stroke="#d97706" stroke-width="2"/>'
    )


def _map(left: float, top: float, values: Map, most: float) -> str:
    """A map as grey cells, black for 0 and white for ``most``; runs of equal cells are one rectangle."""
    size = SIDE / CELLS
    parts = [f'<rect x="{left:g}" y="{top:g}" width="{SIDE}" height="{SIDE}" fill="#000"/>']
    for row in range(CELLS):
        shades = []
        for column in range(CELLS):
            value = values((column + 0.5) / CELLS, (row + 0.5) / CELLS)
            shades.append(round(15 * min(1, value / most)))
        start = 0
        for column in range(1, CELLS + 1):
            if column == CELLS or shades[column] != shades[start]:
                if shades[start]:
                    place = f'x="{left + start * size:g}" y="{top + row * size:g}"'
                    width = (column - start) * size
                    shade = f"{shades[start]:x}" * 3
                    parts.append(f'<rect {place} width="{width:g}" height="{size:g}" fill="#{shade}"/>')
                start = column
    return f'<g shape-rendering="crispEdges">\n{"".join(parts)}\n</g>'


def _box(left: int, top: int, width: int, height: int, colour: str, *lines: str) -> str:
    parts = [
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" fill="{colour}" stroke="{INK}" '
        'stroke-width="1.5"/>'
    ]
    first = top + height / 2 - 10 * (len(lines) - 1) + 5
    parts += [
        _text(left + width / 2, first + 20 * row, line, 15 if row == 0 else 13, INK) for row, line in enumerate(lines)
    ]
    return "\n".join(parts)


def _text(x: float, y: float, text: str, size: int, colour: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{text}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return _path(f"M{x:g} {y:g} L{to_x:g} {to_y:g}")


def _path(steps: str) -> str:
    return f'<path d="{steps}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    """A drawing on white, so that it can be read on dark pages too."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
            f"<title>{title}</title>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


DRAWINGS = {"yolact-network.svg": network, "yolact-masks.svg": masks}
"""Each drawing by its file in docs/."""

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
