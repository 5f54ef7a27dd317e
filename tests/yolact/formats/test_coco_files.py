"""COCO files are read row by row: every JSON as the json module reads it, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.yolact.formats.coco_sets import annotation, tree, write
from yolact.errors import DataError
from yolact.formats import coco_files
from yolact.formats.coco_files import is_coco, load_instances

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(VALUES, max_size=6),
    info=VALUES,
    ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
    block=st.integers(8, 60),
    mark=st.sampled_from(["", "\ufeff"]),
)
@example(rows=[None, None], info=0.0, ascii=False, indent=None, block=8, mark="")  # a block ends behind "0."
@example(rows=[], info=1e300, ascii=False, indent=None, block=17, mark="")
def test_rows_equal_those_of_the_json_module(
    tmp_path: Path, rows: list[Any], info: Any, ascii: bool, indent: int | None, block: int, mark: str
) -> None:
    content = {"annotations": rows, "info": info, "images": [], "categories": [{"id": 1, "name": "\u00e4\u4e2d"}]}
    text = mark + json.dumps(content, ensure_ascii=ascii, indent=indent)
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_files, "BLOCK", block)
        found = load_instances(path, "a.json")
    stored = [row for part in found.rows_of.values() for row in part]
    assert sorted(map(json.dumps, stored)) == sorted(map(json.dumps, rows))
    assert (found.info, found.annotations, found.categories[0].name) == (info, len(rows), "\u00e4\u4e2d")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 600), junk=st.binary(max_size=3), end=st.integers(0, 600), block=st.integers(8, 700))
def test_damage_is_refused_where_the_json_module_refuses_it(
    tmp_path: Path, at: int, junk: bytes, end: int, block: int
) -> None:
    data = json.dumps(tree(annotation(), annotation(id=2))).encode()
    data = (data[:at] + junk + data[at + len(junk) :])[: max(end, 300)]
    path = tmp_path / "a.json"
    path.write_bytes(data)
    try:
        json.loads(data)
        is_json = True
    except ValueError:
        is_json = False
    message = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_files, "BLOCK", block)
        try:
            load_instances(path, "a.json")
        except DataError as error:
            message = str(error)
    assert ("not JSON" in message) == (not is_json)


@pytest.mark.parametrize("content", ["", " ", "1", '"a"', "[1]", "{}", "{}{}", '{"images": 3, "annotations": []}'])
def test_what_is_not_instances_json_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"^\S*a\.json: not (JSON|COCO)") as caught:
        load_instances(write(tmp_path, content, "a.json"), "a.json")
    assert str(caught.value).count("a.json") == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_found_and_refused_with_the_fix(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(tree()).encode(encoding))
    assert is_coco(path)
    with pytest.raises(DataError, match=r"it is stored as utf-16.*save it as UTF-8"):
        load_instances(path, "a.json")


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = [[number / 7 for number in range(200)]]
    rows = [annotation(id=number, image_id=number % 50, segmentation=outline) for number in range(400)]
    path = write(tmp_path, tree(*rows))
    size = path.stat().st_size
    monkeypatch.setattr(coco_files, "BLOCK", size // 50)
    tracemalloc.start()
    found = load_instances(path, "a.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 2
    assert [row["id"] for row in found.rows_of[7]] == list(range(7, 400, 50))
