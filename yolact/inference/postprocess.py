"""From raw outputs to detections: score test, NMS, mask assembly (paper sections 3.3 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from yolact.boxes import box_iou, crop_mask, decode, pixel_bounds
from yolact.crop import filled_share
from yolact.inference.detections import Detections
from yolact.masks import InstanceMasks
from yolact.settings import DetectConfig
from yolact.structures import RawOutputs

CROP_PADDING = 1
"""Prototype pixels by which a box grows on every side before its mask is cropped to it, as published."""

MaskResolution = Literal["image", "prototypes"] | int
"""Size of the masks: that of the image; that of the network's prototypes (coarse and fastest), or of the part of them
that the image fills if its aspect ratio is kept; or the image reduced to this longest side, in pixels."""

WHOLE = (1.0, 1.0)
"""Shares of the network input's rows and columns that an image fills when stretched to it."""

ENLARGED_PIXELS = 2**25
"""Mask pixels enlarged at once on a GPU, as float32: bounds the memory for large images."""


@dataclass
class Candidates:
    """Detections of one image before mask assembly, best score first."""

    boxes: Tensor
    """(N, 4) xyxy, relative, not clipped."""
    scores: Tensor
    """(N,) 0 to 1."""
    labels: Tensor
    """(N,) int64, 0 to C - 1."""
    mask_coefficients: Tensor
    """(N, K)."""


def detect(outputs: RawOutputs, config: DetectConfig, image_size: int) -> list[Candidates]:
    """Select each image's best boxes.

    Args:
        outputs: raw network outputs of B images.
        image_size: side of the network input, pixels; only ``config.integer_boxes`` in traditional NMS uses it.

    Returns:
        B entries, each with at most ``config.max_detections`` boxes.
    """
    return [
        _detect_one(logits, encoded, coefficients, outputs.anchors, config, image_size)
        for logits, encoded, coefficients in zip(
            outputs.class_logits, outputs.boxes, outputs.mask_coefficients, strict=True
        )
    ]


def _detect_one(
    logits: Tensor, encoded: Tensor, coefficients: Tensor, anchors: Tensor, config: DetectConfig, image_size: int
) -> Candidates:
    # Most anchors are background. A class's probability is at most exp(its logit - the largest logit), so this test
    # skips most of the softmax without changing the result.
    threshold = config.score_threshold
    below_best = logits[:, 1:].amax(dim=1).float() - logits.amax(dim=1).float()
    hopeful = (below_best.exp() > threshold).nonzero().squeeze(1)
    scores = logits[hopeful].float().softmax(dim=1)[:, 1:]  # (N, C)
    boxes = decode(encoded[hopeful].float(), anchors[hopeful])  # (N, 4)
    return _select(boxes, scores, coefficients[hopeful], config, image_size)


def detect_decoded(
    boxes: Tensor, scores: Tensor, mask_coefficients: Tensor, config: DetectConfig, image_size: int
) -> list[Candidates]:
    """`detect` for decoded boxes and scores, the outputs of an exported network.

    Args:
        boxes: (B, A, 4) xyxy, relative.
        scores: (B, A, C) probabilities, without background.
        mask_coefficients: (B, A, K).
        image_size: as in `detect`.
    """
    return [
        _select(of_image.float(), probabilities.float(), coefficients.float(), config, image_size)
        for of_image, probabilities, coefficients in zip(boxes, scores, mask_coefficients, strict=True)
    ]


def _select(boxes: Tensor, scores: Tensor, coefficients: Tensor, config: DetectConfig, image_size: int) -> Candidates:
    """Select the best of (N, 4) boxes with (N, C) scores and (N, K) coefficients by NMS."""
    threshold = config.score_threshold
    # A non-finite box would suppress all worse ones, because its IoU is NaN.
    kept = (scores.amax(dim=1) > threshold) & boxes.isfinite().all(dim=1)
    boxes, scores, coefficients = boxes[kept], scores[kept], coefficients[kept]
    if config.nms == "traditional":
        pixels = float(image_size) if config.integer_boxes else None
        rows, labels, best = traditional_nms(boxes, scores, config.nms_iou, threshold, pixels)
    else:
        suppress = fast_nms if config.nms == "fast" else cross_class_fast_nms
        rows, labels, best = suppress(boxes, scores, config.nms_iou, config.top_k)
    if not config.low_score_tail:
        passed = best > threshold
        rows, labels, best = rows[passed], labels[passed], best[passed]
    order = best.argsort(descending=True, stable=True)[: config.max_detections]
    rows = rows[order]
    return Candidates(boxes[rows], best[order], labels[order], coefficients[rows].float())


