"""The eight published configurations (dbolya/yolact, ``data/config.py``, and the papers).

Each is a `ModelConfig` with detection settings, the training settings that differ between them, and the published
metrics. `yolact models` lists them, `yolact preset use NAME` trains them, and `yolact import-weights` recognises their
weights. The training settings that all eight share are in ``conf/base.yaml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yolact.backbone_registry import find_backbone
from yolact.class_names import COCO_CLASSES, VOC_CLASSES
from yolact.errors import SettingsError, suggestion
from yolact.settings import PUBLISHED_DETECTION, DetectConfig, ModelConfig

REFERENCE_SIZE = 550
"""Input side, pixels, for which the anchor scales are given; other sizes truncate ``scale / 550 * size``."""

BATCH_SIZE = 8
"""Images per optimizer step, in all eight."""

COCO_SCALES = (24, 48, 96, 192, 384)
"""Anchor sides of P3 to P7, pixels of the reference size."""

PASCAL_SCALES = (32, 64, 128, 256, 512)

RATIOS = (1.0, 0.5, 2.0)
"""width / height of the anchors."""


@dataclass(frozen=True)
class PublishedMetrics:
    """The authors' results, not measured by this project."""

    mask_ap: float
    """Percent; ``metric`` says which AP."""
    metric: str
    """The metric and the images that it was measured on."""
    fps: float
    """Images per second on a Titan Xp, batch size 1."""
    source: str


@dataclass(frozen=True)
class PublishedModel:
    """One published configuration."""

    name: str
    model: ModelConfig
    dataset: str
    classes: tuple[str, ...]
    iterations: int
    """Optimizer steps of `BATCH_SIZE` images."""
    train_images: int
    """Images in the training split; they convert iterations to epochs."""
    lr_steps: tuple[int, ...]
    """Iterations at which the learning rate is multiplied by 0.1."""
    max_masks_per_image: int
    metrics: PublishedMetrics
    detect: DetectConfig = PUBLISHED_DETECTION

    @property
    def epochs(self) -> int:
        """Passes over the training images, rounded."""
        return round(self.iterations * BATCH_SIZE / self.train_images)

    @property
    def description(self) -> str:
        """A description in two sentences."""
        plus = "++" if self.model.mask_rescoring else ""
        backbone = find_backbone(self.model.backbone).title
        return (
            f"The published YOLACT{plus}, {backbone} at {self.model.image_size} px, for "
            f"{self.dataset} ({self.epochs} epochs of {self.train_images:,} images). Detects as published, bugs "
            "included."
        )

    def settings(self) -> dict[str, Any]:
        """The keys of ``params.yaml`` that this configuration sets; the epochs are those of its own data set."""
        return {
            "model": self.model.model_dump(mode="json"),
            "train": {
                "epochs": self.epochs,
                "lr_milestones": [round(step / self.iterations, 4) for step in self.lr_steps],
                "loss": {"max_masks_per_image": self.max_masks_per_image},
            },
            "evaluate": {"detect": self.detect.model_dump(mode="json")},
        }


def scaled(scales: Sequence[int], size: int) -> list[list[float]]:
    """One anchor scale per level for another input size, truncated to whole pixels as published."""
    return [[float(int(scale / REFERENCE_SIZE * size))] for scale in scales]


def thirds(scales: Sequence[float]) -> list[list[float]]:
    """Three anchor scales per level, a third of an octave apart (YOLACT++ paper, "Optimized Prediction Head")."""
    return [[scale * 2 ** (j / 3) for j in range(3)] for scale in scales]


def every(interval: int, blocks: Sequence[int], first_stage: int = 1) -> list[list[int]]:
    """Deformable blocks: every ``interval``-th of each stage, counted from its first (YOLACT++ paper, "Deformable
    Convolution with Intervals").

    Args:
        interval: 1 takes every block.
        blocks: residual blocks per stage.
        first_stage: the first stage with deformable blocks.
    """
    return [
        [] if stage < first_stage else [block for block in range(count) if block % interval == 0]
        for stage, count in enumerate(blocks)
    ]


