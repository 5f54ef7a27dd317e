"""Who takes part in a benchmark of inference: this project's `Predictor`, and other implementations from files.

A file that `yolact bench --against FILE.py` names has one function::

    def load(weights: Path, model: dict, num_classes: int, detection: dict, device: str) -> object: ...

``weights`` is a ``.pth`` file with a state_dict: float32, under the published names. ``model`` and ``detection`` are
the fields of `settings.ModelConfig` and `DetectConfig`; ``device`` is as `torch.device` takes it. PyTorch's number
of threads is set before. The object that ``load`` returns has the four stages of the protocol `Contestant`. It may also
have two more methods, which are not timed:

``read(image)``
    Turns an (H, W, 3) uint8 RGB array into what the implementation's own reader of pictures gives (OpenCV's channel
    order, for example); ``preprocess`` gets that.
``raw_outputs(raw)``
    What ``network`` returned as a dict of tensors for comparison: ``boxes`` (B, A, 4) as encoded offsets,
    ``class_scores`` (B, A, C + 1) after softmax, background first, ``mask_coefficients`` (B, A, K) and
    ``prototypes`` (B, Hp, Wp, K).
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from yolact.errors import SettingsError
from yolact.images import read_image
from yolact.inference.network import Precision
from yolact.inference.postprocess import Candidates, detect, to_images
from yolact.inference.predictor import Predictor
from yolact.models.yolact import Yolact
from yolact.settings import DetectConfig, ModelConfig
from yolact.structures import RawOutputs

Stage = Literal["preprocess", "network", "nms", "masks"]
STAGES: tuple[Stage, ...] = ("preprocess", "network", "nms", "masks")
PROTOCOL = "docs/benchmarks.md has the protocol"
RAW_NAMES = ("boxes", "class_scores", "mask_coefficients", "prototypes")


class Contestant(Protocol):
    """The four stages from images to masks; each takes what the one before returned."""

    def preprocess(self, images: list[Any]) -> Any:
        """From B images, each as ``read`` gave it ((H, W, 3) uint8 RGB arrays without one), to the network's input."""

    def network(self, inputs: Any) -> Any:
        """Run the network."""

    def nms(self, raw: Any) -> Any:
        """Choose the detections of each image."""

    def masks(self, detections: Any, sizes: list[tuple[int, int]]) -> Sequence[Any]:
        """Masks of the size of the images, whose (height, width) in pixels are given.

        Returns:
            B tuples (boxes, scores, labels, masks), tensors or arrays: (N, 4) xyxy in the image's pixels, (N,), (N,)
            from 0, and (N, height, width), non-zero inside the object.
        """


@dataclass(frozen=True)
class Found:
    """What a contestant found in one image, on the CPU."""

    boxes: Tensor
    """(N, 4) float32, xyxy, pixels."""
    scores: Tensor
    """(N,) float32."""
    labels: Tensor
    """(N,) int64."""
    masks: Tensor
    """(N, H, W) bool."""


@dataclass(frozen=True)
class Task:
    """What all contestants are given."""

    weights: Path
    """A state_dict in a ``.pth`` file, float32."""
    model: ModelConfig
    classes: tuple[str, ...]
    detection: DetectConfig
    device: str
    threads: int


@dataclass(frozen=True)
class Entry:
    """One contestant, not loaded yet: a setting of our own predictor, or the ``file`` of another implementation."""

    name: str
    precision: Precision = "fp32"
    compile: bool = False
    file: Path | None = None

    @classmethod
    def own(cls, precision: Precision, *, compile: bool = False) -> Entry:
        """Our predictor with a precision, compiled or not."""
        return cls(f"yolact {precision}{' compiled' if compile else ''}", precision, compile)

    @classmethod
    def other(cls, file: Path) -> Entry:
        """Another implementation; it decides itself about its precision."""
        return cls(file.stem, file=file)

    def load(self, task: Task) -> Runner:
        """Build the contestant.

        Raises:
            SettingsError: the file is missing or does not follow the protocol.
        """
        if self.file is not None:
            return Runner(self.name, _load_file(self.file, task), self.file)
        with torch.device("meta"):
            model = Yolact(task.model, len(task.classes))
        model.load_state_dict(torch.load(task.weights, "cpu", weights_only=True), assign=True)
        predictor = Predictor(
            model.to(task.device).eval(),
            task.classes,
            task.detection,
            precision=self.precision,
            compile=self.compile,
            in_place=True,
        )
        return Runner(self.name, OwnContestant(predictor))


class OwnContestant:
    """Our predictor, cut into the stages of `Contestant`; its masks are whole and on the CPU."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def preprocess(self, images: list[np.ndarray]) -> Tensor:
        """See `Contestant`."""
        return self.predictor.preprocess([read_image(image) for image in images])

    def network(self, inputs: Tensor) -> RawOutputs:
        """See `Contestant`."""
        return self.predictor.network(inputs)

    def nms(self, raw: RawOutputs) -> tuple[list[Candidates], Tensor]:
        """See `Contestant`."""
        return detect(raw, self.predictor.config, self.predictor.model_config.image_size), raw.prototypes

    def masks(
        self, detections: tuple[list[Candidates], Tensor], sizes: list[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """See `Contestant`."""
        predictor = self.predictor
        images = to_images(
            *detections,
            sizes,
            predictor.classes,
            predictor.config,
            maskiou_net=predictor.network.maskiou_net,
            keep_aspect_ratio=predictor.model_config.keep_aspect_ratio,
        )
        return [(image.boxes, image.scores, image.labels, image.masks) for image in images]

    def raw_outputs(self, raw: RawOutputs) -> dict[str, Tensor]:
        """See this module's description."""
        scores = raw.class_logits.float().softmax(dim=2)
        tensors = (raw.boxes, scores, raw.mask_coefficients, raw.prototypes)
        return dict(zip(RAW_NAMES, tensors, strict=True))