def fast_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS per class (paper section 5): suppress a box if any better one of its class overlaps it too much.

    Suppressed boxes still suppress others, which allows running in parallel.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N, C).
        iou_threshold: boxes with a greater IoU are suppressed.
        top_k: candidates per class.

    Returns:
        Indices into ``boxes``, labels and scores of the survivors, all (M,), grouped by class.
    """
    sorted_scores, order = scores.T.sort(dim=1, descending=True, stable=True)  # (C, N)
    sorted_scores, order = sorted_scores[:, :top_k], order[:, :top_k]
    overlap = box_iou(boxes[order], boxes[order]).triu(diagonal=1)  # (C, k, k)
    survives = overlap.amax(dim=1) <= iou_threshold if order.shape[1] else torch.zeros_like(order, dtype=torch.bool)
    labels = torch.arange(scores.shape[1], device=scores.device)[:, None].expand_as(order)
    return order[survives], labels[survives], sorted_scores[survives]


def cross_class_fast_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fast NMS over all classes at once: each box counts for its best class only. See `fast_nms`."""
    best, labels = scores.max(dim=1) if len(scores) else (scores.new_zeros(0), scores.new_zeros(0, dtype=torch.int64))
    order = best.argsort(descending=True, stable=True)[:top_k]
    overlap = box_iou(boxes[order], boxes[order]).triu(diagonal=1)  # (k, k)
    survivors = order[overlap.amax(dim=0) <= iou_threshold] if len(order) else order
    return survivors, labels[survivors], best[survivors]


