"""The data card: what a version was trained and evaluated on; in Markdown.

Follows Gebru et al. 2021, *Datasheets for Datasets* (Communications of the ACM 64), as far as a pipeline knows the
answers: preprocess has counted and checked the data (``stats.json``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.register.model_card import CardFacts, data_licence
from yolact_ops.lineage.lineage import data_source

DATA_CARD_FILE = "data_card.md"
"""The card's name among the model's files."""

SIZES = {
    "image width": "image_width",
    "image height": "image_height",
    "box width": "box_width",
    "box height": "box_height",
    "mask area": "mask_area",
}
"""What is measured in pixels, with its key in ``stats.json``."""


def data_card(facts: CardFacts) -> str:
    """The whole card. Sections that ``stats.json`` has nothing for are left out; file names are not in it."""
    sections = {
        "Origin": _origin(facts),
        "Splits": _splits(facts.stats),
        "Sizes": _sizes(facts.stats),
        "Classes": _classes(facts.stats),
        "Near-duplicates": _duplicates(facts.stats),
        "Dropped, doubtful, changed": _findings(facts.stats),
        "Licence": data_licence(facts.params.data.source),
    }
    parts = [f"# Data of {facts.name}", *(f"## {title}\n\n{text}" for title, text in sections.items() if text)]
    return "\n\n".join(parts) + "\n"


def _origin(facts: CardFacts) -> str:
    lines = [
        f"- Source: `{data_source(facts.params)}`, in the format {facts.stats.get('format', 'unknown')}.",
        f"- Digest of the prepared data (SHA-256): `{facts.tags['data_digest']}`.",
    ]
    if commit := facts.tags.get("git_commit"):
        lines.append(
            f"- Code: commit `{commit}`. `yolact lineage models:/{facts.name}/VERSION` prints how to rebuild it."
        )
    lines.append("- Settings of the preparation: section `data` of `artifacts/params.yaml`.")
    return "\n".join(lines)


def _splits(stats: Mapping[str, Any]) -> str:
    decided, digests = stats.get("split_by", {}), stats.get("split_digests", {})
    rows = (
        (
            split,
            found["images"],
            found.get("images_without_instance", "-"),
            found["instances"],
            found.get("crowds", "-"),
            decided.get(split, "-"),
            f"`{digests[split]}`" if split in digests else "-",
        )
        for split, found in stats["splits"].items()
    )
    return _table(("split", "images", "without objects", "objects", "crowd regions", "chosen by", "digest"), rows)


def _sizes(stats: Mapping[str, Any]) -> str:
    rows = [
        (split, title, *(f"{found[key][name]:g}" for name in ("min", "median", "max")))
        for split, found in stats["splits"].items()
        for title, key in SIZES.items()
        if found.get(key)
    ]
    return "In pixels, as prepared.\n\n" + _table(("split", "of", "min", "median", "max"), rows) if rows else ""


def _classes(stats: Mapping[str, Any]) -> str:
    classes = stats.get("classes", {})
    if not classes:
        return ""
    splits = list(stats["splits"])
    header = ("class", *(f"{what} in {split}" for split in splits for what in ("images", "objects")))
    rows = (
        (name, *(found[split][key] for split in splits for key in ("images", "instances")))
        for name, found in classes.items()
    )
    return _table(header, rows)


def _duplicates(stats: Mapping[str, Any]) -> str:
    across = stats["duplicates"]["across_splits"]["count"]
    within = sum(map(len, stats["duplicates"].get("equal_files_within", {}).values()))
    return (
        f"- Pairs of images in different splits: {across}{'; AP is too high there.' if across else '.'}\n"
        f"- Groups of equal files within a split: {within}."
    )


def _findings(stats: Mapping[str, Any]) -> str:
    """A row for each kind that preprocess found; without examples, which name files."""
    rows = [
        (found["severity"], f"{found['count']} {found['unit']}", _one_cell(found["kind"]))
        for found in stats.get("findings", [])
    ]
    if "findings" not in stats:
        return ""
    return _table(("", "number", "what"), rows) if rows else "Nothing: all images and objects were used as they are."


def _one_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(header: tuple[str, ...], rows: Iterator[tuple[Any, ...]] | list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