def _model(
    backbone: str,
    anchor_scales: list[list[float]],
    *,
    image_size: int = REFERENCE_SIZE,
    square_anchors: bool = True,
    deformable_blocks: list[list[int]] | None = None,
    mask_rescoring: bool = False,
) -> ModelConfig:
    return ModelConfig(
        backbone=backbone,
        backbone_blocks=None,
        deformable_blocks=deformable_blocks or [],
        backbone_weights="imagenet",
        initial_weights="none",
        image_size=image_size,
        keep_aspect_ratio=False,
        fpn_channels=256,
        separable_convs=False,
        head_convs=1,
        protonet_convs=3,
        num_prototypes=32,
        anchor_scales=anchor_scales,
        anchor_ratios=list(RATIOS),
        square_anchors=square_anchors,
        mask_rescoring=mask_rescoring,
    )


_BASE_STEPS = (280_000, 600_000, 700_000, 750_000)
_PAPER = "YOLACT paper (arXiv 1904.02689), table 1"
_PLUS_PAPER = "YOLACT++ paper (arXiv 1912.06218); README of dbolya/yolact"


def _coco(
    name: str, model: ModelConfig, ap: float, fps: float, source: str, max_masks_per_image: int = 100
) -> PublishedModel:
    return PublishedModel(
        name=name,
        model=model,
        dataset="COCO 2017",
        classes=COCO_CLASSES,
        iterations=800_000,
        train_images=117_266,
        lr_steps=_BASE_STEPS,
        max_masks_per_image=max_masks_per_image,
        metrics=PublishedMetrics(mask_ap=ap, metric="mask AP on COCO test-dev", fps=fps, source=source),
    )


_MODELS = [
    _coco("yolact_base", _model("resnet101", scaled(COCO_SCALES, 550)), 29.8, 33.5, _PAPER),
    _coco("yolact_im400", _model("resnet101", scaled(COCO_SCALES, 400), image_size=400), 24.9, 45.3, _PAPER),
    _coco(
        "yolact_im700",
        _model("resnet101", scaled(COCO_SCALES, 700), image_size=700),
        31.2,
        23.4,
        _PAPER,
        max_masks_per_image=300,
    ),
    _coco("yolact_resnet50", _model("resnet50", scaled(COCO_SCALES, 550)), 28.2, 45.0, _PAPER),
    _coco("yolact_darknet53", _model("darknet53", scaled(COCO_SCALES, 550)), 28.7, 40.7, _PAPER),
    PublishedModel(
        name="yolact_resnet50_pascal",
        model=_model("resnet50", scaled(PASCAL_SCALES, 550), square_anchors=False),
        dataset="PASCAL SBD",
        classes=VOC_CLASSES,
        iterations=120_000,
        train_images=8_498,
        lr_steps=(60_000, 100_000),
        max_masks_per_image=100,
        metrics=PublishedMetrics(
            mask_ap=72.3,
            metric="mask AP50 on the val split of PASCAL SBD",
            fps=47.6,
            source="YOLACT paper (arXiv 1904.02689), table 3",
        ),
    ),
    _coco(
        "yolact_plus_base",
        _model(
            "resnet101",
            thirds(COCO_SCALES),
            square_anchors=False,
            deformable_blocks=every(3, find_backbone("resnet101").blocks),
            mask_rescoring=True,
        ),
        34.6,
        27.3,
        _PLUS_PAPER,
    ),
    _coco(
        "yolact_plus_resnet50",
        _model(
            "resnet50",
            thirds(COCO_SCALES),
            square_anchors=False,
            deformable_blocks=every(1, find_backbone("resnet50").blocks),
            mask_rescoring=True,
        ),
        34.1,
        33.5,
        _PLUS_PAPER,
    ),
]

PUBLISHED_MODELS: dict[str, PublishedModel] = {model.name: model for model in _MODELS}
"""The eight published configurations by name."""


def find_published(name: str) -> PublishedModel:
    """The published configuration with that name.

    Raises:
        SettingsError: there is none; the message suggests the closest name or lists all.
    """
    if name not in PUBLISHED_MODELS:
        hint = suggestion(name, PUBLISHED_MODELS) or f"there are: {', '.join(PUBLISHED_MODELS)}"
        raise SettingsError(f"no published configuration {name!r}; {hint}")
    return PUBLISHED_MODELS[name]
