"""Columns of images and objects: in memory and from an index they are the lists that they were made from."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.data import arrow_file
from yolact.data.arrow_file import Facts, read_index, write_index
from yolact.data.columns import CocoImage, CocoObject, Columns, Images, Objects, Rows
from yolact.data.shards import Place
from yolact.errors import DataError

FACTS = Facts([(3, "cat"), (17, "dög")], 12)

TEXTS = st.text("ab/.\u00f6\u2603\U0001f436", max_size=6)
SEGMENTATIONS = st.one_of(
    TEXTS.map(lambda counts: {"size": [6, 8], "counts": counts}),
    st.lists(st.integers(0, 48), max_size=3).map(lambda counts: {"size": [6, 8], "counts": counts}),
    st.just([[1, 2.5, 3, 4, 5, 6]]),
)
OBJECTS = st.builds(
    CocoObject,
    label=st.integers(0, 1),
    box=st.tuples(*[st.floats(0, 1e6)] * 4),
    crowd=st.booleans(),
    segmentation=SEGMENTATIONS,
)
PLACES = st.none() | st.builds(
    Place, st.integers(0, 2**31 - 1), st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 2**32 - 1)
)


@st.composite
def content(draw: st.DrawFn) -> tuple[list[CocoImage], list[list[CocoObject]]]:
    ids = draw(st.lists(st.integers(-5, 2**62), unique=True, max_size=9))
    images = [CocoImage(number, draw(TEXTS), 8, 6, draw(PLACES)) for number in ids]
    return images, [draw(st.lists(OBJECTS, max_size=3)) for _ in ids]


def check(rows: Rows, images: list[CocoImage], objects: list[list[CocoObject]]) -> None:
    assert list(Images(rows)) == images
    found = Objects(rows)
    assert list(found) == [image.id for image in images]
    assert dict(found) == {image.id: some for image, some in zip(images, objects, strict=True)}
    missing = 2**63 - 1
    assert missing not in found
    with pytest.raises(KeyError):
        found[missing]


@given(content(), st.integers(1, 4), st.slices(9))
def test_columns_in_parts_are_the_lists(
    some: tuple[list[CocoImage], list[list[CocoObject]]], size: int, chosen: slice
) -> None:
    images, objects = some
    starts = range(0, len(images), size)
    rows = Rows([Columns.of(images[k : k + size], objects[k : k + size]) for k in starts])
    check(rows, images, objects)
    listed = Images(rows)
    assert listed[chosen] == images[chosen]
    assert [listed[-1 - k] for k in range(len(images))] == images[::-1]
    with pytest.raises(IndexError):
        listed[len(images)]


@given(some=content())
def test_an_index_has_what_was_written_also_pickled(
    tmp_path_factory: pytest.TempPathFactory, some: tuple[list[CocoImage], list[list[CocoObject]]]
) -> None:
    images, objects = some
    path = tmp_path_factory.mktemp("index") / "train.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_file, "ROWS", 4)  # several record batches
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
    monkeypatch.setattr(arrow_file, "VERSION", "2")
    with pytest.raises(DataError, match=r"train\.arrow: is not an index of version 2\. Run the preprocess step again"):
        read_index(path)


def test_an_index_beside_changed_annotations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "train.json").write_bytes(bytes(FACTS.annotations_size))
    read_index(path)
    (tmp_path / "train.json").write_bytes(bytes(FACTS.annotations_size + 1))
    with pytest.raises(DataError, match=r"train\.arrow: was not made from train\.json, which has changed"):
        read_index(path)
