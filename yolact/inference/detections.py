"""Detections of one image, and their export as COCO results, VOC annotations and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from yolact.files import replaced_file, write_text_atomic
from yolact.images import ImageInput, read_image
from yolact.masks import InstanceMasks, Rle
from yolact.palette import voc_palette
from yolact.visualize import draw_detections


@dataclass
class Detections:
    """Detections of one image, best score first. All tensors are on the CPU."""

    boxes: Tensor
    """(N, 4) float32, xyxy, image pixels, inside the image."""
    scores: Tensor
    """(N,) float32, 0 to 1: class probability."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    instance_masks: InstanceMasks
    """N masks, each stored as the part around its object; at the image's size or the predictor's
    ``mask_resolution``."""
    mask_scores: Tensor
    """(N,) float32: ``scores`` times the predicted mask IoU with mask re-scoring (YOLACT++), else equal to
    ``scores``. Evaluation ranks masks by it, boxes by ``scores``."""
    class_names: tuple[str, ...] = ()
    """Name of label 0, 1, ...; empty if unknown."""
    image_size: tuple[int, int] | None = None
    """Height and width of the image, pixels; None if the masks have its size."""
    category_ids: tuple[int, ...] = ()
    """COCO's category id of label 0, 1, ...; empty for 1, 2, ..."""

    @classmethod
    def from_masks(
        cls,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        masks: Tensor,
        *,
        mask_scores: Tensor | None = None,
        class_names: Sequence[str] = (),
    ) -> Detections:
        """Detections from full-size (N, H, W) masks, non-zero inside the object."""
        mask_scores = scores if mask_scores is None else mask_scores
        return cls(boxes, scores, labels, InstanceMasks.from_tensor(masks), mask_scores, tuple(class_names))

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool; built at each access, so keep it if you need it twice."""
        return self.instance_masks.to_tensor()

    def rles(self) -> list[Rle]:
        """The masks as COCO compressed RLE, encoded without building full-size masks."""
        return self.instance_masks.to_rle()

    def polygons(self) -> list[list[np.ndarray]]:
        """Outlines of each object: a list of (n, 2) float32 x and y, image pixels, one per connected part of the mask.

        Outlines follow pixel edges: rasterising them restores the mask except for holes, which are filled (exact rule:
        `yolact.masks.outer_contours`). Outlines of masks at another resolution are scaled to the image.
        """
        height, width = self.instance_masks.height, self.instance_masks.width
        image_height, image_width = self.image_size or (height, width)
        stretch = np.array([image_width / width, image_height / height], dtype=np.float32)
        return [[contour * stretch for contour in parts] for parts in self.instance_masks.to_polygons()]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice | int) -> Detections:
        """Select by a (N,) bool or (M,) int64 index, a slice or an int.

        Raises:
            IndexError: the int is out of range.
        """
        if isinstance(rows, int):
            rows = torch.arange(len(self))[rows].reshape(1)
        return Detections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            self.instance_masks[rows],
            self.mask_scores[rows],
            self.class_names,
            self.image_size,
            self.category_ids,
        )

    def above(self, score: float) -> Detections:
        """Detections with a score greater than ``score``."""
        return self[self.scores > score]

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of the COCO results format (https://cocodataset.org/#format-results), best score first.

        Args:
            image_id: id of the image in the ground truth.
            category_ids: category id of label 0, 1, ...; None for the model's own: those of the data set that it was
                trained on. COCO's own skip some numbers: `yolact.class_names.COCO_CATEGORY_IDS`.

        Raises:
            ValueError: the masks are not as large as the image.

        Returns:
            N rows with ``image_id``, ``category_id``, ``bbox`` (xywh, pixels, not rounded), ``score``, ``mask_score``
            (not part of the format; other readers ignore it) and ``segmentation`` (compressed RLE).
        """
        self._check_masks_fit("to_coco")
        ids = category_ids if category_ids is not None else self.category_ids
        boxes = self.boxes.numpy().astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]  # (N, 4) xywh
        columns = (boxes.tolist(), self.scores.tolist(), self.mask_scores.tolist(), self.labels.tolist(), self.rles())
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[label]) if len(ids) else label + 1,
                "bbox": box,
                "score": score,
                "mask_score": mask_score,
                "segmentation": rle,
            }
            for box, score, mask_score, label, rle in zip(*columns, strict=True)
        ]

    @classmethod
    def from_coco(
        cls,
        rows: Sequence[dict[str, Any]],
        category_ids: Sequence[int],
        height: int,
        width: int,
        class_names: Sequence[str] = (),
    ) -> Detections:
        """The inverse of `to_coco`, for the rows of one image of ``height`` x ``width`` pixels.

        Raises:
            KeyError: a row has a category that is not in ``category_ids``.
        """
        rows = sorted(rows, key=lambda row: -row["score"])
        label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # (N, 4) xyxy
        return cls(
            boxes=boxes.float(),
            scores=torch.tensor([row["score"] for row in rows], dtype=torch.float32),
            labels=torch.tensor([label_of[row["category_id"]] for row in rows], dtype=torch.int64),
            instance_masks=InstanceMasks.from_rle([row["segmentation"] for row in rows], height, width),
            mask_scores=torch.tensor([row.get("mask_score", row["score"]) for row in rows], dtype=torch.float32),
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
        )

    def _check_masks_fit(self, form: str) -> None:
        height, width = self.instance_masks.height, self.instance_masks.width
        if self.image_size not in (None, (height, width)):
            raise ValueError(
                f"{form} needs masks as large as the image, {self.image_size}; these are {(height, width)}: "
                "predict with mask_resolution='image'"
            )

    def to_voc(self, file_name: str) -> VocDetections:
        """The detections as PASCAL VOC annotations of the image ``file_name``.

        A pixel in several masks belongs to the object with the best score. Segmentation indices encode at most 254
        objects, the best ones.

        Raises:
            ValueError: the masks are not as large as the image, class names are missing, or a label has no index.
        """
        self._check_masks_fit("to_voc")
        if not self.class_names and len(self):
            raise ValueError("to_voc needs class names: set class_names, as a Predictor does")
        highest = max(self.labels.tolist(), default=-1)
        if highest >= VOC_MAX_OBJECTS:
            raise ValueError(f"to_voc: label {highest} has no index; VOC has indices for {VOC_MAX_OBJECTS} classes")
        height, width = self.instance_masks.height, self.instance_masks.width
        objects = np.zeros((height, width), dtype=np.uint8)
        classes = np.zeros((height, width), dtype=np.uint8)
        best = self[torch.arange(min(len(self), VOC_MAX_OBJECTS))]
        rows = zip(best.instance_masks.corners, best.instance_masks.crops, best.labels.tolist(), strict=True)
        for index, ((top, left), crop, label) in reversed(list(enumerate(rows, start=1))):
            region = (slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1]))
            objects[region][crop] = index
            classes[region][crop] = label + 1
        return VocDetections(file_name, self._voc_xml(file_name, height, width), objects, classes)

    def _voc_xml(self, file_name: str, height: int, width: int) -> str:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = file_name
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        ElementTree.SubElement(root, "segmented").text = "1"
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = self.class_names[label]
            ElementTree.SubElement(item, "score").text = f"{score:.6f}"
            corners = ElementTree.SubElement(item, "bndbox")
            left, right = _voc_ends(box[0], box[2], width)
            top, bottom = _voc_ends(box[1], box[3], height)
            for name, end in (("xmin", left), ("ymin", top), ("xmax", right), ("ymax", bottom)):
                ElementTree.SubElement(corners, name).text = str(end)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def plot(self, image: ImageInput, min_score: float = 0.0) -> np.ndarray:
        """Draw the detections over their image.

        Args:
            image: the image, in any form that `Predictor.predict` takes.
            min_score: draw only detections with a greater score.

        Returns:
            (H', W', 3) uint8 RGB; larger than the image if that is small.
        """
        pixels = read_image(image).permute(1, 2, 0).cpu().numpy()
        shown = self.above(min_score)
        highest = max(shown.labels.tolist(), default=-1)
        return draw_detections(pixels, shown, self.class_names or [f"class {label}" for label in range(1, highest + 2)])


