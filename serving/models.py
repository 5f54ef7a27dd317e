"""The model that answers: where it comes from, how it is loaded and tested."""

from __future__ import annotations

import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serving.settings import ServerSettings
from yolact.errors import DataError, WeightsError, YolactError
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.open_exported import RUNTIMES
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.settings import DEFAULT_DETECTION, DetectConfig

if TYPE_CHECKING:
    import numpy as np

    from yolact.inference.detections import Detections
    from yolact.inference.predictor import ImagePredictor
    from yolact.structures import RawOutputs
    from yolact_ops.registry.versions import RegisteredModel

log = logging.getLogger(__name__)

DEFAULT_NAME = "yolact"
"""Name of a model that is not from the registry."""

PRIVATE_TAGS = ("host", "user")
"""Tags of a version that the server does not show."""

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""How MLflow's client asks: the next look comes anyway."""


class SelfTestError(YolactError):
    """A model loads, but does not work."""


@dataclass(frozen=True)
class Offer:
    """A model that could be served."""

    name: str
    version: str | None
    """The registry's number, or the beginning of the weights' SHA-256."""
    alias: str | None = None


@dataclass(eq=False)
class ServedModel:
    """A loaded model. Only one thread at a time may call `detect`."""

    offer: Offer
    predictor: ImagePredictor
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the registered version."""
    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))
    config: DetectConfig = field(init=False)
    """The model's own detection settings."""

    @property
    def classes(self) -> list[str]:
        """Name of label 0, 1, ..."""
        return self.predictor.classes

    def __post_init__(self) -> None:
        self.config = self.predictor.config

    def detect(self, images: Sequence[Tensor], config: DetectConfig) -> list[Detections]:
        """Detections in (3, H, W) uint8 RGB images, at most a batch."""
        self.predictor.config = config
        return self.predictor.predict(images)

    @property
    def device(self) -> torch.device | None:
        """Where PyTorch computes; None if another runtime does."""
        return getattr(self.predictor, "device", None)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The answer of ``GET /model``."""
        from yolact_ops.registry.lineage_report import LineageReport

        predictor = self.predictor
        tags = {key: value for key, value in self.tags.items() if key not in PRIVATE_TAGS}
        report = LineageReport(self.offer.name, 0, [], tags, None, None)
        return {
            "name": self.offer.name,
            "version": self.offer.version,
            "alias": self.offer.alias,
            "classes": self.classes,
            "image_size": predictor.model_config.image_size,
            "detection": self.config.model_dump(),
            "device": predictor.runtime if isinstance(predictor, ExportedPredictor) else str(self.device),
            "loaded": self.loaded.isoformat(timespec="seconds"),
            "metrics": {key: float(value) for key, value in tags.items() if key in METRIC_TAGS},
            "lineage": report.groups(),
        }


METRIC_TAGS = ("mask_AP", "mask_AP50", "box_AP", "box_AP50")


class Source(ABC):
    """Where the model comes from."""

    follows = False
    """Whether another model may be offered later."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings

    @abstractmethod
    def offered(self) -> Offer:
        """The model to serve.

        Raises:
            YolactError: there is none, or the registry does not answer.
        """

    @abstractmethod
    def load(self, offer: Offer) -> ServedModel:
        """Load it.

        Raises:
            YolactError: it cannot be loaded.
        """

    def _predictor(self, folder: Path, config: DetectConfig) -> ImagePredictor:
        from yolact.inference.predictor import Predictor

        settings = self.settings
        return Predictor.load(
            folder,
            config,
            device=settings.device,
            precision=settings.precision,
            mask_resolution=settings.mask_side,
            batch_size=settings.batch_size,
        )


