"""The generated sample: equal settings give equal bytes; images, masks and boxes agree; the format is VOC2012's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image
from scipy import ndimage

from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats.mask_files import VOID
from yolact.formats.sample import generate_sample, writer
from yolact.palette import voc_palette
from yolact.settings import SampleConfig

CONFIG = SampleConfig(seed=3, train_images=28, val_images=20, min_size=140, max_size=200, max_objects=4)
SMALL = SampleConfig(seed=5, train_images=3, val_images=2, min_size=96, max_size=128, max_objects=3)


class Annotated(NamedTuple):
    """One image as another program would read it; boxes are xyxy from 0, right and lower edge exclusive."""

    classes: np.ndarray
    instances: np.ndarray
    names: list[str]
    boxes: list[tuple[int, int, int, int]]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    generate_sample(root, CONFIG)
    return root / "VOCdevkit" / "VOC2012"


@pytest.fixture(scope="module")
def images(voc: Path) -> dict[str, Annotated]:
    return {image_id: read(voc, image_id) for image_id in lines(voc, "trainval")}


def lines(voc: Path, split: str, task: str = "Segmentation") -> list[str]:
    return (voc / "ImageSets" / task / f"{split}.txt").read_text().splitlines()


def read(voc: Path, image_id: str) -> Annotated:
    names, boxes = [], []
    for found in ElementTree.parse(voc / "Annotations" / f"{image_id}.xml").getroot().iter("object"):
        names.append(found.findtext("name"))
        left, top, right, bottom = (int(found.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((left - 1, top - 1, right, bottom))
    with Image.open(voc / "SegmentationClass" / f"{image_id}.png") as image:
        classes = np.array(image)
    with Image.open(voc / "SegmentationObject" / f"{image_id}.png") as image:
        return Annotated(classes, np.array(image), names, boxes)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    return columns.start, rows.start, columns.stop, rows.stop


def test_equal_settings_give_equal_files(tmp_path: Path) -> None:
    generate_sample(tmp_path / "one", SMALL)
    generate_sample(tmp_path / "two", SMALL)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    generate_sample(tmp_path / "one", SMALL)
    generate_sample(tmp_path / "two", SMALL.model_copy(update={"seed": 6}))
    one, two = hashes(tmp_path / "one"), hashes(tmp_path / "two")
    jpegs = [name for name in one if name.endswith(".jpg")]
    assert len(jpegs) == 5
    assert not {one[name] for name in jpegs} & set(two.values())


def test_more_images_keep_the_earlier_ones(tmp_path: Path) -> None:
    generate_sample(tmp_path / "few", SMALL)
    generate_sample(tmp_path / "more", SMALL.model_copy(update={"train_images": 5, "val_images": 4}))
    few = {name: digest for name, digest in hashes(tmp_path / "few").items() if not name.endswith(".txt")}
    more = hashes(tmp_path / "more")
    assert len(few) == 5 * 4
    assert few.items() <= more.items()
    assert len([name for name in more if name.endswith(".jpg")]) == 9


def test_generating_again_replaces_what_was_there(tmp_path: Path) -> None:
    generate_sample(tmp_path, SMALL.model_copy(update={"train_images": 4}))
    generate_sample(tmp_path, SMALL)
    assert len(list(tmp_path.rglob("*.jpg"))) == 5


def test_the_files_are_those_of_voc2012(voc: Path) -> None:
    train, val = lines(voc, "train"), lines(voc, "val")
    assert (len(train), len(val)) == (28, 20)
    assert train[:2] == ["2012_000001", "2012_000002"]
    assert lines(voc, "trainval") == sorted(train + val)
    for split in ("train", "val", "trainval"):
        assert lines(voc, split, "Main") == lines(voc, split)
    expected = {"JPEGImages": "jpg", "Annotations": "xml", "SegmentationClass": "png", "SegmentationObject": "png"}
    assert {path.name for path in voc.iterdir()} == {*expected, "ImageSets"}
    for folder, suffix in expected.items():
        assert {path.name for path in (voc / folder).iterdir()} == {f"{name}.{suffix}" for name in train + val}


def test_images_are_rgb_jpegs_of_the_requested_size_in_both_orientations(voc: Path) -> None:
    sizes = []
    for path in (voc / "JPEGImages").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.append(image.size)
    assert min(min(size) for size in sizes) >= 140
    assert max(max(size) for size in sizes) <= 200
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationObject"])
def test_masks_are_palette_images_with_the_voc_colour_map(voc: Path, folder: str) -> None:
    for path in (voc / folder).iterdir():
        with Image.open(path) as mask, Image.open(voc / "JPEGImages" / f"{path.stem}.jpg") as image:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", image.size)
            assert mask.getpalette() == voc_palette().ravel().tolist()


def test_xml_has_the_elements_of_the_devkit_in_their_order(voc: Path) -> None:
    image_id = lines(voc, "train")[0]
    root = ElementTree.parse(voc / "Annotations" / f"{image_id}.xml").getroot()
    with Image.open(voc / "JPEGImages" / f"{image_id}.jpg") as image:
        size = image.size
    found = root.find("object")
    assert [child.tag for child in root][:5] == ["folder", "filename", "source", "size", "segmented"]
    assert {child.tag for child in root[5:]} == {"object"}
    assert (root.findtext("folder"), root.findtext("filename")) == ("VOC2012", f"{image_id}.jpg")
    assert [int(child.text) for child in root.find("size")] == [*size, 3]
    assert [child.tag for child in root.find("size")] == ["width", "height", "depth"]
    assert root.findtext("segmented") == "1"
    assert [child.tag for child in found] == ["name", "pose", "truncated", "difficult", "bndbox"]
    assert [child.tag for child in found.find("bndbox")] == ["xmin", "ymin", "xmax", "ymax"]


def test_every_object_index_has_one_xml_object_and_its_class_in_both_masks(images: dict[str, Annotated]) -> None:
    for image in images.values():
        expected = [0, *range(1, len(image.names) + 1)]
        assert 1 <= len(image.names) <= CONFIG.max_objects
        assert [index for index in np.unique(image.instances) if index != VOID] == expected
        assert ((image.instances == VOID) == (image.classes == VOID)).all()
        for index, name in enumerate(image.names, start=1):
            assert set(image.classes[image.instances == index]) == {VOC_CLASSES.index(name) + 1}
        assert (image.classes[image.instances == 0] == 0).all()


def test_void_separates_every_object_from_everything_else(images: dict[str, Annotated]) -> None:
    for image in images.values():
        decided = image.instances != VOID
        for index in range(len(image.names) + 1):
            around = ndimage.binary_dilation(image.instances == index, np.ones((3, 3)))
            assert set(image.instances[around & decided]) == {index}


def test_boxes_enclose_the_masks_and_touch_object_or_void_on_every_side(images: dict[str, Annotated]) -> None:
    for image in images.values():
        for index, (left, top, right, bottom) in enumerate(image.boxes, start=1):
            own_or_void = (image.instances == index) | (image.instances == VOID)
            outside = np.ones(image.instances.shape, dtype=bool)
            outside[top:bottom, left:right] = False
            # The body without its one inner pixel of border, grown back by it, never leaves the box.
            grown = ndimage.binary_dilation(image.instances == index, np.ones((3, 3)))
            assert not (grown & outside).any()
            sides = (
                own_or_void[top, left:right],
                own_or_void[bottom - 1, left:right],
                own_or_void[top:bottom, left],
                own_or_void[top:bottom, right - 1],
            )
            assert all(side.any() for side in sides)


def test_boxes_and_void_are_exactly_those_of_the_visible_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = writer.draw_image

    def remember(*arguments: object) -> object:
        drawn.append(draw(*arguments))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(writer, "draw_image", remember)
    generate_sample(tmp_path, SMALL)
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for image_id, visible in zip(lines(voc, "train") + lines(voc, "val"), drawn, strict=True):
        image, instances = read(voc, image_id), visible.instances
        assert image.boxes == [tight_box(instances == index) for index in range(1, len(image.boxes) + 1)]
        highest = ndimage.maximum_filter(instances, size=3, mode="nearest")
        lowest = ndimage.minimum_filter(instances, size=3, mode="nearest")
        np.testing.assert_array_equal(image.instances, np.where(highest == lowest, instances, VOID))


def test_objects_are_large_enough_to_learn_from(images: dict[str, Annotated]) -> None:
    areas = [(image.instances == k).sum() for image in images.values() for k in range(1, len(image.names) + 1)]
    assert min(areas) >= 40


def test_train_and_val_share_no_id_and_no_image(voc: Path) -> None:
    train, val = lines(voc, "train"), lines(voc, "val")
    assert not set(train) & set(val)
    digests = {name: hashlib.sha256((voc / "JPEGImages" / f"{name}.jpg").read_bytes()).digest() for name in train + val}
    assert len(set(digests.values())) == len(train) + len(val)


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_split_shows_at_least_six_classes(voc: Path, images: dict[str, Annotated], split: str) -> None:
    names = {name for image_id in lines(voc, split) for name in images[image_id].names}
    assert len(names) >= 6
    assert names <= set(VOC_CLASSES)


def test_many_objects_in_a_tiny_image_still_agree(tmp_path: Path) -> None:
    crowded = SampleConfig(seed=1, train_images=2, val_images=1, min_size=64, max_size=72, max_objects=300)
    generate_sample(tmp_path, crowded)
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for image_id in lines(voc, "trainval"):
        image = read(voc, image_id)
        assert set(np.unique(image.instances)) - {0, VOID} == set(range(1, len(image.names) + 1))


def test_more_images_than_ids_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sample\.val_images: 500000 images; at most 499999"):
        generate_sample(tmp_path, SMALL.model_copy(update={"val_images": 500_000}))
    assert list(tmp_path.iterdir()) == []
