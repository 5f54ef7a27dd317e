"""Columns of images and objects: in memory and from an index they are the lists that they were made from."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from yolact.data import arrow_file
from yolact.data.arrow_file import Facts, read_index, write_index
from yolact.data.columns import CocoImage, CocoObject, Columns, Images, Objects, Rows
from yolact.data.shards import Place
from yolact.errors import DataError

FACTS = Facts([(3, "cat"), (17, "dög")], 12, "5eed")


def content(seed: int) -> tuple[list[CocoImage], list[list[CocoObject]]]:
    """Up to nine random images with up to three objects each, in all forms."""
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choices("ab/.ö☃🐶", k=rng.randrange(6)))

    def item() -> CocoObject:
        left, top, right, bottom = (rng.uniform(0, 1e6) for _ in range(4))
        forms = [{"size": [6, 8], "counts": text()}, {"size": [6, 8], "counts": [3, 45]}, [[1, 2.5, 3, 4, 5, 6]]]
        return CocoObject(rng.randrange(2), (left, top, right, bottom), rng.random() < 0.5, rng.choice(forms))

    ids = rng.sample([*range(-5, 20), 2**62], rng.randrange(10))
    places = [None, Place(0, 512, 1, 0), Place(2**31 - 1, 2**62, 2**40, 2**32 - 1)]
    images = [CocoImage(number, text(), 8, 6, rng.choice(places)) for number in ids]
    return images, [[item() for _ in range(rng.randrange(4))] for _ in images]


def check(rows: Rows, images: list[CocoImage], objects: list[list[CocoObject]]) -> None:
    assert list(Images(rows)) == images
    found = Objects(rows)
    assert list(found) == [image.id for image in images]
    assert dict(found) == {image.id: some for image, some in zip(images, objects, strict=True)}
    missing = 2**63 - 1
    assert missing not in found
    with pytest.raises(KeyError):
        found[missing]


@pytest.mark.parametrize("seed", range(20))
def test_columns_in_parts_are_the_lists(seed: int) -> None:
    images, objects = content(seed)
    size = 1 + seed % 4
    starts = range(0, len(images), size)
    rows = Rows([Columns.of(images[k : k + size], objects[k : k + size]) for k in starts])
    check(rows, images, objects)
    listed = Images(rows)
    for chosen in (slice(None), slice(1, -1), slice(None, None, -2), slice(20, 30)):
        assert listed[chosen] == images[chosen]
    assert [listed[-1 - k] for k in range(len(images))] == images[::-1]
    with pytest.raises(IndexError):
        listed[len(images)]
    pairs = {(k, item.label) for k, some in enumerate(objects) for item in some if not item.crowd}
    assert list(zip(*(column.tolist() for column in rows.shown_classes()), strict=True)) == sorted(pairs)


@pytest.mark.parametrize("seed", range(20))
def test_an_index_has_what_was_written_also_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    images, objects = content(seed)
    path = tmp_path / "train.arrow"
    monkeypatch.setattr(arrow_file, "ROWS", 4)  # several record batches
    write_index(path, FACTS, zip(images, objects, strict=True), len(images))
    rows = read_index(path)
    assert rows.facts == FACTS
    check(rows, images, objects)
    copied = pickle.dumps(rows)
    assert len(copied) < 1000
    check(pickle.loads(copied), images, objects)


def write(folder: Path) -> Path:
    path = folder / "train.arrow"
    image = CocoImage(7, "a.png", 8, 6, Place(0, 512, 100, 99))
    write_index(path, FACTS, [(image, [CocoObject(1, (0, 0, 1, 1), False, [[1, 1, 2, 2, 3, 3]])])], 1)
    return path


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert write(tmp_path / "a").read_bytes() == write(tmp_path / "b").read_bytes()


def test_other_tools_read_an_index(tmp_path: Path) -> None:
    table = pa.ipc.open_file(write(tmp_path)).read_all()
    expected: dict[str, Any] = {"id": 7, "file_name": "a.png", "width": 8, "height": 6}
    expected |= {
        "shard": 0,
        "offset": 512,
        "length": 100,
        "crc32": 99,
        "label": [1],
        "box": [[0, 0, 1, 1]],
        "crowd": [0],
    }
    expected |= {"segmentation": [json.dumps([[1, 1, 2, 2, 3, 3]])], "compressed": [0]}
    assert table.to_pylist() == [expected]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", b"{}", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train\.arrow: .* Run the preprocess step again"):
            read_index(path)


def test_an_index_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setattr(arrow_file, "VERSION", "3")
    with pytest.raises(DataError, match=r"train\.arrow: is not an index of version 3\. Run the preprocess step again"):
        read_index(path)


def test_an_index_beside_changed_annotations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "train.json").write_bytes(bytes(FACTS.annotations_size))
    read_index(path)
    (tmp_path / "train.json").write_bytes(bytes(FACTS.annotations_size + 1))
    with pytest.raises(DataError, match=r"train\.arrow: was not made from train\.json, which has changed"):
        read_index(path)