def traditional_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, pixels: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequential NMS per class: from the best box down, each kept box suppresses those that overlap it too much.

    Args:
        boxes: (N, 4) xyxy, relative.
        scores: (N, C); only those greater than ``score_threshold`` are candidates.
        iou_threshold: boxes with a greater IoU are suppressed.
        pixels: None, or the side of the image for the published convention: boxes include their last pixel, so their
            sides are one longer, and an IoU equal to the threshold suppresses too.

    Returns:
        As `fast_nms`.
    """
    from torchvision.ops import nms  # takes seconds, as in yolact/models/backbones/deformable.py

    if pixels is not None:
        boxes = boxes * pixels + boxes.new_tensor([0, 0, 1, 1])
        # greater than the next smaller float32 is at least the threshold
        iou_threshold = float(np.nextafter(np.float32(iou_threshold), np.float32(0)))
    rows, labels = [], []
    for label in range(scores.shape[1]):
        candidates = (scores[:, label] > score_threshold).nonzero().squeeze(1)
        kept = candidates[nms(boxes[candidates], scores[candidates, label], iou_threshold)]
        rows.append(kept)
        labels.append(torch.full_like(kept, label))
    survivors, classes = torch.cat(rows), torch.cat(labels)
    return survivors, classes, scores[survivors, classes]


def to_images(
    candidates: Sequence[Candidates],
    prototypes: Tensor,
    sizes: Sequence[tuple[int, int]],
    class_names: Sequence[str],
    config: DetectConfig,
    mask_resolution: MaskResolution = "image",
    maskiou_net: Callable[[Tensor], Tensor] | None = None,
    *,
    keep_aspect_ratio: bool,
    category_ids: Sequence[int] = (),
) -> list[Detections]:
    """Turn the candidates of B images into detections in their images' frames.

    Args:
        candidates: B entries.
        prototypes: (B, Hp, Wp, K).
        sizes: height and width of each image, pixels.
        class_names: name of label 0, 1, ...
        config: settings of detection.
        mask_resolution: see `MaskResolution`.
        maskiou_net: see `to_image_frame`.
        keep_aspect_ratio: the network's setting, see `ModelConfig`.
        category_ids: COCO's category id of label 0, 1, ...; empty for 1, 2, ...
    """
    found = []
    for of_image, image_prototypes, (height, width) in zip(candidates, prototypes, sizes, strict=True):
        share = filled_share(height, width) if keep_aspect_ratio else None
        mask_size = _mask_size(mask_resolution, image_prototypes, height, width, share or WHOLE)
        detections = to_image_frame(
            of_image, image_prototypes, height, width, config, maskiou_net, mask_size, share, tuple(class_names)
        )
        found.append(replace(detections, category_ids=tuple(category_ids)))
    return found


def _mask_size(
    resolution: MaskResolution, prototypes: Tensor, height: int, width: int, share: tuple[float, float]
) -> tuple[int, int]:
    if resolution == "image":
        return height, width
    if resolution == "prototypes":
        return max(1, round(prototypes.shape[0] * share[0])), max(1, round(prototypes.shape[1] * share[1]))
    factor = min(1.0, resolution / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_image_frame(
    candidates: Candidates,
    prototypes: Tensor,
    height: int,
    width: int,
    config: DetectConfig,
    maskiou_net: Callable[[Tensor], Tensor] | None = None,
    mask_size: tuple[int, int] | None = None,
    share: tuple[float, float] | None = None,
    class_names: tuple[str, ...] = (),
) -> Detections:
    """Turn one image's candidates into detections in the image's frame.

    Boxes outside the image are dropped, except the published ones (``config.integer_boxes``) of stretched images.

    Args:
        prototypes: (Hp, Wp, K) of the image.
        height, width: size of the image, pixels.
        maskiou_net: `yolact.models.maskiou.MaskIouNet` of a network with mask re-scoring, or a function like it.
        mask_size: height and width of the masks, pixels; None for those of the image.
        share: of the network input's rows and columns that the image fills, see `filled_share`; None if it was
            stretched to the input.
        class_names: name of label 0, 1, ...

    Returns:
        Detections on the CPU.
    """
    in_image = candidates.boxes if share is None else candidates.boxes / candidates.boxes.new_tensor(share[::-1] * 2)
    boxes = _image_boxes(in_image, height, width, integer=config.integer_boxes)
    scores, labels = candidates.scores, candidates.labels
    coefficients, relative = candidates.mask_coefficients, candidates.boxes
    if share is not None or not config.integer_boxes:
        visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        if not bool(visible.all()):
            boxes, scores, labels = boxes[visible], scores[visible], labels[visible]
            coefficients, relative = coefficients[visible], relative[visible]
    logits = assemble(prototypes, coefficients)
    mask_scores = scores
    if maskiou_net is not None and len(scores):
        soft = logits.sigmoid() * crop_mask(relative, logits.shape[1], logits.shape[2], CROP_PADDING)
        mask_scores = scores * maskiou_net(soft).gather(1, labels[:, None]).squeeze(1)
    mask_height, mask_width = mask_size or (height, width)
    masks = enlarge_masks(
        logits, relative, mask_height, mask_width, crop_first=config.crop_before_enlarging, share=share or WHOLE
    )
    return Detections(
        boxes.cpu(), scores.cpu(), labels.cpu(), masks, mask_scores.cpu(), class_names, image_size=(height, width)
    )


def _image_boxes(boxes: Tensor, height: int, width: int, *, integer: bool) -> Tensor:
    """(N, 4) float32 pixels, clipped to the image; ``integer`` truncates them and sorts swapped corners."""
    if integer:
        left, right = pixel_bounds(boxes[:, 0], boxes[:, 2], width, 0)
        top, bottom = pixel_bounds(boxes[:, 1], boxes[:, 3], height, 0)
        return torch.stack([left, top, right, bottom], dim=1).trunc()
    scale = boxes.new_tensor([width, height, width, height])
    return torch.minimum((boxes * scale).clamp(min=0), scale)


def assemble(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Combine (Hp, Wp, K) prototypes with (N, K) coefficients into (N, Hp, Wp) mask logits (paper equation 1)."""
    rows, columns, channels = prototypes.shape
    flat = prototypes.float().reshape(rows * columns, channels)
    return (coefficients @ flat.T).reshape(-1, rows, columns)


