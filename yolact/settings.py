"""The settings of the library, typed and checked: network, training, detection, evaluation, runtime.

The models mirror sections of ``params.yaml``, the only place where a setting has its value, and so have no defaults
(`DEFAULT_DETECTION` and `PUBLISHED_DETECTION` are facts, not settings). The whole file, with the sections of the
pipeline's steps, is `yolact_ops.settings.params`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from yolact.backbone_registry import backbones, find_backbone
from yolact.errors import SettingsError, suggestion

PYRAMID_LEVELS = 5
"""Levels of the feature pyramid, P3 to P7 (paper section 4)."""

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ImageSize = Annotated[int, Field(ge=64, le=4096)]
"""Side of the square network input, pixels. At 4096 the network works 55 times as long as at the published 550; a
larger number is a typo."""


class Section(BaseModel):
    """A section of ``params.yaml``: unknown keys, missing keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SampleConfig(Section):
    """The generated sample data set in the VOC format (`yolact.formats.sample`)."""

    seed: NonNegativeInt
    """Seed of the images."""
    train_images: PositiveInt
    """Number of images to generate for training."""
    val_images: PositiveInt
    """Number of images to generate for validation."""
    min_size: Annotated[int, Field(ge=64)]
    """Shortest image side, pixels."""
    max_size: Annotated[int, Field(le=2000)]
    """Longest image side, pixels."""
    max_objects: PositiveInt
    """Maximum number of objects drawn in one image."""

    @model_validator(mode="after")
    def _sizes_ordered(self) -> SampleConfig:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size ({self.min_size}) must not be larger than max_size ({self.max_size})")
        return self


IMAGENET_VERSIONS = {"imagenet": 1, "imagenet-v2": 2}
"""Values of ``model.backbone_weights`` that name weights of ImageNet, and their version: torchvision has newer ones for
some backbones."""

MIN_RESCORING_SIZE = 249
"""Smallest input for which five unpadded stride-2 convolutions leave at least one cell of the prototype grid."""