class Runner:
    """Runs a contestant's stages; whatever goes wrong in its file becomes an error that names the place."""

    def __init__(self, name: str, contestant: Any, file: Path | None = None) -> None:
        self.name = name
        self._contestant = contestant
        self._file = file

    def read(self, image: np.ndarray) -> Any:
        """An (H, W, 3) uint8 RGB image as the contestant's own reader of pictures would give it."""
        method = getattr(self._contestant, "read", None)
        return image if method is None else self._guarded(method, image)

    def stages(self, images: list[Any], sizes: list[tuple[int, int]]) -> list[Callable[[Any], Any]]:
        """The four stages for images that `read` gave; each takes what the one before returned (the first nothing)."""
        contestant = self._contestant
        methods: list[Callable[[Any], Any]] = [
            lambda _: contestant.preprocess(images),
            contestant.network,
            contestant.nms,
            lambda detections: contestant.masks(detections, sizes),
        ]
        return [self._stage(method) for method in methods]

    def raw_outputs(self, raw: Any) -> dict[str, Tensor] | None:
        """The network's outputs by the names in `RAW_NAMES`, float32 on the CPU; None if the contestant has none.

        Raises:
            SettingsError: others than those names.
        """
        method = getattr(self._contestant, "raw_outputs", None)
        if method is None:
            return None
        outputs = self._guarded(method, raw)
        if not isinstance(outputs, dict) or set(outputs) != set(RAW_NAMES):
            raise SettingsError(f"--against {self._file}: raw_outputs must return a dict with {', '.join(RAW_NAMES)}")
        return {name: torch.as_tensor(outputs[name]).detach().float().cpu().clone() for name in RAW_NAMES}

    def found(self, result: Any, sizes: list[tuple[int, int]]) -> list[Found]:
        """What the stage ``masks`` returned for images of ``sizes``, checked.

        Raises:
            SettingsError: it has not the shape that the protocol asks for.
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
            if tuple(tensor.shape) != shape and tensor.numel() + count > 0:  # none found: any empty tensors will do
                raise self._malformed(f"a tensor {shape}, found {tuple(tensor.shape)}, for a image with {count} scores")
        if not bool(scores.isfinite().all() & boxes.isfinite().all()):  # a comparison with NaN would hide it
            raise self._malformed("scores and boxes that are numbers, found NaN or infinity")
        return Found(
            boxes.float().reshape(-1, 4), scores.float(), labels.long(), (masks != 0).reshape(-1, height, width)
        )

    def _malformed(self, wanted: str) -> SettingsError:
        return SettingsError(f"--against {self._file}: masks must return {wanted}; {PROTOCOL}")

    def _stage(self, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return method if self._file is None else lambda previous: self._guarded(method, previous)

    def _guarded(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return method(*arguments) if self._file is None else guard(self._file, method, *arguments)


def _load_file(file: Path, task: Task) -> Any:
    """What the file's ``load`` returns, with the four stages in it."""
    load = load_function(file, "load")
    try:
        contestant = load(
            weights=task.weights,
            model=task.model.model_dump(mode="json"),
            num_classes=len(task.classes),
            detection=task.detection.model_dump(mode="json"),
            device=task.device,
        )
    except Exception as error:  # somebody else's code may raise anything
        raise SettingsError(f"--against {file}: load failed: {explain(error)}") from error
    missing = ", ".join(stage for stage in STAGES if not callable(getattr(contestant, stage, None)))
    if missing:
        raise SettingsError(f"--against {file}: what load returned has no method {missing}; {PROTOCOL}")
    return contestant


def load_function(file: Path, name: str) -> Callable[..., Any]:
    """A function of somebody else's file.

    Raises:
        SettingsError: the file is missing, cannot be imported or has no such function.
    """
    function = getattr(import_file(file), name, None)
    if not callable(function):
        raise SettingsError(f"--against {file}: has no function {name}; {PROTOCOL}")
    return cast(Callable[..., Any], function)


def guard(file: Path, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call a function of somebody else's file; whatever it raises becomes a `SettingsError` that names the place."""
    try:
        return function(*arguments, **settings)
    except Exception as error:  # somebody else's code may raise anything
        raise SettingsError(f"--against {file}: {explain(error)}") from error


def import_file(file: Path) -> ModuleType:
    """Run a contestant's file.

    Raises:
        SettingsError: it is missing, no Python file, or fails.
    """
    if not file.is_file():
        raise SettingsError(f"--against {file}: no such file")
    name = f"_contestant_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SettingsError(f"--against {file}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody else's code may raise anything
        del sys.modules[name]
        raise SettingsError(f"--against {file}: cannot be imported: {explain(error)}") from error
    return module


def explain(error: Exception) -> str:
    """The error on one line, with the innermost place in the code."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
