"""What every exported file has in common, whichever runtime it is for: inputs, outputs and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from yolact.errors import ExportError
from yolact.images import ImageInput, read_image
from yolact.settings import ModelConfig
from yolact.transforms import to_padded_square, to_square

ExportPrecision = Literal["fp32", "fp16", "int8"]

INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "mask_coefficients", "prototypes")
MASKS_NAME, MASK_IOUS_NAME = "masks", "mask_ious"
"""Input and output of the mask re-scoring network."""

FORMAT = "1"
"""Version of the metadata; increased when readers of the old version would misread it."""

DESCRIPTION = """YOLACT, exported for inference. B images, S side of the input, A anchors, C classes, K prototypes.

Input: images (B, 3, S, S) float32 RGB, 0 to 255, each image resized to S x S (bilinear, half-pixel centres, no
antialiasing, aspect ratio not kept; if the model's keep_aspect_ratio is true, its longer side to S, and the rest to the
right or below filled with the mean colour 123.68, 116.78, 103.94). Normalisation is inside.
Outputs, all float32: boxes (B, A, 4) left, top, right, bottom, as fractions of the image's sides, not clipped;
scores (B, A, C) probabilities of the classes, background left out; mask_coefficients (B, A, K), -1 to 1;
prototypes (B, Hp, Wp, K). After NMS over boxes and scores, an object's mask is where prototypes @ mask_coefficients,
enlarged to the image, is positive, inside its box.
Metadata: classes and category_ids (JSON lists, by label), model (JSON, the network's settings), precision, format."""

RESCORING_DESCRIPTION = """Mask re-scoring of YOLACT++. N objects, C classes.

Input: masks (N, Hp, Wp) float32: sigmoid of prototypes @ mask_coefficients, 0 outside the object's box grown by one
prototype pixel on each side. Output: mask_ious (N, C) float32: how well the mask fits if it is of that class; a mask's
score is that times its class score."""


def rescoring_path(path: Path) -> Path:
    """The file of the mask re-scoring network: ``model.maskiou.onnx`` for ``model.onnx``."""
    return path.with_suffix(f".maskiou{path.suffix}")


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about its network."""

    classes: list[str]
    """By label."""
    category_ids: list[int]
    """COCO's, by label; empty for 1, 2, ..."""
    model: ModelConfig
    precision: ExportPrecision

    def to_strings(self) -> dict[str, str]:
        """As the file stores it."""
        return {
            "format": FORMAT,
            "classes": json.dumps(self.classes),
            "category_ids": json.dumps(self.category_ids),
            "model": json.dumps(self.model.model_dump()),
            "precision": self.precision,
        }

    @classmethod
    def from_strings(cls, path: Path, strings: Mapping[str, str]) -> Metadata:
        """Read what the file at ``path`` stores.

        Raises:
            ExportError: it was not written by this version's `yolact export`, or is damaged.
        """
        if strings.get("format") != FORMAT or not {"classes", "category_ids", "model", "precision"} <= strings.keys():
            raise ExportError(f"{path}: not written by this version's `yolact export`; export it again")
        try:
            classes, ids = (json.loads(strings[name]) for name in ("classes", "category_ids"))
            return cls(classes, ids, ModelConfig.model_validate_json(strings["model"]), strings["precision"])  # type: ignore[arg-type]
        except (json.JSONDecodeError, ValidationError) as error:
            raise ExportError(f"{path}: its metadata is damaged: {error}; export it again") from error


def network_input(image: Tensor, config: ModelConfig) -> Tensor:
    """Resize a (3, H, W) uint8 RGB image to the input of an exported network, (3, S, S) float32, 0 to 255."""
    resize = to_padded_square if config.keep_aspect_ratio else to_square
    return resize(image.cpu(), config.image_size)


def input_batches(images: Sequence[ImageInput], config: ModelConfig, batch: int) -> Iterator[Tensor]:
    """Full batches (batch, 3, S, S) that contain each image; the last one is filled up with the first images.

    Images are read when their batch is asked for.

    Raises:
        DataError: a file is missing or cannot be decoded.
    """
    for start in range(0, len(images), batch):
        numbers = [number % len(images) for number in range(start, start + batch)]
        yield torch.stack([network_input(read_image(images[number]), config) for number in numbers])