class ModelConfig(Section):
    """The network. `yolact.models.published` has the published configurations."""

    backbone: str
    """A name in `yolact.backbone_registry`, or ``timm/NAME``."""
    backbone_blocks: Annotated[list[PositiveInt], Field(min_length=1)] | None
    """Residual blocks per stage; None uses the named backbone's defaults. Only ResNets and Darknet-53 take others."""
    deformable_blocks: list[list[NonNegativeInt]]
    """YOLACT++: per stage of a bottleneck ResNet, the blocks (from 0) whose 3x3 convolution is deformable; empty for
    none (YOLACT++ paper, "Deformable Convolution with Intervals")."""
    backbone_weights: Annotated[str, Field(min_length=1)]
    """``none`` (train from scratch, batch norm included), ``imagenet`` (the backbone's ImageNet weights; batch norm is
    frozen), ``imagenet-v2`` (torchvision's newer ones), or a file with the ``state_dict`` of a backbone or of a whole
    network (likewise). The step ``train`` takes addresses too, see ``initial_weights``."""
    initial_weights: Annotated[str, Field(min_length=1)]
    """``none``, or a folder with ``model.safetensors`` and ``model.json``: every layer that fits is loaded from it,
    batch norm is frozen, and ``backbone_weights`` is ignored (`yolact.models.starting_weights`). The step ``train``
    takes ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` and ``s3://BUCKET/FOLDER`` too."""
    image_size: ImageSize
    """Side of the square network input, pixels."""
    keep_aspect_ratio: bool
    """Resize images so that their longer side is ``image_size``, and fill the rest of the square, right and below, with
    the mean colour. False stretches them to the square, as published (paper section 4)."""
    fpn_channels: PositiveInt
    """Channels of the pyramid, and of protonet and head up to their last convolutions."""
    separable_convs: bool
    """Depthwise-separable 3x3 convolutions with batch norm in pyramid, protonet and head, and 1x1 convolutions as the
    head's outputs (`yolact.models.separable`): several times cheaper. Published: plain convolutions, no batch norm."""
    head_convs: PositiveInt
    """3x3 convolutions of the head before its outputs (published: 1)."""
    protonet_convs: NonNegativeInt
    """3x3 convolutions of the protonet before its upsampling (published: 3); one follows it."""
    num_prototypes: PositiveInt
    """k of the paper, section 3.1; also the number of mask coefficients per anchor."""
    anchor_scales: Annotated[list[list[PositiveFloat]], Field(min_length=PYRAMID_LEVELS, max_length=PYRAMID_LEVELS)]
    """Sides in pixels of an input of ``image_size``, one list per level P3 to P7; they scale with the input."""
    anchor_ratios: Annotated[list[PositiveFloat], Field(min_length=1)]
    """width / height."""
    square_anchors: bool
    """Make height equal to width, as the published YOLACT (not ++, not Pascal) weights expect."""
    mask_rescoring: bool
    """YOLACT++: predict each mask's IoU and multiply the class score by it (YOLACT++ paper, "Fast Mask Re-Scoring
    Network"). Needs prototypes of at least 63 x 63, so an image_size of at least 249."""

    @field_validator("backbone")
    @classmethod
    def _backbone_is_registered(cls, name: str) -> str:
        try:
            return find_backbone(name).name
        except SettingsError as error:
            raise ValueError(str(error)) from error

    @field_validator("anchor_scales")
    @classmethod
    def _every_level_has_a_scale(cls, scales: list[list[float]]) -> list[list[float]]:
        widths = {len(level) for level in scales}
        if widths == {0} or len(widths) != 1:
            raise ValueError("every level needs the same number of scales, at least one (the head is shared)")
        return scales

    @model_validator(mode="after")
    def _stages_fit(self) -> ModelConfig:
        spec = find_backbone(self.backbone)
        if spec.fixed and self.blocks != spec.blocks:
            raise ValueError(f"backbone_blocks must be null for {self.backbone}, whose blocks are fixed")
        if len(self.blocks) != len(spec.blocks):
            raise ValueError(f"backbone_blocks must have {len(spec.blocks)} numbers for {self.backbone}")
        return self

    @model_validator(mode="after")
    def _deformable_blocks_exist(self) -> ModelConfig:
        if not any(self.deformable_blocks):
            return self
        if not find_backbone(self.backbone).deformable:
            allowed = ", ".join(spec.name for spec in backbones() if spec.deformable)
            raise ValueError(f"deformable_blocks need one of the backbones {allowed}, not {self.backbone}")
        blocks = self.blocks
        if len(self.deformable_blocks) != len(blocks):
            raise ValueError(f"deformable_blocks must be empty or have a list for each of the {len(blocks)} stages")
        for stage, (chosen, count) in enumerate(zip(self.deformable_blocks, blocks, strict=True)):
            if len(set(chosen)) != len(chosen) or any(block >= count for block in chosen):
                raise ValueError(
                    f"deformable_blocks: stage {stage} has {count} blocks, 0 to {count - 1}, each to be named once; "
                    f"found {chosen}"
                )
        return self

    @model_validator(mode="after")
    def _prototypes_large_enough(self) -> ModelConfig:
        if self.mask_rescoring and self.image_size < MIN_RESCORING_SIZE:
            raise ValueError(f"mask_rescoring needs an image_size of at least {MIN_RESCORING_SIZE}")
        return self

    @property
    def blocks(self) -> tuple[int, ...]:
        """Residual blocks per stage."""
        return tuple(self.backbone_blocks or find_backbone(self.backbone).blocks)

    @property
    def pretrained(self) -> bool:
        """Whether training starts from pretrained weights; the backbone's batch norm is then frozen."""
        return self.backbone_weights != "none" or self.initial_weights != "none"

    @property
    def trains_batch_norm(self) -> bool:
        """Whether some batch norm is trained: that of a backbone from scratch, or of separable convolutions."""
        return not self.pretrained or self.separable_convs

    @property
    def anchors_per_cell(self) -> int:
        return len(self.anchor_ratios) * len(self.anchor_scales[0])


