"""Predict with an exported network (`yolact.inference.openvino_export`) in OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from yolact.inference.export_format import OUTPUT_NAMES, Metadata, rescoring_path
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.postprocess import MaskResolution
from yolact.inference.predictor import DetectChanges
from yolact.inference.runtimes import open_openvino, openvino_metadata
from yolact.settings import DEFAULT_DETECTION, DetectConfig


class OpenVinoPredictor(ExportedPredictor):
    """An OpenVINO file with the interface of `yolact.inference.predictor.Predictor`; see `ExportedPredictor`.

    Args:
        path: the ``.xml`` file; its ``.bin`` file must be next to it.
        device, threads: see `yolact.inference.runtimes.open_openvino`.
    """

    runtime = "OpenVINO"

    def __init__(
        self,
        path: Path | str,
        config: DetectConfig = DEFAULT_DETECTION,
        *,
        device: str = "CPU",
        threads: int | None = None,
        mask_resolution: MaskResolution = "image",
        batch_size: int = 8,
        **changes: Unpack[DetectChanges],
    ) -> None:
        self._device, self._threads = device, threads
        super().__init__(Path(path), config, mask_resolution, batch_size, **changes)

    def _open(self) -> tuple[Metadata, int | None]:
        metadata = Metadata.from_strings(self._path, openvino_metadata(self._path))
        exact = metadata.precision == "fp32"
        self._session = open_openvino(self._path, self._device, self._threads, exact=exact)
        self._rescoring: Any = None
        if metadata.model.mask_rescoring:
            self._rescoring = open_openvino(rescoring_path(self._path), self._device, self._threads, exact=True)
        batch = self._session.input(0).partial_shape[0]
        return metadata, batch.get_length() if batch.is_static else None

    def _run(self, inputs: np.ndarray) -> Sequence[np.ndarray]:
        outputs = self._session([inputs])
        return [outputs[name] for name in OUTPUT_NAMES]

    def _rescore(self, masks: np.ndarray) -> np.ndarray:
        ious: np.ndarray = self._rescoring([masks])[0]
        return ious
