"""Inference backends that a benchmark compares: this project's `Predictor`, the exported network in other runtimes, and
other implementations from files.

A file that ``yolact bench inference --against FILE.py`` names has one function::

    def load(weights: Path, model: dict, num_classes: int, detection: dict, device: str) -> object: ...

``weights`` is a ``.pth`` file with a float32 state_dict under the published names. ``model`` and ``detection`` are the
fields of `settings.ModelConfig` and `DetectConfig`; ``device`` is as `torch.device` takes it. PyTorch's number of
threads is already set. The returned object has the four stages of the protocol `InferenceBackend`. It may have two more
methods, which are not timed:

``read(image)``
    Converts an (H, W, 3) uint8 RGB array to what the implementation's own image reader returns (OpenCV's channel order,
    for example); ``preprocess`` gets the result.
``raw_outputs(raw)``
    What ``network`` returned as a dict of tensors for comparison: ``boxes`` (B, A, 4) as encoded offsets,
    ``class_scores`` (B, A, C + 1) after softmax, background first, ``mask_coefficients`` (B, A, K) and
    ``prototypes`` (B, Hp, Wp, K).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from yolact.errors import SettingsError
from yolact.images import read_image
from yolact.inference.export_format import OUTPUT_NAMES, ExportPrecision
from yolact.inference.exported_predictor import ExportedPredictor
from yolact.inference.network import Precision
from yolact.inference.onnx_predictor import OnnxPredictor
from yolact.inference.openvino_predictor import OpenVinoPredictor
from yolact.inference.postprocess import Candidates, detect, detect_decoded, to_images
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact.settings import DetectConfig, ModelConfig
from yolact.structures import RawOutputs
from yolact_bench.speed.external import PROTOCOL, call, load_backend

Stage = Literal["preprocess", "network", "nms", "masks"]
STAGES: tuple[Stage, ...] = ("preprocess", "network", "nms", "masks")
Runtime = Literal["onnxruntime", "openvino"]
RAW_NAMES = ("boxes", "class_scores", "mask_coefficients", "prototypes")


class InferenceBackend(Protocol):
    """The four stages from images to masks; each takes the previous stage's result."""

    def preprocess(self, images: list[Any]) -> Any:
        """Turn B images from ``read`` ((H, W, 3) uint8 RGB arrays without it) into the network's input."""

    def network(self, inputs: Any) -> Any:
        """Run the network."""

    def nms(self, raw: Any) -> Any:
        """Select the detections of each image."""

    def masks(self, detections: Any, sizes: list[tuple[int, int]]) -> Sequence[Any]:
        """Compute masks as large as the images; ``sizes`` are their (height, width) in pixels.

        Returns:
            B tuples (boxes, scores, labels, masks), tensors or arrays: (N, 4) xyxy in the image's pixels, (N,), (N,)
            from 0, and (N, height, width), non-zero inside the object.
        """


@dataclass(frozen=True)
class Found:
    """A backend's detections in one image, on the CPU."""

    boxes: Tensor
    """(N, 4) float32, xyxy, pixels."""
    scores: Tensor
    """(N,) float32."""
    labels: Tensor
    """(N,) int64."""
    masks: Tensor
    """(N, H, W) bool."""


@dataclass(frozen=True)
class InferenceTask:
    """The inputs of all backends."""

    weights: Path
    """A state_dict in a ``.pth`` file, float32."""
    model: ModelConfig
    classes: tuple[str, ...]
    detection: DetectConfig
    device: str
    threads: int


@dataclass(frozen=True)
class BackendSpec:
    """A backend that is not yet loaded: settings of our implementation, a runtime for the exported network, or the
    ``file`` of another implementation."""

    name: str
    precision: Precision = "fp32"
    compile: bool = False
    file: Path | None = None
    runtime: Runtime | None = None
    export_precision: ExportPrecision = "fp32"
    """Of the exported network, in a runtime."""
    exported: Path | None = None
    """The exported network; written by the benchmark."""

    @classmethod
    def own(cls, precision: Precision, *, compile: bool = False) -> BackendSpec:
        """Our implementation at a precision, compiled or not."""
        return cls(f"yolact {precision}{' compiled' if compile else ''}", precision, compile)

    @classmethod
    def in_runtime(cls, runtime: Runtime, precision: ExportPrecision = "fp32") -> BackendSpec:
        """The network exported for another runtime, at a precision."""
        return cls(f"{runtime} {precision}", runtime=runtime, export_precision=precision)

    @classmethod
    def other(cls, file: Path) -> BackendSpec:
        """Another implementation, which chooses its own precision."""
        return cls(file.stem, file=file)


