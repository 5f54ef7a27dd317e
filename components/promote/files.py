"""The files of a registered version, as `components.register` packed them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from yolact.inference.predictor import Predictor
from yolact.models.weights import DESCRIPTION_FILE
from yolact.settings import DetectConfig
from yolact_ops.registry.versions import RegistryError, fetch_files


@dataclass(frozen=True)
class PackagedModel:
    """A version's files, fetched into a folder."""

    folder: Path

    @classmethod
    def fetch(cls, name: str, version: int, folder: Path) -> PackagedModel:
        """Fetch all files of a version.

        Raises:
            TrackingError: the store fails.
        """
        return cls(fetch_files(name, version, folder))

    def predictor(self, device: str, batch_size: int) -> Predictor:
        """The network, with the detection settings that the version carries.

        Raises:
            RegistryError: a file is missing.
        """
        settings = self._text("artifacts/detect.json")
        config = DetectConfig.model_validate_json(settings)
        return Predictor.load(self.folder / "artifacts" / "model", config, device=device, batch_size=batch_size)

    def example(self) -> bytes:
        """The image of the input example, a JPEG or PNG.

        Raises:
            RegistryError: there is none.
        """
        try:
            text = json.loads(self._text("input_example.json"))["data"][0][0]
            return base64.b64decode(text, validate=True)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RegistryError(f"{self.folder}: input_example.json has no image ({error})") from error

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RegistryError(f"the version's files have no {name}; it was not made by this pipeline") from None


def fetch_classes(name: str, version: int, folder: Path) -> list[str]:
    """The classes that a version finds.

    Raises:
        RegistryError: its description is damaged.
        TrackingError: the store fails, or the version has no description.
    """
    path = fetch_files(name, version, folder, f"artifacts/model/{DESCRIPTION_FILE}")
    try:
        return [str(label) for label in json.loads(path.read_text(encoding="utf-8"))["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{name} version {version}: {DESCRIPTION_FILE} names no classes ({error})") from error
