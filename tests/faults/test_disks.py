"""Full disks, read-only disks and folders without permission: what commands say, what is kept, and that it heals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import CopyTo, Place
from tests.faults.faults import (
    assert_refused,
    files_of,
    filled,
    leftovers,
    obey_permissions,
    read_only,
    small_disk,
    without_permission,
)

pytestmark = pytest.mark.slow

IMAGES = "data/raw/VOCdevkit/VOC2012/JPEGImages"
ARGUMENTS = {"predict": (IMAGES, "--model", "models", "-o", "out"), "export": ("models",)}
OUTPUTS = {
    "ingest": ["data/raw"],
    "preprocess": ["data/processed", "reports/data"],
    "train": ["models", "metrics/train.json", "plots/train"],
    "evaluate": ["metrics/eval.json", "reports/eval", "plots/eval"],
    "register": ["reports/registration.json"],
    "predict": ["out"],
    "export": ["models/model.onnx"],
}
"""What each command writes."""
SMALL = {"ingest": 40_000, "preprocess": 40_000, "train": 2_000_000, "evaluate": 40_000, "export": 40_000}
"""Bytes on which a command runs out of space on its way; for the others, none are free."""
QUICK = [name for name in OUTPUTS if name != "export"]
"""All but the one that works for half a minute before it writes: through the same function as the others."""
STORES = ("mlflow.db", "mlruns/", "models/tracking/", "models/checkpoints/", ".filler")
"""What a command that fails may have changed: the record of its run, and checkpoints."""


def results(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(root).items() if not name.startswith(STORES)}


@pytest.mark.parametrize("name", [*OUTPUTS])
def test_a_full_disk_is_named_nothing_half_written_stays_and_with_room_it_works(
    copy_to: CopyTo, tmp_path: Path, name: str
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        place = copy_to(disk)
        place.remove(*OUTPUTS[name])
        before = results(disk)
        with filled(disk, SMALL.get(name, 0)):
            outcome = place.run(name, *ARGUMENTS.get(name, ()))
        assert_refused(outcome)
        assert any(words in outcome.output.lower() for words in ("no space left", "disk is full", "disk full"))
        assert leftovers(disk) == []
        found = results(disk)
        assert found.pop("models/run.json", b"") is not None  # the run began
        assert found == {path: content for path, content in before.items() if path != "models/run.json"}
        place.succeeds(name, *ARGUMENTS.get(name, ()))
        assert all((disk / output).exists() for output in OUTPUTS[name])


def test_a_full_disk_under_shards_is_named_and_leaves_nothing(copy_to: CopyTo, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        place = copy_to(disk)
        place.remove(*OUTPUTS["preprocess"])
        place.set({"data": {"shard_size": 2}})
        before = files_of(disk)
        with filled(disk, 40_000):
            assert_refused(place.run("preprocess"), "data/processed: no space left on device. Make room")
        assert files_of(disk) == before
        place.succeeds("preprocess")
        assert list((disk / "data/processed").rglob("*.tar"))


@pytest.mark.parametrize("name", QUICK)
def test_a_read_only_disk_is_named_and_keeps_everything(place: Place, name: str) -> None:
    before = files_of(place.root)
    with read_only(place.root):
        outcome = place.run(name, *ARGUMENTS.get(name, ()))
    assert_refused(outcome)
    assert any(words in outcome.output for words in ("read-only file system. Use", "cannot be written"))
    assert files_of(place.root) == before


@pytest.mark.parametrize("name", QUICK)
def test_a_folder_without_permission_is_named_and_keeps_everything(place: Place, name: str) -> None:
    before = files_of(place.root)
    with without_permission(place.root):
        outcome = place.run(name, *ARGUMENTS.get(name, ()), before=obey_permissions)
    assert_refused(outcome, "ermission")
    assert files_of(place.root) == before


def test_input_that_may_not_be_read_is_named(place: Place) -> None:
    secret = {
        "evaluate": "data/processed/eval/val.json",
        "predict": "models/model.safetensors",
        "export": "models/model.json",
    }
    for name, file in secret.items():
        with without_permission(place.root / file, mode=0):
            outcome = place.run(name, *ARGUMENTS.get(name, ()), before=obey_permissions)
        assert_refused(outcome, file, "ermission")