class YolactBackend:
    """Our predictor in the stages of `InferenceBackend`; its masks are full-size and on the CPU."""

    def __init__(self, spec: BackendSpec, task: InferenceTask) -> None:
        with torch.device("meta"):
            model = Yolact(task.model, len(task.classes))
        model.load_state_dict(torch.load(task.weights, "cpu", weights_only=True), assign=True)
        self.predictor = Predictor(
            model.to(task.device).eval(),
            task.classes,
            task.detection,
            precision=spec.precision,
            compile=spec.compile,
            in_place=True,
        )

    def preprocess(self, images: list[np.ndarray]) -> Tensor:
        """See `InferenceBackend`."""
        return self.predictor.preprocess([read_image(image) for image in images])

    def network(self, inputs: Tensor) -> RawOutputs:
        """See `InferenceBackend`."""
        return self.predictor.network(inputs)

    def nms(self, raw: RawOutputs) -> tuple[list[Candidates], Tensor]:
        """See `InferenceBackend`."""
        return detect(raw, self.predictor.config, self.predictor.model_config.image_size), raw.prototypes

    def masks(
        self, detections: tuple[list[Candidates], Tensor], sizes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """See `InferenceBackend`."""
        return _full_masks(detections, sizes, self.predictor, self.predictor.network.maskiou_net)

    def raw_outputs(self, raw: RawOutputs) -> dict[str, Tensor]:
        """See the module's docstring."""
        scores = raw.class_logits.float().softmax(dim=2)
        tensors = (raw.boxes, scores, raw.mask_coefficients, raw.prototypes)
        return dict(zip(RAW_NAMES, tensors, strict=True))


class ExportedBackend:
    """The exported network in its runtime on the CPU, in the stages of `InferenceBackend`; masks as `YolactBackend`."""

    def __init__(self, spec: BackendSpec, task: InferenceTask) -> None:
        assert spec.exported is not None
        self.predictor: ExportedPredictor
        if spec.runtime == "openvino":
            self.predictor = OpenVinoPredictor(spec.exported, task.detection, threads=task.threads)
        else:
            providers = ["CPUExecutionProvider"]
            self.predictor = OnnxPredictor(spec.exported, task.detection, providers=providers, threads=task.threads)

    def preprocess(self, images: list[np.ndarray]) -> np.ndarray:
        """See `InferenceBackend`."""
        return self.predictor.preprocess([read_image(image) for image in images])

    def network(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """See `InferenceBackend`."""
        return self.predictor.network(inputs)

    def nms(self, raw: dict[str, np.ndarray]) -> tuple[list[Candidates], Tensor]:
        """See `InferenceBackend`."""
        boxes, scores, coefficients, prototypes = (torch.from_numpy(raw[name]) for name in OUTPUT_NAMES)
        config, size = self.predictor.config, self.predictor.model_config.image_size
        return detect_decoded(boxes, scores, coefficients, config, size), prototypes

    def masks(
        self, detections: tuple[list[Candidates], Tensor], sizes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """See `InferenceBackend`."""
        return _full_masks(detections, sizes, self.predictor, self.predictor.maskiou_net)


def _full_masks(
    detections: tuple[list[Candidates], Tensor],
    sizes: list[tuple[int, int]],
    predictor: Predictor | ExportedPredictor,
    maskiou_net: Callable[[Tensor], Tensor] | None,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    keep_aspect_ratio = predictor.model_config.keep_aspect_ratio
    images = to_images(
        *detections,
        sizes,
        predictor.classes,
        predictor.config,
        maskiou_net=maskiou_net,
        keep_aspect_ratio=keep_aspect_ratio,
    )
    return [(image.boxes, image.scores, image.labels, image.masks) for image in images]


class InferenceRunner:
    """Loads a backend and runs its stages; errors in another implementation name its file and line.

    Raises:
        SettingsError: the backend's file is missing or does not follow the protocol.
    """

    def __init__(self, spec: BackendSpec, task: InferenceTask) -> None:
        self.file = spec.file
        self.backend: Any
        if spec.file is not None:
            self.backend = _load_file(spec.file, task)
        else:
            self.backend = (ExportedBackend if spec.runtime else YolactBackend)(spec, task)

    def read(self, image: np.ndarray) -> Any:
        """The (H, W, 3) uint8 RGB image as the backend's own image reader would return it."""
        method = getattr(self.backend, "read", None)
        return image if method is None else call(self.file, method, image)

    def stages(self, images: list[Any], sizes: list[tuple[int, int]]) -> list[Callable[[Any], Any]]:
        """The four stages for images from `read`; each takes the previous stage's result, the first None."""
        backend = self.backend
        methods: list[Callable[[Any], Any]] = [
            lambda _: backend.preprocess(images),
            backend.network,
            backend.nms,
            lambda detections: backend.masks(detections, sizes),
        ]
        return [partial(call, self.file, method) for method in methods]

    def raw_outputs(self, raw: Any) -> dict[str, Tensor] | None:
        """The network's outputs by `RAW_NAMES`, float32 on the CPU; None if the backend does not report them.

        Raises:
            SettingsError: the names differ.
        """
        method = getattr(self.backend, "raw_outputs", None)
        if method is None:
            return None
        outputs = call(self.file, method, raw)
        if not isinstance(outputs, dict) or set(outputs) != set(RAW_NAMES):
            raise SettingsError(f"--against {self.file}: raw_outputs must return a dict with {', '.join(RAW_NAMES)}")
        return {name: torch.as_tensor(outputs[name]).detach().float().cpu().clone() for name in RAW_NAMES}

    def found(self, result: Any, sizes: list[tuple[int, int]]) -> list[Found]:
        """Check what the stage ``masks`` returned for images of ``sizes``, and convert it.

        Raises:
            SettingsError: its form does not follow the protocol.
        """
        if not isinstance(result, Sequence) or len(result) != len(sizes):
            raise self._malformed(f"a list of {len(sizes)} images")
        return [self._found_in_one(image, height, width) for image, (height, width) in zip(result, sizes, strict=True)]

    def _found_in_one(self, image: Any, height: int, width: int) -> Found:
        try:
            boxes, scores, labels, masks = (torch.as_tensor(part).detach().cpu() for part in image)
        except (TypeError, ValueError, RuntimeError):
            raise self._malformed("(boxes, scores, labels, masks) for each image") from None
        count = len(scores)
        expected = {(count,): labels, (count, 4): boxes, (count, height, width): masks}
        for shape, tensor in expected.items():
            if tuple(tensor.shape) != shape and tensor.numel() + count > 0:  # nothing found: any empty tensors pass
                raise self._malformed(
                    f"a tensor {shape}, found {tuple(tensor.shape)}, for an image with {count} scores"
                )
        if not bool(scores.isfinite().all() & boxes.isfinite().all()):  # comparing with NaN would hide it
            raise self._malformed("finite scores and boxes, found NaN or infinity")
        return Found(
            boxes.float().reshape(-1, 4), scores.float(), labels.long(), (masks != 0).reshape(-1, height, width)
        )

    def _malformed(self, wanted: str) -> SettingsError:
        return SettingsError(f"--against {self.file}: masks must return {wanted}; {PROTOCOL}")


def _load_file(file: Path, task: InferenceTask) -> Any:
    return load_backend(
        file,
        "load",
        STAGES,
        weights=task.weights,
        model=task.model.model_dump(mode="json"),
        num_classes=len(task.classes),
        detection=task.detection.model_dump(mode="json"),
        device=task.device,
    )
