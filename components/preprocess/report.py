"""The data report: one page with the content of the processed data, its statistics and all problems found."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from components.preprocess.findings import Finding
from yolact.files import replaced_directory, write_json_atomic, write_text_atomic
from yolact.formats.image_files import bounded_size
from yolact.formats.instances import reduced_mask
from yolact.visualize import MIN_SIDE, draw_ground_truth
from yolact_ops.reports.pages import data_uri, jpeg_bytes, narrowed, render_page
from yolact_ops.settings.params import DataConfig

GALLERY_PHOTOS = 12
"""Number of images shown of each split."""
GALLERY_WIDTH = 520
"""Maximum width of an image on the page, pixels."""

LISTED_ROWS = 1000
"""Maximum number of rows of each list on the page, so that browsers can show it; `LISTING` has all."""

LISTING = "problems.csv"
"""File next to the page with all unusable images, dropped objects and warnings, one per row."""

_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: its label, and its counts by split."""

    label: str
    counts: Mapping[str, int]
    shares: Mapping[str, float]
    """Fraction of the split's objects or images, 0 to 1."""


@dataclass(frozen=True)
class Chart:
    """A histogram of all splits."""

    title: str
    note: str
    bars: Sequence[Bar]

    @property
    def highest(self) -> float:
        """The largest share, above 0."""
        return max((share for bar in self.bars for share in bar.shares.values()), default=0.0) or 1.0


@dataclass(frozen=True)
class GalleryImage:
    """An image of the gallery, with its objects."""

    path: Path
    width: int
    """Pixels."""
    height: int
    objects: Sequence[Mapping[str, Any]]
    """Rows of COCO's ``annotations`` with RLE masks."""


def write_report(
    report_dir: Path,
    stats: Mapping[str, Any],
    findings: Sequence[Finding],
    categories: Mapping[int, str],
    gallery: Mapping[str, Sequence[GalleryImage]],
    data: DataConfig,
    *,
    stopped: bool,
    readings: Sequence[Mapping[str, GalleryImage]] = (),
) -> None:
    """Write the self-contained ``index.html``, `LISTING`, and a copy of ``stats.json``.

    Args:
        report_dir: replaced as a whole.
        stats: the content of ``stats.json``.
        findings, categories, gallery, data, stopped, readings: see `page`.
    """
    text = page(stats, findings, categories, gallery, data, stopped=stopped, readings=readings, listing=LISTING)
    with replaced_directory(report_dir) as folder:
        write_text_atomic(folder / "index.html", text)
        write_text_atomic(folder / LISTING, _listing(stats))
        write_json_atomic(folder / "stats.json", stats)


def page(
    stats: Mapping[str, Any],
    findings: Sequence[Finding],
    categories: Mapping[int, str],
    gallery: Mapping[str, Sequence[GalleryImage]],
    data: DataConfig,
    *,
    stopped: bool,
    readings: Sequence[Mapping[str, GalleryImage]] = (),
    listing: str = "",
    note: str = "",
) -> str:
    """The self-contained page.

    Args:
        stats: the content of ``stats.json``; the digest may be empty.
        findings: what was dropped, is doubtful or was changed.
        categories: class name by category id.
        gallery: images to show, by split.
        data: settings to show.
        stopped: whether the data was not written because too much of it cannot be used.
        readings: images of which nothing says how their masks are turned, by the value of ``data.exif``.
        listing: name of the file next to the page that lists everything; empty if there is none.
        note: a sentence about the whole page.
    """
    hidden = {"source", "mirrors", "sample"}
    return render_page(
        _TEMPLATE,
        stats=stats,
        findings=findings,
        left_out=len({entry["image"] for entry in stats["problems"]}),
        stopped=stopped,
        classes=class_rows(stats),
        charts=_charts(stats),
        gallery={split: [_gallery_entry(image, categories) for image in images] for split, images in gallery.items()},
        readings=[
            {name: _gallery_entry(image, categories) for name, image in drawings.items()} for drawings in readings
        ],
        listed=LISTED_ROWS,
        listing=listing,
        note=note,
        settings=data.model_dump(mode="json", exclude=hidden),
    )


