"""The folder of processed data: what training alone reads is apart from what evaluation, registration and promotion
read, so that nobody copies or fetches training images for these.

``train/`` has the images and annotations of the split ``train``; ``eval/`` those of ``val`` and ``test``, and
``stats.json``.
"""

from __future__ import annotations

from pathlib import Path

PROCESSED = Path("data/processed")
"""The folder in a checkout."""
TRAIN, EVAL = "train", "eval"
"""The two folders in it."""


def folder_of(processed: Path, split: str) -> Path:
    """The folder with the images and annotations of a split."""
    return processed / (TRAIN if split == "train" else EVAL)


def annotations_of(processed: Path, split: str) -> Path:
    """The COCO instances file of a split."""
    return folder_of(processed, split) / f"{split}.json"