class FolderSource(Source):
    """A folder that training, `yolact import-weights` or MLflow's download wrote."""

    def __init__(self, settings: ServerSettings, folder: Path) -> None:
        super().__init__(settings)
        packed = folder / "artifacts" / "model"
        self.packaged = packed.is_dir()
        self.folder = packed if self.packaged else folder
        missing = [name for name in (WEIGHTS_FILE, DESCRIPTION_FILE) if not (self.folder / name).is_file()]
        if missing:
            raise WeightsError(
                f"{self.folder}: no file {missing[0]}. Name a folder with a model (`make demo` writes models/), "
                "an .onnx or .xml file, or a registered version, as models:/yolact@champion"
            )

    def offered(self) -> Offer:
        """The model in the folder; its version is the digest of the weights."""
        return Offer(DEFAULT_NAME, _digest(self.folder / WEIGHTS_FILE))

    def load(self, offer: Offer) -> ServedModel:
        """Load it, with its own detection settings if it was registered, else the published ones."""
        from yolact_ops.registry.packaged_model import read_detection

        config = read_detection(self.folder.parent) if self.packaged else DEFAULT_DETECTION
        return ServedModel(offer, self._predictor(self.folder, config), _training_run(self.folder))


class ExportedSource(Source):
    """A file that `yolact export` wrote, for onnxruntime or OpenVINO."""

    def __init__(self, settings: ServerSettings, path: Path) -> None:
        super().__init__(settings)
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such file. Write one: yolact export models -o {path}")

    def offered(self) -> Offer:
        """The file; its version is its digest."""
        return Offer(DEFAULT_NAME, _digest(self.path))

    def load(self, offer: Offer) -> ServedModel:
        """Open the file."""
        from yolact_ops.prediction.model import load_exported

        settings = self.settings
        predictor = load_exported(
            self.path,
            device=settings.device,
            precision=settings.precision,
            mask_resolution=settings.mask_side,
            batch_size=settings.batch_size,
        )
        return ServedModel(offer, predictor)


class RegistrySource(Source):
    """A version in MLflow's registry: a number, or the one that has an alias."""

    def __init__(self, settings: ServerSettings, spec: str) -> None:
        super().__init__(settings)
        self.spec = spec
        self.alias = spec.partition("@")[2] or None
        self.follows = self.alias is not None
        self._model: RegisteredModel | None = None

    def offered(self) -> Offer:
        """The version that has the alias now, or the one with the number."""
        from yolact_ops.registry.versions import RegisteredModel, RegistryError, resolve
        from yolact_ops.tracking.store import connect, default_environment

        with default_environment(_PATIENCE):
            if self._model is None:
                client = connect()
                found = resolve(client, self.spec)
                self._model = RegisteredModel(client, found.name)
                return Offer(found.name, str(found.version), self.alias)
            if self.alias is None:
                return Offer(self._model.name, self.spec.rpartition("/")[2], None)
            number = self._model.alias(self.alias)
            if number is None:
                raise RegistryError(f"no version of {self._model.name} has the alias {self.alias!r} any more")
            return Offer(self._model.name, str(number), self.alias)

    def load(self, offer: Offer) -> ServedModel:
        """Download the version into a folder of its own, and load it."""
        from yolact_ops.registry.packaged_model import read_detection
        from yolact_ops.registry.versions import fetch_files

        assert self._model is not None
        assert offer.version is not None
        number = int(offer.version)
        tags = dict(self._model.version(number).tags)
        with tempfile.TemporaryDirectory(prefix="yolact-serving-") as folder:
            artifacts = fetch_files(offer.name, number, Path(folder)) / "artifacts"
            predictor = self._predictor(artifacts / "model", read_detection(artifacts))
        shown = {key: value for key, value in tags.items() if not key.startswith("decision.")}
        return ServedModel(offer, predictor, shown)


def open_source(settings: ServerSettings, text: str) -> Source:
    """The source that ``settings.model`` or ``settings.candidate`` names.

    Raises:
        YolactError: the folder or file does not exist, or holds no model.
    """
    if text.startswith("models:/"):
        return RegistrySource(settings, text)
    path = Path(text)
    return (ExportedSource if path.suffix in RUNTIMES else FolderSource)(settings, path)