def enlarge_masks(
    logits: Tensor,
    boxes: Tensor,
    height: int,
    width: int,
    *,
    crop_first: bool,
    share: tuple[float, float] = WHOLE,
) -> InstanceMasks:
    """Turn mask logits at the prototypes' resolution into masks of the image.

    Logits are enlarged bilinearly (half-pixel centres); a pixel belongs to the mask if its logit is positive and its
    centre lies in the box. With ``crop_first``, as published, sigmoid and the crop to the box, grown by `CROP_PADDING`
    prototype pixels, come before the enlargement, and the threshold is 0.5. Only pixels in and around the boxes are
    computed.

    Args:
        logits: (N, Hp, Wp).
        boxes: (N, 4) xyxy, relative to the network's input.
        height, width: size of the masks, pixels; they cover the whole image.
        share: of the input's rows and columns that the image fills, see `filled_share`.
    """
    rows, columns = logits.shape[1:]
    threshold, padding = 0.0, 0.0
    if crop_first:
        logits = logits.sigmoid() * crop_mask(boxes, rows, columns, CROP_PADDING)
        threshold = 0.5
        padding = CROP_PADDING + 2  # bilinear enlargement carries a pixel beyond the crop
    windows = np.concatenate(
        [
            _image_window(boxes[:, 1::2].cpu().numpy(), padding / rows, height, share[0]),
            _image_window(boxes[:, 0::2].cpu().numpy(), padding / columns, width, share[1]),
        ],
        axis=1,
    )  # (N, 4) top, bottom, left, right
    cut = _cut_whole if logits.is_cuda else _cut_windows
    crops = cut(logits, windows, height, width, threshold, share)
    return InstanceMasks(height, width, [(int(top), int(left)) for top, _, left, _ in windows], crops)


def _image_window(edges: np.ndarray, padding: float, size: int, share: float) -> np.ndarray:
    """First pixel and one past the last (N, 2) with centres between relative ``edges`` (N, 2), grown by ``padding``.

    The image's ``size`` pixels fill a ``share`` of the axis that edges and padding are relative to.
    """
    extent = size / share
    low = np.ceil((edges.min(axis=1) - padding) * extent - 0.5).clip(0, size)
    high = np.ceil((edges.max(axis=1) + padding) * extent - 0.5).clip(0, size)
    return np.stack([low, np.maximum(low, high)], axis=1).astype(np.int64)


def _cut_windows(
    maps: Tensor, windows: np.ndarray, height: int, width: int, threshold: float, share: tuple[float, float]
) -> list[np.ndarray]:
    """Enlarge each of (N, Hp, Wp) maps inside its window only, and apply the threshold."""
    rows = _interpolation(maps.shape[1], height, share[0])
    columns = _interpolation(maps.shape[2], width, share[1])
    crops = []
    for small, (top, bottom, left, right) in zip(maps.cpu().numpy(), windows, strict=True):
        if top == bottom or left == right:
            crops.append(np.zeros((bottom - top, right - left), dtype=bool))
            continue
        first, last = columns.low[left], columns.high[right - 1] + 1
        low, high = small[rows.low[top:bottom], first:last], small[rows.high[top:bottom], first:last]
        tall = low + rows.weight[top:bottom, None] * (high - low)  # (h, Wp')
        # (w, h): COCO's RLE runs down the columns
        turned = np.ascontiguousarray(tall.T)
        low, high = turned[columns.low[left:right] - first], turned[columns.high[left:right] - first]
        high -= low
        high *= columns.weight[left:right, None]
        high += low
        crops.append((high > threshold).T)
    return crops


def _cut_whole(
    maps: Tensor, windows: np.ndarray, height: int, width: int, threshold: float, share: tuple[float, float]
) -> list[np.ndarray]:
    """`_cut_windows` for GPUs, where many small operations are slow: full maps at once, on their device."""
    crops: list[np.ndarray] = []
    if not len(maps):  # the operator rejects an empty batch
        return crops
    # F.interpolate calls this operator, but rejects a size that disagrees with the factors; here a share is enlarged.
    enlarge = torch.ops.aten.upsample_bilinear2d
    factors = [
        None if part == 1 else pixels / (part * samples)
        for pixels, part, samples in zip((height, width), share, maps.shape[1:], strict=True)
    ]
    for part in maps.split(max(1, ENLARGED_PIXELS // (height * width))):
        whole = enlarge(part[None], [height, width], False, *factors)[0] > threshold
        for mask in whole.cpu().numpy():
            top, bottom, left, right = windows[len(crops)]
            crops.append(mask[top:bottom, left:right].copy())  # frees the full mask
    return crops


@dataclass(frozen=True)
class _Interpolation:
    """The two samples that each of ``size`` pixels lies between, and the weight of the second."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray


def _interpolation(samples: int, size: int, share: float) -> _Interpolation:
    """Bilinear interpolation with half-pixel centres, edges repeated (as `torch.nn.functional.interpolate`).

    The pixels cover the first ``share`` of the samples.
    """
    position = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(samples * share / size) - 0.5).clip(min=0)
    low = position.astype(np.int64)
    return _Interpolation(low, np.minimum(low + 1, samples - 1), (position - low).astype(np.float32))
