"""Damaged files: each reader of files from outside returns something valid or raises its own error, nothing else."""

# ruff: noqa: PT017 - damaged content may still be valid, so `pytest.raises` does not fit

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils
from safetensors.torch import save

from yolact.errors import DataError
from yolact.formats.mask_files import read_mask, read_numbers, read_object
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset
from yolact.formats.voc_files import read_annotation
from yolact.images import DecodingError, decode_image
from yolact.models.state_dicts import read_state_dict
from yolact.models.weights import WeightsError
from yolact.palette import voc_palette
from yolact_ops.settings.params import load_params
from yolact_ops.settings.yaml_text import SettingsError

ANNOTATION = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.jpg</filename><size><width>8</width><height>6'
    b"</height><depth>3</depth></size><object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2"
    b"</ymin><xmax>7</xmax><ymax>5.5</ymax></bndbox></object></annotation>\n"
)
MASK_MODES = ("P", "L", "I;16", "RGB", "RGBA")
IMAGE_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
WEIGHTS_KINDS = ("zip", "legacy", "safetensors")
PARAMS = (Path(__file__).parents[2] / "conf" / "base.yaml").read_bytes()
PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3


def png(mode: str) -> bytes:
    """A small PNG: ``P`` with VOC's palette, ``L``, 16-bit grey (``I;16``), ``RGB`` or ``RGBA``."""
    if mode == "I;16":
        image = Image.fromarray(PIXELS.astype(np.uint16) * 300)
    else:
        image = Image.fromarray(PIXELS)
        if mode == "P":
            image.putpalette(voc_palette().tobytes())
        elif mode != "L":
            image = Image.fromarray(voc_palette()[PIXELS]).convert(mode)
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def encoded(kind: str) -> bytes:
    made = io.BytesIO()
    Image.fromarray(voc_palette()[PIXELS]).save(made, kind)
    return made.getvalue()


def weights(kind: str) -> bytes:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
    if kind == "safetensors":
        return save(state)
    made = io.BytesIO()
    torch.save(state, made, _use_new_zipfile_serialization=kind == "zip")
    return made.getvalue()


def data_sets() -> dict[str, tuple[str, bytes, dict[str, bytes]]]:
    """A data set of one 8x6 image in each format of tools: the file to damage, its content, and the other files."""
    image = encoded("PNG")
    corners = [[1, 1], [6, 1], [6, 5], [1, 5]]
    flat = [side for corner in corners for side in corner]
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [flat], "bbox": [1, 1, 5, 4], "area": 20},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [7, 4, 37]}},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": "742U1"}, "iscrowd": 1},
    ]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": rows,
    }
    cvat = (
        '<annotations><version>1.1</version><meta/><image id="0" name="a.png" width="8" height="6">'
        '<polygon label="cat" points="1,1;6,1;6,5;1,5"/><box label="cat" xtl="1" ytl="1" xbr="6" ybr="5"/>'
        '<mask label="dog" rle="1, 2, 3" left="2" top="1" width="3" height="2"/></image></annotations>'
    )
    shape = {"label": "cat", "points": corners, "group_id": None, "shape_type": "polygon", "flags": {}}
    labelme = {"version": "5", "flags": {}, "shapes": [shape], "imagePath": "a.png", "imageHeight": 6, "imageWidth": 8}
    outline = {"name": "polygon", "all_points_x": [1, 6, 6, 1], "all_points_y": [1, 1, 5, 5]}
    circle = {"name": "circle", "cx": 4, "cy": 3, "r": 2}
    regions = [{"shape_attributes": each, "region_attributes": {"kind": "cat"}} for each in (outline, circle)]
    via = {"a.png1": {"filename": "a.png", "size": 1, "regions": regions, "file_attributes": {}}}
    thing = {
        "classTitle": "cat",
        "geometryType": "polygon",
        "points": {"exterior": corners, "interior": []},
        "tags": [],
    }
    supervisely = {"description": "", "tags": [], "size": {"width": 8, "height": 6}, "objects": [thing]}
    yolo = {"data.yaml": b"train: images\nnames: [cat, dog]\n", "labels/a.txt": b"0 0.125 0.2 0.75 0.2 0.75 0.8\n"}

    def of_yolo(file: str) -> tuple[str, bytes, dict[str, bytes]]:
        return file, yolo[file], yolo | {"images/a.png": image}

    return {
        "coco": ("a.json", json.dumps(coco).encode(), {"a.png": image}),
        "cvat": ("annotations.xml", cvat.encode(), {"a.png": image}),
        "labelme": ("a.json", json.dumps(labelme).encode(), {"a.png": image}),
        "supervisely": (
            "set/ann/a.png.json",
            json.dumps(supervisely).encode(),
            {"meta.json": b'{"classes": [{"title": "cat", "shape": "any"}]}', "set/img/a.png": image},
        ),
        "via": ("via.json", json.dumps(via).encode(), {"a.png": image}),
        "yolo": of_yolo("labels/a.txt"),
        "yolo-settings": of_yolo("data.yaml"),
    }


