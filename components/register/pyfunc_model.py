"""The network as an MLflow model: images in, detections as plain JSON values out.

MLflow copies this file and the package ``yolact`` into the model ("models from code", no pickle), so the
model loads without this repository. This file must therefore import nothing else of the project.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Object, Property

from yolact import images
from yolact.errors import DataError
from yolact.settings import DetectConfig

if TYPE_CHECKING:
    from yolact.inference.detections import Detections
    from yolact.inference.predictor import Predictor

COLUMN = "image"

MODEL_CONFIG = {"device": "auto", "batch_size": 8}
"""What ``mlflow.pyfunc.load_model(..., model_config={"device": "cpu"})`` may set: where the network runs (``auto``,
``cpu``, ``cuda``, ...) and how many images form a batch."""


def signature(config: DetectConfig) -> ModelSignature:
    """The MLflow signature of `YolactModel.predict`.

    The column has type Any: it holds text, bytes or arrays, and MLflow allows one schema. For the same reason a bare
    array is not accepted: MLflow converts inputs to a table and refuses arrays of more than two dimensions.

    Args:
        config: the detection settings: defaults of the parameters.
    """
    mask = Object([Property("size", Array(DataType.long)), Property("counts", DataType.string)])
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(Array(DataType.double)), "boxes"),
        ColSpec(Array(DataType.double), "scores"),
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(Array(mask), "masks"),
    ]
    parameters = [
        ParamSpec("score_threshold", DataType.double, config.score_threshold),
        ParamSpec("max_detections", DataType.long, config.max_detections),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), COLUMN)]), outputs=Schema(outputs), params=ParamSchema(parameters)
    )


class YolactModel(PythonModel):
    """Instance segmentation of encoded images.

    Artifacts: ``model``, the folder that `yolact.models.weights.save_model` wrote, and ``detect``, the
    JSON file with the detection settings. Configuration: see `MODEL_CONFIG`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from yolact.inference.predictor import Predictor

        settings = Path(context.artifacts["detect"]).read_text(encoding="utf-8")
        config = DetectConfig.model_validate_json(settings)
        options = MODEL_CONFIG | (context.model_config or {})
        self.batch_size = int(options["batch_size"])
        self.predictor: Predictor = Predictor.load(
            context.artifacts["model"], config, device=str(options["device"]), batch_size=self.batch_size
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detect the objects in each image.

        Args:
            context: unused.
            model_input: column ``image``: a JPEG or PNG as base64 text or as bytes, or an (H, W, 3) uint8 RGB array,
                also as nested lists; or a list of encoded images, as TensorFlow Serving's ``{"inputs": {"image":
                [...]}}`` gives. Encoded images are turned upright, as `Predictor` does with files.
            params: ``score_threshold`` and ``max_detections``, to override the version's settings.

        Returns:
            One dict per image, best score first: ``boxes`` (xyxy, pixels), ``scores`` (0 to 1), ``labels``
            (class names) and ``masks`` (COCO compressed RLE: ``size`` is [height, width], ``counts`` text).

        Raises:
            DataError: the column is missing, or a row is not an image; the message names the row.
            SettingsError: a parameter is out of range.
        """
        if COLUMN not in model_input:
            raise DataError(f"input needs the column {COLUMN!r}; found: {', '.join(map(str, model_input.columns))}")
        predictor = copy.copy(self.predictor)  # concurrent requests may have different parameters
        predictor.config = predictor.config.replace(**(params or {}))
        rows = [image for row in model_input[COLUMN] for image in _images_of(row)]
        results: list[dict[str, Any]] = []
        for start in range(0, len(rows), self.batch_size):
            decoded = [read_image(row, start + i) for i, row in enumerate(rows[start : start + self.batch_size])]
            results += [to_json(found, predictor.classes) for found in predictor.predict(decoded)]
        return results


def _images_of(row: Any) -> list[Any]:
    """Several encoded images in one row, or one image of any form."""
    several = isinstance(row, list | np.ndarray) and len(row) > 0 and all(isinstance(part, str | bytes) for part in row)
    return list(row) if several else [row]


def read_image(value: Any, row: int) -> np.ndarray:
    """A row as (H, W, 3) uint8 RGB.

    Raises:
        DataError: it is no image; names the row.
    """
    if isinstance(value, list) or hasattr(value, "__array__"):
        return check_array(value, row)
    return decode_image(value, row)


def check_array(value: Any, row: int) -> np.ndarray:
    """An array, a tensor, or nested lists as they come over HTTP, as (H, W, 3) uint8 RGB.

    Raises:
        DataError: it has another shape, or values that are no whole numbers from 0 to 255; names the row.
    """
    wanted = f"row {row}: {COLUMN!r}, as an array, must be (height, width, 3) RGB with whole numbers from 0 to 255"
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{wanted}; {error}") from error
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"{wanted}; found the shape {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise DataError(f"{wanted}; found {array.dtype}, or values out of range")
        array = array.astype(np.uint8)
    return array


def decode_image(value: Any, row: int) -> np.ndarray:
    """Decode base64 text or bytes of a JPEG or PNG to (H, W, 3) uint8 RGB, upright as its EXIF orientation says.

    Raises:
        DataError: ``value`` is neither; names the row.
    """
    if not isinstance(value, (str, bytes, bytearray)):
        raise DataError(f"row {row}: {COLUMN!r} must be base64 text, bytes or an array; found {type(value).__name__}")
    try:
        data = images.decode_base64(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"row {row}: {COLUMN!r} is not base64 of a JPEG or PNG: {error}") from error
    try:
        return images.decode_image(io.BytesIO(data), formats=("JPEG", "PNG"))
    except images.DecodingError as error:
        raise DataError(f"row {row}: {COLUMN!r} is not a readable JPEG or PNG: {error}") from error


def to_json(found: Detections, classes: list[str]) -> dict[str, Any]:
    """Detections of one image as plain values, see `YolactModel.predict`."""
    return {
        "boxes": found.boxes.tolist(),
        "scores": found.scores.tolist(),
        "labels": [classes[label] for label in found.labels.tolist()],
        "masks": [dict(rle) for rle in found.rles()],
    }


mlflow.models.set_model(YolactModel())
