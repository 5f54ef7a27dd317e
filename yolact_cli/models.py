"""`yolact models`: the published configurations as tables, Markdown or JSON; sizes and costs are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table

from yolact.backbone_registry import backbones
from yolact.models.complexity import Complexity, measure_backbone, measure_complexity
from yolact.models.published import BATCH_SIZE, PUBLISHED_MODELS, PublishedModel, find_published
from yolact_cli import output
from yolact_cli.presets import shown
from yolact_ops.reports.formatting import flatten

PIPED_WIDTH = 100
"""Width of a table that is not printed to a terminal, in columns."""

COMPUTED = (
    "params (millions) and GFLOPs are computed: the convolutions of one image's forward pass, the sampling of "
    "deformable ones included, a multiply-add as two operations."
)
PUBLISHED = (
    "AP (percent) and fps are the authors' and were not measured here; fps on a Titan Xp, one image at a time. The "
    "letters refer to metric and source:"
)

BACKBONE_SIZES = (320, 550)
"""Sides of the inputs for which the cost of backbones is printed, pixels."""
BACKBONE_COST = (
    "params (millions) and GMACs (billions of multiply-adds for one image) are of the backbone alone, as it is used "
    "here: without classifier."
)

HEADINGS = ("name", "backbone", "px", "anchors", "params", "GFLOPs", "prototypes", "data set", "AP", "fps")


@dataclass(frozen=True)
class Entry:
    """A published configuration with its computed size and cost."""

    published: PublishedModel
    complexity: Complexity


def measure(names: Sequence[str] = ()) -> list[Entry]:
    """Compute size and cost of the published configurations with these names, by default of all.

    Raises:
        SettingsError: a name is unknown.
    """
    chosen = [find_published(name) for name in names] or list(PUBLISHED_MODELS.values())
    return [Entry(model, measure_complexity(model.model, len(model.classes))) for model in chosen]


def print_list(console: Console | None = None) -> None:
    """Print all of them in a table that fits 100 columns."""
    console = console or _console()
    entries = measure()
    table = Table(
        *(Column(_heading(name), justify=_justify(name), vertical="bottom") for name in HEADINGS),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    sources = _sources(entries)
    for entry in entries:
        table.add_row(*_cells(entry, sources))
    console.print(table)
    console.print(f"\n{COMPUTED}\n{PUBLISHED}")
    for source, letter in sources.items():
        console.print(f"  {letter}  {source}")
    console.print("\nDetails: yolact models NAME. To train one: yolact preset use NAME.")


def print_model(name: str, console: Console | None = None) -> None:
    """Print one in detail: size and cost, published metrics, training, all settings, classes.

    Raises:
        SettingsError: the name is unknown.
    """
    console = console or _console()
    (entry,) = measure([name])
    console.print(f"[bold]{name}[/bold]: {entry.published.description}\n")
    for title, facts in _facts(entry).items():
        table = Table(
            Column(min_width=38),
            Column(overflow="fold"),
            title=title,
            title_justify="left",
            show_header=False,
            box=None,
        )
        for key, value in facts.items():
            table.add_row(key, value)
        console.print(table)
        console.print()
    classes = entry.published.classes
    console.print(f"[italic]Classes ({len(classes)})[/italic]")
    console.print(Padding(", ".join(classes), (0, 0, 0, 1)))


def print_json(name: str | None = None) -> None:
    """Print one as a JSON object, or all as a list of objects.

    Raises:
        SettingsError: the name is unknown.
    """
    entries = [_as_json(entry) for entry in measure([name] if name else [])]
    output.print_json(entries[0] if name else entries)


def print_markdown() -> None:
    """Print all of them as the Markdown table of docs/models.md."""
    entries = measure()
    sources = _sources(entries)
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"| {' | '.join('---:' if _justify(name) == 'right' else '---' for name in HEADINGS)} |")
    for entry in entries:
        print(f"| {' | '.join(_cells(entry, sources))} |")
    print(f"\n{COMPUTED} {PUBLISHED}\n")
    for source, letter in sources.items():
        print(f"- {letter}: {source}")


def print_backbones(markdown: bool = False) -> None:
    """Print the registered backbones: size, cost at `BACKBONE_SIZES`, and where their ImageNet weights come from.

    Args:
        markdown: as the table of docs/models.md.
    """
    rows = []
    for spec in backbones():
        parameters, flops = measure_backbone(spec, BACKBONE_SIZES)
        costs = [f"{count / 2e9:.2f}" for count in flops]
        newer = ", also imagenet-v2" if 2 in (spec.weights_versions or ()) else ""
        rows.append((spec.name, f"{parameters / 1e6:.2f}", *costs, spec.weights + newer))
    headings = ("backbone", "params", *(f"GMACs at {size}" for size in BACKBONE_SIZES), "ImageNet weights")
    if markdown:
        for row in (headings, ["---", *["---:"] * (len(headings) - 2), "---"], *rows):
            print(f"| {' | '.join(row)} |")
        return
    middle = (Column(heading, justify="right") for heading in headings[1:-1])
    table = Table(headings[0], *middle, headings[-1], box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = _console()
    console.print(table)
    console.print(f"\n{BACKBONE_COST} Any network of timm: model.backbone=timm/NAME.")


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, PIPED_WIDTH))


def _heading(name: str) -> str:
    return "proto-\ntypes" if name == "prototypes" else name


def _justify(heading: str) -> Literal["left", "right"]:
    return "left" if heading in ("name", "backbone", "data set") else "right"


def _sources(entries: Sequence[Entry]) -> dict[str, str]:
    """A letter for each distinct pair of measure and source."""
    texts = dict.fromkeys(_source(entry.published) for entry in entries)
    return {text: chr(ord("a") + number) for number, text in enumerate(texts)}


def _source(published: PublishedModel) -> str:
    return f"{published.metrics.metric}: {published.metrics.source}"


def _cells(entry: Entry, sources: dict[str, str]) -> list[str]:
    """A row in the order of `HEADINGS`."""
    published, complexity = entry.published, entry.complexity
    height, width, _ = complexity.prototypes
    return [
        published.name,
        published.model.backbone,
        str(published.model.image_size),
        str(complexity.anchors),
        f"{complexity.parameters / 1e6:.2f}",
        f"{complexity.flops / 1e9:.1f}",
        f"{height}x{width}",
        published.dataset,
        f"{published.metrics.mask_ap:.1f} {sources[_source(published)]}",
        f"{published.metrics.fps:.1f}",
    ]


def _facts(entry: Entry) -> dict[str, dict[str, str]]:
    """Everything about a configuration except its classes, by heading."""
    published, complexity = entry.published, entry.complexity
    height, width, number = complexity.prototypes
    computed = {
        "parameters": f"{complexity.parameters:,}",
        "GFLOPs": f"{complexity.flops / 1e9:.1f} for one image; a multiply-add counts as two",
        "anchors": f"{complexity.anchors:,}, {published.model.anchors_per_cell} per cell",
        "prototypes": f"{number} of {height} x {width}",
        "residual blocks": ", ".join(map(str, published.model.blocks)),
        "deformable convolutions": str(sum(map(len, published.model.deformable_blocks))),
    }
    if complexity.rescoring_flops:
        computed["mask re-scoring"] = f"{complexity.rescoring_flops / 1e6:.1f} MFLOPs more per mask"
    metrics = published.metrics
    steps = ", ".join(f"{step:,}" for step in published.lr_steps)
    settings = flatten(published.settings())
    return {
        "Computed": computed,
        "Published": {
            metrics.metric: f"{metrics.mask_ap:.1f}",
            "fps": f"{metrics.fps:.1f} on a Titan Xp at batch size 1",
            "source": metrics.source,
        },
        "Training as published": {
            "data set": f"{published.dataset}, {published.train_images:,} images",
            "steps": f"{published.iterations:,} of {BATCH_SIZE} images",
            "learning rate x 0.1 after": f"{steps} steps",
        },
        "Settings (all others as in conf/base.yaml)": {key: shown(value) for key, value in settings.items()},
    }


def _as_json(entry: Entry) -> dict[str, Any]:
    published, complexity = entry.published, entry.complexity
    return {
        "name": published.name,
        "description": published.description,
        "parameters": complexity.parameters,
        "flops": complexity.flops,
        "rescoring_flops_per_mask": complexity.rescoring_flops,
        "anchors": complexity.anchors,
        "anchors_per_cell": published.model.anchors_per_cell,
        "prototypes": list(complexity.prototypes),
        "blocks": list(published.model.blocks),
        "published": {
            "mask_ap": published.metrics.mask_ap,
            "metric": published.metrics.metric,
            "fps": published.metrics.fps,
            "device": "Titan Xp",
            "source": published.metrics.source,
        },
        "training": {
            "data_set": published.dataset,
            "images": published.train_images,
            "batch_size": BATCH_SIZE,
            "steps": published.iterations,
            "lr_steps": list(published.lr_steps),
        },
        "settings": published.settings(),
        "classes": list(published.classes),
    }
