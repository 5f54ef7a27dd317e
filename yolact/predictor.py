"""Inference: photos in, detections out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from yolact.config import DetectConfig
from yolact.data.transforms import normalize, to_square
from yolact.devices import choose_device
from yolact.models.weights import load_model
from yolact.models.yolact import Yolact
from yolact.postprocess import detect, to_photo_frame
from yolact.structures import Detections


class Predictor:
    """A trained network and the settings of detection.

    Args:
        model: moved to ``device`` by the caller; switched to evaluation at each call.
        classes: names by label.
    """

    def __init__(self, model: Yolact, classes: Sequence[str], config: DetectConfig) -> None:
        self.model = model
        self.classes = list(classes)
        self.config = config

    @classmethod
    def load(cls, directory: Path, config: DetectConfig, device: str = "auto") -> Predictor:
        """Read the model that training left in ``directory``.

        Raises:
            WeightsError: see `load_model`.
        """
        model, classes = load_model(directory, choose_device(device))
        return cls(model, classes, config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @torch.no_grad()  # not inference_mode: callers may change what they get, and training may go on with the network
    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Find the objects of each photo; all photos pass the network as one batch.

        Args:
            images: (H, W, 3) uint8 RGB, sizes may differ.

        Raises:
            ValueError: an image has another shape or dtype.

        Returns:
            One entry per photo, in that photo's pixels, on the CPU.
        """
        if not images:
            return []
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(f"images must be (H, W, 3) uint8 RGB arrays, found {image.shape} {image.dtype}")
        size = self.model.config.image_size
        batch = normalize(torch.stack([to_square(image, size) for image in images]).to(self.device))
        was_training = self.model.training
        try:
            outputs = self.model.eval()(batch)
        finally:
            self.model.train(was_training)
        found = []
        for image, candidates, prototypes in zip(images, detect(outputs, self.config), outputs.prototypes, strict=True):
            height, width = image.shape[:2]
            result = to_photo_frame(candidates, prototypes, height, width)
            found.append(Detections(result.boxes.cpu(), result.scores.cpu(), result.labels.cpu(), result.masks.cpu()))
        return found
