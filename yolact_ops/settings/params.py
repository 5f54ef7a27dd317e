"""``params.yaml``: every setting of the project, typed and checked.

``params.yaml`` is the only place where a setting has its value; the models here mirror it and have no defaults, so a
value is never in two places. Unknown keys, wrong types and impossible combinations are refused with the key's path and
how to fix it (`SettingsError`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator

from yolact.errors import SettingsError
from yolact.settings import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SampleConfig,
    Section,
    TrainingParams,
    explain,
    key_names,
)

MIN_IMAGE_SIDE = 64
"""Pixels; the least bound that images are reduced to."""


Addresses = Annotated[list[Annotated[str, Field(pattern="^https?://")]], Field(min_length=1)]


class MirrorsConfig(Section):
    """Addresses of published archives, tried in this order; a checksum decides whether the right file came."""

    voc2012: Addresses
    """Of ``VOCtrainval_11-May-2012.tar``."""
    sbd: Addresses
    """Of SBD's ``benchmark.tgz``."""


class DataConfig(Section):
    source: Annotated[str, Field(min_length=1)]
    """Where the raw data comes from; `yolact_ops.sources.data_source` has the spellings."""
    mirrors: MirrorsConfig
    classes: list[str] | dict[str, str] | None
    """Classes to learn: None for all of the source's; a list picks them, in that order; a mapping from the source's
    names to new ones renames them, and merges those with one new name. Objects of other classes are left out."""
    max_side: NonNegativeInt
    """Images whose longer side has more pixels are reduced to it by preprocess, with their masks; 0 reduces none."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images to validate on where the source does not say which: about so many of each class."""
    split_seed: NonNegativeInt
    """Another one chooses other images to validate on."""
    max_problems: NonNegativeInt
    """Images with faulty annotations that preprocess may leave out (each is reported) before it stops."""
    sample: SampleConfig

    @field_validator("max_side")
    @classmethod
    def _side_is_large_enough(cls, max_side: int) -> int:
        if 0 < max_side < MIN_IMAGE_SIDE:
            raise ValueError(f"must be 0 (never reduce) or at least {MIN_IMAGE_SIDE} pixels")
        return max_side

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_names(cls, classes: object) -> object:
        names = [*classes, *classes.values()] if isinstance(classes, dict) else classes
        usable = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
        repeated = usable and isinstance(classes, list) and len(set(classes)) < len(classes)
        if classes is not None and (not usable or repeated):
            raise ValueError("must be null (all), a list of different names, or a mapping from names to new names")
        return classes


class RegisterConfig(Section):
    experiment: Annotated[str, Field(min_length=1)]
    """MLflow experiment of the runs."""
    model_name: Annotated[str, Field(pattern=r"^[^/:@'\"]+$")]
    """Registered model name; MLflow allows neither ``/`` nor ``:``, and quotes and ``@`` could not be searched for."""
    min_mask_ap50: Fraction
    """A version below this is registered without the alias ``candidate``."""


class PromoteConfig(Section):
    """The gate between the aliases ``candidate`` and ``champion``. Gains and losses are differences of AP, 0 to 1."""

    metric: Literal["mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75"]
    """What the candidate must be better at."""
    min_gain: Annotated[float, Field(ge=-1, le=1)]
    """Candidate minus champion, at least; below 0 lets a slightly worse model pass."""
    max_doubt: Fraction
    """The lower end of the gain's interval may be this far below 0: with that confidence the candidate is no worse than
    that. At 0 the gain must be proven."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    """Of that interval (bootstrap over the validation images)."""
    samples: Annotated[int, Field(ge=100, le=100_000)]
    """Bootstrap samples."""
    max_class_loss: Fraction
    """Most AP that any one class may lose, by the kind of overlap that ``metric`` names."""
    min_class_objects: PositiveInt
    """Classes with fewer validation objects do not count for that: their AP is chance."""
    max_latency_ms: NonNegativeFloat
    """Most milliseconds a image, see `components.promote.latency`; 0 for no limit."""
    min_first: Fraction
    """Least value of ``metric`` of a first champion."""
    fail_on_refusal: bool
    """Whether a refusal makes the step ``promote`` of a pipeline fail; the command always exits with 3 then."""


class DataParams(Section):
    """The section of ``params.yaml`` that the steps of the data read; a file of it alone has all that they need."""

    data: DataConfig


class Params(TrainingParams, DataParams):
    """The whole of ``params.yaml``."""

    register_: Annotated[RegisterConfig, Field(alias="register")]
    promote: PromoteConfig


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a settings file.

    Raises:
        SettingsError: the file is missing, is not YAML, or a key is unknown, missing or has a wrong value; or it is a
            preset, which lies beside a ``base.yaml`` and has only what differs from that.
    """
    path = Path(path)
    try:
        tree = _load_yaml(path.read_text(encoding="utf-8"), origin=str(path))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no such file. Run from the repository's root, or write one with `yolact preset use sample-cpu`."
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    beside_base = path.name != "base.yaml" and (path.parent / "base.yaml").is_file()
    return _parse(Params, tree, origin=str(path), preset=path.stem if beside_base else None)


def parse_params(tree: Any, origin: str = "params") -> Params:
    """Check a nested mapping of settings; ``origin`` is named in errors.

    Raises:
        SettingsError: see `load_params`.
    """
    return _parse(Params, tree, origin)


SomeParams = TypeVar("SomeParams", bound=DataParams)


def read_params(text: str, model: type[SomeParams], origin: str = "params") -> SomeParams:
    """Check settings that came as YAML or JSON text, all of them (`Params`) or the data's alone (`DataParams`).

    Raises:
        SettingsError: see `load_params`.
    """
    try:
        tree = json.loads(text)  # first: YAML reads JSON's two escapes of one emoji as two characters
    except ValueError:
        tree = _load_yaml(text, origin)
    return _parse(model, tree, origin)


def _load_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin}: not valid YAML: {error}") from error


def _parse(model: type[SomeParams], tree: Any, origin: str, preset: str | None = None) -> SomeParams:
    """See `parse_params`; ``preset`` is the name of the preset that the tree may be, if keys are all that it lacks."""
    if not isinstance(tree, dict):
        raise SettingsError(f"{origin}: must be a mapping with the sections {', '.join(key_names(model))}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        if preset and all(detail["type"] == "missing" for detail in error.errors()):
            raise SettingsError(
                f"{origin}: a preset, which has only what differs from base.yaml beside it. Write the whole settings "
                f"to params.yaml with `yolact preset use {preset}`, and use that file."
            ) from error
        problems = [explain(detail, model) for detail in error.errors()]
        raise SettingsError("\n".join(f"{origin}: {problem}" for problem in problems)) from error


class _Loader(yaml.SafeLoader):
    """Reads ``1e-3`` as a number, as YAML 1.2 does (PyYAML follows 1.1, where it is a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
