"""``params.yaml``: every setting of the project, typed and checked.

``params.yaml`` is the only source of values; the models here mirror it and have no defaults. Unknown keys, wrong types
and impossible combinations are rejected with the key's path and how to fix it (`SettingsError`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

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
from yolact_ops.settings.yaml_text import parse_yaml, plain

MIN_IMAGE_SIDE = 64
"""Minimum of `DataConfig.max_side`, pixels."""


Addresses = Annotated[list[Annotated[str, Field(pattern="^https?://")]], Field(min_length=1)]


class MirrorsConfig(Section):
    """Addresses of published archives, tried in this order; the files are verified by checksum."""

    voc2012: Addresses
    """``VOCtrainval_11-May-2012.tar``."""
    sbd: Addresses
    """SBD's ``benchmark.tgz``."""


Name = Annotated[str, Field(min_length=1)]

Split = Literal["train", "val", "test"]


class SplitConfig(Section):
    """Which images are for training, for validation, and held out until the evaluation.

    A split is the one that the source names, unless lists are given: text files below the source with one image per
    line. With lists for ``train``, images in no list are left out; without, they are for training.
    """

    train: list[Name] | None
    """Lists, or None: as the source says."""
    val: float | list[Name]
    """Lists, or the fraction of the images to choose if the source names none: about that fraction of each class."""
    test: float | list[Name] | Literal["none"]
    """The same for the images held out for `evaluate` and the gate; 0: only those that the source names, ``none``: not
    even those."""
    seed: NonNegativeInt
    """Seed of the choice."""

    @field_validator("train", mode="before")
    @classmethod
    def _train_is_lists(cls, value: object) -> object:
        return None if value is None else _lists(value, "null (as the source says)")

    @field_validator("val", mode="before")
    @classmethod
    def _val_is_share_or_lists(cls, value: object) -> object:
        return value if _is_share(value) and value else _lists(value, "a share of the images above 0 and below 1")

    @field_validator("test", mode="before")
    @classmethod
    def _test_is_share_or_lists(cls, value: object) -> object:
        other = "none, a share of the images from 0 to below 1"
        return value if value == "none" or _is_share(value) else _lists(value, other)

    @property
    def lists(self) -> dict[Split, list[str]]:
        """Paths of the given lists by split, empty without any."""
        given: dict[Split, object] = {"train": self.train, "val": self.val, "test": self.test}
        return {split: paths for split, paths in given.items() if isinstance(paths, list)}


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _lists(value: object, other: str) -> list[str]:
    """Paths of lists, of one or more; ``other`` says what else is allowed."""
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"must be {other}, or paths of lists of images below the source, as [lists/val.txt]")
    return paths


class DataConfig(Section):
    source: Name
    """Source of the raw data; see `yolact_ops.sources.data_source` for its forms."""
    mirrors: MirrorsConfig
    classes: list[str] | dict[str, str] | None
    """Classes to learn: None for all; a list selects and orders them; a mapping from the source's names to new ones
    renames classes, and merges those with the same new name. Objects of other classes are dropped."""
    class_names: list[str] | Literal["voc"] | None
    """Classes of mask images by index, from 1; ``voc`` for VOC's 20; None: from the files."""
    annotations: list[Name] | dict[Split, list[Name]] | None
    """Annotation files to read, if the source has several: paths or patterns (``*``) below it, in all or by split.
    None: those that their names and folders indicate."""
    crowds: Literal["auto", "objects", "regions"]
    """What COCO's ``iscrowd`` marks: objects, as tools for brush masks write them, or crowd regions; ``auto``: objects
    if more than half of a file's annotations have it."""
    exif: Literal["auto", "upright", "as_stored"]
    """Which image masks were drawn on if an EXIF orientation turns it and no size says so: the upright one, or the one
    as stored; ``auto``: as the tool shows images if it is known, or as the other images of the data set have it."""
    max_side: NonNegativeInt
    """Maximum length of an image's longer side, pixels; preprocess reduces larger images and masks. 0: no limit."""
    split: SplitConfig
    max_problems: NonNegativeInt
    """Number of unusable images that preprocess leaves out (and reports) before it fails."""
    max_dropped: Fraction
    """Share of all objects that preprocess drops (and reports) because they cannot be used, before it fails."""
    empty_images: Literal["keep", "drop"]
    """What preprocess does with images that have no object: ``keep`` them, so that the model learns that nothing is
    there, or ``drop`` them, because they are not annotated yet."""
    shard_size: NonNegativeInt
    """Images in a shard, see `yolact.data.shards`; 0: each image is a file of its own."""
    sample: SampleConfig

    @field_validator("max_side")
    @classmethod
    def _side_is_large_enough(cls, max_side: int) -> int:
        if 0 < max_side < MIN_IMAGE_SIDE:
            raise ValueError(f"must be 0 (never reduce) or at least {MIN_IMAGE_SIDE} pixels")
        return max_side

    @field_validator("annotations", mode="before")
    @classmethod
    def _annotations_are_paths(cls, paths: object) -> object:
        by_split = paths if isinstance(paths, dict) else {"train": paths}
        lists = {split: [found] if isinstance(found, str) else found for split, found in by_split.items()}
        usable = all(
            isinstance(found, list) and found and all(isinstance(path, str) and path for path in found)
            for found in lists.values()
        )
        named = "train" in lists and not lists.keys() - set(get_args(Split))
        if paths is not None and not (usable and named):
            raise ValueError("must be null (detect), a list of paths, or one each for train, val (and test)")
        return lists if isinstance(paths, dict) else lists["train"]

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_are_names(cls, classes: object) -> object:
        names = [*classes, *classes.values()] if isinstance(classes, dict) else classes
        usable = isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)
        repeated = usable and isinstance(classes, list) and len(set(classes)) < len(classes)
        if classes is not None and (not usable or repeated):
            raise ValueError("must be null (all), a list of different names, or a mapping from names to new names")
        return classes

    @field_validator("class_names", mode="before")
    @classmethod
    def _class_names_are_different(cls, names: object) -> object:
        usable = isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names)
        repeated = isinstance(names, list) and usable and len(set(names)) < len(names)
        if names not in (None, "voc") and (not usable or repeated):
            raise ValueError("must be null (from the files), voc, or a list of different names")
        return names


