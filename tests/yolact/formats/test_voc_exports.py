"""VOC folders with classes of their own, as annotation tools write them: whole data sets, through ingest's copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.yolact.formats.mask_sets import (
    NAMES,
    SIZE,
    Drawn,
    colormap,
    drawn,
    found,
    indexed,
    ingested,
    objects_of,
    photo,
    put,
    same,
)
from yolact.errors import DataError
from yolact.formats.dataset import ReadOptions
from yolact.formats.problems import ProblemError
from yolact.formats.registry import read_dataset

LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:250,50,83::\nnut:42,125,209::\nwasher:52,209,183::\n"
)
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [42, 125, 209], [52, 209, 183]], dtype=np.uint8)
IMAGES = drawn()


def voc(
    folder: Path,
    images: list[Drawn] = IMAGES,
    classes: Callable[[np.ndarray], np.ndarray | Image.Image] = indexed,
    objects: Callable[[np.ndarray], np.ndarray | Image.Image] = indexed,
    suffix: str = ".png",
    masks: tuple[str, str] = ("SegmentationClass", "SegmentationObject"),
) -> Path:
    root = folder / "export"
    for place, image in enumerate(images):
        put(root / f"JPEGImages/{image.name}.jpg", photo(place))
        put(root / f"{masks[0]}/{image.name}{suffix}", classes(image.classes()))
        put(root / f"{masks[1]}/{image.name}{suffix}", objects(image.numbers))
    return root


# Where the names come from


@pytest.mark.parametrize("name", ["class_names.txt", "labels.txt", "Classes.txt", "labelmap.txt"])
@pytest.mark.parametrize(
    "text",
    ["_background_\nbolt\nnut\nwasher", "\ufeff__ignore__\r\n_background_\r\nbolt\r\nnut\r\nwasher\r\n"],
    ids=["labelme2voc", "labels with Windows line ends"],
)
def test_class_lists_name_the_indices_and_ingest_brings_them(tmp_path: Path, name: str, text: str) -> None:
    root = voc(tmp_path)
    put(root / name, text)
    assert same(found(root), IMAGES)


def test_more_than_twenty_classes_are_read(tmp_path: Path) -> None:
    names = tuple(f"part{number:03}" for number in range(1, 255))
    numbers = np.repeat(np.arange(2, dtype=np.uint8), SIZE[0] * SIZE[1] // 2).reshape(SIZE[::-1])
    images = [Drawn(f"img_{label}", numbers, (label,)) for label in (1, 21, 25, 254)]
    root = voc(tmp_path, images)
    put(root / "class_names.txt", "\n".join(["_background_", *names]))
    assert same(found(root), images, names)


def test_without_names_the_set_is_refused_with_the_setting(tmp_path: Path) -> None:
    root = voc(tmp_path)
    with pytest.raises(DataError) as caught:
        ingested(root)
    message = str(caught.value)
    assert "have the indices 1, 2, 3, but nothing says which classes these are" in message
    assert "data.class_names=[NAME1, NAME2, NAME3]" in message
    assert "data.class_names=voc" in message
    assert same(found(root, class_names=list(NAMES)), IMAGES)
    assert same(found(root, class_names="voc"), IMAGES, ("aeroplane", "bicycle", "bird"))


def test_voc_is_recognized_by_its_own_image_names_or_its_xml(tmp_path: Path) -> None:
    official = [Drawn(f"2007_{place:06}", image.numbers, image.labels) for place, image in enumerate(IMAGES)]
    assert same(found(voc(tmp_path / "names", official)), official, ("aeroplane", "bicycle", "bird"))
    root = voc(tmp_path / "xml")
    put_xml(root, ("aeroplane", "bicycle", "bird"))
    dataset = ingested(root)
    assert (len(dataset.classes), dataset.warnings) == (20, [])
    other_years = [Drawn(f"2024_{place:06}", image.numbers, image.labels) for place, image in enumerate(IMAGES)]
    with pytest.raises(DataError, match="nothing says which classes"):
        ingested(voc(tmp_path / "others", other_years))


def put_xml(root: Path, names: tuple[str, ...], skipped: int = 0) -> None:
    for image in IMAGES[skipped:]:
        objects = ""
        for number, label in enumerate(image.labels, 1):
            rows, columns = np.nonzero(image.numbers == number)
            sides = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
            tags = ("xmin", "ymin", "xmax", "ymax")
            box = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(tags, sides, strict=True))
            objects += f"<object><name>{names[label - 1]}</name><bndbox>{box}</bndbox></object>"
        put(root / f"Annotations/{image.name}.xml", f"<annotation>{objects}</annotation>")


@pytest.mark.parametrize("names", [NAMES, ("person", "car", "aeroplane")], ids=["own", "VOC's in another order"])
def test_the_xml_names_the_indices(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = voc(tmp_path)
    put_xml(root, names, skipped=1)  # one image has no XML
    assert same(found(root), IMAGES, names)
    (warning,) = ingested(root).warnings
    assert f"1 is {names[0]}, 2 is {names[1]}, 3 is {names[2]}" in warning.reason
    assert warning.kind


def test_xml_that_contradicts_the_indices_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path)
    put_xml(root, ("bolt", "bolt", "nut"))
    with pytest.raises(DataError, match=r"contradict each other: index 1: bolt \(\d+\); .*data\.class_names="):
        ingested(root)


def test_a_list_of_vocs_names_with_vocs_indices_is_read_so_with_a_warning(tmp_path: Path) -> None:
    names = ("person", "dog", "car")
    as_voc = np.array([0, 15, 12, 7], dtype=np.uint8)
    root = voc(tmp_path, classes=lambda mask: indexed(as_voc[mask]))
    put(root / "class_names.txt", "_background_\nperson\ndog\ncar")
    assert same(found(root), IMAGES, names)
    assert "VOC's indices of them (15, 12, 7)" in ingested(root).warnings[0].reason
    own = voc(tmp_path / "own")  # the same list, and indices in its order
    put(own / "class_names.txt", "_background_\nperson\ndog\ncar")
    assert same(found(own), IMAGES, names)
    assert not ingested(own).warnings


def test_a_list_without_background_counts_from_1_with_a_warning(tmp_path: Path) -> None:
    root = voc(tmp_path)
    put(root / "classes.txt", "bolt\nnut\nwasher\n")
    assert same(found(root), IMAGES)
    (warning,) = ingested(root).warnings
    assert warning.reason.endswith("its names are the indices 1 to 3: 1 is 'bolt'")
    put(root / "classes.txt", "table\nbolt\nnut\nwasher\n")
    (warning,) = ingested(root).warnings
    assert "set data.class_names to the other names: [bolt, nut, washer]" in warning.reason


def test_an_index_that_the_list_does_not_name_costs_the_image(tmp_path: Path) -> None:
    root = voc(tmp_path)
    put(root / "class_names.txt", "_background_\nbolt\nnut\n")
    dataset = ingested(root)
    with pytest.raises(ProblemError, match=r"class index 3, but there are only .*by class_names\.txt"):
        [source.read() for source in dataset.splits["train"]]


# Colours


def test_cvat_masks_are_read_by_their_colours(tmp_path: Path) -> None:
    root = voc(tmp_path, classes=lambda mask: COLOURS[mask], objects=lambda mask: colormap()[mask])
    put(root / "labelmap.txt", LABELMAP)
    put(root / "ImageSets/Segmentation/default.txt", "".join(f"{image.name}\n" for image in IMAGES))
    assert same(found(root), IMAGES)
    assert list(ingested(root).splits) == ["train"]


@pytest.mark.parametrize(
    "encoded",
    [
        lambda mask: indexed(mask, COLOURS),
        lambda mask: indexed(3 - mask, COLOURS[::-1].copy()),
        lambda mask: Image.fromarray(COLOURS[mask]).convert("RGBA"),
        indexed,
        lambda mask: mask,
    ],
    ids=["palette", "palette in another order", "RGBA", "VOC's palette", "grey"],
)
def test_a_labelmap_names_colours_or_indices(tmp_path: Path, encoded: Callable[[np.ndarray], Image.Image]) -> None:
    root = voc(tmp_path, classes=encoded)
    put(root / "labelmap.txt", LABELMAP.replace("background:", "table:"))
    assert same(found(root), IMAGES)


@pytest.mark.parametrize("encoded", [lambda mask: colormap()[mask], lambda mask: np.dstack([mask] * 3)])
def test_vocs_colours_and_grey_indices_saved_as_rgb_are_indices(
    tmp_path: Path, encoded: Callable[[np.ndarray], np.ndarray]
) -> None:
    root = voc(tmp_path, classes=encoded, objects=encoded)
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher\n")
    assert same(found(root), IMAGES)


def test_unknown_colours_are_a_problem_that_names_them(tmp_path: Path) -> None:
    colours = COLOURS.copy()
    colours[2] = 1, 2, 3
    root = voc(tmp_path, IMAGES[:1], classes=lambda mask: colours[mask])
    put(root / "labelmap.txt", LABELMAP)
    (source,) = ingested(root).splits["train"]
    pixels = int((IMAGES[0].classes() == 2).sum())
    with pytest.raises(
        ProblemError, match=rf"img_000\.png: has a colour .* labelmap\.txt .*: 1,2,3 \({pixels} pixels\)"
    ):
        source.read()


def test_smoothed_edges_are_a_problem_that_says_so(tmp_path: Path) -> None:
    def smoothed(mask: np.ndarray) -> Image.Image:
        return Image.fromarray(COLOURS[mask]).filter(ImageFilter.GaussianBlur(1))

    root = voc(tmp_path, IMAGES[:1], classes=smoothed)
    put(root / "labelmap.txt", LABELMAP)
    (source,) = ingested(root).splits["train"]
    with pytest.raises(ProblemError, match="come from smoothed edges: save masks without smoothing"):
        source.read()


# Folders and lists


def test_images_in_folders_keep_them_in_their_names(tmp_path: Path) -> None:
    images = [Drawn(f"cam{place % 2}/{image.name}", image.numbers, image.labels) for place, image in enumerate(IMAGES)]
    root = voc(tmp_path, images, suffix=".PNG")
    put(root / "labelmap.txt", LABELMAP)
    assert same(found(root), images)
    put(root / "ImageSets/Segmentation/default.txt", "cam0/img_000\ncam1/img_001\n")
    assert same(found(root), images[:2])


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train.txt", "Validation.txt"), ("TRAIN.TXT", "valid.txt"), ("train_list.txt", "val_list.txt")],
)
@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "ImageSets", "."])
def test_lists_are_found_by_the_split_in_their_names(tmp_path: Path, folder: str, train: str, val: str) -> None:
    root = voc(tmp_path)
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher\n")
    put(root / folder / train, "img_000\nimg_001\n")
    put(root / folder / val, "img_002\n")
    put(root / folder / "Test.txt", "img_003\n")
    splits = ingested(root).splits
    ids = {split: [source.image_id for source in sources] for split, sources in splits.items()}
    assert ids == {"train": ["img_000", "img_001"], "val": ["img_002"], "test": ["img_003"]}
    assert list(ingested(root, splits=("train", "val")).splits) == ["train", "val"]


@pytest.mark.parametrize(
    "line",
    [
        "JPEGImages/{0}.jpg SegmentationClass/{0}.png",
        "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png",
        "export/JPEGImages/{0}.jpg\texport/SegmentationClass/{0}.png",
        "JPEGImages\\{0}.jpg,SegmentationClass\\{0}.png",
        "./{0}.jpg",
        "{0}.jpg",
    ],
)
def test_lines_with_paths_name_the_image_of_the_first_column(tmp_path: Path, line: str) -> None:
    root = voc(tmp_path)
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher\n")
    put(root / "ImageSets/Segmentation/train.txt", "".join(f"{line.format(image.name)}\r\n" for image in IMAGES[:3]))
    put(root / "ImageSets/Segmentation/val.txt", f"{line.format(IMAGES[3].name)}\n")
    assert same(found(root), IMAGES)


def test_two_lists_of_one_split_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path)
    put(root / "ImageSets/Segmentation/training.txt", "img_000\n")
    put(root / "ImageSets/Segmentation/Training.TXT", "img_001\n")
    with pytest.raises(DataError, match=r"Training\.TXT and training\.txt are both lists of split 'train'"):
        read_dataset(root)


def test_lists_of_unknown_names_are_a_warning(tmp_path: Path) -> None:
    root = voc(tmp_path)
    put(root / "ImageSets/Segmentation/part1.txt", "img_000\n")
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher\n")
    (warning,) = ingested(root).warnings
    assert "its lists (part1.txt) are not used" in warning.reason


def test_masks_of_older_labelme2voc_are_read_from_their_folders(tmp_path: Path) -> None:
    root = voc(tmp_path, masks=("SegmentationClassPNG", "SegmentationObjectPNG"))
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher")
    for image in IMAGES:
        for kind in ("Class", "Object"):
            put(root / f"Segmentation{kind}/{image.name}.npy", b"\x93NUMPY")
            put(root / f"Segmentation{kind}Visualization/{image.name}.jpg", photo())
    assert same(found(root), IMAGES)
    assert not list((root.with_name("export.raw")).rglob("*.npy"))


def folders_of_splits(tmp_path: Path, train: str = "bolt\nnut\nwasher", val: str = "bolt\nnut\nwasher") -> Path:
    for name, images, text in (("train", IMAGES[:3], train), ("val", IMAGES[3:], val)):
        voc(tmp_path, images).rename(tmp_path / name)
        put(tmp_path / name / "class_names.txt", f"_background_\n{text}")
    return tmp_path


def test_a_folder_for_each_split_is_read_as_one_set(tmp_path: Path) -> None:
    root = folders_of_splits(tmp_path / "set")
    dataset = ingested(root)
    assert {split: [source.image_id for source in sources] for split, sources in dataset.splits.items()} == {
        "train": ["img_000", "img_001", "img_002"],
        "val": ["img_003"],
    }
    assert same(found(root), IMAGES)
    (root / "val/SegmentationObject/img_003.png").write_bytes(b"damaged")
    with pytest.raises(ProblemError, match=r"val/SegmentationObject/img_003\.png: "):
        read_dataset(root).splits["val"][0].read()


def test_folders_of_splits_must_agree_on_classes_and_differ_in_images(tmp_path: Path) -> None:
    root = folders_of_splits(tmp_path, val="nut\nbolt\nwasher")
    with pytest.raises(DataError, match=r"val: has the classes nut, bolt, washer, but .*train bolt, nut, washer\."):
        read_dataset(root)
    assert read_dataset(root, ReadOptions(class_names=["a", "b", "c"])).classes == {1: "a", 2: "b", 3: "c"}
    for name in ("JPEGImages/img_000.jpg", "SegmentationClass/img_000.png", "SegmentationObject/img_000.png"):
        put(root / "val" / name, (root / "train" / name).read_bytes())
    with pytest.raises(DataError, match=r"val: has an image 'img_000', as .*train has\. Rename one"):
        read_dataset(root, ReadOptions(class_names=["a", "b", "c"]))
    (root / "val").rename(root / "more")
    with pytest.raises(DataError, match="more than one data set"):
        read_dataset(root)


def test_missing_masks_are_named_with_the_way_on(tmp_path: Path) -> None:
    root = voc(tmp_path / "npy")
    for path in (root / "SegmentationObject").iterdir():
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(DataError, match=r"has \*\.npy, but no \*\.png.*labelme2voc"):
        read_dataset(root)
    root = voc(tmp_path / "semantic")
    (root / "SegmentationObject").rename(root / "other")
    with pytest.raises(DataError, match="alone does not say where one object ends"):
        read_dataset(root)


# One class


def binary(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0, 255, 0).astype(np.uint8)


def test_class_masks_of_0_and_255_are_refused_or_the_only_class(tmp_path: Path) -> None:
    root = voc(tmp_path, classes=binary)
    with pytest.raises(DataError, match=r"255 is void in PASCAL VOC.*data\.class_names=\[NAME\]"):
        ingested(root)
    assert same(found(root, class_names=["part"]), IMAGES, ("part",) * 3)
    put(root / "class_names.txt", "_background_\npart\n")
    assert same(found(root), IMAGES, ("part",) * 3)
    assert "255 is taken as 'part'" in ingested(root).warnings[0].reason


def test_objects_of_0_and_255_cannot_be_told_apart(tmp_path: Path) -> None:
    root = voc(tmp_path, classes=binary, objects=binary)
    put(root / "class_names.txt", "_background_\npart\n")
    for source in ingested(root).splits["train"]:
        with pytest.raises(ProblemError, match="cannot be told apart; number them 1, 2"):
            source.read()
    put(root / "class_names.txt", "_background_\npart\nother\n")
    for source in ingested(root).splits["train"]:
        with pytest.raises(ProblemError, match="255, which is void in PASCAL VOC, and no object"):
            source.read()


def test_void_beside_one_class_stays_void(tmp_path: Path) -> None:
    def with_border(mask: np.ndarray) -> np.ndarray:
        bordered = np.minimum(mask, 1)
        bordered[0] = 255
        return bordered

    root = voc(tmp_path, classes=with_border)
    put(root / "class_names.txt", "_background_\npart\n")
    assert same(found(root), IMAGES, ("part",) * 3)
    assert not ingested(root).warnings


# Objects that cannot be used


def test_an_object_without_a_class_is_dropped_and_the_others_are_kept(tmp_path: Path) -> None:
    image = IMAGES[0]
    root = voc(tmp_path, [image], classes=lambda mask: np.where(image.numbers == 1, 0, mask))
    put(root / "class_names.txt", "_background_\nbolt\nnut\nwasher\n")
    dataset = read_dataset(root, ReadOptions())
    (source,) = dataset.splits["train"]
    read = source.read()
    assert [problem.kind for problem in read.dropped] == ["object without class"]
    ((name, mask),) = objects_of(read, dataset)
    assert name == NAMES[image.labels[1] - 1]
    assert np.array_equal(mask, image.numbers == 2)
