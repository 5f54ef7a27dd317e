"""Predict with an exported network (`yolact.inference.export`) in onnxruntime."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from yolact.errors import ExportError
from yolact.inference.detections import Detections
from yolact.inference.export import FORMAT, INPUT_NAME, MASKS_NAME, OUTPUT_NAMES, open_session, rescoring_path
from yolact.inference.postprocess import MaskResolution, detect_decoded, to_images
from yolact.inference.predictor import DetectChanges, ImagePredictor
from yolact.settings import DEFAULT_DETECTION, DetectConfig, ModelConfig
from yolact.transforms import to_padded_square, to_square


class OnnxPredictor(ImagePredictor):
    """An exported network with the interface of `yolact.inference.predictor.Predictor`.

    It can be copied and pickled; the copy opens the file again. After a fork it refuses to predict.

    Args:
        path: the ``.onnx`` file. If the network re-scores masks, that network's file must be next to it.
        config: detection settings.
        providers, threads: see `yolact.inference.export.open_session`.
        mask_resolution: see `MaskResolution`.
        batch_size: images per forward pass; a file exported for a fixed batch size has its own.
        **changes: fields of ``config``.

    Raises:
        ExportError: onnxruntime or a file is missing, or a file was not written by `yolact export`; also when
            predicting in a process that was forked after it was opened.
        SettingsError: a setting has a wrong value.
    """

    def __init__(
        self,
        path: Path | str,
        config: DetectConfig = DEFAULT_DETECTION,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        mask_resolution: MaskResolution = "image",
        batch_size: int = 8,
        **changes: Unpack[DetectChanges],
    ) -> None:
        self._path, self._providers, self._threads = Path(path), providers, threads
        classes, category_ids = self._open()
        batch = self._session.get_inputs()[0].shape[0]
        self._fixed_batch = batch if isinstance(batch, int) else None
        batch_size = self._fixed_batch or batch_size
        super().__init__(classes, category_ids, config.replace(**changes), mask_resolution, batch_size)

    def _open(self) -> tuple[list[str], list[int]]:
        """Open the file, or the two of a network that re-scores masks; returns the classes and their category ids."""
        self._process = os.getpid()
        self._session = open_session(self._path, self._providers, self._threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        classes, category_ids, self.model_config = _read_metadata(self._path, metadata)
        self._rescoring: Any = None
        if self.model_config.mask_rescoring:
            self._rescoring = open_session(rescoring_path(self._path), self._providers, self._threads)
        return classes, category_ids

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_session", "_rescoring")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _rescore(self, masks: Tensor) -> Tensor:
        return torch.from_numpy(self._rescoring.run(None, {MASKS_NAME: masks.numpy()})[0])

    def forward(self, images: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """As `ImagePredictor.forward`: the file's outputs by name."""
        if os.getpid() != self._process:
            raise ExportError(
                f"{self._path}: was opened before this process was forked, and onnxruntime's threads do not survive a "
                "fork; open it in each process, or start processes with spawn"
            )
        size = self.model_config.image_size
        resize = to_padded_square if self.model_config.keep_aspect_ratio else to_square
        batch = torch.zeros(self._fixed_batch or len(images), 3, size, size)
        for row, image in zip(batch, images, strict=False):
            row.copy_(resize(image.cpu(), size))
        arrays = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: batch.numpy()})
        return {name: array[: len(images)] for name, array in zip(OUTPUT_NAMES, arrays, strict=True)}

    def postprocess(self, outputs: Mapping[str, np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """As `ImagePredictor.postprocess`."""
        return detections_from_outputs(
            outputs,
            sizes,
            self.classes,
            self.model_config.image_size,
            self.config,
            self.mask_resolution,
            None if self._rescoring is None else self._rescore,
            keep_aspect_ratio=self.model_config.keep_aspect_ratio,
            category_ids=self.category_ids,
        )


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
        outputs: arrays by the names in `export.OUTPUT_NAMES`; `export.DESCRIPTION` has their shapes.
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


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[list[str], list[int], ModelConfig]:
    if metadata.get("format") != FORMAT or not {"classes", "category_ids", "model"} <= metadata.keys():
        raise ExportError(f"{path}: not written by this version's `yolact export`; export it again")
    try:
        classes, ids = (json.loads(metadata[name]) for name in ("classes", "category_ids"))
        return classes, ids, ModelConfig.model_validate_json(metadata["model"])
    except (json.JSONDecodeError, ValidationError) as error:
        raise ExportError(f"{path}: its metadata is damaged: {error}; export it again") from error