def _training_run(folder: Path) -> dict[str, str]:
    """The run that the train step wrote beside the weights, as tags; empty without it.

    Nothing there says which weights an evaluation's metrics are of; a registered version has its own.
    """
    from yolact_ops.tracking.run_record import RUN_FILE, RunRecord

    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        record = RunRecord.read(path)
    except DataError as error:
        log.warning("the model's run is unknown: %s", error)
        return {}
    return {"run_id": record.run_id, "experiment": record.experiment}


def _digest(path: Path) -> str:
    from yolact_ops.lineage.hashing import hash_files

    return hash_files(path)[:12]


MOST_DIFFERENT = 0.2
"""Largest difference between the outputs for an image in a batch and alone, as a share of their norm. Kernels for
several images may round differently, and bfloat16 has 8 bits. Three networks on a CPU gave equal outputs; for the two
images of the test, one of the four outputs of each differed by at least 0.6."""


def self_test(model: ServedModel) -> None:
    """Run a model on generated images, which also warms it up: one alone, then the same one in a batch.

    Raises:
        SelfTestError: it fails, or its outputs cannot be right.
    """
    predictor = model.predictor
    side = predictor.model_config.image_size
    image, other = _test_image(side, side), 255 - _test_image(side, side + 32).flip(1)
    count = _tested_batch(predictor)
    try:
        [alone] = _run(model, [image])
        if count > 1:
            _compare(_run(model, [other] * (count - 1) + [image])[-1], alone)
    except YolactError:
        raise
    except Exception as error:
        raise SelfTestError(f"the self-test failed: {type(error).__name__}: {error}") from error


def _tested_batch(predictor: ImagePredictor) -> int:
    """Images of the self-test's batch; 1 for none. A server waits for them, and with ResNet-50 one takes half a second.

    A network in PyTorch runs a full batch, or, where it runs it in parts, one image more than a part; if it runs images
    one by one, there is no batch. A file runs two images if it takes any number, else as many as it always runs.
    """
    if isinstance(predictor, ExportedPredictor):
        return predictor.fixed_batch or min(predictor.batch_size, 2)
    at_once = predictor.images_at_once
    return min(predictor.batch_size, at_once + 1) if at_once > 1 else 1


def _run(model: ServedModel, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The network's outputs for each image by name; they and the detections are checked."""
    outputs = model.predictor.forward(images)
    tensors = {name: tensor[: len(images)] for name, tensor in _tensors(outputs).items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise SelfTestError(f"the self-test failed: the network's {name} are not finite")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    for size, found in zip(sizes, model.predictor.postprocess(outputs, sizes), strict=True):
        _check_detections(model, size, found)
    return [dict(zip(tensors, rows, strict=True)) for rows in zip(*tensors.values(), strict=True)]


def _tensors(outputs: RawOutputs | Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """What `Predictor.forward` or `ExportedPredictor.forward` returned, by name."""
    if isinstance(outputs, Mapping):
        return {name: torch.from_numpy(array) for name, array in outputs.items()}
    return {name: getattr(outputs, name) for name in ("boxes", "class_logits", "mask_coefficients", "prototypes")}


def _compare(in_batch: Mapping[str, Tensor], alone: Mapping[str, Tensor]) -> None:
    for name, expected in alone.items():
        difference = (in_batch[name].float() - expected.float()).norm()
        if difference > MOST_DIFFERENT * expected.float().norm():
            raise SelfTestError(f"the self-test failed: the network's {name} for an image in a batch are not its own")


def _check_detections(model: ServedModel, size: tuple[int, int], found: Detections) -> None:
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    in_image = bool(((found.boxes >= 0) & (found.boxes <= limit)).all())
    scored = bool(((found.scores > 0) & (found.scores <= 1)).all())
    labelled = bool(((found.labels >= 0) & (found.labels < len(model.classes))).all())
    if not (in_image and scored and labelled):
        raise SelfTestError("the self-test failed: boxes, scores or labels are out of range")


def _test_image(height: int, width: int) -> Tensor:
    """A (3, H, W) uint8 image with gradients and a disc."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    disc = (rows**2 + columns**2 < 0.25).float()
    return (torch.stack([(rows + 1) / 2, (columns + 1) / 2, disc]) * 255).to(torch.uint8)
