"""Data sets of plain images with red and blue boxes as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE = 64
"""Width and height of each image, pixels."""
RED, BLUE = 3, 7
"""Category ids."""
COLOURS = {RED: (220, 40, 40), BLUE: (40, 60, 220)}

Box = tuple[int, tuple[int, int, int, int]]
"""Category and xyxy, pixels."""


def write_coloured_boxes(annotations: Path, images_dir: Path, boxes: Mapping[int, list[Box]]) -> None:
    """Write images and their COCO instances file.

    Args:
        annotations: the JSON file to write.
        images_dir: gets ``NUMBER.png``.
        boxes: objects by image number, which is the image's id; the background's shade depends on it.
    """
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": RED, "name": "red"}, {"id": BLUE, "name": "blue"}]
    images_dir.mkdir(parents=True, exist_ok=True)
    for number, objects in boxes.items():
        image = Image.new("RGB", (SIZE, SIZE), (90, 90 + number, 90))
        for category, (left, top, right, bottom) in objects:
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[category])
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
        image.save(images_dir / f"{number}.png")
        tree["images"].append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
    annotations.write_text(json.dumps(tree))
