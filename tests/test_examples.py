"""The program in examples/ works without this project, and finds what it finds. The notebooks there have no results.

`tests/test_pipeline.py` runs the notebooks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from PIL import Image

from tests.notebooks import run_notebook
from tests.yolact.networks import trained_like
from yolact.inference.export import export_onnx
from yolact.inference.predictor import Predictor

CLASSES = ["circle", "square", "triangle"]

PROGRAM = """
import importlib.abc, runpy, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "yolact", "scipy", "pydantic"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
client = runpy.run_path(sys.argv[1])
pixels = np.load(sys.argv[3])
found = client["Model"](sys.argv[2])(pixels)
np.savez(
    sys.argv[4],
    names=[one.name for one in found],
    scores=[one.score for one in found],
    boxes=[one.box for one in found],
    masks=[one.mask for one in found],
)
client["draw"](pixels, found).save(sys.argv[5])
"""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("keep_aspect_ratio", "batch"), [(False, None), (True, 2)])
def test_the_client_finds_what_the_predictor_finds_without_importing_it(
    keep_aspect_ratio: bool, batch: int | None, repository: Path, tmp_path: Path
) -> None:
    model = trained_like("basic blocks", keep_aspect_ratio=keep_aspect_ratio)
    export_onnx(model, CLASSES, tmp_path / "model.onnx", batch=batch)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    files = ["model.onnx", "image.npy", "found.npz", "drawn.png"]
    command = [sys.executable, "-c", PROGRAM, str(repository / "examples/onnx_client.py")]
    done = subprocess.run(
        [*command, *(str(tmp_path / name) for name in files)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    found = np.load(tmp_path / "found.npz")
    expected = Predictor(model, CLASSES).predict(pixels)
    assert len(found["scores"]) == len(expected) > 5
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
    # Rounding may swap two objects with equal scores: each has its own nearest one of the same class.
    distance = np.abs(found["boxes"][None] - expected.boxes.numpy()[:, None]).max(axis=2)
    names = np.array([CLASSES[label] for label in expected.labels])
    distance += 1000 * (found["names"][None] != names[:, None])
    rows = distance.argmin(axis=1)
    assert sorted(rows) == list(range(len(expected)))
    assert distance.min(axis=1).max() < 0.01
    assert found["masks"].any()
    assert (torch.from_numpy(found["masks"][rows]) != expected.masks).float().mean() < 1e-3
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert drawn.shape == pixels.shape
    assert (drawn != pixels).any(axis=2).mean() > 0.05


def test_the_client_is_one_short_file(repository: Path) -> None:
    assert len((repository / "examples/onnx_client.py").read_text(encoding="utf-8").splitlines()) < 200


NOTEBOOKS = ["compare_runs", "extend", "predict"]


def test_the_page_lists_every_example(repository: Path) -> None:
    page = (repository / "examples" / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in (repository / "examples").iterdir() if path.suffix in (".ipynb", ".py")}
    assert files == {"onnx_client.py", *(f"{name}.ipynb" for name in NOTEBOOKS)}
    assert [name for name in sorted(files) if f"[{name}]({name})" not in page] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_results(name: str, repository: Path) -> None:
    book = json.loads((repository / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))
    results = [(cell["outputs"], cell["execution_count"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(results) > 5
    assert set(map(str, results)) == {str(([], None))}, "clear the outputs of all cells, and save"


def test_a_notebook_without_a_model_says_how_to_make_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(repository / "examples" / "predict.ipynb", tmp_path)
    with pytest.raises(CellExecutionError, match=r"models/model\.json: no such file\. Train one"):
        run_notebook(tmp_path / "predict.ipynb", os.environ | {"PYTHONPATH": str(repository)}, monkeypatch)
