"""A finished small project, copied into a fault for each test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.faults.faults import Command, Outcome
from tests.servers.mlflow_servers import MlflowServer
from tests.servers.servers import CuttingProxy
from yolact_ops.settings.params import load_params

STEPS = ("ingest", "preprocess", "train", "evaluate", "register")
SMALL: dict[str, dict[str, Any]] = {
    "data": {"sample": {"train_images": 6, "val_images": 3, "min_size": 96, "max_size": 128, "max_objects": 3}},
    "model": {
        "backbone": "resnet18",
        "backbone_blocks": [1, 1, 1, 1],
        "backbone_weights": "none",
        "image_size": 64,
        "fpn_channels": 16,
        "anchor_scales": [[12], [24], [40], [56], [64]],
    },
    "train": {"epochs": 1, "batch_size": 2, "warmup_steps": 2, "validate_every": 1, "log_every": 1},
    "evaluate": {"gallery_images": 2},
    "register": {"min_mask_ap50": 0.0},
    "promote": {"min_first": 0.0},
    "runtime": {"device": "cpu", "workers": 0, "max_restarts": 0},
}
"""Settings of a project that is small, and trains in the command's own process."""


class Place:
    """A working folder, and the commands in it."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin",
            "PYTHONPATH": str(repository),
            "HOME": str(root),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }

    def command(self, name: str, *arguments: str, **options: Any) -> Command:
        """A step, or a command of `yolact`."""
        module = f"components.{name}.step" if name in STEPS else "yolact_cli.main"
        environment = self.environment | options.pop("environment", {})
        given: Sequence[str] = arguments if name in STEPS else (name, *arguments)
        return Command(module, given, self.root, environment, **options)

    def run(self, name: str, *arguments: str, **options: Any) -> Outcome:
        return self.command(name, *arguments, **options).run()

    def succeeds(self, name: str, *arguments: str, **options: Any) -> str:
        outcome = self.run(name, *arguments, **options)
        assert outcome.code == 0, outcome.output
        return outcome.output

    def set(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change settings."""
        path = self.root / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        for section, values in changes.items():
            tree[section] |= values
        path.write_text(yaml.safe_dump(tree))

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A project in which each step ran."""
    tree = load_params(repository / "conf" / "base.yaml").model_dump(mode="json", by_alias=True)
    for section, values in SMALL.items():
        tree[section] |= values
    tree["data"]["sample"] = {**tree["data"]["sample"], "seed": 0}
    place = Place(tmp_path_factory.mktemp("finished"), repository)
    (place.root / "params.yaml").write_text(yaml.safe_dump(tree))
    for step in STEPS:
        place.succeeds(step)
    return place


CopyTo = Callable[[Path], Place]


@pytest.fixture
def copy_to(finished: Place, repository: Path) -> CopyTo:
    """Copies the finished project into a folder."""

    def copy(folder: Path) -> Place:
        shutil.copytree(finished.root, folder, dirs_exist_ok=True)
        return Place(folder, repository)

    return copy


@pytest.fixture
def place(copy_to: CopyTo, tmp_path: Path) -> Place:
    """A copy of the finished project."""
    return copy_to(tmp_path / "place")


@pytest.fixture
def line(on_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """The network between this machine and MLflow."""
    made = CuttingProxy(on_server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    yield made
    made.close()