def _listing(stats: Mapping[str, Any]) -> str:
    """All unusable images, dropped objects and warnings as CSV (RFC 4180)."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["list", "image", "file", "kind", "reason"])
    for name in ("problems", "dropped", "warnings"):
        writer.writerows([name, row["image"], row["file"], row["kind"], row["reason"]] for row in stats[name])
    return text.getvalue()


def class_rows(stats: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], float]]:
    """Name and counts by split of each class, most frequent first, and the length (0 to 1) of the bar of its objects in
    the first split."""
    totals = {name: sum(counts["instances"] for counts in splits.values()) for name, splits in stats["classes"].items()}
    first = {name: next(iter(splits.values()))["instances"] for name, splits in stats["classes"].items()}
    most = max(first.values(), default=0) or 1
    names = sorted(totals, key=lambda name: (-totals[name], name))
    return [(name, stats["classes"][name], first[name] / most) for name in names]


def _charts(stats: Mapping[str, Any]) -> list[Chart]:
    histograms = stats["histograms"]
    described = {
        "box_side": ("Box size", "square root of width times height, pixels", lambda edge: f"{edge:g}"),
        "box_aspect": ("Box aspect", "width over height", lambda edge: f"{edge:g}" if edge >= 1 else f"1:{1 / edge:g}"),
        "mask_share": ("Mask area", "share of the image, percent", lambda edge: f"{100 * edge:g}"),
    }
    charts = [instances_per_image(stats)]
    for name, (title, note, label) in described.items():
        edges = histograms["train"][name]["edges"]
        labels = [_span(edges, place, label) for place in range(len(edges) + 1)]
        counts = {split: found[name]["counts"] for split, found in histograms.items()}
        bars = [bar for bar in _bars(labels, counts) if bar.label]
        charts.append(Chart(title, note, _without_empty_ends(bars)))
    return charts


def _span(edges: Sequence[float], place: int, label: Any) -> str:
    """Label of the bin before ``edges[place]``; empty if nothing can be in it."""
    if place == 0:
        return "" if edges[0] == 0 else f"< {label(edges[0])}"
    if place == len(edges):
        return f"≥ {label(edges[-1])}"
    return f"{label(edges[place - 1])} – {label(edges[place])}"


def instances_per_image(stats: Mapping[str, Any]) -> Chart:
    """Histogram of images by number of objects."""
    limits = [(count, count) for count in range(6)] + [(6, 10), (11, 20), (21, 50), (51, None)]
    labels = [str(low) if low == high else f"{low} – {high}" if high else f"≥ {low}" for low, high in limits]
    counts = {
        split: [
            sum(
                images
                for found, images in _int_keys(part["instances_per_image"])
                if low <= found and (high is None or found <= high)
            )
            for low, high in limits
        ]
        for split, part in stats["splits"].items()
    }
    return Chart("Objects per image", "number of images", _without_empty_ends(_bars(labels, counts)))


def _int_keys(counts: Mapping[str, int]) -> Iterable[tuple[int, int]]:
    return ((int(name), count) for name, count in counts.items())


def _bars(labels: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[Bar]:
    totals = {split: sum(found) or 1 for split, found in counts.items()}
    return [
        Bar(
            label,
            {split: found[place] for split, found in counts.items()},
            {split: found[place] / totals[split] for split, found in counts.items()},
        )
        for place, label in enumerate(labels)
    ]


def _without_empty_ends(bars: Sequence[Bar]) -> Sequence[Bar]:
    used = [place for place, bar in enumerate(bars) if any(bar.counts.values())]
    return bars[used[0] : used[-1] + 1] if used else []


def _gallery_entry(image: GalleryImage, categories: Mapping[int, str]) -> tuple[str, str]:
    """Caption and drawn image, as a data URI."""
    count = len(image.objects)
    caption = f"{image.path.name}: {image.width} x {image.height}, {count} object{'' if count == 1 else 's'}"
    return caption, data_uri(jpeg_bytes(_drawn(image, categories), quality=80), "jpeg")


def _drawn(image: GalleryImage, categories: Mapping[int, str]) -> np.ndarray:
    """An image with its objects, at most `GALLERY_WIDTH` wide; it is downscaled before the objects are drawn."""
    size = bounded_size((image.width, image.height), MIN_SIDE)
    with Image.open(image.path) as opened:
        pixels = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    masks = [reduced_mask(mask_utils.decode(row["segmentation"]), size) for row in image.objects]
    scale = np.array([size[0] / image.width, size[1] / image.height] * 2)
    boxes = np.array([row["bbox"] for row in image.objects], dtype=np.float64).reshape(-1, 4) * scale
    boxes[:, 2:] += boxes[:, :2]  # xywh to xyxy
    ids = list(categories)
    picture = draw_ground_truth(
        pixels,
        boxes,
        [ids.index(row["category_id"]) for row in image.objects],
        np.array(masks, dtype=np.uint8).reshape(-1, size[1], size[0]),
        list(categories.values()),
        crowd=[bool(row["iscrowd"]) for row in image.objects],
    )
    return narrowed(picture, GALLERY_WIDTH)