class AugmentConfig(Section):
    """SSD-style augmentation (SSD section 2.2, as published), whose probabilities are in `yolact.data.augment`; and
    what came later."""

    photometric: bool
    """Change brightness, contrast, hue and saturation at random."""
    expand: bool
    """Put the image at a random place of a larger one, filled with the mean colour: objects become smaller."""
    random_crop: bool
    """Cut a random part out of the image: objects become larger."""
    mirror: bool
    """Mirror half of the images, left to right."""
    scale_jitter: list[PositiveFloat]
    """Large-scale jitter (Ghiasi et al. 2021): the range of the factor by which the image is enlarged or reduced, then
    cropped or padded; empty for none. It takes the place of ``expand`` and ``random_crop``."""
    copy_paste: Fraction
    """Probability that objects of another training image are pasted, with their masks (Ghiasi et al. 2021)."""
    mosaic: Fraction
    """Probability that the image is a mosaic of four training images (Bochkovskiy et al. 2020, YOLOv4)."""
    mosaic_until: Fraction
    """Fraction of the run's epochs, rounded, in which there are mosaics; the last ones have whole images (Ge et al.
    2021, YOLOX)."""
    image_sizes: list[ImageSize]
    """Multi-scale training: the input's side is drawn from these for each batch; if empty, it is always
    ``model.image_size``."""

    @field_validator("scale_jitter")
    @classmethod
    def _scale_jitter_is_a_range(cls, scales: list[float]) -> list[float]:
        if scales and (len(scales) != 2 or scales[0] > scales[1]):
            raise ValueError("must be empty, or the smallest and the largest factor, as [0.1, 2.0]")
        return scales

    @model_validator(mode="after")
    def _one_way_to_change_the_scale(self) -> AugmentConfig:
        if self.scale_jitter and (self.expand or self.random_crop):
            raise ValueError("scale_jitter takes the place of expand and random_crop: set both to false")
        return self

    def mosaic_epochs(self, epochs: int) -> int:
        """How many of a run's first ``epochs`` have mosaics."""
        return round(self.mosaic_until * epochs) if self.mosaic else 0


PUBLISHED_AUGMENTATION = AugmentConfig(
    photometric=True,
    expand=True,
    random_crop=True,
    mirror=True,
    scale_jitter=[],
    copy_paste=0,
    mosaic=0,
    mosaic_until=0.85,
    image_sizes=[],
)
"""The published augmentation; `yolact_bench` measures it."""


class LossConfig(Section):
    """Weights and thresholds of the training loss (paper section 3.3 and the published code)."""

    weights: dict[str, NonNegativeFloat]
    """Weight of each term of `yolact.losses.terms.LOSS_TERMS`, by name; training checks the names. ``mask_iou`` is read
    only with ``model.mask_rescoring``."""
    mask_iou_min_area: NonNegativeInt
    """Objects with at most this many prototype pixels do not train the mask re-scoring (published: 25)."""
    positive_iou: Fraction
    """An anchor with IoU >= this is positive."""
    negative_iou: Fraction
    """An anchor with IoU < this is background; in between it is ignored."""
    crowd_overlap: Fraction
    """An anchor that is not positive is ignored if more than this share of its area is inside a crowd box."""
    assignment: Literal["iou", "atss"]
    """Which anchors are positive: ``iou``, by ``positive_iou`` and ``negative_iou`` (published); ``atss``, by the
    statistics of each object's own candidates, without those two (Zhang et al. 2020, "ATSS")."""
    class_targets: Literal["one_hot", "iou"]
    """What the score of a positive learns: 1 (published), or ``iou``, the IoU of the predicted box with its object, the
    rest being background (Li et al. 2020, "Generalized Focal Loss": quality and class as one score)."""
    box: Literal["smooth_l1", "giou", "diou", "ciou"]
    """Loss of the positives' boxes: smooth L1 of the offsets (published), or 1 minus the generalized (Rezatofighi et
    al. 2019), distance or complete IoU (Zheng et al. 2020) of the decoded boxes."""
    mask_dice: NonNegativeFloat
    """Weight within the mask loss of 1 minus each mask's Dice coefficient (Milletari et al. 2016), beside the
    cross-entropy; 0 as published."""
    mask_upsampling: Literal[1, 2]
    """Sides of the masks in the loss, as a multiple of the prototypes'; 2 enlarges the assembled masks bilinearly, as
    detection does, and compares them with finer true masks (CondInst, Tian et al. 2020, does so too)."""
    negatives_per_positive: PositiveInt
    """Online hard example mining, SSD section 2.2."""
    max_masks_per_image: PositiveInt
    """Maximum number of positives per image in the mask loss, chosen at random."""

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> LossConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou ({self.negative_iou}) must not be larger than positive_iou ({self.positive_iou})"
            )
        return self


def _auto_or_at_least(least: int) -> BeforeValidator:
    """One message for both kinds of values, instead of pydantic's one for each."""

    def check(value: object) -> object:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise ValueError(f"must be auto, or a whole number of at least {least}")

    return BeforeValidator(check)


