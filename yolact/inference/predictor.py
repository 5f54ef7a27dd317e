"""Inference: from images to detections."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from yolact.devices import adapt_to_fork, choose_device
from yolact.errors import SettingsError
from yolact.images import ACCEPTED, ImageInput, is_single_image, read_image
from yolact.inference.detections import Detections
from yolact.inference.network import InferenceNetwork, Precision
from yolact.inference.postprocess import MaskResolution, detect, to_images
from yolact.models.weights import load_model, read_category_ids
from yolact.models.yolact import Yolact
from yolact.settings import DEFAULT_DETECTION, DetectConfig, ModelConfig
from yolact.structures import RawOutputs
from yolact.transforms import normalize, to_padded_square, to_square


class DetectChanges(TypedDict, total=False):
    """Fields of `DetectConfig` to override."""

    score_threshold: float
    nms: Literal["fast", "cross_class", "traditional"]
    nms_iou: float
    top_k: int
    max_detections: int
    low_score_tail: bool
    integer_boxes: bool
    crop_before_enlarging: bool


class ImagePredictor(ABC):
    """Base class of predictors: takes images in any form, in batches, and returns detections in each image's frame.

    Args:
        classes: name of label 0, 1, ...
        category_ids: COCO's category id of label 0, 1, ..., for `Detections.to_coco`; empty for 1, 2, ...
        config: detection settings.
        mask_resolution: see `MaskResolution`.
        batch_size: images per forward pass.

    Raises:
        SettingsError: the mask resolution is not a `MaskResolution`, or the batch size is below 1.
    """

    model_config: ModelConfig
    """Settings of the network."""

    def __init__(
        self,
        classes: Sequence[str],
        category_ids: Sequence[int],
        config: DetectConfig,
        mask_resolution: MaskResolution,
        batch_size: int,
    ) -> None:
        adapt_to_fork()
        pixels = isinstance(mask_resolution, int) and mask_resolution >= 1
        if not pixels and mask_resolution not in ("image", "prototypes"):
            raise SettingsError(
                f"mask_resolution {mask_resolution!r}: must be 'image', 'prototypes' or a number of pixels"
            )
        if batch_size < 1:
            raise SettingsError(f"batch_size {batch_size}: must be at least 1")
        self.classes = list(classes)
        self.category_ids = list(category_ids or range(1, len(classes) + 1))
        self.config = config
        self.mask_resolution = mask_resolution
        self.batch_size = batch_size

    @property
    def images_at_once(self) -> int:
        """Images of a batch that the network runs at once, at most ``batch_size``."""
        return self.batch_size

    @abstractmethod
    def forward(self, images: Sequence[Tensor]) -> Any:
        """Run the network on at most ``batch_size`` (3, H, W) uint8 RGB images of any sizes; for `postprocess`."""

    @abstractmethod
    def postprocess(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Turn what `forward` returned for B images of (height, width) pixels into detections."""

    def _predict_batch(self, images: list[Tensor]) -> list[Detections]:
        return self.postprocess(self.forward(images), [(image.shape[-2], image.shape[-1]) for image in images])

    @overload
    def predict(self, images: ImageInput) -> Detections: ...  # type: ignore[overload-overlap]  # a str is iterable too

    @overload
    def predict(self, images: Iterable[ImageInput]) -> list[Detections]: ...

    def predict(self, images: ImageInput | Iterable[ImageInput]) -> Detections | list[Detections]:
        """Detect objects in one image, or in several of any sizes.

        Args:
            images: an `ImageInput`, or several: a list, a generator, or a (B, 3, H, W) uint8 RGB tensor. A generator
                is read a batch at a time.

        Raises:
            ValueError: an image has another shape or dtype.
            TypeError: an image is none of the forms of `ImageInput`.
            DataError: a file is missing or cannot be decoded.

        Returns:
            Detections in image pixels, on the CPU; a list for several.
        """
        adapt_to_fork()
        if is_single_image(images):
            return self._predict_batch([read_image(images)])[0]  # type: ignore[arg-type]
        if not isinstance(images, Iterable) or isinstance(images, Mapping):
            raise TypeError(f"images must be {ACCEPTED}, or a list of these; found {type(images).__name__}")
        left = iter(images)
        found: list[Detections] = []
        while batch := list(itertools.islice(left, self.batch_size)):
            found += self._predict_batch([read_image(image) for image in batch])
        return found


