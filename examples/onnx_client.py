"""Detect objects with a file that `yolact export` wrote. Needs numpy, pillow and onnxruntime, and not this project.

    pip install numpy pillow onnxruntime
    python onnx_client.py model.onnx image.jpg -o drawn.png

Copy it into your own program: `Model(path)(pixels)` gives the detections of one image. The steps are those of the
project's own predictor with its default settings; mask re-scoring (the second file of YOLACT++) is left out.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

MEAN_COLOUR = (123.68, 116.78, 103.94)
"""Fills what an image that keeps its aspect ratio leaves of the square input."""


@dataclass
class Detection:
    """One object."""

    name: str
    label: int
    """From 0, in the order of the file's classes."""
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, pixels."""
    mask: np.ndarray
    """(H, W) bool, as large as the image."""


class Model:
    """An exported network.

    Args:
        path: the ``.onnx`` file.
        score: objects with a score above this are found.
        iou: of two objects of a class that overlap by more than this, only the better one remains.
        limit: maximum number of objects in an image.
    """

    def __init__(self, path: str, score: float = 0.05, iou: float = 0.5, limit: int = 100) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        stored = self.session.get_modelmeta().custom_metadata_map
        if stored.get("format") != "1":
            raise SystemExit(f"{path}: `yolact export` did not write this file, or another version of it did")
        self.classes: list[str] = json.loads(stored["classes"])
        settings = json.loads(stored["model"])
        self.size: int = settings["image_size"]
        self.keep_aspect_ratio: bool = settings["keep_aspect_ratio"]
        batch = self.session.get_inputs()[0].shape[0]
        self.batch = batch if isinstance(batch, int) else 1  # a fixed batch size, or a name for any
        self.score, self.iou, self.limit = score, iou, limit

    def __call__(self, pixels: np.ndarray) -> list[Detection]:
        """Find the objects in an (H, W, 3) uint8 RGB image, best first."""
        height, width = pixels.shape[:2]
        square, share = self.preprocess(pixels)
        batch = np.zeros((self.batch, 3, self.size, self.size), np.float32)
        batch[0] = square.transpose(2, 0, 1)
        names = ["boxes", "scores", "mask_coefficients", "prototypes"]
        outputs = self.session.run(names, {"images": batch})
        boxes, scores, coefficients, prototypes = (output[0] for output in outputs)

        rows, labels = suppress(boxes, scores, self.score, self.iou, self.limit)
        found = []
        for row, label in zip(rows, labels, strict=True):
            in_image = boxes[row] / (share[1], share[0], share[1], share[0])  # fractions of the image's sides
            box = np.clip(in_image * (width, height, width, height), 0, (width, height, width, height))
            if box[2] > box[0] and box[3] > box[1]:
                mask = mask_of(prototypes @ coefficients[row], box, height, width, share)
                found.append(Detection(self.classes[label], int(label), float(scores[row, label]), tuple(box), mask))
        return found

    def preprocess(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
        """The (S, S, 3) float32 input, 0 to 255, and which share of its rows and columns the image fills."""
        height, width = pixels.shape[:2]
        if not self.keep_aspect_ratio:
            return resize(pixels.astype(np.float32), self.size, self.size), (1.0, 1.0)
        longer = max(height, width)
        rows, columns = (max(1, round(side * self.size / longer)) for side in (height, width))
        square = np.tile(np.array(MEAN_COLOUR, np.float32), (self.size, self.size, 1))
        square[:rows, :columns] = resize(pixels.astype(np.float32), rows, columns)
        return square, (height / longer, width / longer)


def resize(image: np.ndarray, height: int, width: int, share: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Resize the first ``share`` of an (H, W, ...) float32 array: bilinear, half-pixel centres, no antialiasing.

    Pillow's own BILINEAR averages when it makes an image smaller, which the network was not trained with.
    """
    for axis, target, part in ((0, height, share[0]), (1, width, share[1])):
        length = image.shape[axis]
        place = np.clip((np.arange(target) + 0.5) * (length * part / target) - 0.5, 0, None)
        low = np.minimum(place.astype(int), length - 1)
        weight = (place - low).astype(np.float32)
        weight = weight.reshape([-1 if number == axis else 1 for number in range(image.ndim)])
        before, after = image.take(low, axis), image.take(np.minimum(low + 1, length - 1), axis)
        image = before + weight * (after - before)
    return image


def suppress(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, iou: float, limit: int, candidates: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Fast NMS (YOLACT, section 5): of each class, drop a box that any better one overlaps too much.

    Returns:
        The rows that remain and their labels, best first.
    """
    rows, labels = [], []
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")[:candidates]
        order = order[scores[order, label] > threshold]
        overlap = np.triu(box_iou(boxes[order]), 1)  # of each box with the better ones
        kept = order[overlap.max(axis=0, initial=0) <= iou]
        rows.append(kept)
        labels.append(np.full(len(kept), label))
    all_rows, all_labels = np.concatenate(rows), np.concatenate(labels)
    best = np.argsort(-scores[all_rows, all_labels], kind="stable")[:limit]
    return all_rows[best], all_labels[best]


def box_iou(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of each of (N, 4) boxes with each."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / np.maximum(area[:, None] + area[None] - shared, 1e-12)


def mask_of(logits: np.ndarray, box: np.ndarray, height: int, width: int, share: tuple[float, float]) -> np.ndarray:
    """Enlarge (Hp, Wp) logits to the image; a pixel with a positive logit and its centre in the box is the object's."""
    mask = resize(logits, height, width, share) > 0
    across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
    mask &= (across >= box[0]) & (across < box[2])
    mask &= ((down >= box[1]) & (down < box[3]))[:, None]
    return mask


def draw(pixels: np.ndarray, found: list[Detection]) -> Image.Image:
    """The image with masks, boxes and names in a colour per class."""
    canvas = pixels.astype(np.float32)
    colours = [tuple(int(255 * part) for part in colorsys.hsv_to_rgb(one.label * 0.618 % 1, 0.8, 1)) for one in found]
    for one, colour in zip(found, colours, strict=True):
        canvas[one.mask] = 0.55 * canvas[one.mask] + 0.45 * np.array(colour, np.float32)
    image = Image.fromarray(canvas.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for one, colour in zip(found, colours, strict=True):
        pen.rectangle(one.box, outline=colour, width=2)
        text, corner = f"{one.name} {one.score:.2f}", (one.box[0] + 3, one.box[1] + 3)
        pen.rectangle(pen.textbbox(corner, text), fill=(0, 0, 0))
        pen.text(corner, text, fill=colour)
    return image


def main() -> None:
    """Detect objects in one image; print them and draw them."""
    parser = argparse.ArgumentParser(description="Detect objects with an exported YOLACT.")
    parser.add_argument("model", help="file that `yolact export` wrote, .onnx")
    parser.add_argument("image")
    parser.add_argument("-o", "--output", help="image to write with the objects drawn")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score (%(default)s)")
    arguments = parser.parse_args()
    with Image.open(Path(arguments.image)) as file:
        pixels = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    found = Model(arguments.model, arguments.score)(pixels)
    for one in found:
        box = ", ".join(f"{side:.1f}" for side in one.box)
        print(f"{one.name} {one.score:.3f}: box {box}; {int(one.mask.sum())} pixels")
    if arguments.output:
        draw(pixels, found).save(arguments.output)


if __name__ == "__main__":
    main()
