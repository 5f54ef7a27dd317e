"""Drawings of eight VOC classes. Each faces right and is about two units long."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from yolact.formats.sample.layers import Kind
from yolact.formats.sample.shapes import (
    CLAY,
    DARK,
    FUR,
    GLASS,
    LEAF,
    METAL,
    PAINT,
    PALE,
    WOOD,
    WOOL,
    Colour,
    Part,
    arc,
    box,
    ellipse,
    outline,
    pick,
    stroke,
    tone,
)


def _aeroplane(rng: np.random.Generator) -> list[Part]:
    body = pick(rng, [PALE, PALE, METAL, PAINT])
    accent = pick(rng, [PAINT, DARK])
    r, fin = rng.uniform(0.11, 0.17), rng.uniform(0.32, 0.5)
    near, far, sweep = rng.uniform(0.55, 0.9), rng.uniform(0.3, 0.75), rng.uniform(0.15, 0.5)
    chord, root = rng.uniform(0.3, 0.45), rng.uniform(-0.1, 0.12)
    under = tone(body, 0.72)
    hull = outline(
        (-1, -r), (-0.5, -r), (0.6, -r), (0.88, -0.75 * r), (1.05, 0.2 * r), (0.85, r), (0.4, r), (-0.4, r),
        rounds=2,
    )  # fmt: skip
    tip = root - sweep
    far_wing = outline((root, 0), (root + chord, 0), (tip + 0.5 * chord, -far), (tip + 0.18 * chord, -far))
    near_wing = outline((root, r / 3), (root + chord, r / 3), (tip + 0.5 * chord, near), (tip + 0.1 * chord, near))
    parts = [
        Part(far_wing, under),
        Part(outline((-0.75, 0), (-0.55, 0), (-0.9, -0.28), (-1.05, -0.28)), under),
        Part(hull, body, textured=True),
        Part(outline((-0.97, -0.4 * r), (-1.12, -fin - r), (-0.92, -fin - r), (-0.55, -0.9 * r)), accent),
        Part(outline((-0.9, 0), (-0.65, 0), (-0.95, 0.3), (-1.12, 0.3)), under),
    ]
    for x in np.linspace(-0.45, 0.6, int(rng.integers(6, 10))):
        parts.append(Part(ellipse(x, -0.3 * r, 0.035, 0.3 * r), (40, 50, 70)))
    parts.append(Part(outline((0.76, -0.65 * r), (0.88, -0.6 * r), (0.97, -0.1 * r), (0.8, -0.1 * r)), (35, 45, 65)))
    engine = tip * 0.5 + root * 0.5 + 0.42 * chord
    parts.append(Part(ellipse(engine + 0.05, 0.45 * near + 0.06, 0.17, 0.07), tone(accent, 0.8)))
    parts.append(Part(near_wing, tone(body, 0.88)))
    return parts


def _boat(rng: np.random.Generator) -> list[Part]:
    hull, accent = pick(rng, [PAINT, PALE, WOOD, DARK]), pick(rng, [PAINT, PALE])
    depth, bow = rng.uniform(0.28, 0.45), rng.uniform(0.1, 0.25)
    parts: list[Part] = []
    if rng.random() < 0.6:
        parts += _sails(rng)
    else:
        parts += _cabin(rng)
    sheer = outline((-0.95, 0), (0.2, 0), (1.0, -bow), (0.72, depth), (-0.78, depth))
    parts.append(Part(sheer, hull, textured=True))
    parts.append(
        Part(outline((-0.95, 0), (0.2, 0), (1.0, -bow), (0.96, -bow + 0.1), (0.2, 0.09), (-0.92, 0.09)), accent)
    )
    parts.append(
        Part(outline((-0.83, depth * 0.78), (0.77, depth * 0.78), (0.72, depth), (-0.78, depth)), tone(hull, 0.6))
    )
    return parts


def _sails(rng: np.random.Generator) -> list[Part]:
    cloth = pick(rng, [PALE, PALE, PAINT])
    tall, mast, boom = rng.uniform(1.1, 1.7), rng.uniform(-0.15, 0.2), rng.uniform(0.55, 0.8)
    main = outline((mast, -tall), (mast, -0.15), (mast - boom, -0.15), (mast - 0.55 * boom, -0.5 * tall))
    parts = [Part(main, cloth, textured=True), Part(box(mast - 0.04, -tall - 0.06, mast + 0.03, 0.05), (90, 70, 50))]
    if rng.random() < 0.7:
        jib = outline((mast + 0.03, -0.9 * tall), (mast + 0.03, -0.18), (mast + 0.7, -0.2))
        parts.append(Part(jib, tone(cloth, 0.86)))
    return parts


def _cabin(rng: np.random.Generator) -> list[Part]:
    wall, roof = pick(rng, [PALE, PAINT]), pick(rng, [PAINT, METAL])
    left, right, high = rng.uniform(-0.7, -0.4), rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.55)
    parts = []
    if rng.random() < 0.6:
        x = rng.uniform(left + 0.1, 0)
        parts.append(Part(box(x, -high - 0.45, x + 0.22, -high + 0.05), pick(rng, [PAINT, DARK])))
        parts.append(Part(box(x, -high - 0.45, x + 0.22, -high - 0.33), (35, 35, 40)))
    parts.append(Part(outline((left, 0.05), (left, -high), (right - 0.12, -high), (right + 0.06, 0.05)), wall))
    parts.append(Part(box(left - 0.06, -high - 0.07, right - 0.02, -high + 0.03), roof))
    for x in np.linspace(left + 0.15, right - 0.18, 3):
        parts.append(Part(ellipse(x, -high * 0.5, 0.075, 0.085), (45, 70, 95)))
    return parts


def _bottle(rng: np.random.Generator) -> list[Part]:
    glass = pick(rng, [LEAF, WOOD, GLASS, PAINT, PALE])
    half, neck, shoulder = rng.uniform(0.24, 0.36), rng.uniform(0.08, 0.12), rng.uniform(-0.45, -0.1)
    start = shoulder - rng.uniform(0.15, 0.35)
    bend = np.linspace(0, math.pi, 7)  # the side from shoulder to neck is half a wave
    xs, ys = neck + (half - neck) * (1 + np.cos(bend)) / 2, shoulder + (start - shoulder) * bend / math.pi
    side = [(half - 0.04, 1.0), (half, 0.96), *zip(xs.tolist(), ys.tolist(), strict=True), (neck, -0.95)]
    body = outline(*side, *((-x, y) for x, y in reversed(side)))
    label_top, label_bottom = shoulder + rng.uniform(0.1, 0.3), rng.uniform(0.5, 0.8)
    label = pick(rng, [PALE, PALE, PAINT])
    middle = 0.5 * (label_top + label_bottom)
    return [
        Part(body, glass),
        Part(box(-half, label_top, half, label_bottom), label, textured=True),
        Part(ellipse(0, middle, 0.55 * half, 0.3 * (label_bottom - label_top)), pick(rng, [PAINT, DARK])),
        Part(box(-0.75 * half, shoulder + 0.06, -0.5 * half, 0.9), tone(glass, 1.5)),
        Part(box(-neck - 0.03, -1.08, neck + 0.03, -0.86), pick(rng, [PAINT, METAL, DARK])),
    ]


def _wheel(x: float, y: float, radius: float) -> list[Part]:
    return [
        Part(ellipse(x, y, radius), (28, 28, 32)),
        Part(ellipse(x, y, radius * 0.55), (150, 152, 158)),
        Part(ellipse(x, y, radius * 0.2), (60, 60, 66)),
    ]


def _bus(rng: np.random.Generator) -> list[Part]:
    paint, accent, glass = pick(rng, [PAINT, PAINT, PALE]), pick(rng, [PAINT, PALE]), pick(rng, [GLASS, DARK])
    decks = 2 if rng.random() < 0.25 else 1
    half = rng.uniform(0.95, 1.45) if decks == 1 else rng.uniform(0.75, 0.95)
    top, bottom = -0.62 if decks == 1 else -0.85, 0.5
    parts = [Part(box(-half, top, half, bottom, 0.1), paint, textured=True)]
    parts.append(Part(box(-half + 0.01, 0.16, half - 0.01, 0.16 + rng.uniform(0.05, 0.14)), accent))
    panes = int(rng.integers(4, 7))
    for deck in range(decks):
        high = top + 0.13 + 0.5 * deck
        edges = np.linspace(-half + 0.1, half - 0.42, panes + 1)
        for left, right in pairwise(edges.tolist()):
            parts.append(Part(box(left, high, right - 0.05, high + (0.42 if decks == 1 else 0.3)), glass))
        parts.append(Part(box(half - 0.13, high, half - 0.01, high + 0.4), tone(glass, 1.15)))
    parts.append(Part(box(half - 0.4, -0.35, half - 0.18, bottom - 0.06), tone(glass, 0.75)))
    parts.append(Part(box(half - 0.3, -0.35, half - 0.28, bottom - 0.06), paint))
    parts.append(Part(ellipse(half - 0.06, 0.36, 0.05, 0.06), (250, 235, 160)))
    parts.append(Part(box(-half, 0.3, -half + 0.06, 0.42), (190, 30, 30)))
    radius = rng.uniform(0.16, 0.21)
    for x in (-0.6 * half, 0.55 * half):
        parts += _wheel(x, bottom, radius)
    return parts


def _car(rng: np.random.Generator) -> list[Part]:
    paint, glass = pick(rng, [PAINT, PAINT, METAL, PALE, DARK]), pick(rng, [GLASS, DARK])
    back, front, high = rng.uniform(-0.95, -0.55), rng.uniform(0.3, 0.6), rng.uniform(0.38, 0.52)
    rear, slope = rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.4)
    roof = (back + rear, front - slope)
    cabin = outline((back, 0), (roof[0], -high), (roof[1], -high), (front, 0))
    body = outline(
        (-1, 0.36), (-1.02, -0.02), (-0.8, -0.06), (0.45, -0.06), (0.85, 0.02), (1.02, 0.14), (1.02, 0.36), (0, 0.38),
        rounds=1,
    )  # fmt: skip
    parts = [Part(cabin, tone(paint, 0.93)), Part(body, paint, textured=True)]
    pillar = 0.5 * (roof[0] + roof[1])
    lift, sill = -high + 0.07, -0.04
    parts.append(
        Part(outline((back + 0.12, sill), (roof[0] + 0.06, lift), (pillar - 0.03, lift), (pillar - 0.03, sill)), glass)
    )
    parts.append(
        Part(outline((pillar + 0.03, sill), (pillar + 0.03, lift), (roof[1] - 0.04, lift), (front - 0.1, sill)), glass)
    )
    parts.append(Part(box(pillar - 0.015, 0, pillar + 0.015, 0.33), tone(paint, 0.55)))
    parts.append(Part(box(pillar - 0.2, 0.05, pillar - 0.08, 0.085), tone(paint, 0.45)))
    parts.append(Part(ellipse(0.93, 0.15, 0.07, 0.055), (252, 240, 180)))
    parts.append(Part(box(-1.02, 0.06, -0.93, 0.18), (185, 25, 30)))
    parts.append(Part(box(-0.98, 0.29, 1.02, 0.37), (45, 45, 50)))
    radius = rng.uniform(0.19, 0.25)
    for x in (-0.6, 0.58):
        parts.append(Part(ellipse(x, 0.33, radius * 1.15), (20, 20, 24)))
        parts += _wheel(x, 0.36, radius)
    return parts


def _cat_head(x: float, y: float, r: float, fur: Colour, eyes: Colour) -> list[Part]:
    parts = []
    for side in (-1, 1):
        ear = outline(
            (x + side * 0.95 * r, y - 0.2 * r), (x + side * 0.88 * r, y - 1.5 * r), (x + side * 0.1 * r, y - 0.8 * r)
        )
        inner = ear * 0.6 + ear.mean(axis=0) * 0.4
        parts += [Part(ear, tone(fur, 0.85)), Part(inner, (205, 140, 140))]
    parts.append(Part(ellipse(x, y, r * 1.08, r * 0.92), fur, textured=True))
    for side in (-1, 1):
        parts.append(Part(ellipse(x + side * 0.42 * r, y - 0.12 * r, 0.2 * r, 0.17 * r), eyes))
        parts.append(Part(ellipse(x + side * 0.42 * r, y - 0.12 * r, 0.07 * r, 0.16 * r), (15, 15, 15)))
        parts.append(Part(ellipse(x + side * 0.2 * r, y + 0.42 * r, 0.27 * r, 0.2 * r), tone(fur, 1.25)))
    parts.append(
        Part(outline((x - 0.15 * r, y + 0.17 * r), (x + 0.15 * r, y + 0.17 * r), (x, y + 0.36 * r)), (180, 80, 90))
    )
    return parts


def _cat(rng: np.random.Generator) -> list[Part]:
    fur, eyes = pick(rng, [FUR, FUR, METAL, DARK, PALE]), pick(rng, [LEAF, (0.1, 0.16, 0.7, 1, 0.7, 1)])
    head = rng.uniform(0.3, 0.38)
    shade = tone(fur, 0.8)
    if rng.random() < 0.5:  # sits
        wide, curl = rng.uniform(0.4, 0.55), rng.uniform(0.25, 0.4)
        tail = [*arc(-wide, 0.9 - curl, curl, 0.4 * math.pi, 1.35 * math.pi)]
        body = outline(
            (-0.22, -0.5), (0.25, -0.5), (0.42, 0.3), (0.45, 1), (-wide, 1.02), (-wide - 0.12, 0.5), rounds=2
        )
        parts = [Part(stroke(tail, 0.2, 0.12), shade, textured=True), Part(body, fur, textured=True)]
        for x in (0.06, 0.27):
            parts.append(
                Part(outline((x - 0.08, 0.2), (x + 0.09, 0.2), (x + 0.12, 1.0), (x - 0.09, 1.0)), tone(fur, 0.9))
            )
        return [*parts, *_cat_head(0.08, -0.55, head, fur, eyes)]
    height, swing = rng.uniform(0.26, 0.34), rng.uniform(-0.12, 0.12)
    reach = rng.uniform(0.5, 0.8)
    tail = [(-0.75, -0.1), (-1.0, -0.25), (-1.08, -0.25 - reach / 2), (-0.98 + swing, -0.25 - reach)]
    parts = [Part(stroke(tail, 0.19, 0.12), shade, textured=True)]
    for x, colour in ((-0.5 - swing, shade), (0.42 - swing, shade), (-0.66 + swing, fur), (0.56 + swing, fur)):
        parts.append(Part(stroke([(x * 0.95, 0.05), (x, 0.4), (x + 0.04, 0.72)], 0.24, 0.16), colour))
    parts.append(Part(ellipse(-0.05, 0, 0.82, height), fur, textured=True))
    return [*parts, *_cat_head(0.8, -0.3, head, fur, eyes)]


def _pottedplant(rng: np.random.Generator) -> list[Part]:
    pot, wide, deep = pick(rng, [CLAY, CLAY, PAINT, PALE]), rng.uniform(0.32, 0.5), rng.uniform(0.55, 0.8)
    base = wide * rng.uniform(0.6, 0.85)
    leaf = pick(rng, [LEAF, LEAF, LEAF, PAINT])
    draw = (_blades, _broad_leaves, _bush)[rng.integers(3)]
    return [
        *draw(rng, leaf),
        Part(outline((-wide, 0.1), (wide, 0.1), (base, 0.1 + deep), (-base, 0.1 + deep)), pot, textured=True),
        Part(box(-wide - 0.06, 0, wide + 0.06, 0.2), tone(pot, 0.82)),
    ]


def _blades(rng: np.random.Generator, leaf: Colour) -> list[Part]:
    parts = []
    for lean in rng.permutation(np.linspace(-0.85, 0.85, int(rng.integers(7, 12)))):
        length, bend = rng.uniform(0.8, 1.25), lean * rng.uniform(0.8, 1.3)
        path = [(0.25 * lean, 0.1), (0.25 * lean + 0.35 * bend, -0.5 * length), (0.25 * lean + bend, -0.85 * length)]
        parts.append(Part(stroke(path, 0.24, 0.02), tone(leaf, rng.uniform(0.65, 1.25))))
    return parts


def _broad_leaves(rng: np.random.Generator, leaf: Colour) -> list[Part]:
    stems, leaves = [], []
    for lean in np.linspace(-0.7, 0.7, int(rng.integers(4, 7))):
        x, y = lean + rng.uniform(-0.08, 0.08), -rng.uniform(0.5, 1.05) + 0.3 * abs(lean)
        stems.append(Part(stroke([(0.2 * lean, 0.1), (0.45 * lean, 0.5 * y), (x, y)], 0.1, 0.06), tone(leaf, 0.6)))
        shade = tone(leaf, rng.uniform(0.7, 1.25))
        angle = math.atan2(y, x if abs(x) > 0.05 else 0.05) + rng.uniform(-0.3, 0.3)
        leaves.append(
            Part(ellipse(x, y, rng.uniform(0.32, 0.44), rng.uniform(0.17, 0.24), angle), shade, textured=True)
        )
        leaves.append(Part(ellipse(x, y, 0.3, 0.025, angle), tone(shade, 0.65)))
    return stems + leaves


def _bush(rng: np.random.Generator, leaf: Colour) -> list[Part]:
    parts = [Part(box(-0.07, -0.3, 0.07, 0.12), (95, 70, 45))]
    flower = pick(rng, [PAINT, PALE])
    blooms = []
    for _ in range(int(rng.integers(12, 18))):
        angle, far = rng.uniform(0, math.tau), math.sqrt(rng.uniform(0, 1))
        x, y, r = 0.5 * far * math.cos(angle), -0.6 + 0.42 * far * math.sin(angle), rng.uniform(0.18, 0.28)
        parts.append(Part(ellipse(x, y, r, 0.8 * r), tone(leaf, rng.uniform(0.65, 1.25))))
        if rng.random() < 0.4:
            blooms.append(Part(ellipse(x + 0.05, y, 0.09), flower))
    return parts + blooms


def _sheep(rng: np.random.Generator) -> list[Part]:
    wool, face = pick(rng, [WOOL, WOOL, PALE, FUR, DARK]), pick(rng, [DARK, DARK, FUR, WOOL])
    long, tall = rng.uniform(0.62, 0.78), rng.uniform(0.38, 0.48)
    swing = rng.uniform(-0.08, 0.08)
    parts = []
    for x, factor in ((-0.32 - swing, 0.7), (0.3 - swing, 0.7), (-0.46 + swing, 1.0), (0.44 + swing, 1.0)):
        parts.append(Part(box(x - 0.075, 0.1, x + 0.075, 0.88), tone(face, factor)))
    curls = int(rng.integers(11, 15))
    for angle in np.linspace(0, math.tau, curls, endpoint=False) + rng.uniform(0, 0.5):
        x, y, r = long * math.cos(angle), tall * math.sin(angle), rng.uniform(0.17, 0.24)
        parts.append(Part(ellipse(x, y, r), tone(wool, rng.uniform(0.85, 1.0)), textured=True))
    parts.append(Part(ellipse(0, 0, long, tall), wool, textured=True))
    for _ in range(9):
        x, y, r = rng.uniform(-0.55, 0.55), rng.uniform(-0.3, 0.3), rng.uniform(0.06, 0.13)
        parts.append(Part(stroke(arc(x, y, r, 0, 1.3 * math.pi), 0.05, 0.02), tone(wool, 0.78)))
    nod = rng.uniform(-0.35, 0.1)
    head_x, head_y = long + 0.18, nod
    parts.append(Part(ellipse(head_x - 0.16, head_y - 0.1, 0.2, 0.08, -0.3), tone(face, 0.75)))
    parts.append(Part(ellipse(head_x, head_y, 0.29, 0.2, 0.75), face))
    parts.append(Part(ellipse(head_x - 0.1, head_y - 0.19, 0.2, 0.15), wool))
    parts.append(Part(ellipse(head_x + 0.04, head_y - 0.04, 0.045), (240, 240, 235)))
    parts.append(Part(ellipse(head_x + 0.05, head_y - 0.04, 0.022), (10, 10, 10)))
    return parts


KINDS = (
    Kind("aeroplane", _aeroplane, ("sky", "water"), (PAINT, METAL), tilt=30, grounded=False),
    Kind("boat", _boat, ("water",), (PAINT, PALE, DARK), tilt=12),
    Kind("bottle", _bottle, ("room",), (PAINT, DARK), tilt=12, sided=False, lies_down=0.12),
    Kind("bus", _bus, ("street",), (PAINT, PALE), tilt=8),
    Kind("car", _car, ("street", "field"), (PAINT, PALE, DARK), tilt=10),
    Kind("cat", _cat, ("room", "field"), (FUR, DARK, PALE), tilt=16),
    Kind("pottedplant", _pottedplant, ("room", "street"), (PAINT, CLAY), tilt=10, sided=False),
    Kind("sheep", _sheep, ("field",), (WOOL, FUR), tilt=14),
)
