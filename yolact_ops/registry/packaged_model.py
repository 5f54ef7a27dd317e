"""Read the files of a registered version, as the register step packed them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from yolact.inference.predictor import Predictor
from yolact.models.file_names import DESCRIPTION_FILE
from yolact.settings import DetectConfig
from yolact_ops.registry.versions import DETECT_FILE, RegistryError, fetch_files


@dataclass(frozen=True)
class PackagedModel:
    """The files of a version, downloaded into a folder."""

    folder: Path

    @classmethod
    def fetch(cls, name: str, version: int, folder: Path) -> PackagedModel:
        """Download all files of a version.

        Raises:
            TrackingError: the store fails.
        """
        return cls(fetch_files(name, version, folder))

    def predictor(self, device: str, batch_size: int) -> Predictor:
        """The network with the version's own detection settings.

        Raises:
            RegistryError: a file is missing or damaged.
        """
        artifacts = self.folder / "artifacts"
        config = read_detection(artifacts)
        return Predictor.load(artifacts / "model", config, device=device, batch_size=batch_size)

    def example(self) -> bytes:
        """The encoded image of the input example, JPEG or PNG.

        Raises:
            RegistryError: there is none.
        """
        path = self.folder / "input_example.json"
        try:
            text = json.loads(path.read_text(encoding="utf-8"))["data"][0][0]
            return base64.b64decode(text, validate=True)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise RegistryError(f"{path}: no example image ({error}); register the model again") from error


def read_detection(folder: Path) -> DetectConfig:
    """The detection settings of a version, from the folder that has its `DETECT_FILE`.

    Raises:
        RegistryError: they are missing or damaged.
    """
    path = folder / DETECT_FILE
    try:
        return DetectConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise RegistryError(f"{path}: no detection settings ({error}); fetch or register the model again") from error


def fetch_classes(name: str, version: int, folder: Path) -> list[str]:
    """The class names of a version, by label.

    Raises:
        RegistryError: its description is damaged.
        TrackingError: the store fails, or the version has no description.
    """
    path = fetch_files(name, version, folder, f"artifacts/model/{DESCRIPTION_FILE}")
    try:
        return [str(label) for label in json.loads(path.read_text(encoding="utf-8"))["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{name} version {version}: {DESCRIPTION_FILE} has no class names ({error})") from error