DATA_SETS = data_sets()


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of the contents with bytes replaced, inserted or removed, or cut off."""
    data = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        junk = draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"-1", b"nan", b"1e999"]))
        )
        removed = draw(st.sampled_from([0, len(junk), len(data)]))
        data = data[:start] + junk + data[start + removed :]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing")


def check_annotation(folder: Path, data: bytes) -> None:
    (folder / "a.xml").write_bytes(data)
    try:
        found = read_annotation(folder, "a.xml")
    except ProblemError as error:
        assert all(problem.file == "a.xml" and problem.reason for problem in error.problems)
        return
    assert found is not None
    assert all(isinstance(each.name, str) for each in found.objects)


def check_data_set(folder: Path, name: str, data: bytes) -> int:
    """Read a data set one of whose files is ``data``; returns the number of objects in it."""
    file, _, others = DATA_SETS[name]
    for path, content in (others | {file: data}).items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)
    try:
        sources = [source for split in read_dataset(folder / name).splits.values() for source in split]
    except DataError as error:
        assert str(error)
        return 0
    objects = 0
    for source in sources:
        try:
            image = source.read()
        except ProblemError as error:
            assert all(problem.file and problem.reason for problem in error.problems)
            continue
        for instance in image.instances:
            assert 0 < mask_utils.decode(instance.rle()).sum() <= image.width * image.height
        objects += len(image.instances)
    return objects


def check_mask(folder: Path, data: bytes, read: Callable[[Path, str], np.ndarray]) -> None:
    (folder / "a.png").write_bytes(data)
    try:
        found = read(folder, "a.png")
    except ProblemError as error:
        assert all(problem.file == "a.png" and problem.reason for problem in error.problems)
        return
    assert found.ndim == 2
    assert found.dtype in (np.uint8, np.uint16, np.bool_)


def check_image(data: bytes) -> None:
    try:
        found = decode_image(io.BytesIO(data))
    except DecodingError:
        return
    assert found.ndim == 3
    assert (found.shape[2], found.dtype) == (3, np.uint8)


def check_weights(folder: Path, data: bytes) -> None:
    path = folder / "a.pth"
    path.write_bytes(data)
    try:
        found = read_state_dict(path)
    except WeightsError as error:
        assert str(path) in str(error)
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def check_params(folder: Path, data: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(data)
    try:
        load_params(path)
    except SettingsError as error:
        assert str(error)


@settings(deadline=None)
@given(data=damaged([ANNOTATION]))
def test_annotations(folder: Path, data: bytes) -> None:
    check_annotation(folder, data)


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_that_are_damaged_below_are_read_undamaged(folder: Path, name: str) -> None:
    assert check_data_set(folder, name, DATA_SETS[name][1]) > 0


@settings(deadline=None)
@given(
    given_=st.sampled_from(list(DATA_SETS)).flatmap(
        lambda name: st.tuples(st.just(name), damaged([DATA_SETS[name][1]]))
    )
)
def test_data_sets(folder: Path, given_: tuple[str, bytes]) -> None:
    check_data_set(folder, *given_)


@settings(deadline=None)
@given(
    data=damaged([png(mode) for mode in MASK_MODES]),
    read=st.sampled_from([read_mask, read_numbers, read_object]),
)
def test_masks(folder: Path, data: bytes, read: Callable[[Path, str], np.ndarray]) -> None:
    check_mask(folder, data, read)


@settings(deadline=None)
@given(data=damaged([encoded(kind) for kind in IMAGE_KINDS]))
def test_images(data: bytes) -> None:
    check_image(data)


@settings(deadline=None)
@given(data=damaged([weights(kind) for kind in WEIGHTS_KINDS]))
def test_weights(folder: Path, data: bytes) -> None:
    check_weights(folder, data)


@pytest.mark.parametrize(("place", "junk"), [(46, b"\x98"), (6, b"\xff")])
def test_weights_with_a_damaged_directory_are_damaged(folder: Path, place: int, junk: bytes) -> None:
    """A name that is no text, or an unknown version: Python's zipfile raises other errors than its own for these."""
    data = weights("zip")
    at = data.index(b"PK\x01\x02") + place
    path = folder / "a.pth"
    path.write_bytes(data[:at] + junk + data[at + 1 :])
    with pytest.raises(WeightsError, match="is truncated or damaged"):
        read_state_dict(path)


@settings(deadline=None, max_examples=30)
@given(data=damaged([PARAMS]))
def test_params(folder: Path, data: bytes) -> None:
    check_params(folder, data)
