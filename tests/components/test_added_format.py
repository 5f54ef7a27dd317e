"""A data format from outside the package goes through ingest, preprocess and the data report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from components.ingest.step import run as ingest
from components.preprocess.step import run as preprocess
from tests.yolact.formats import index_masks
from yolact.errors import DataError
from yolact.formats import registry
from yolact_ops.settings.params import Params, load_params

IMAGES = [*(f"{number:02}" for number in range(20)), "val/a", "val/b"]
"""More than preprocess reads in its own process, so that the others must know the format too."""


@pytest.fixture
def added_format(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_formats", dict(registry._formats))
    registry.register_format(index_masks)
    return


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two squares in each image: objects 1 and 2."""
    random = np.random.default_rng(0)
    root = tmp_path / "source"
    for name in IMAGES:
        for folder in ("images", "numbers"):
            (root / "cells" / folder / name).parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[5:15, 5:15], mask[20:30, 30:50] = 1, 2
        Image.fromarray(mask).save(root / f"cells/numbers/{name}.png")
        Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(root / f"cells/images/{name}.png")
    (root / "cells/class.txt").write_text("cell\n")
    (root / "cells/notes.txt").write_text("not needed")
    return root


@pytest.fixture
def params(repository: Path, source: Path) -> Params:
    params = load_params(repository / "conf" / "base.yaml")
    return params.model_copy(update={"data": params.data.model_copy(update={"source": str(source)})})


def run(params: Params, folder: Path) -> None:
    ingest(params, raw_dir=folder / "raw", downloads_dir=folder / "downloads")
    preprocess(
        params,
        raw_dir=folder / "raw",
        processed_dir=folder / "processed",
        report_dir=folder / "report",
        workers=2,
    )


@pytest.mark.usefixtures("added_format")
def test_an_added_format_is_ingested_prepared_and_reported(params: Params, tmp_path: Path) -> None:
    run(params, tmp_path)
    assert sorted(path.name for path in (tmp_path / "raw/index-masks").iterdir()) == ["class.txt", "images", "numbers"]
    val = COCO(str(tmp_path / "processed/eval/val.json"))
    assert [row["file_name"] for row in val.dataset["images"]] == ["a.png", "b.png"]
    assert val.dataset["categories"] == [{"id": 1, "name": "cell"}]
    assert [row["bbox"] for row in val.dataset["annotations"]] == 2 * [[5, 5, 10, 10], [30, 20, 20, 10]]
    stats = json.loads((tmp_path / "processed/eval/stats.json").read_text())
    assert (stats["format"], stats["splits"]["train"]["images"], stats["warnings"]) == ("index masks", 20, [])
    page = (tmp_path / "report/index.html").read_text()
    assert "index masks format" in page
    assert "a.png: 60 x 40, 2 objects" in page


@pytest.mark.usefixtures("added_format")
def test_problems_of_an_added_format_are_listed(params: Params, source: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(source / "cells/numbers/03.png")
    with pytest.raises(DataError, match=r"numbers/03\.png: is 9 x 9 pixels, but the image is 60 x 40"):
        run(params, tmp_path)
    assert "numbers/03.png" in (tmp_path / "report/index.html").read_text()


def test_without_it_the_message_lists_the_known_formats_and_with_it_the_added_one(
    params: Params, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(DataError, match=r"(?s)in a known format.*PASCAL VOC: .*COCO: ") as caught:
        run(params, tmp_path)
    assert index_masks.NAME not in str(caught.value)
    request.getfixturevalue("added_format")
    (source / "cells/class.txt").unlink()
    with pytest.raises(DataError, match=f"{index_masks.NAME}: {index_masks.FOUND_BY}"):
        run(params, tmp_path)