class Predictor(ImagePredictor):
    """Runs a trained network on images.

    It can be copied and pickled, also to other processes, unless it is compiled. After a fork it computes with one CPU
    thread, see `yolact.devices.adapt_to_fork`; on a GPU, load it in each process.

    Args:
        model: the network, on the device to run on; the predictor uses a copy (see ``in_place``).
        classes: name of label 0, 1, ...
        config: detection settings.
        precision: ``fp32``; ``bf16``, half the memory and faster on hardware that supports it; or ``fp16``, on GPUs
            only.
        compile, in_place: see `InferenceNetwork`.
        mask_resolution: see `MaskResolution`. Boxes are always in image pixels.
        batch_size: images per forward pass.
        category_ids: COCO's category id of label 0, 1, ..., for `Detections.to_coco`; empty for 1, 2, ...

    Raises:
        SettingsError: the device does not support the precision, the mask resolution is not a `MaskResolution`, or
            the batch size is below 1.
    """

    def __init__(
        self,
        model: Yolact,
        classes: Sequence[str],
        config: DetectConfig = DEFAULT_DETECTION,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        mask_resolution: MaskResolution = "image",
        batch_size: int = 8,
        in_place: bool = False,
        category_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(classes, category_ids, config, mask_resolution, batch_size)
        self.network = InferenceNetwork(model, precision, compile=compile, in_place=in_place)
        self.model_config = model.config

    @classmethod
    def load(
        cls,
        directory: Path | str,
        config: DetectConfig = DEFAULT_DETECTION,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        compile: bool = False,
        mask_resolution: MaskResolution = "image",
        batch_size: int = 8,
        **changes: Unpack[DetectChanges],
    ) -> Predictor:
        """Load a model that training or `yolact import-weights` wrote to ``directory``.

        ``changes`` override fields of ``config``: ``Predictor.load("models", score_threshold=0.3, nms="cross_class")``.

        Raises:
            WeightsError: see `load_model`.
            SettingsError: a setting is invalid, or the device is unavailable or does not support the precision.
        """
        adapt_to_fork()
        config = config.replace(**changes)
        model, classes = load_model(Path(directory), choose_device(device))
        return cls(
            model,
            classes,
            config,
            precision=precision,
            compile=compile,
            mask_resolution=mask_resolution,
            batch_size=batch_size,
            in_place=True,
            category_ids=read_category_ids(Path(directory)),
        )

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.network.device

    @property
    def images_at_once(self) -> int:
        """As `ImagePredictor.images_at_once`; see `InferenceNetwork.images_at_once`."""
        side = self.model_config.image_size
        return min(self.batch_size, self.network.images_at_once(side, side) or self.batch_size)

    def forward(self, images: Sequence[Tensor]) -> RawOutputs:
        """As `ImagePredictor.forward`."""
        return self.network(self.preprocess(images))

    @torch.no_grad()
    def preprocess(self, images: Sequence[Tensor]) -> Tensor:
        """Turn (3, H, W) uint8 RGB images of any sizes into the network's (B, 3, S, S) float32 input."""
        config = self.model_config
        resize = to_padded_square if config.keep_aspect_ratio else to_square
        batch = torch.stack([resize(image.to(self.device), config.image_size) for image in images])
        return normalize(batch, self.network.normalization)

    @torch.no_grad()
    def postprocess(self, outputs: RawOutputs, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Turn the network's outputs for B images of (height, width) pixels into detections."""
        candidates = detect(outputs, self.config, self.model_config.image_size)
        return to_images(
            candidates,
            outputs.prototypes,
            sizes,
            self.classes,
            self.config,
            self.mask_resolution,
            self.network.maskiou_net,
            keep_aspect_ratio=self.model_config.keep_aspect_ratio,
            category_ids=self.category_ids,
        )
