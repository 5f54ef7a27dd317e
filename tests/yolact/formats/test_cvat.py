"""CVAT for images 1.1: shapes, groups, masks, subsets, and what is left out."""

from __future__ import annotations

import contextlib
import tempfile
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.yolact.formats.drawn import (
    LEFT,
    RIGHT,
    SIZE,
    Outline,
    assert_objects,
    ids,
    mask,
    read_all,
    save_image,
    write,
)
from yolact.errors import DataError
from yolact.formats.dataset import ReadOptions
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset

META = (
    "<version>1.1</version><meta><project><labels><label><name>dog</name><type>any</type></label>"
    "<label><name>cat</name><attributes/></label></labels></project></meta>"
)


def shape(tag: str, label: str = "cat", **attributes: object) -> str:
    values = {"label": label, "source": "manual", "occluded": "0", "z_order": "0"} | attributes
    return f"<{tag} {' '.join(f'{name}={quoteattr(str(value))}' for name, value in values.items())}></{tag}>"


def polygon(outline: Outline, label: str = "cat", **attributes: object) -> str:
    return shape("polygon", label, points=";".join(f"{x:.2f},{y:.2f}" for x, y in outline), **attributes)


def painted(pixels: np.ndarray, label: str = "cat", **attributes: object) -> str:
    """A mask as CVAT writes it: runs of the box's rows, the first one of background."""
    ys, xs = np.nonzero(pixels)
    box = pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    runs = [(value, len(list(run))) for value, run in groupby(box.ravel().tolist())]
    counts = [length for _, length in runs]
    rle = ", ".join(map(str, [0, *counts] if runs[0][0] else counts))
    place = {"left": xs.min(), "top": ys.min(), "width": box.shape[1], "height": box.shape[0]}
    return shape("mask", label, rle=rle, **place, **attributes)


def image(*shapes: str, name: str = "a.jpg", size: tuple[int, int] = SIZE, **attributes: object) -> str:
    more = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    return f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}" {more}>{"".join(shapes)}</image>'


def document(*images: str, meta: str = META) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{"".join(images)}</annotations>'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_image(tmp_path / "images/a.jpg")
    return tmp_path


def test_polygons_masks_and_ellipses_become_objects(root: Path) -> None:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    turned = ((x - 30) + (y - 20)) ** 2 / 2 / 15**2 + ((y - 20) - (x - 30)) ** 2 / 2 / 6**2 < 1
    ring = mask(LEFT) & ~mask([(10, 10), (20, 10), (20, 25), (10, 25)])
    shapes = [
        polygon(LEFT, "dog"),
        painted(ring),
        painted(np.ones((SIZE[1], SIZE[0]), dtype=bool)),
        shape("ellipse", cx=30, cy=20, rx=15, ry=6, rotation="45.0"),
    ]
    write(root / "annotations.xml", document(image(*shapes, '<tag label="dog"></tag>')))
    dataset, images = read_all(root)
    assert (dataset.format, dict(dataset.classes)) == ("CVAT for images", {1: "dog", 2: "cat"})
    wanted = [("dog", mask(LEFT)), ("cat", ring), ("cat", np.ones_like(ring)), ("cat", turned)]
    assert_objects(dataset, images["images/a.jpg"], *wanted)
    assert [found.area for found in images["images/a.jpg"].instances][1:3] == [ring.sum(), ring.size]
    assert (dataset.warnings, images["images/a.jpg"].dropped) == ([], ())


def test_shapes_of_a_group_and_label_are_one_object(root: Path) -> None:
    grouped = [polygon(LEFT, group_id="3"), painted(mask(RIGHT), group_id="3"), polygon(RIGHT, "dog", group_id="3")]
    write(root / "annotations.xml", document(image(*grouped, polygon(LEFT, group_id="0"), polygon(LEFT, group_id="0"))))
    dataset, images = read_all(root)
    wanted = [("cat", mask(LEFT, RIGHT)), ("dog", mask(RIGHT)), ("cat", mask(LEFT)), ("cat", mask(LEFT))]
    assert_objects(dataset, images["images/a.jpg"], *wanted)


def test_subsets_of_a_project_are_splits(tmp_path: Path) -> None:
    rows = []
    for subset in ("Train", "Validation"):
        save_image(tmp_path / f"images/{subset}/a.jpg")
        rows.append(image(polygon(LEFT), subset=subset))
    write(tmp_path / "annotations.xml", document(*rows))
    assert ids(read_dataset(tmp_path)) == {"train": ["images/Train/a.jpg"], "val": ["images/Validation/a.jpg"]}


