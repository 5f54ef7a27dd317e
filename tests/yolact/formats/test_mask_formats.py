"""Masks that number objects, and masks of one object each: whole data sets, through ingest's copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.yolact.formats.mask_sets import (
    NAMES,
    SIZE,
    Drawn,
    drawn,
    found,
    indexed,
    ingested,
    objects_of,
    photo,
    put,
    same,
)
from yolact.errors import DataError, SettingsError
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset

IMAGES = drawn()
OBJECT = ("object",) * 3
PART = ("part",) * 3


def numbered(
    root: Path, images: list[Drawn] = IMAGES, folders: tuple[str, str] = ("Images", "Masks"), **how: Any
) -> Path:
    """A mask for each image; ``how``: name, a template of mask names, and encoded, which makes the mask."""
    for place, image in enumerate(images):
        put(root / folders[0] / f"{image.name}.png", photo(place))
        mask = how.get("encoded", lambda mask: mask)(image.numbers)
        put(root / folders[1] / how.get("name", "{}_mask.png").format(image.name), mask)
    return root


def single(root: Path, images: list[Drawn] = IMAGES, value: Any = 255, layout: str = "{0}/masks/{1:08}.png") -> Path:
    """A mask for each object, as Data Science Bowl 2018 has them, or by another layout of name, number and class."""
    for place, image in enumerate(images):
        stem = Path(image.name).name
        own = f"{image.name}/images/{stem}.png" if layout.startswith("{0}/") else f"images/{image.name}.jpg"
        put(root / own, photo(place))
        for number, label in enumerate(image.labels, 1):
            mask = np.where(image.numbers == number, value, 0).astype(np.uint8)
            put(root / layout.format(image.name, number, NAMES[label - 1]), mask)
    return root


# Masks that number objects


@pytest.mark.parametrize("folders", [("PNGImages", "PedMasks"), ("images", "masks"), ("imgs", "instance_masks")])
@pytest.mark.parametrize("name", ["{}_mask.png", "{}.png", "{}_masks.PNG"])
def test_each_value_of_a_mask_is_an_object(tmp_path: Path, folders: tuple[str, str], name: str) -> None:
    root = numbered(tmp_path / "set", folders=folders, name=name)
    assert same(found(root), IMAGES, OBJECT)
    (warning,) = ingested(root).warnings
    assert "data.class_names=[NAME] names it" in warning.reason
    assert same(found(root, class_names=["part"]), IMAGES, PART)
    assert not ingested(root, class_names=["part"]).warnings


def as_16_bit(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint16))


def with_void(mask: np.ndarray) -> np.ndarray:
    bordered = mask.copy()
    bordered[-1] = 255
    return bordered


@pytest.mark.parametrize("encoded", [as_16_bit, indexed, with_void])
def test_numbers_are_read_from_other_kinds_of_masks(tmp_path: Path, encoded: Any) -> None:
    assert same(found(numbered(tmp_path / "set", encoded=encoded)), IMAGES, OBJECT)


def test_more_than_255_objects_are_read(tmp_path: Path) -> None:
    numbers = np.arange(1, SIZE[0] * SIZE[1] + 1, dtype=np.uint16).reshape(SIZE[::-1])
    put(tmp_path / "set/images/a.png", photo())
    put(tmp_path / "set/masks/a.png", Image.fromarray(numbers))
    (source,) = ingested(tmp_path / "set").splits["train"]
    assert [(item.number, item.area) for item in source.read().instances] == [(n, 1) for n in range(1, 481)]


def test_folders_of_splits_are_the_splits(tmp_path: Path) -> None:
    numbered(tmp_path / "set/train", IMAGES[:3])
    numbered(tmp_path / "set/val", IMAGES[3:])
    numbered(tmp_path / "set/test", IMAGES[:1])
    splits = ingested(tmp_path / "set").splits
    ids = {split: [source.image_id for source in sources] for split, sources in splits.items()}
    assert ids == {
        "train": ["train/img_000", "train/img_001", "train/img_002"],
        "val": ["val/img_003"],
        "test": ["test/img_000"],
    }


def test_a_class_list_names_the_only_class(tmp_path: Path) -> None:
    root = numbered(tmp_path / "set")
    put(root / "classes.txt", "part\n")
    assert same(found(root), IMAGES, PART)
    put(root / "classes.txt", "background\npart\nother\n")
    with pytest.raises(DataError, match=r"classes\.txt names 2 classes, but masks that number objects do not say"):
        ingested(root)
    with pytest.raises(SettingsError, match="voc is for class masks"):
        ingested(root, class_names="voc")


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_one_value_are_refused(tmp_path: Path, value: int) -> None:
    root = numbered(tmp_path / "set", encoded=lambda mask: np.where(mask % 2 == 1, value, 0).astype(np.uint8))
    for options in ({}, {"class_names": ["part"]}):
        with pytest.raises(DataError, match="no mask has more than one value besides 0"):
            ingested(root, **options)


def test_one_object_for_each_image_is_read_if_its_class_is_named(tmp_path: Path) -> None:
    images = [Drawn(image.name, np.where(image.numbers == 1, 1, 0).astype(np.uint8), (1,)) for image in IMAGES]
    root = numbered(tmp_path / "set", images, encoded=lambda mask: mask * np.uint8(255))
    with pytest.raises(DataError, match=r"If each image shows one object, name its class: data\.class_names=\[NAME\]"):
        ingested(root)
    assert same(found(root, class_names=["part"]), images, PART)
    assert "one object for each image" in ingested(root, class_names=["part"]).warnings[0].reason


def test_values_that_may_be_classes_are_refused_unless_the_class_is_named(tmp_path: Path) -> None:
    gaps = numbered(tmp_path / "gaps", encoded=lambda mask: np.where(mask, mask + 1, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"do not count 1, 2, 3, ….*name the class of all"):
        ingested(gaps)
    assert [len(objects) for objects in found(gaps, class_names=["part"]).values()] == [2, 3, 4, 2]
    pieces = numbered(tmp_path / "pieces", encoded=two_pieces)
    with pytest.raises(DataError, match="8 of 8 values are in several pieces"):
        ingested(pieces)


def two_pieces(mask: np.ndarray) -> np.ndarray:
    """Two classes of two objects each, in images of any content."""
    classes = np.zeros_like(mask)
    classes[2:5, 2:5], classes[2:5, 8:11], classes[2:5, 16:19], classes[10:14, 2:5] = 1, 2, 1, 2
    return classes


def test_masks_and_images_without_each_other_are_named(tmp_path: Path) -> None:
    root = numbered(tmp_path / "set")
    put(root / "Images/lone.jpg", photo())
    put(root / "Masks/other_mask.png", IMAGES[0].numbers)
    dataset = ingested(root)
    ((file, (problem,)),) = dataset.problems.items()
    assert file == "Masks/other_mask.png"
    assert "fits no image in Images" in problem.reason
    assert "images without masks are not used: 1, such as 'lone'" in dataset.warnings[0].reason


def test_the_longest_image_name_owns_a_mask(tmp_path: Path) -> None:
    images = [
        Drawn(name, image.numbers, image.labels) for name, image in zip(("a", "a_1", "a_1_2"), IMAGES, strict=False)
    ]
    assert same(found(numbered(tmp_path / "set", images)), images, OBJECT)


def test_a_mask_of_another_size_costs_its_image(tmp_path: Path) -> None:
    root = numbered(tmp_path / "set", IMAGES[:1])
    put(root / "Masks/img_000_mask.png", IMAGES[0].numbers[:-1])
    (source,) = ingested(root).splits["train"]
    with pytest.raises(ProblemError, match="is 24 x 19 pixels, but the image is 24 x 20"):
        source.read()


# A mask for each object


@pytest.mark.parametrize("value", [255, 1, 77])
def test_a_folder_for_each_image_has_a_mask_for_each_object(tmp_path: Path, value: int) -> None:
    root = single(tmp_path / "stage1_train", value=value)
    assert same(found(root), IMAGES, OBJECT)
    assert same(found(root, class_names=["nucleus"]), IMAGES, ("nucleus",) * 3)


@pytest.mark.parametrize("layout", ["masks/{0}/{1}.png", "masks/{0}_{1}.png", "masks/{0}_mask_{1:03}.png"])
def test_masks_are_found_by_their_images_names(tmp_path: Path, layout: str) -> None:
    assert same(found(single(tmp_path / "set", layout=layout)), IMAGES, OBJECT)


def test_classes_are_the_words_in_the_names_of_masks_if_they_are_set(tmp_path: Path) -> None:
    root = single(tmp_path / "set", layout="masks/{0}/{2}_{1}.png")
    (unnamed, words) = ingested(root).warnings
    assert unnamed.kind == "class without a name"
    assert "data.class_names=[" in words.reason
    assert all(name in words.reason for name in NAMES)
    assert same(found(root, class_names=list(NAMES)), IMAGES)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "P"])
def test_masks_of_an_object_are_read_in_any_mode(tmp_path: Path, mode: str) -> None:
    root = single(tmp_path / "set")
    for path in root.rglob("masks/*.png"):
        with Image.open(path) as image:
            other = image.convert(mode)
        put(path, other)
    assert same(found(root), IMAGES, OBJECT)


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (np.zeros(SIZE[::-1], dtype=np.uint8), "empty mask"),
        (np.ones((5, 5), dtype=np.uint8), "mask of another size"),
        (
            np.eye(SIZE[1], SIZE[0], dtype=np.uint8) * np.arange(SIZE[0], dtype=np.uint8),
            "object mask with several values",
        ),
    ],
)
def test_a_mask_that_cannot_be_used_costs_the_object(tmp_path: Path, mask: np.ndarray, kind: str) -> None:
    root = single(tmp_path / "set", IMAGES[:2])
    put(root / "img_000/masks/00000009.png", mask)
    dataset = ingested(root)
    source = dataset.splits["train"][0]
    image = source.read()
    assert [problem.kind for problem in image.dropped] == [kind]
    assert image.dropped[0].file == "img_000/masks/00000009.png"
    assert len(objects_of(image, dataset)) == 2


def test_masks_beside_another_format_are_not_a_second_data_set(tmp_path: Path) -> None:
    root = numbered(tmp_path / "set")
    put(root / "annotations.json", '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "part"}]}')
    assert read_dataset(root).format == "COCO"


def test_roboflows_semantic_masks_are_named(tmp_path: Path) -> None:
    put(tmp_path / "train/a.jpg", photo())
    put(tmp_path / "train/a_mask.png", IMAGES[0].classes())
    put(tmp_path / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, bolt\n")
    with pytest.raises(DataError, match=r"looks like Roboflow's export of semantic segmentation masks.*export COCO"):
        read_dataset(tmp_path)