VOC_MAX_OBJECTS = 254
"""Indices 1 to 254: 0 is the background and 255 the border (VOC2012 development kit, section 3)."""


def _voc_ends(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last whole pixel between two edges, counted from 1; at least one, within ``size`` pixels."""
    first = min(round(low), size - 1)
    return first + 1, max(round(high), first + 1)


@dataclass(frozen=True)
class VocDetections:
    """Detections of one image in the VOC devkit's format."""

    file_name: str
    """File name of the image."""
    xml: str
    """Annotation with boxes; each object's ``score`` is not part of the format; other readers ignore it."""
    segmentation_object: np.ndarray
    """(H, W) uint8: 0 background, k the k-th best detection."""
    segmentation_class: np.ndarray
    """(H, W) uint8: 0 background, label + 1 elsewhere."""

    def save(self, folder: Path | str) -> None:
        """Write ``Annotations/NAME.xml``, ``SegmentationObject/NAME.png`` and ``SegmentationClass/NAME.png``."""
        root, name = Path(folder), Path(self.file_name).stem
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        write_text_atomic(root / "Annotations" / f"{name}.xml", self.xml)
        for kind, indices in (
            ("SegmentationObject", self.segmentation_object),
            ("SegmentationClass", self.segmentation_class),
        ):
            (root / kind).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(indices)
            image.putpalette(voc_palette().tobytes())  # makes the L image a P image with the same indices
            with replaced_file(root / kind / f"{name}.png") as temporary:
                image.save(temporary, format="PNG")
