"""Predict with an exported network (`yolact.inference.export`), whichever runtime computes it."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from yolact.errors import ExportError
from yolact.inference.detections import Detections
from yolact.inference.export_format import OUTPUT_NAMES, Metadata, network_input
from yolact.inference.postprocess import MaskResolution, detect_decoded, to_images
from yolact.inference.predictor import DetectChanges, ImagePredictor
from yolact.settings import DEFAULT_DETECTION, DetectConfig


class ExportedPredictor(ImagePredictor):
    """Base class of predictors that run an exported file; its steps are `preprocess`, `network` and `postprocess`.

    It can be copied and pickled; the copy opens the file again. After a fork it refuses to predict.

    Args:
        path: the file. If the network re-scores masks, that network's file must be next to it.
        config: detection settings.
        mask_resolution: see `MaskResolution`.
        batch_size: images per forward pass; a file exported for a fixed batch size has its own.
        **changes: fields of ``config``.

    Raises:
        ExportError: the runtime or a file is missing, or a file was not written by `yolact export`; also when
            predicting in a process that was forked after it was opened.
        SettingsError: a setting has a wrong value.
    """

    def __init__(
        self,
        path: Path,
        config: DetectConfig,
        mask_resolution: MaskResolution,
        batch_size: int,
        **changes: Unpack[DetectChanges],
    ) -> None:
        self._path = path
        metadata, self.fixed_batch = self._open()
        """Images in each forward pass of a file that was exported for a fixed batch size; None for any."""
        self._process = os.getpid()
        self.model_config = metadata.model
        super().__init__(
            metadata.classes,
            metadata.category_ids,
            config.replace(**changes),
            mask_resolution,
            self.fixed_batch or batch_size,
        )

    @abstractmethod
    def _open(self) -> tuple[Metadata, int | None]:
        """Open the file, or the two of a network that re-scores masks; returns its fixed batch size, if it has one."""

    @abstractmethod
    def _run(self, inputs: np.ndarray) -> Sequence[np.ndarray]:
        """Arrays in the order of `OUTPUT_NAMES`."""

    @abstractmethod
    def _rescore(self, masks: np.ndarray) -> np.ndarray:
        """(N, Hp, Wp) -> (N, C), by the network that re-scores masks."""

    @property
    @abstractmethod
    def runtime(self) -> str:
        """The runtime's name, for messages."""

    def preprocess(self, images: Sequence[Tensor]) -> np.ndarray:
        """Turn (3, H, W) uint8 RGB images of any sizes into the network's (B, 3, S, S) float32 input.

        A file with a fixed batch size gets as many; the rest is zero.
        """
        size = self.model_config.image_size
        batch = torch.zeros(self.fixed_batch or len(images), 3, size, size)
        for row, image in zip(batch, images, strict=False):
            row.copy_(network_input(image, self.model_config))
        return batch.numpy()

    def network(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network; arrays by the names in `OUTPUT_NAMES`.

        Raises:
            ExportError: this process was forked after the file was opened.
        """
        if os.getpid() != self._process:
            raise ExportError(
                f"{self._path}: was opened before this process was forked, and {self.runtime}'s threads do not "
                "survive a fork; open it in each process, or start processes with spawn"
            )
        return dict(zip(OUTPUT_NAMES, self._run(inputs), strict=True))

    @property
    def maskiou_net(self) -> Callable[[Tensor], Tensor] | None:
        """The mask re-scoring network, (N, Hp, Wp) -> (N, C); None for a network without one."""
        if not self.model_config.mask_rescoring:
            return None
        return lambda masks: torch.from_numpy(self._rescore(masks.numpy()))

    def postprocess(self, outputs: Mapping[str, np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Turn the outputs for images of (height, width) pixels into detections; rows beyond them are ignored."""
        return detections_from_outputs(
            {name: array[: len(sizes)] for name, array in outputs.items()},
            sizes,
            self.classes,
            self.model_config.image_size,
            self.config,
            self.mask_resolution,
            self.maskiou_net,
            keep_aspect_ratio=self.model_config.keep_aspect_ratio,
            category_ids=self.category_ids,
        )

    def forward(self, images: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """As `ImagePredictor.forward`."""
        return self.network(self.preprocess(images))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_session", "_rescoring")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        self._process = os.getpid()


def detections_from_outputs(
    outputs: Mapping[str, np.ndarray],
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[str],
    image_size: int,
    config: DetectConfig = DEFAULT_DETECTION,
    mask_resolution: MaskResolution = "image",
    maskiou_net: Callable[[Tensor], Tensor] | None = None,
    *,
    keep_aspect_ratio: bool = False,
    category_ids: Sequence[int] = (),
) -> list[Detections]:
    """Detections from the outputs of an exported network, whichever runtime ran it.

    Args:
        outputs: arrays by the names in `OUTPUT_NAMES`; `export_format.DESCRIPTION` has their shapes.
        sizes: (height, width) of each of the B images, pixels.
        classes: names by label.
        image_size: side of the network's input, pixels.
        config: detection settings.
        mask_resolution: see `MaskResolution`.
        maskiou_net: the mask re-scoring network, (N, Hp, Wp) -> (N, C); None to keep the boxes' scores.
        keep_aspect_ratio: the network's setting: whether resizing kept the aspect ratio.
        category_ids: COCO's category ids by label, for `Detections.to_coco`; empty for 1, 2, ...

    Returns:
        B entries, in pixels of each image.

    Raises:
        ValueError: an output is missing, or the number of sizes is not B.
    """
    missing = [name for name in OUTPUT_NAMES if name not in outputs]
    if missing:
        raise ValueError(f"outputs: {', '.join(missing)} missing; found {', '.join(outputs) or 'none'}")
    boxes, scores, coefficients, prototypes = (torch.from_numpy(np.asarray(outputs[name])) for name in OUTPUT_NAMES)
    candidates = detect_decoded(boxes, scores, coefficients, config, image_size)
    return to_images(
        candidates,
        prototypes,
        sizes,
        classes,
        config,
        mask_resolution,
        maskiou_net,
        keep_aspect_ratio=keep_aspect_ratio,
        category_ids=category_ids,
    )