def test_a_turned_image_has_its_shapes_in_the_upright_frame(root: Path) -> None:
    save_image(root / "images/a.jpg", (SIZE[1], SIZE[0]), orientation=6)
    write(root / "annotations.xml", document(image(polygon(LEFT))))
    dataset, images = read_all(root)
    assert images["images/a.jpg"].upright_by_size
    assert_objects(dataset, images["images/a.jpg"], ("cat", mask(LEFT)))


def test_shapes_without_outline_are_dropped_with_their_kind(root: Path) -> None:
    shapes = [
        polygon(LEFT),
        shape("box", xtl=1, ytl=1, xbr=9, ybr=9),
        shape("polyline", points="1,1;2,2;3,1"),
        shape("points", points="1,1"),
        shape("cuboid"),
        '<skeleton label="dog"><points label="1" points="1,1"></points></skeleton>',
        polygon(LEFT, " "),
        shape("polygon", points="1,1;2,x"),
        shape("mask", rle="1, 2", left=0, top=0, width=2, height=2),
        shape("mask", rle="1, -3", left=0, top=0, width=2, height=2),
        shape("mask", rle="4", left=0, top=0, width=99999999, height=99999999),
    ]
    write(root / "annotations.xml", document(image(*shapes)))
    dataset, images = read_all(root)
    assert_objects(dataset, images["images/a.jpg"], ("cat", mask(LEFT)))
    assert [problem.kind for problem in images["images/a.jpg"].dropped] == [
        *(f"{tag} without outline" for tag in ("box", "polyline", "points", "cuboid", "skeleton")),
        "shape without label",
        *3 * ["damaged mask"],
        "outline of less than 3 points",
    ]
    assert images["images/a.jpg"].dropped[0].reason == "box 2 of images/a.jpg is a box, not an outline; it is left out"


def test_missing_and_unlisted_images_are_named(root: Path) -> None:
    save_image(root / "images/b.jpg")
    write(root / "annotations.xml", document(image(polygon(LEFT)), image(name="gone.jpg")))
    dataset = read_dataset(root)
    assert list(dataset.problems) == ["annotations.xml gone.jpg"]
    assert "not used: 1, such as 'images/b.jpg'" in dataset.warnings[0].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (document(image(polygon(LEFT)))[:-5], "not well-formed XML"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]>" + document(image())[39:], "has a document type definition"),
        (document('<track id="0" label="cat"></track>'), r"^\S*: has tracks of a video. Export the task"),
        (document(image(), meta=""), "without a single object"),
        ("<annotations><image " + 'width="1" ' * 2, "not well-formed XML"),
        ("<annotations><image /><image />" + "<a>" * 50_000, "not well-formed XML"),
    ],
)
def test_a_damaged_file_is_refused(root: Path, text: str, message: str) -> None:
    write(root / "annotations.xml", text)
    with pytest.raises(DataError, match=message):
        read_dataset(root)


def test_two_files_with_one_image_are_refused_until_one_is_chosen(root: Path) -> None:
    for name in ("new.xml", "old.xml"):
        write(root / name, document(image(polygon(LEFT))))
    with pytest.raises(DataError, match=r"images/a.jpg is in new.xml and again in old.xml. Choose one by the setting"):
        read_dataset(root)
    assert ids(read_dataset(root, ReadOptions(annotations=["new.xml"]))) == {"train": ["images/a.jpg"]}


VALUES = st.sampled_from(["", "0", "-1", "2.5", "1e308", "nan", "inf", "9" * 30, "1,2", "1,2;3,4;5,6", "x", "4, 5"])
NAMES = st.sampled_from(
    ["points", "rle", "left", "top", "width", "height", "group_id", "cx", "cy", "rx", "ry", "rotation"]
)
TAGS = st.sampled_from(["polygon", "mask", "ellipse", "box", "cloud"])


@settings(deadline=None, max_examples=30)
@given(shapes=st.lists(st.tuples(TAGS, st.dictionaries(NAMES, VALUES)), max_size=5), size=st.tuples(VALUES, VALUES))
def test_any_shapes_give_objects_or_problems(shapes: list[tuple[str, dict[str, str]]], size: tuple[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for file in "ab":
            save_image(root / f"{file}.jpg")
        hostile = f'<image name="b.jpg" width="{size[0]}" height="{size[1]}">'
        hostile += "".join(shape(tag, **values) for tag, values in shapes) + "</image>"
        write(root / "annotations.xml", document(image(polygon(LEFT)), hostile))
        a, b = read_dataset(root).splits["train"]
        assert len(a.read().instances) == 1
        with contextlib.suppress(ProblemError):
            found = b.read()
            assert len(found.instances) + len(found.dropped) <= len(shapes)