def _without_login(address: str, variable: str) -> str:
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(f"must not have a login, which would be recorded: set the variable {variable}")
    return address


class RegisterConfig(Section):
    experiment: Annotated[str, Field(min_length=1)]
    """MLflow experiment of the runs."""
    model_name: Annotated[str, Field(pattern=r"^[^/:@'\"]+$")]
    """Name of the registered model; MLflow forbids ``/`` and ``:``, and cannot search for quotes and ``@``."""
    min_mask_ap50: Fraction
    """A version below this is registered without the alias ``candidate``."""
    model_registry: Annotated[str, Field(pattern=r"^(none|https?://[^/\s]\S*)$")]
    """Address of Kubeflow's Model Registry, which gets a copy of all versions; ``none``: no copy."""
    model_registry_files: Annotated[str, Field(pattern=r"^(none|(s3|gs)://[^/\s]\S*)$")]
    """Where the MLflow server keeps what it calls ``mlflow-artifacts:/``; ``none`` if it calls files ``s3://...``."""

    @field_validator("model_registry")
    @classmethod
    def _model_registry_has_no_login(cls, address: str) -> str:
        return _without_login(address, "MODEL_REGISTRY_TOKEN")


class PromoteConfig(Section):
    """The gate between the aliases ``candidate`` and ``champion``. Gains and losses are differences of AP, 0 to 1."""

    metric: Literal["mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75"]
    """Metric that the candidate must improve."""
    min_gain: Annotated[float, Field(ge=-1, le=1)]
    """Minimum of candidate minus champion; below 0 lets a slightly worse model pass."""
    max_doubt: Fraction
    """How far the lower end of the gain's confidence interval may be below 0; at 0 the gain must be significant."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    """Confidence level of that interval (bootstrap over the evaluated images)."""
    samples: Annotated[int, Field(ge=100, le=100_000)]
    """Number of bootstrap samples."""
    max_class_loss: Fraction
    """Maximum AP that any class may lose, of masks or boxes as in ``metric``."""
    min_class_objects: PositiveInt
    """Classes with fewer evaluated objects are exempt: their AP is noise."""
    max_latency_ms: NonNegativeFloat
    """Maximum latency, milliseconds per image, see `components.promote.latency`; 0: no limit."""
    min_first: Fraction
    """Minimum of ``metric`` for a first champion."""
    fail_on_refusal: bool
    """Whether a refusal fails the pipeline step ``promote``; the command exits with 3 in any case."""
    service: Annotated[str, Field(pattern=r"^(none|https?://[^/\s]\S*)$")]
    """Address of a `yolact serve` that must answer with the new champion; ``none``: nobody is asked."""
    service_timeout: PositiveInt
    """Seconds until it must; then the former champion becomes champion again."""

    @field_validator("service")
    @classmethod
    def _service_has_no_login(cls, address: str) -> str:
        return _without_login(address, "YOLACT_SERVE_TOKEN")


class DataParams(Section):
    """The section of ``params.yaml`` that the data steps read; they accept a file with only this section."""

    data: DataConfig


class Params(TrainingParams, DataParams):
    """The whole of ``params.yaml``."""

    register_: Annotated[RegisterConfig, Field(alias="register")]
    promote: PromoteConfig


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a settings file.

    Raises:
        SettingsError: the file is missing or not YAML, or a key is unknown, missing or has a wrong value; or it is a
            preset, which has only the differences from a ``base.yaml`` next to it.
    """
    path = Path(path)
    try:
        tree = plain(parse_yaml(path.read_text(encoding="utf-8"), origin=str(path)))
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
    """Parse and check settings given as YAML or JSON text, all (`Params`) or only the data's (`DataParams`).

    Raises:
        SettingsError: see `load_params`.
    """
    try:
        tree = json.loads(text)  # first: YAML reads JSON's two escapes of one emoji as two characters
    except ValueError:
        tree = plain(parse_yaml(text, origin))
    return _parse(model, tree, origin)


def _parse(model: type[SomeParams], tree: Any, origin: str, preset: str | None = None) -> SomeParams:
    """See `parse_params`; ``preset`` is the preset's name, for the error if the tree only lacks keys."""
    if not isinstance(tree, dict):
        raise SettingsError(f"{origin}: must be a mapping with the sections {', '.join(key_names(model))}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        if preset and all(detail["type"] == "missing" for detail in error.errors()):
            raise SettingsError(
                f"{origin}: a preset, which has only the differences from the base.yaml next to it. Write complete "
                f"settings to params.yaml with `yolact preset use {preset}`, and use that file."
            ) from error
        problems = [explain(detail, model) for detail in error.errors()]
        raise SettingsError("\n".join(f"{origin}: {problem}" for problem in problems)) from error
