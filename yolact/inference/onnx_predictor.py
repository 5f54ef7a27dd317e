"""Predict with an exported network (`yolact.inference.export`) in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from yolact.inference.export_format import INPUT_NAME, MASKS_NAME, OUTPUT_NAMES, Metadata, rescoring_path
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.postprocess import MaskResolution
from yolact.inference.predictor import DetectChanges
from yolact.inference.runtimes import open_session
from yolact.settings import DEFAULT_DETECTION, DetectConfig


class OnnxPredictor(ExportedPredictor):
    """An ``.onnx`` file with the interface of `yolact.inference.predictor.Predictor`; see `ExportedPredictor`.

    Args:
        providers, threads, literal: see `yolact.inference.runtimes.open_session`.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        path: Path | str,
        config: DetectConfig = DEFAULT_DETECTION,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        literal: bool = False,
        mask_resolution: MaskResolution = "image",
        batch_size: int = 8,
        **changes: Unpack[DetectChanges],
    ) -> None:
        self._providers, self._threads, self._literal = providers, threads, literal
        super().__init__(Path(path), config, mask_resolution, batch_size, **changes)

    def _open(self) -> tuple[Metadata, int | None]:
        self._session = open_session(self._path, self._providers, self._threads, literal=self._literal)
        metadata = Metadata.from_strings(self._path, self._session.get_modelmeta().custom_metadata_map)
        self._rescoring: Any = None
        if metadata.model.mask_rescoring:
            self._rescoring = open_session(rescoring_path(self._path), self._providers, self._threads)
        batch = self._session.get_inputs()[0].shape[0]
        return metadata, batch if isinstance(batch, int) else None

    def _run(self, inputs: np.ndarray) -> Sequence[np.ndarray]:
        arrays: Sequence[np.ndarray] = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: inputs})
        return arrays

    def _rescore(self, masks: np.ndarray) -> np.ndarray:
        ious: np.ndarray = self._rescoring.run(None, {MASKS_NAME: masks})[0]
        return ious