class TrainConfig(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of the initial weights, of the order of the images and of their augmentation."""
    epochs: Annotated[int | Literal["auto"], _auto_or_at_least(1)]
    """Passes over the training images; ``auto`` chooses them by the number of images
    (`yolact.engine.automatic.automatic_epochs`)."""
    batch_size: PositiveInt
    """Images per optimizer step, over all processes and gradient-accumulation steps."""
    sampling: Literal["uniform", "class_balanced"]
    """``uniform`` draws each image once per epoch; ``class_balanced`` draws images of rare classes more often
    (`yolact.data.loader.repeat_factors`)."""
    repeat_threshold: Annotated[float, Field(gt=0, le=1)]
    """With ``class_balanced``: classes in a smaller share of the images are oversampled by the square root of threshold
    / share (Gupta et al. 2019 use 0.001 for the 1,203 classes of LVIS)."""
    accumulate: PositiveInt
    """Gradient-accumulation steps per batch; the gradients are those of the whole batch. Divides ``batch_size``."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Precision of the network's forward and backward pass (automatic mixed precision); weights, losses and optimizer
    stay in float32. ``fp16`` scales the gradients (Micikevicius et al. 2018, section 3.2)."""
    freeze: Literal["auto", "none", "stem", "stage1", "stage2", "stage3", "stage4", "stage5", "backbone"]
    """Layers of the backbone that are not trained: ``none``; ``stem``, all before the first stage of residual blocks;
    ``stageN``, the stem and the first N stages; ``backbone``, all of it. Needs pretrained weights. ``auto`` chooses by
    the number of images (`yolact.engine.automatic.automatic_freeze`)."""
    fit_anchors: bool
    """Whether the network's anchors are fitted to the objects of the training images before it is made
    (`yolact.engine.automatic.fitted_anchors`); without, they are those of ``model``."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the moving average of the weights, which is then validated and saved; 0 for none."""
    optimizer: Literal["sgd", "adamw"]
    """``sgd`` as published; ``adamw`` (Loshchilov and Hutter 2019) learns faster from scratch."""
    lr: PositiveFloat
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Momentum of ``sgd``; beta 1 of ``adamw``."""
    weight_decay: NonNegativeFloat
    """Weight decay of the optimizer (L2 penalty of ``sgd``, decoupled with ``adamw``)."""
    decay_norms: bool
    """Whether weight decay also applies to biases and normalisation layers, as published."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """The learning rate of the backbone's last stage is multiplied by this, that of the stage before by its square and
    so on to the stem (Bao et al. 2021, "BEiT", layer-wise decay); 1 for none, as published. Less than 1 needs
    pretrained weights."""
    schedule: Literal["step", "cosine"]
    """``step``: x ``lr_gamma`` at each of ``lr_milestones``; ``cosine``: from the peak to zero after warm-up."""
    lr_milestones: list[Fraction]
    """Fractions of the run, ascending; read by ``step`` only."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)]
    """Factor of the learning rate at each of ``lr_milestones``; read by ``step`` only."""
    warmup_steps: Annotated[int | Literal["auto"], _auto_or_at_least(0)]
    """``auto``: 500 as published, but at most a tenth of the run."""
    warmup_start_lr: NonNegativeFloat
    """Learning rate of step 0, at most ``lr``; rises linearly to ``lr`` over ``warmup_steps``."""
    max_grad_norm: NonNegativeFloat
    """Clip the gradients to this global norm; 0 does not clip, as published."""
    validate_every: PositiveInt
    """Epochs between validations; the last epoch is always validated."""
    patience: NonNegativeInt
    """Stop after this many validations in a row without a better mask AP; 0 disables early stopping."""
    validation_pictures: NonNegativeInt
    """Number of validation images whose detections each validation draws for MLflow."""
    log_every: PositiveInt
    """Steps between logged loss values, which are means over the steps since the last log."""
    augment: AugmentConfig
    loss: LossConfig

    @property
    def num_epochs(self) -> int:
        """``epochs``, for which `yolact.engine.automatic.resolve` has chosen a number if it was ``auto``."""
        assert isinstance(self.epochs, int), "train.epochs: auto was not resolved"
        return self.epochs

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide batch_size ({self.batch_size})")
        return self

    @model_validator(mode="after")
    def _warmup_rises(self) -> TrainConfig:
        if self.warmup_start_lr > self.lr:
            raise ValueError(f"warmup_start_lr ({self.warmup_start_lr}) must not be larger than lr ({self.lr})")
        return self

    @field_validator("lr_milestones")
    @classmethod
    def _ascending(cls, milestones: list[float]) -> list[float]:
        if milestones != sorted(set(milestones)):
            raise ValueError("fractions must be ascending and distinct")
        return milestones


class DetectConfig(Section):
    """From raw outputs to detections (`yolact.inference.postprocess`).

    The last three are quirks of the published code, off by default; docs/accuracy.md lists the cost of each.
    """

    score_threshold: Fraction
    """Only detections with a score above this are kept."""
    nms: Literal["fast", "cross_class", "traditional"]
    """``fast``: per class (paper section 5, "Fast NMS"); ``cross_class``: the same in one pass over all classes;
    ``traditional``: sequential, per class."""
    nms_iou: Fraction
    """IoU of two boxes above which the one with the lower score is suppressed."""
    top_k: PositiveInt
    """Maximum number of candidates in Fast NMS: per class with ``fast``, in total with ``cross_class``; ignored by
    ``traditional``."""
    max_detections: PositiveInt
    """Maximum number of detections in an image, those with the best scores."""
    low_score_tail: bool
    """With ``fast``, keep boxes whose score in their own class is below ``score_threshold``."""
    integer_boxes: bool
    """Truncate boxes to whole pixels; keep boxes without area; traditional NMS adds a pixel to their sides."""
    crop_before_enlarging: bool
    """Apply sigmoid and crop at the prototypes' resolution and enlarge the result, which blurs and shifts edges."""

    def replace(self, **changes: Any) -> DetectConfig:
        """A copy with other values of some fields.

        Raises:
            SettingsError: a field is unknown or has a wrong value.
        """
        try:
            return DetectConfig.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            raise SettingsError(
                "\n".join(f"detection: {explain(detail, DetectConfig)}" for detail in error.errors())
            ) from error


DEFAULT_DETECTION = DetectConfig(
    score_threshold=0.05,
    nms="fast",
    nms_iou=0.5,
    top_k=200,
    max_detections=100,
    low_score_tail=False,
    integer_boxes=False,
    crop_before_enlarging=False,
)
"""The published settings (dbolya/yolact ``coco_base_config``) without the published code's quirks."""

PUBLISHED_DETECTION = DEFAULT_DETECTION.model_copy(
    update={"low_score_tail": True, "integer_boxes": True, "crop_before_enlarging": True}
)
"""The published code's behaviour, quirks included."""


class EvaluateConfig(Section):
    batch_size: PositiveInt
    """Maximum number of images per forward pass, also in validations during training (there per process). Affects
    results only by rounding, so a change does not trigger training."""
    gallery_images: NonNegativeInt
    """Number of images in the gallery of the report."""
    gallery_score: Fraction
    """The gallery shows detections with a score above this."""
    detect: DetectConfig


class RuntimeConfig(Section):
    """How and where to run. These settings are not meant to change results, so no step reruns when they change."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
    """``auto`` selects a GPU if there is one. With several processes, each uses the GPU of its local rank."""
    processes: Annotated[int | Literal["auto"], _auto_or_at_least(1)]
    """Processes that train together on this machine, each on a GPU of its own (on the CPU, they share its cores).
    ``auto``: as many as this machine has GPUs, or one if ``device`` is not ``auto`` or ``cuda``. Does not apply under
    ``torchrun``, which has started them already."""
    threads: Annotated[int | Literal["auto"], _auto_or_at_least(1)]
    """CPU threads that PyTorch computes with in each process that trains, evaluates or measures. ``auto``: as many as
    the process may use cores, and processes on one machine share them. The last digits of results on a CPU depend on
    it."""
    workers: Annotated[int | Literal["auto"], _auto_or_at_least(0)]
    """Loader processes of each training process; 0 loads in the training process. ``auto``: one for each
    thread that the training process computes with, 8 at most. Results do not depend on it."""
    shards: Annotated[str, Field(pattern=r"^(local|s3://[^/]+(/.+)?)$")]
    """``local``: images are next to the annotations. ``s3://bucket/prefix``: preprocess puts shards there
    (``data.shard_size``) instead, and the other steps read images one by one from there."""
    shard_cache_gb: NonNegativeFloat
    """Maximum size of the images from S3 that each training process keeps in the folder for temporary files (TMPDIR),
    10^9 bytes; 0: none."""
    compile: bool
    """Compile the network with ``torch.compile``. The first step of each input size then takes minutes."""
    deterministic: bool
    """On a GPU, use deterministic algorithms where PyTorch has them; slower. CPUs are always deterministic."""
    checkpoint_every: PositiveInt
    """Epochs between checkpoints; one is also written after each validation and after the last epoch."""
    checkpoint_every_steps: NonNegativeInt
    """Steps between checkpoints within an epoch; 0 for none."""
    keep_checkpoints: PositiveInt
    """Number of checkpoints on disk; older ones are deleted."""
    checkpoint_mirror: Annotated[str, Field(pattern=r"^(none|s3://[^/]+(/.+)?)$")]
    """``none``, or ``s3://bucket/prefix``: a mirror of the checkpoints, from which a machine without local ones
    resumes."""
    max_restarts: NonNegativeInt
    """How often a training that crashed, was killed or hangs is started again from its checkpoint; the count starts
    over with each new checkpoint. 0: never, and a single process then trains without a supervisor. Does not apply under
    ``torchrun``."""
    hang_timeout: NonNegativeInt
    """Seconds without a finished training step, validation batch or checkpoint after which the training process counts
    as hanging; start-up counts too. 0 for never."""


class TrainingParams(Section):
    """The sections that training reads, checked against each other."""

    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    runtime: RuntimeConfig

    @model_validator(mode="after")
    def _training_sizes_large_enough(self) -> TrainingParams:
        sizes = self.train.augment.image_sizes
        if self.model.mask_rescoring and sizes and min(sizes) < MIN_RESCORING_SIZE:
            raise ValueError(
                f"train.augment.image_sizes: with model.mask_rescoring each must be at least {MIN_RESCORING_SIZE}, "
                f"found {min(sizes)}"
            )
        return self

    @model_validator(mode="after")
    def _rescoring_sees_prototypes(self) -> TrainingParams:
        if self.model.mask_rescoring and self.train.loss.mask_upsampling != 1:
            raise ValueError(
                "train.loss.mask_upsampling: must be 1 with model.mask_rescoring, which is trained on masks of the "
                "prototypes' size"
            )
        return self

    @model_validator(mode="after")
    def _frozen_layers_have_weights(self) -> TrainingParams:
        freeze = self.train.freeze
        if freeze in ("auto", "none"):
            return self
        stages = len(self.model.blocks)
        if freeze.startswith("stage") and int(freeze.removeprefix("stage")) > stages:
            raise ValueError(f"train.freeze: is {freeze}, but {self.model.backbone} has {stages} stages")
        if not self.model.pretrained:
            raise ValueError(
                f"train.freeze: is {freeze}, but there are no weights to keep: set model.backbone_weights or "
                "model.initial_weights, or train.freeze: none"
            )
        return self

    @model_validator(mode="after")
    def _slow_layers_have_weights(self) -> TrainingParams:
        decay = self.train.layer_decay
        if decay < 1 and not self.model.pretrained:
            raise ValueError(
                f"train.layer_decay: is {decay}, with which a backbone without pretrained weights hardly learns: set "
                "train.layer_decay: 1, or model.backbone_weights or model.initial_weights"
            )
        return self


def key_names(model: type[BaseModel]) -> list[str]:
    """The keys of a section, as ``params.yaml`` spells them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_at(path: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel] | None:
    """The class that holds the key ``path`` of ``model``, or None if the path does not lead through sections."""
    for part in path[:-1]:
        field = next((f for name, f in model.model_fields.items() if (f.alias or name) == part), None)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def explain(detail: Any, model: type[BaseModel]) -> str:
    """One pydantic error on ``model`` as a line: key path, what was found, what is allowed."""
    path = detail["loc"]
    key = ".".join(str(part) for part in path)
    if detail["type"] == "extra_forbidden":
        section = _section_at(path, model)
        allowed = key_names(section) if section else []
        hint = suggestion(str(path[-1]), allowed) or f"allowed here: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: missing; conf/base.yaml has it with its published value"
    found = detail["input"]
    shown = "" if isinstance(found, (dict, BaseModel)) else f" (found {found!r})"
    message = detail["msg"].removeprefix("Value error, ")
    if not path:  # validation across sections: the message begins with the key
        return message
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"
