"""A small set of parity fixtures, computed by formulas and loops that share nothing with the project.

The network's weights are random; its forward pass is written down with `torch.nn.functional` under the published key
names, in double precision. Everything else is NumPy or plain Python.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, Any]

SIZE = 64
CLASSES = 3
CHANNELS = 8
PROTOTYPES = 4
SCALES = [[8], [16], [24], [40], [60]]
RATIOS = [1, 0.5, 2]
HEIGHT, WIDTH = 30, 41
"""Of the image in whose frame detections are stored."""


def fixture_set() -> dict[str, Arrays]:
    """Files by name; the names have no meaning. ``meta_json`` is a tree here."""
    return {
        "a": dict(network_arrays()),
        "b": dict(loss_arrays()),
        "c": dict(unit_arrays()),
        "d": {"small/index": np.array([0, 5, 257]), "small/rows": anchors(SIZE, SIZE)[[0, 5, 257]].astype(np.float32)},
        "e": {"small": anchor_settings()},
        "f": {"small": {name: list(tensor.shape) for name, tensor in weights().items()}},
    }


DETECT = {"nms_thresh": 0.4, "top_k": 40, "max_num_detections": 40, "target_h": HEIGHT, "target_w": WIDTH}

JSON_FILES = {"e", "f"}


# --- network --------------------------------------------------------------------------------------------------------


@functools.cache
def weights() -> dict[str, Tensor]:
    """`random_weights` whose outputs are centred and spread, in values that float16 can hold."""
    state = random_weights()
    outputs = Published(state, batch_statistics=False)(torch.from_numpy(images("input")))
    outputs["mask"] = np.arctanh(outputs["mask"].clip(-0.999999, 0.999999))
    for head, name, spread in (("bbox", "loc", 1.0), ("conf", "conf", 1.2), ("mask", "mask", 0.8)):
        layer = f"prediction_layers.0.{head}_layer"
        channels = outputs[name].reshape(-1, len(state[f"{layer}.bias"]))
        state[f"{layer}.bias"] -= torch.from_numpy(channels.mean(axis=0))
        scale = torch.from_numpy(spread / channels.std(axis=0))
        state[f"{layer}.weight"] *= scale[:, None, None, None]
        state[f"{layer}.bias"] *= scale
    state["proto_net.10.weight"] /= float(outputs["proto"].std())
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


@functools.cache
def images(name: str) -> np.ndarray:
    shape = {"input": (2, 3, SIZE, SIZE), "rect/input": (1, 3, 48, 96)}[name]
    return np.random.default_rng(shape[-1]).normal(size=shape).astype(np.float16).astype(np.float32)


def random_weights() -> dict[str, Tensor]:
    """A state_dict with one bottleneck per stage, under the published names."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, into: int, kernel: int, bias: bool = True) -> None:
        size = (out, into, kernel, kernel)
        state[f"{name}.weight"] = torch.randn(size, generator=generator) * math.sqrt(2 / (into * kernel**2))
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels, generator=generator) * 0.5 + 0.5
        state[f"{name}.bias"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{name}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    conv("backbone.conv1", 64, 3, 7, bias=False)
    norm("backbone.bn1", 64)
    into = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        block = f"backbone.layers.{stage}.0"
        for part, (out, inner, kernel) in enumerate(((width, into, 1), (width, width, 3), (4 * width, width, 1)), 1):
            conv(f"{block}.conv{part}", out, inner, kernel, bias=False)
            norm(f"{block}.bn{part}", out)
        conv(f"{block}.downsample.0", 4 * width, into, 1, bias=False)
        norm(f"{block}.downsample.1", 4 * width)
        into = 4 * width
    for layer, channels in enumerate((2048, 1024, 512)):
        conv(f"fpn.lat_layers.{layer}", CHANNELS, channels, 1)
        conv(f"fpn.pred_layers.{layer}", CHANNELS, CHANNELS, 3)
    for layer in range(2):
        conv(f"fpn.downsample_layers.{layer}", CHANNELS, CHANNELS, 3)
    for layer in (0, 2, 4, 8):
        conv(f"proto_net.{layer}", CHANNELS, CHANNELS, 3)
    conv("proto_net.10", PROTOTYPES, CHANNELS, 1)
    conv("prediction_layers.0.upfeature.0", CHANNELS, CHANNELS, 3)
    for head, size in (("bbox", 4), ("conf", CLASSES + 1), ("mask", PROTOTYPES)):
        conv(f"prediction_layers.0.{head}_layer", len(RATIOS) * size, CHANNELS, 3)
    conv("semantic_seg_conv", CLASSES, CHANNELS, 1)
    return state


class Published:
    """The published forward pass, in double precision."""

    def __init__(self, state: dict[str, Tensor], batch_statistics: bool) -> None:
        self.state = {k: v.double() if v.is_floating_point() else v.clone() for k, v in state.items()}
        self.batch_statistics = batch_statistics

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, self.batch_statistics, momentum=0.1, eps=1e-5)

    def backbone(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.norm("backbone.bn1", self.conv("backbone.conv1", x, 2)).relu(), 3, 2, 1)
        features = []
        for stage in range(4):
            block, stride = f"backbone.layers.{stage}.0", 1 if stage == 0 else 2
            y = self.norm(f"{block}.bn1", self.conv(f"{block}.conv1", x)).relu()
            y = self.norm(f"{block}.bn2", self.conv(f"{block}.conv2", y, stride)).relu()
            y = self.norm(f"{block}.bn3", self.conv(f"{block}.conv3", y))
            x = (y + self.norm(f"{block}.downsample.1", self.conv(f"{block}.downsample.0", x, stride))).relu()
            features.append(x)
        return features[1:]

    def pyramid(self, features: list[Tensor]) -> list[Tensor]:
        c3, c4, c5 = features
        top = self.conv("fpn.lat_layers.0", c5)
        middle = self.conv("fpn.lat_layers.1", c4) + enlarged(top, c4.shape[-2:])
        low = self.conv("fpn.lat_layers.2", c3) + enlarged(middle, c3.shape[-2:])
        p5, p4, p3 = (self.conv(f"fpn.pred_layers.{i}", x).relu() for i, x in enumerate((top, middle, low)))
        p6 = self.conv("fpn.downsample_layers.0", p5, 2)
        return [p3, p4, p5, p6, self.conv("fpn.downsample_layers.1", p6, 2)]

    def __call__(self, images: Tensor) -> dict[str, np.ndarray]:
        levels = self.pyramid(self.backbone(images.double()))
        proto = levels[0]
        for layer in (0, 2, 4):
            proto = self.conv(f"proto_net.{layer}", proto).relu()
        proto = self.conv("proto_net.8", enlarged(proto, [2 * side for side in proto.shape[-2:]])).relu()
        proto = self.conv("proto_net.10", proto).relu()
        heads: dict[str, list[Tensor]] = {"bbox": [], "conf": [], "mask": []}
        for level in levels:
            shared = self.conv("prediction_layers.0.upfeature.0", level).relu()
            for head, outputs in heads.items():
                out = self.conv(f"prediction_layers.0.{head}_layer", shared).permute(0, 2, 3, 1)
                outputs.append(out.reshape(len(images), -1, out.shape[-1] // len(RATIOS)))
        tensors = {
            "loc": torch.cat(heads["bbox"], dim=1),
            "conf": torch.cat(heads["conf"], dim=1),
            "mask": torch.cat(heads["mask"], dim=1).tanh(),
            "proto": proto.permute(0, 2, 3, 1),
            "segm": self.conv("semantic_seg_conv", levels[0]),
        }
        arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        return arrays | {"priors": anchors(*images.shape[-2:]).astype(np.float32)}


def enlarged(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def anchors(height: int, width: int) -> np.ndarray:
    """(A, 4) cxcywh, relative; always in units of `SIZE`."""
    rows = []
    for level, (scale,) in enumerate(SCALES, 3):
        high, wide = math.ceil(height / 2**level), math.ceil(width / 2**level)
        for row, column, ratio in itertools.product(range(high), range(wide), RATIOS):
            root = math.sqrt(ratio)
            rows.append([(column + 0.5) / wide, (row + 0.5) / high, scale * root / SIZE, scale / root / SIZE])
    return np.array(rows)


@functools.cache
def network_arrays() -> Arrays:
    arrays: Arrays = {f"sd/{name}": tensor.numpy() for name, tensor in weights().items()}
    arrays |= {name: images(name).astype(np.float16) for name in ("input", "rect/input")}
    frozen = Published(weights(), batch_statistics=False)
    train, oblong = (frozen(torch.from_numpy(images(name))) for name in ("input", "rect/input"))
    arrays |= {f"train/{name}": array for name, array in train.items()}
    arrays |= {f"rect/{name}": array for name, array in oblong.items()}
    live = Published(weights(), batch_statistics=True)
    outputs = live(torch.from_numpy(images("input")))
    arrays |= {f"bn_batch/{name}": outputs[name] for name in ("loc", "segm")}
    key = "backbone.bn1.running_var"
    arrays[f"bn_batch/after/{key}"] = live.state[key].float().numpy()
    modes = {
        "swift": {"conf_thresh": 0.3, "fast": True, "cross_class": False},
        "joint": {"conf_thresh": 0.3, "fast": True, "cross_class": True},
        "plain": {"conf_thresh": 0.5, "fast": False, "cross_class": False},
    }
    for mode, settings in modes.items():
        for image in range(2):
            rows = detections(train, image, settings, DETECT)
            arrays |= {f"det/{mode}/{image}/{name}": array for name, array in rows.items()}
            arrays |= image_frame(rows, train["proto"][image], f"post/{mode}/{image}")
            high = rows["scores"] > 0.7
            kept = {name: array[high] for name, array in rows.items()}
            arrays |= image_frame(kept, train["proto"][image], f"post/{mode}_st0.7/{image}")
    arrays |= evaluation(arrays)
    arrays["meta_json"] = {
        "aspect_ratios": RATIOS,
        "pred_scales": SCALES,
        "variant": {"size": SIZE, "square": False},
        "detect": DETECT | {"modes": modes},
        "eval": {"ap": {kind: printed(arrays[f"eval/ap_per_class/{kind}"]) for kind in ("box", "mask")}},
    }
    return arrays


# --- detection ------------------------------------------------------------------------------------------------------


def decoded(loc: np.ndarray, priors: np.ndarray) -> np.ndarray:
    loc, priors = loc.astype(np.float64), priors.astype(np.float64)
    center = priors[:, :2] + 0.1 * loc[:, :2] * priors[:, 2:]
    size = priors[:, 2:] * np.exp(0.2 * loc[:, 2:])
    return np.concatenate([center - size / 2, center + size / 2], axis=1)


def overlap(a: Any, b: Any, extra: float = 0.0) -> float:
    """IoU of two xyxy boxes whose sides are ``extra`` longer than their corners say."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + extra)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + extra)
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def fast(ranked: list[int], boxes: np.ndarray, limit: float) -> list[int]:
    return [
        row for place, row in enumerate(ranked) if all(overlap(boxes[o], boxes[row]) <= limit for o in ranked[:place])
    ]


def sequential(ranked: list[int], boxes: np.ndarray, limit: float, pixels: float) -> list[int]:
    kept: list[int] = []
    for row in ranked:
        if all(overlap(boxes[other] * pixels, boxes[row] * pixels, 1.0) < limit for other in kept):
            kept.append(row)
    return kept


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, kind: str, limit: float, top_k: int, floor: float, most: int
) -> list[tuple[int, int]]:
    """Rows and classes that survive NMS, from (N, 4) boxes with (N, C) scores, best first."""
    if kind == "cross":
        ranked = sorted(range(len(boxes)), key=lambda row: -scores[row].max())[:top_k]
        return [(row, int(scores[row].argmax())) for row in fast(ranked, boxes, limit)]
    pairs = []
    for label in range(scores.shape[1]):
        ranked = sorted(range(len(boxes)), key=lambda row, label=label: -scores[row, label])
        if kind == "fast":
            kept = fast(ranked[:top_k], boxes, limit)
        else:
            kept = sequential([row for row in ranked if scores[row, label] > floor], boxes, limit, SIZE)
        pairs += [(row, label) for row in kept]
    return sorted(pairs, key=lambda pair: -scores[pair])[:most]


def detections(train: dict[str, np.ndarray], image: int, mode: Arrays, detect: Arrays) -> Arrays:
    logits = train["conf"][image].astype(np.float64)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (scores / scores.sum(axis=1, keepdims=True))[:, 1:]
    passed = scores.max(axis=1) > mode["conf_thresh"]
    boxes, scores = decoded(train["loc"][image], train["priors"])[passed], scores[passed]
    kind = ("cross" if mode["cross_class"] else "fast") if mode["fast"] else "sequential"
    pairs = suppressed(
        boxes, scores, kind, detect["nms_thresh"], detect["top_k"], mode["conf_thresh"], detect["max_num_detections"]
    )
    rows = [row for row, _ in pairs]
    return {
        "boxes": boxes[rows].astype(np.float32),
        "scores": np.array([scores[pair] for pair in pairs], dtype=np.float32),
        "classes": np.array([label for _, label in pairs]),
        "coeffs": train["mask"][image][passed][rows],
    }


def soft_masks(rows: Arrays, proto: np.ndarray) -> np.ndarray:
    """(N, h, w), cropped to the boxes grown by a pixel."""
    boxes = rows["boxes"].astype(np.float64)
    high, wide, _ = proto.shape
    soft = sigmoid(np.einsum("hwk,nk->nhw", proto.astype(np.float64), rows["coeffs"].astype(np.float64)))
    for mask, box in zip(soft, boxes, strict=True):
        left, right = sorted([box[0] * wide, box[2] * wide])
        top, bottom = sorted([box[1] * high, box[3] * high])
        mask[:, [not left - 1 <= column < right + 1 for column in range(wide)]] = 0
        mask[[not top - 1 <= row < bottom + 1 for row in range(high)]] = 0
    return soft


def image_frame(rows: Arrays, proto: np.ndarray, folder: str) -> Arrays:
    soft = soft_masks(rows, proto)
    masks = (enlarged(torch.from_numpy(soft)[None], (HEIGHT, WIDTH))[0] > 0.5).numpy()
    pixels = (rows["boxes"] * np.float32([WIDTH, HEIGHT] * 2)).clip(0, [WIDTH, HEIGHT] * 2)
    return {
        f"{folder}/classes": rows["classes"],
        f"{folder}/scores": rows["scores"],
        f"{folder}/boxes": np.trunc(pixels).astype(np.int64),
        f"{folder}/masks_packed": np.packbits(masks),
        f"{folder}/masks_shape": np.array(masks.shape),
    }


def evaluation(arrays: Arrays) -> Arrays:
    """Ground truth in which one detection of each image is the only object: that one is correct, the others are not."""
    found: Arrays = {}
    ranked = []
    for image, true_row in enumerate((0, 3)):
        folder = f"post/swift/{image}"
        shape = arrays[f"{folder}/masks_shape"]
        masks = np.unpackbits(arrays[f"{folder}/masks_packed"])[: np.prod(shape)].reshape(shape)
        classes, scores = arrays[f"{folder}/classes"], arrays[f"{folder}/scores"]
        box = arrays[f"{folder}/boxes"][true_row] / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        ranked += [
            (label, score, row == true_row) for row, (label, score) in enumerate(zip(classes, scores, strict=True))
        ]
        found[f"eval/gt/{image}"] = np.array([[*box, classes[true_row]], [0, 0, 1, 1, -1]])  # the second is a crowd
        gt_masks = np.stack([masks[true_row], np.ones_like(masks[0])])
        found[f"eval/gt_masks_packed/{image}"] = np.packbits(gt_masks)
        found[f"eval/gt_masks_shape/{image}"] = np.array(gt_masks.shape)
    per_class = [[(score, right) for label, score, right in ranked if label == wanted] for wanted in range(CLASSES)]
    for kind in ("box", "mask"):
        found[f"eval/num_gt/{kind}"] = np.tile([sum(right for _, right in rows) for rows in per_class], (10, 1))
        found[f"eval/num_det/{kind}"] = np.tile([len(rows) for rows in per_class], (10, 1))
        found[f"eval/ap_per_class/{kind}"] = np.tile([area(rows) for rows in per_class], (10, 1))
    return found


def printed(per_class: np.ndarray) -> dict[str, float]:
    """Percent, to two digits; every class has detections here, so all count."""
    means = 100 * per_class.mean(axis=1)
    table = {str(percent): round(float(mean), 2) for percent, mean in zip(range(50, 100, 5), means, strict=True)}
    return {"all": round(float(means.mean()), 2)} | table


def area(rows: list[tuple[float, bool]]) -> float:
    """Mean of the best precision at or beyond each of 101 recalls."""
    flags = [right for _, right in sorted(rows, key=lambda row: -row[0])]
    total = sum(flags)
    points = [(sum(flags[: n + 1]) / total, sum(flags[: n + 1]) / (n + 1)) for n in range(len(flags))] if total else []
    return sum(max((p for recall, p in points if recall >= at / 100), default=0) for at in range(101)) / 101


# --- losses ---------------------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def cross_entropy(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -(truth * np.log(p) + (1 - truth) * np.log(1 - p))


@functools.cache
def loss_arrays() -> Arrays:
    """One object, which is the first of five anchors exactly; the three hardest of the other four are negatives."""
    rng = np.random.default_rng(2)
    priors = np.array([[0.5, 0.5, 0.5, 0.5], *([x, y, 0.1, 0.1] for x, y in itertools.product((0.1, 0.9), repeat=2))])
    loc, conf, mask = rng.normal(size=(5, 4)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    proto, segm = np.abs(rng.normal(size=(4, 4, 2))), rng.normal(size=(2, 4, 4))
    loc, conf, mask, proto, segm = (x.astype(np.float16).astype(np.float64) for x in (loc, conf, mask, proto, segm))
    masks = np.zeros((1, 8, 8), dtype=np.uint8)
    masks[0, 2:6, 2:6] = 1
    small = np.zeros((4, 4))  # each of its pixels is one of 2 x 2 of the mask's
    small[1:3, 1:3] = 1
    label = 1
    logs = np.log(np.exp(conf).sum(axis=1, keepdims=True)) - conf  # -log p
    negatives = sorted(sorted(range(1, 5), key=lambda row: -logs[row, 0])[:3])
    costs = [logs[0, label + 1], *(logs[row, 0] for row in negatives)]
    size = np.abs(loc[0])
    box = 1.5 * np.where(size < 1, size**2 / 2, size - 0.5).sum()
    pixels = cross_entropy(sigmoid(proto @ mask[0]), small).sum()
    truth = np.stack([np.zeros((4, 4)), small])
    arrays: Arrays = {
        "pred/loc": loc[None],
        "pred/conf": conf[None],
        "pred/mask": mask[None],
        "pred/proto": proto[None],
        "pred/segm": segm[None],
    }
    arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    return arrays | {
        "priors": priors.astype(np.float32),
        "targets/0": np.array([[0.25, 0.25, 0.75, 0.75, label]], dtype=np.float32),
        "num_crowds": np.array([0]),
        "masks_packed/0": np.packbits(masks),
        "masks_shape/0": np.array(masks.shape),
        "default/conf_t": np.array([[label + 1, 0, 0, 0, 0]]),
        "default/idx_t": np.zeros((1, 5), dtype=np.int64),
        "default/loc_t": np.zeros((1, 5, 4), dtype=np.float32),
        "default/ohem_target": np.array([label + 1, 0, 0, 0]),
        "default/ohem_ce": np.array(costs),
        "default/loss/B": np.array(box),
        "default/loss/C": np.array(sum(costs)),
        "default/loss/M": np.array(6.125 * pixels / (2 * 2)),
        "default/loss/S": np.array(cross_entropy(sigmoid(segm), truth).sum() / 16),
        # Smooth-L1 has the slope of its input, but at most 1.
        "default/grad/loc": np.concatenate([1.5 * loc[:1].clip(-1, 1), np.zeros((4, 4))])[None],
        "meta_json": {},
    }


# --- YOLACT++ -------------------------------------------------------------------------------------------------------

DEFORMABLE = "backbone.layers.1.0.conv2"


def maskiou(state: dict[str, Tensor], masks: Tensor) -> Tensor:
    """(N, C) predicted IoUs of (N, 1, h, w) masks."""
    x = masks
    for layer in range(0, 12, 2):
        weight, bias = (state[f"maskiou_net.maskiou_net.{layer}.{part}"].double() for part in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride=2 if layer < 10 else 1).relu()
    return x.amax(dim=(2, 3))


@functools.cache
def plus_arrays() -> Arrays:
    """A YOLACT++ without outputs of its own: one deformable layer, mask re-scoring, and a loss on synthetic outputs.

    The deformable layer has no offsets and a modulation of one half. Two anchors match one object each; the second
    object has too few pixels of prototypes to train mask re-scoring.
    """
    generator = torch.Generator().manual_seed(9)
    state = dict(weights())
    size = tuple(state[f"{DEFORMABLE}.weight"].shape)
    state[f"{DEFORMABLE}.bias"] = torch.randn(size[0], generator=generator)
    state[f"{DEFORMABLE}.conv_offset_mask.weight"] = torch.zeros(27, size[1], 3, 3)
    state[f"{DEFORMABLE}.conv_offset_mask.bias"] = torch.zeros(27)
    channels = [1, 8, 16, 32, 64, 128, CLASSES]
    for number, (into, out) in enumerate(itertools.pairwise(channels)):
        kernel = 3 if number < 5 else 1
        name = f"maskiou_net.maskiou_net.{2 * number}"
        state[f"{name}.weight"] = torch.randn(out, into, kernel, kernel, generator=generator) / kernel / math.sqrt(into)
        state[f"{name}.bias"] = torch.rand(out, generator=generator)
    features = torch.randn(2, size[1], 7, 6, generator=generator)
    weight, bias = state[f"{DEFORMABLE}.weight"].float(), state[f"{DEFORMABLE}.bias"]
    layer = F.conv2d(features, weight, stride=2, padding=1) / 2 + bias.view(-1, 1, 1)
    soft = torch.rand(3, 1, 70, 81, generator=generator)
    arrays = {f"sd/{name}": tensor.numpy() for name, tensor in state.items()} | {
        "dcn_unit/input": features.numpy(),
        "dcn_unit/output": layer.numpy(),
        "maskiou70/input": soft.numpy(),
        "maskiou70/output": maskiou(state, soft.double()).numpy(),
        "meta_json": {
            "aspect_ratios": RATIOS,
            "pred_scales": SCALES,
            "variant": {"size": 250, "square": False},
            "dcn_unit": {"module": DEFORMABLE},
            "detect": DETECT | {"modes": {"swift": {"conf_thresh": 0.05, "fast": True, "cross_class": False}}},
        },
    }
    arrays |= plus_loss(state)
    train = {name: arrays[f"train/{name}"] for name in ("loc", "conf", "mask")} | {"priors": arrays["train/priors"]}
    rows = detections(train, 0, arrays["meta_json"]["detect"]["modes"]["swift"], DETECT)
    arrays |= {f"det/swift/0/{name}": array for name, array in rows.items()}
    proto = arrays["train/proto"][0]
    frame = image_frame(rows, proto, "post/swift/0")
    ious = maskiou(state, torch.from_numpy(soft_masks(rows, proto))[:, None]).numpy()
    scores = frame.pop("post/swift/0/scores")
    chosen = ious[np.arange(len(scores)), rows["classes"]]
    return arrays | frame | {"post/swift/0/scores_box": scores, "post/swift/0/scores_mask": scores * chosen}


def plus_loss(state: dict[str, Tensor]) -> Arrays:
    rng = np.random.default_rng(10)
    boxes = np.array([[0.25, 0.25, 0.75, 0.75], [0.85, 0.85, 0.9, 0.9]])
    labels = [2, 0]
    priors = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    proto = torch.from_numpy(np.abs(rng.normal(size=(1, 64, 64, 2)))).requires_grad_()
    coefficients = torch.tensor([[[0.8, -0.9], [0.1, 0.2]]], dtype=torch.float64)
    masks = np.zeros((2, 128, 128), dtype=np.uint8)
    masks[0, 40:90, 34:100] = 1  # 25 x 33 pixels of prototypes
    masks[1, 110:116, 110:116] = 1  # 3 x 3
    truth = torch.from_numpy(masks[0, ::2, ::2].astype(np.float64))
    cells = torch.arange(64)
    inside = (cells >= 16 - 1) & (cells < 48 + 1)
    soft = torch.sigmoid(proto[0] @ coefficients[0, 0]) * inside[:, None] * inside[None, :]
    hard = (soft > 0.5).double()
    shared = (hard * truth).sum()
    iou = shared / (hard.sum() + truth.sum() - shared)
    predicted = maskiou(state, soft[None, None])[0, labels[0]]
    error = (predicted - iou).abs()
    loss = 25 * torch.where(error < 1, error**2 / 2, error - 0.5) / 2  # two positives
    [gradient] = torch.autograd.grad(loss, proto)
    return {
        "train/priors": priors.astype(np.float32),
        "train/loc": np.zeros((1, 2, 4)),
        "train/conf": rng.normal(size=(1, 2, CLASSES + 1)),
        "train/mask": coefficients.numpy(),
        "train/proto": proto.detach().float().numpy(),
        "train/segm": rng.normal(size=(1, CLASSES, 32, 32)),
        "loss_plus/priors": priors.astype(np.float32),
        "loss_plus/targets/0": np.concatenate([boxes, np.array(labels)[:, None]], axis=1).astype(np.float32),
        "loss_plus/num_crowds": np.array([0]),
        "loss_plus/masks_packed/0": np.packbits(masks),
        "loss_plus/masks_shape/0": np.array(masks.shape),
        "loss_plus/loss/B": np.array(0.0),
        "loss_plus/loss/I": loss.detach().numpy(),
        "loss_plus/conf_t": np.array([[labels[0] + 1, labels[1] + 1]]),
        "loss_plus/maskiou_target": iou.detach().numpy()[None],
        "loss_plus/maskiou_label": np.array(labels[:1]),
        "loss_plus/maskiou_pred": predicted.detach().numpy()[None],
        "loss_plus/maskiou_input_sum": soft.sum().detach().numpy()[None],
        "loss_plus/dI_dproto": gradient.numpy(),
    }


# --- single functions -----------------------------------------------------------------------------------------------


@functools.cache
def unit_arrays() -> Arrays:
    rng = np.random.default_rng(3)
    corners = rng.random((9, 2)) * 0.5
    boxes = np.concatenate([corners, corners + 0.1 + rng.random((9, 2)) * 0.4], axis=1).astype(np.float32)
    a, b = boxes[:4], boxes[4:]
    center = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    masks_a, masks_b = rng.random((3, 5, 6)) < 0.5, rng.random((2, 5, 6)) < 0.5
    x1, x2 = (rng.random((2, 7)) * 1.4 - 0.2).astype(np.float32)
    shared = np.array([[(x & y).sum() for y in masks_b] for x in masks_a])
    arrays: Arrays = {
        "coding/priors": center,
        "coding/boxes": boxes[::-1],
        "coding/loc": rng.normal(size=(9, 4)),
        "coding/point_form_of_priors": boxes,
        "coding/center_size_of_boxes": center[::-1],
        "iou/a": a,
        "iou/b": b,
        "iou/iou": np.array([[overlap(x, y) for y in b] for x in a]),
        "mask_iou/a": masks_a.astype(np.float32),
        "mask_iou/b": masks_b.astype(np.float32),
        "mask_iou/iou": np.array([[(x & y).sum() / (x | y).sum() for y in masks_b] for x in masks_a]),
        "mask_iou/crowd": shared / masks_a.sum(axis=(1, 2))[:, None],
        "sanitize/x1": x1,
        "sanitize/x2": x2,
        "crop/masks": np.ones((6, 8, 9), dtype=np.float16),
        "crop/boxes": boxes,
    }
    arrays["coding/decoded"] = decoded(arrays["coding/loc"], center)
    offsets = (center[::-1, :2] - center[:, :2]) / center[:, 2:] / 0.1
    arrays["coding/encoded"] = np.concatenate([offsets, np.log(center[::-1, 2:] / center[:, 2:]) / 0.2], axis=1)
    union_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    arrays["iou/crowd"] = (
        arrays["iou/iou"] * (union_a[:, None] + _areas(b)) / (1 + arrays["iou/iou"]) / union_a[:, None]
    )
    for size, padding in ((10, 0), (33, 2)):
        low, high = np.minimum(x1, x2) * size - padding, np.maximum(x1, x2) * size + padding
        arrays[f"sanitize/size{size}_pad{padding}_float/lo"] = low.clip(min=0)
        arrays[f"sanitize/size{size}_pad{padding}_float/hi"] = high.clip(max=size)
        first, second = np.trunc(x1 * size).astype(np.int64), np.trunc(x2 * size).astype(np.int64)
        arrays[f"sanitize/size{size}_pad{padding}_int/lo"] = (np.minimum(first, second) - padding).clip(min=0)
        arrays[f"sanitize/size{size}_pad{padding}_int/hi"] = (np.maximum(first, second) + padding).clip(max=size)
    rows, columns = np.arange(6)[:, None, None], np.arange(8)[None, :, None]
    arrays["crop/kept_pad3"] = (
        (columns >= boxes[:, 0] * 8 - 3)
        & (columns < boxes[:, 2] * 8 + 3)
        & (rows >= boxes[:, 1] * 6 - 3)
        & (rows < boxes[:, 3] * 6 + 3)
    )
    return arrays | nms_arrays() | other_units()


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nms_arrays() -> Arrays:
    rng = np.random.default_rng(4)
    corners = rng.random((40, 2)) * 0.6
    boxes = np.concatenate([corners, corners + 0.15 + rng.random((40, 2)) * 0.25], axis=1).astype(np.float32)
    scores = rng.random((3, 40)).astype(np.float32)
    coefficients = rng.normal(size=(40, 2)).astype(np.float32)
    arrays: Arrays = {"nms/boxes": boxes, "nms/scores": scores, "nms/coeffs": coefficients}
    exact, per_box = boxes.astype(np.float64), scores.T
    for folder, kind, limit, top_k in (
        ("fast_k30_t40", "fast", 0.4, 30),
        ("cross_k25_t20", "cross", 0.2, 25),
        ("trad_t35", "sequential", 0.35, 0),
        ("fast_second_threshold", "fast", 0.5, 200),
    ):
        pairs = suppressed(exact, per_box, kind, limit, top_k, 0.3, 50)
        if folder == "fast_second_threshold":
            pairs = [pair for pair in pairs if per_box[pair] > 0.6]
        rows = [row for row, _ in pairs]
        arrays[f"nms/{folder}/boxes"] = boxes[rows]
        arrays[f"nms/{folder}/coeffs"] = coefficients[rows]
        arrays[f"nms/{folder}/classes"] = np.array([label for _, label in pairs])
        arrays[f"nms/{folder}/scores"] = np.array([per_box[pair] for pair in pairs])
    best = sorted(range(40), key=lambda row: -scores[:, row].max())
    arrays["nms/trad_single/boxes_px"] = boxes * 64
    arrays["nms/trad_single/kept"] = np.array(sorted(sequential(best, exact, 0.5, 64.0)))
    arrays["meta_json"] = {
        "conf_thresh": 0.3,
        "conf_thresh_of_fast_second_threshold": 0.6,
        "max_num_detections": 50,
        "max_size_during_trad_nms": SIZE,
    }
    return arrays


def other_units() -> Arrays:
    """Matching of one object to two anchors; AP by hand; an image that keeps its size."""
    image = np.random.default_rng(6).integers(0, 256, (12, 12, 3), dtype=np.uint8)  # BGR
    mean, std = np.array([103.94, 116.78, 123.68]), np.array([57.38, 57.12, 58.40])
    resnet = ((image - mean) / std)[:, :, ::-1].transpose(2, 0, 1)
    mask = np.zeros((1, 12, 12), dtype=np.uint8)
    mask[0, 3:9, 3:6] = 1
    return {
        "match/priors": np.array([[0.3, 0.3, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]], dtype=np.float32),
        "match/truths": np.array([[0.2, 0.2, 0.4, 0.4]], dtype=np.float32),
        "match/labels": np.array([6]),
        "match/crowd_boxes": np.array([[0.5, 0.5, 1, 1]], dtype=np.float32),
        "match/plain/conf_t": np.array([7, 0]),
        "match/crowd/conf_t": np.array([7, -1]),
        "match/crowd/idx_t": np.array([0, 0]),
        "ap/0/scores": np.array([0.9, 0.8, 0.7]),
        "ap/0/true": np.array([True, False, True]),
        "ap/0/num_gt": np.array(2),
        "ap/0/ap": np.array((51 + 50 * 2 / 3) / 101),
        "prep/image_bgr": image,
        "prep/resnet/cv": resnet,
        "prep/darknet/torch": image[:, :, ::-1].transpose(2, 0, 1) / 255,
        "prep/gt_boxes": np.array([[0.25, 0.25, 0.5, 0.75]]),
        "prep/gt_labels": np.array([4.0]),
        "prep/gt_masks": mask,
        "prep/train_noaug/image": resnet,
        "prep/train_noaug/masks": mask,
        "prep/train_noaug/boxes": np.array([[0.25, 0.25, 0.5, 0.75]]),
        "prep/preserve_ar_wh": np.array([[400, 100, 1100, 275], [100, 400, 275, 1100]]),
    }


# --- configurations -------------------------------------------------------------------------------------------------


def anchor_settings() -> Arrays:
    rows = anchors(SIZE, SIZE).astype(np.float32).astype(np.float64)
    counted = [tensor for name, tensor in weights().items() if not name.endswith(("mean", "var", "tracked"))]
    return {
        "num_priors": len(rows),
        "max_size": SIZE,
        "pred_scales": SCALES,
        "pred_aspect_ratios": [[RATIOS]] * 5,
        "use_square_anchors": False,
        "preapply_sqrt": False,
        "use_pixel_scales": True,
        "selected_layers": [1, 2, 3],
        "num_classes_with_background": CLASSES + 1,
        "proto_shape": [1, 16, 16, PROTOTYPES],
        "segm_shape": [1, CLASSES, 8, 8],
        "column_sums": rows.sum(axis=0).tolist(),
        "column_sums_of_squares": (rows**2).sum(axis=0).tolist(),
        "parameters": sum(tensor.numel() for tensor in counted),
    }


def encoded_meta(arrays: Arrays) -> Arrays:
    """The arrays with ``meta_json`` in its stored form."""
    return {name: np.array(json.dumps(value)) if name == "meta_json" else value for name, value in arrays.items()}
