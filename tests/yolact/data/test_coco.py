"""Reading COCO instances JSON: labels, masks in every format against pixels drawn by hand, and each error's message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from yolact.data.coco import CocoInstances, decode_masks
from yolact.data.columns import CocoImage, CocoObject
from yolact.errors import DataError

HEIGHT, WIDTH = 6, 8
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]


def runs(mask: np.ndarray) -> list[int]:
    """Alternating run lengths of 0 and 1, down the columns, starting with 0."""
    lengths, current = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != current:
            lengths.append(0)
            current = pixel
        lengths[-1] += 1
    return lengths


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": runs(mask)}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    mask = rectangle(1, 2, 4, 5)
    row = {"id": number, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 3], "segmentation": uncompressed(mask)}
    return row | {"iscrowd": 0, "area": 9} | changes


def tree(*annotations: dict[str, Any]) -> dict[str, Any]:
    images = [
        {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "b.png", "width": 5, "height": 5},
    ]
    return {"images": images, "categories": CATEGORIES, "annotations": list(annotations)}


def write(folder: Path, content: Any) -> Path:
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return path


def load(folder: Path, content: Any) -> CocoInstances:
    return CocoInstances.load(write(folder, content), folder)


def as_object(segmentation: Any) -> CocoObject:
    return CocoObject(0, (0, 0, 1, 1), False, segmentation)


# --- What is read


def test_labels_follow_the_ascending_category_ids(tmp_path: Path) -> None:
    data = load(
        tmp_path, tree(annotation(1, category_id=90), annotation(2, category_id=3), annotation(3, category_id=17))
    )
    assert data.category_ids == [3, 17, 90]
    assert data.class_names == ["car", "cat", "zebra"]
    assert [item.label for item in data.objects[7]] == [2, 0, 1]


def test_images_keep_their_order_and_may_have_no_object(tmp_path: Path) -> None:
    data = load(tmp_path, tree(annotation(1)))
    assert list(data.images) == [CocoImage(7, "a.png", WIDTH, HEIGHT), CocoImage(2, "b.png", 5, 5)]
    assert data.objects[2] == []
    assert len(data.objects[7]) == 1


def test_boxes_become_corners_and_crowds_are_marked(tmp_path: Path) -> None:
    without_flag = annotation(3)
    del without_flag["iscrowd"]
    data = load(tmp_path, tree(annotation(1, bbox=[1.5, 2.25, 3, 0.5]), annotation(2, iscrowd=1), without_flag))
    assert data.objects[7][0].box == (1.5, 2.25, 4.5, 2.75)
    assert [item.crowd for item in data.objects[7]] == [False, True, False]


def test_images_are_read_as_rgb_whatever_their_mode(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = load(tmp_path, tree())
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(data.read_image(data.images[0]), pixels)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "a.png")
    assert np.array_equal(data.read_image(data.images[0]), np.repeat(pixels[:, :, :1], 3, axis=2))


# --- Masks


@given(st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=1, max_size=4))
def test_run_lengths_decode_to_their_pixels(rows: list[list[bool]]) -> None:
    masks = np.array(rows, dtype=np.uint8).reshape(-1, 4, 5)
    for encode in (uncompressed, compressed):
        found = decode_masks([as_object(encode(mask)) for mask in masks], 4, 5)
        assert found.dtype == np.uint8
        assert np.array_equal(found, masks)


def test_polygons_are_united_and_fill_their_pixels() -> None:
    corners = [[1, 1, 4, 1, 4, 5, 1, 5], [5, 0, 8, 0, 8, 2, 5, 2]]
    assert np.array_equal(
        decode_masks([as_object(corners)], HEIGHT, WIDTH)[0], rectangle(1, 1, 4, 5) | rectangle(5, 0, 8, 2)
    )


def test_a_slanted_polygon_matches_pillow_except_at_its_border() -> None:
    points = [(10, 5), (50, 20), (30, 55)]
    found = decode_masks([as_object([[float(x) for point in points for x in point]])], 64, 64)[0]
    drawn = Image.new("1", (64, 64))
    ImageDraw.Draw(drawn).polygon(points, fill=1)
    both, either = (found & np.asarray(drawn)).sum(), (found | np.asarray(drawn)).sum()
    assert both / either > 0.93  # Pillow includes the border's pixels
    assert found.sum() == pytest.approx(850, abs=15)  # area by the shoelace formula


def test_segmentation_formats_can_be_mixed_and_match_pycocotools(tmp_path: Path) -> None:
    mask = rectangle(2, 1, 7, 6)
    rows = [
        annotation(1, segmentation=uncompressed(mask)),
        annotation(2, segmentation=compressed(mask)),
        annotation(3, segmentation=[[2, 1, 7, 1, 7, 6, 2, 6]]),
    ]
    path = write(tmp_path, tree(*rows))
    found = decode_masks(CocoInstances.load(path, tmp_path).objects[7], HEIGHT, WIDTH)
    other = COCO(str(path))
    assert np.array_equal(found, np.stack([mask] * 3))
    assert np.array_equal(found, np.stack([other.annToMask(row) for row in other.loadAnns([1, 2, 3])]))
    assert found.flags.c_contiguous


def test_no_objects_give_no_masks() -> None:
    assert decode_masks([], 4, 5).shape == (0, 4, 5)


# --- Faults


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file.*dvc repro preprocess"):
        CocoInstances.load(tmp_path / "nowhere.json", tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.json: not JSON"):
        CocoInstances.load(path, tmp_path)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "no list `categories`"),
        ({"images": []}, "categories"),
        (without(tree(), "annotations"), "annotations"),
        (tree(without(annotation(1), "bbox")), "bbox"),
        (tree(without(annotation(1), "segmentation")), "segmentation"),
        (tree(annotation(1, bbox=[1, 2, 3])), "not enough values"),
        (tree(annotation(5, image_id=99)), "annotation 5 has image_id 99"),
        (tree(annotation(5, category_id=1)), "annotation 5 has category_id 1"),
        (tree(annotation(5, segmentation=uncompressed(np.ones((5, 5))))), "annotation 5 has a mask of 5x5 pixels.*8x6"),
        (tree(annotation(5, segmentation={"size": [6, 8], "counts": [0, 5]})), "annotation 5 has runs of 5 pixels.*48"),
        (tree(annotation(5, segmentation=[])), "annotation 5 has a segmentation without polygons"),
        (tree(annotation(5, segmentation=[[1, 1, 2, 2]])), "annotation 5.*fewer than 3 points"),
    ],
)
def test_an_error_in_the_annotations_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"train\.json: not COCO instances JSON: .*{said}"):
        load(tmp_path, content)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    data = load(tmp_path, tree())
    with pytest.raises(DataError, match=r"a\.png: no such image"):
        data.read_image(data.images[0])


@pytest.mark.parametrize("length", [0, 20, 60])
def test_a_damaged_image_is_named(tmp_path: Path, length: int) -> None:
    data = load(tmp_path, tree())
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        data.read_image(data.images[0])


@pytest.mark.parametrize(
    "header",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x01IHDR\x00\x00\x00\x00\x00",  # IHDR cut short
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d\x12\xb5&:" + bytes(30),  # a chunk without a name
        b"BM" + bytes(12) + b"\x28\x00\x00\x00\xff\xff\x00\x00\xff\xff\x00\x00\x01\x00\x18" + bytes(30),  # huge
    ],
)
def test_an_invalid_image_header_is_named(tmp_path: Path, header: bytes) -> None:
    data = load(tmp_path, tree())
    (tmp_path / "a.png").write_bytes(header)
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        data.read_image(data.images[0])


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    data = load(tmp_path, tree())
    Image.new("RGB", (9, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 9x4 pixels, the annotations say 8x6"):
        data.read_image(data.images[0])


def test_a_damaged_compressed_mask_is_rejected() -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_masks([as_object({"size": [HEIGHT, WIDTH], "counts": "garbage!!"})], HEIGHT, WIDTH)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("tree", [{}, {"images": {}, "annotations": 3, "categories": None}])
def test_a_list_that_the_file_lacks_is_named(tmp_path: Path, key: str, tree: dict[str, Any]) -> None:
    """``stats.json``, for example, is next to ``train.json`` and is JSON too."""
    lists: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    del lists[key]
    path = tmp_path / "stats.json"
    path.write_text(json.dumps(lists | {k: v for k, v in tree.items() if k == key}))
    with pytest.raises(DataError, match=rf"stats\.json: not COCO instances JSON: no list `{key}`$"):
        CocoInstances.load(path, tmp_path)
