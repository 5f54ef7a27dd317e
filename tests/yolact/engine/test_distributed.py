"""Two processes do what one does with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.yolact.engine.runs import REPOSITORY

BASE: dict[str, Any] = {
    "photos": 8,
    "batch_size": 8,
    "epochs": 3,
    "optimizer": "sgd",
    "lr": 1e-2,
    "validate_every": 3,
    "augment": {"photometric": True, "expand": True, "random_crop": True, "mirror": True},
}


def run(folder: Path, processes: int, settings: dict[str, Any], expect: int = 0) -> dict[str, Any]:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = [] if processes == 1 else torchrun
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.yolact.engine.runs", "settings.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert (done.returncode == 0) == (expect == 0), done.stderr
    return {"log": done.stderr} if expect else torch.load(folder / "done.pt", weights_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"backbone_weights": "imagenet"}},  # nothing is loaded: batch norm is frozen
        {"max_grad_norm": 1.0, "ema_decay": 0.5, "accumulate": 2, "model": {"backbone_weights": "imagenet"}},
        {},
    ],
    ids=["frozen batch norm", "clipped, averaged, in two passes", "synchronised batch norm"],
)
def test_two_processes_give_the_weights_and_detections_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = run(tmp_path / "one", 1, BASE | changes | {"accumulate": 1})
    two = run(tmp_path / "two", 2, BASE | changes)
    for name, expected in one["weights"].items():
        assert torch.allclose(two["weights"][name], expected, rtol=1e-5, atol=1e-5), name
    for mine, theirs in zip(two["history"]["steps"], one["history"]["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert two["history"]["epochs"] == [pytest.approx(row, abs=1e-4) for row in one["history"]["epochs"]]
    assert [row["image_id"] for row in two["rows"]] == [row["image_id"] for row in one["rows"]]
