"""The registry of data formats: which one a folder has; and SBD's MATLAB files."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from PIL import Image
from pycocotools import mask as mask_utils
from scipy.io import loadmat, savemat

from tests.yolact.formats.coco_sets import annotation, save_image, tree, write
from yolact.class_names import VOC_CLASSES
from yolact.errors import DataError
from yolact.formats import coco, matlab
from yolact.formats.dataset import ReadOptions
from yolact.formats.matlab import MatlabError, read_struct
from yolact.formats.problems import Problem, ProblemError
from yolact.formats.registry import Format, dataset_files, formats, read_dataset, register_format
from yolact.formats.sbd import SbdImage, read_instances

SEGMENTATION = np.array([[0, 1, 1, 0], [2, 1, 0, 0], [2, 2, 0, 0]], dtype=np.uint8)


def mat(segmentation: Any = SEGMENTATION, categories: Any = (15, 12), name: str = "GTinst", **options: Any) -> bytes:
    """An ``inst`` file like SBD's: a struct with a cell of boundaries between the two fields that are read."""
    boundaries = np.empty((2, 1), dtype=object)
    boundaries[:] = [[np.eye(2)], [np.eye(2)]]
    column = None if categories is None else np.array(categories, dtype=np.uint8).reshape(-1, 1)
    struct = {"Segmentation": segmentation, "Boundaries": boundaries, "Categories": column}
    buffer = io.BytesIO()
    content = {name: {key: value for key, value in struct.items() if value is not None}}
    savemat(buffer, content, **{"do_compression": True, **options})
    return buffer.getvalue()


def put(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def image_bytes(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def png(indices: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(indices).save(buffer, "PNG")
    return buffer.getvalue()


def ids(folder: Path) -> dict[str, list[str]]:
    return {split: [source.image_id for source in found] for split, found in read_dataset(folder).splits.items()}


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    root = tmp_path / "benchmark_RELEASE/dataset"
    put(root / "inst/2008_000002.mat", mat(do_compression=True))
    put(root / "img/2008_000002.jpg", image_bytes())
    put(root / "train.txt", b"2008_000002\n")
    return root


# Semantic Boundaries


def test_objects_of_a_matlab_file_get_masks_and_classes(sbd: Path, tmp_path: Path) -> None:
    dataset = read_dataset(tmp_path)
    assert (dataset.format, dataset.image_ids, dataset.classes[15]) == (
        "Semantic Boundaries",
        {"2008_000002": 2008000002},
        "person",
    )
    (source,) = dataset.splits["train"]
    person, dog = source.read().instances
    assert (person.class_index, person.box, person.area) == (15, (1, 0, 2, 2), 3)
    assert (dog.class_index, dog.box, dog.area) == (12, (0, 1, 2, 2), 3)
    assert np.array_equal(mask_utils.decode(dog.rle()), SEGMENTATION == 2)


def test_images_are_found_in_a_voc_folder_next_to_sbd(sbd: Path, tmp_path: Path) -> None:
    put(tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg", image_bytes())
    (tmp_path / "VOCdevkit/VOC2012/SegmentationObject").mkdir()
    (sbd / "img/2008_000002.jpg").unlink()
    (sbd / "img").rmdir()
    (source,) = read_dataset(tmp_path).splits["train"]
    assert source.read().image.file == "JPEGImages/2008_000002.jpg"


def test_annotations_without_any_images_are_refused(sbd: Path, tmp_path: Path) -> None:
    (sbd / "img").rename(sbd / "elsewhere")
    with pytest.raises(DataError, match="Semantic Boundaries annotations without images"):
        read_dataset(tmp_path)


def test_255_objects_and_more_are_read(sbd: Path) -> None:
    numbers = np.arange(1, 301, dtype=np.uint16).reshape(15, 20)
    put(sbd / "inst/many.mat", mat(numbers, tuple([15] * 300)))
    segmentation, classes = read_instances(sbd, "inst/many.mat")
    assert np.array_equal(segmentation, numbers)
    assert classes == dict.fromkeys(range(1, 301), 15)


def test_an_object_that_others_cover_is_a_warning(sbd: Path) -> None:
    put(sbd / "inst/2008_000002.mat", mat(np.where(SEGMENTATION == 1, 0, SEGMENTATION).astype(np.uint8)))
    image = SbdImage(sbd, sbd, "img", "2008_000002").read()
    assert [instance.number for instance in image.instances] == [2]
    assert [str(warning) for warning in image.warnings] == [
        "inst/2008_000002.mat: object 1 has no pixel and is ignored"
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>", "is not a MATLAB file"),
        (mat()[:-9], "is not a MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "is not a MATLAB file"),
        (mat(name="GTcls"), "is not a MATLAB file with GTinst.Segmentation and GTinst.Categories"),
        (mat(categories=None), "is not a MATLAB file with"),
        (mat(segmentation=np.zeros((0, 0))), "is not a MATLAB file with"),
        (mat(segmentation=SEGMENTATION * 0.5), "values other than integers"),
        (mat(segmentation="text"), "is not a MATLAB file with"),
        (mat(categories=(15,)), "object 2 has no class: GTinst.Categories lists 1"),
        (mat(categories=(15, 21)), "object 2 has class 21, but there are only 1 to 20"),
        (mat(segmentation=SEGMENTATION[:2]), "is 4 x 2 pixels, but the image is 4 x 3"),
    ],
)
def test_a_damaged_matlab_file_is_a_problem(sbd: Path, data: bytes, message: str) -> None:
    put(sbd / "inst/2008_000002.mat", data)
    with pytest.raises(ProblemError) as caught:
        SbdImage(sbd, sbd, "img", "2008_000002").read()
    (problem,) = caught.value.problems
    assert problem.file == "inst/2008_000002.mat"
    assert message in problem.reason


def test_missing_files_are_named_together(sbd: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        SbdImage(sbd, sbd, "img", "2009_000001").read()
    assert [problem.file for problem in caught.value.problems] == ["img/2009_000001.jpg", "inst/2009_000001.mat"]


def recompressed(content: bytes) -> bytes:
    """An ``inst`` file of one compressed element, whose checksum is right for any content."""
    packed = zlib.compress(content)
    return mat()[:128] + struct.pack("<II", matlab.COMPRESSED, len(packed)) + packed


CONTENT = mat(do_compression=False)[128:]
"""The element of an ``inst`` file before compression."""


def test_an_inst_file_that_is_not_compressed_is_read_too(sbd: Path) -> None:
    put(sbd / "inst/plain.mat", mat(do_compression=False))
    put(sbd / "inst/again.mat", recompressed(CONTENT))
    for file in ("inst/plain.mat", "inst/again.mat"):
        segmentation, classes = read_instances(sbd, file)
        assert np.array_equal(segmentation, SEGMENTATION)
        assert classes == {1: 15, 2: 12}


def test_sizes_with_a_right_checksum_that_let_scipy_read_beyond_its_memory_are_a_problem(sbd: Path) -> None:
    junk = bytearray(CONTENT)
    junk[131], junk[161] = 8, 127
    put(sbd / "inst/2008_000002.mat", recompressed(bytes(junk)))
    with pytest.raises(ProblemError, match="is not a MATLAB file with GTinst"):
        read_instances(sbd, "inst/2008_000002.mat")


@pytest.mark.parametrize("word", [0, 1, 7, 0xFFFF, 0x7FFFFFF0, 0xFFFFFFF8, 0xFFFFFFFF, 0x00040001, 0x80000000])
def test_no_wrong_word_makes_the_reader_read_beyond_a_matlab_file(sbd: Path, word: int) -> None:
    for place in range(0, len(CONTENT), 4):
        check_fuzzed(sbd, recompressed(CONTENT[:place] + struct.pack("<I", word) + CONTENT[place + 4 :]))


@settings(max_examples=300, deadline=None)
@given(
    compressed=st.sampled_from(["not", "after", "before"]),
    changes=st.lists(st.tuples(st.integers(0, 1200), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
    end=st.integers(0, 2000),
)
def test_damaged_matlab_files_raise_nothing_but_problems(
    tmp_path_factory: pytest.TempPathFactory, compressed: str, changes: list[tuple[int, bytes]], end: int
) -> None:
    """Damage without compression, after it, or before it (then the checksum is right)."""
    data = CONTENT if compressed == "before" else mat(do_compression=compressed == "after")
    for start, junk in changes:
        data = data[:start] + junk + data[start + len(junk) :]
    data = data[: max(end, 200)]
    check_fuzzed(tmp_path_factory.getbasetemp(), recompressed(data) if compressed == "before" else data)


def check_fuzzed(folder: Path, data: bytes) -> None:
    """Read an ``inst`` file: it is valid, or only problems are raised."""
    put(folder / "inst/fuzzed.mat", data)
    segmentation, classes = np.zeros((1, 1), dtype=np.uint16), {}
    problems: tuple[Problem, ...] = ()
    try:
        segmentation, classes = read_instances(folder, "inst/fuzzed.mat")
    except ProblemError as error:
        problems = error.problems
    assert all(problem.file and problem.reason for problem in problems)
    assert set(classes.values()) <= set(range(1, len(VOC_CLASSES) + 1))
    assert set(np.unique(segmentation).tolist()) - {0} == classes.keys()


NUMBER_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


@given(
    values=st.sampled_from(NUMBER_TYPES).flatmap(
        lambda kind: np_st.arrays(kind, np_st.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5))
    ),
    compressed=st.booleans(),
)
def test_matrices_are_read_as_scipy_reads_them(values: np.ndarray, compressed: bool) -> None:
    data = mat(values, do_compression=compressed)
    read = read_struct(data, "GTinst", ("Segmentation", "Categories"))
    expected = loadmat(io.BytesIO(data))["GTinst"][0, 0]
    for field in ("Segmentation", "Categories"):
        assert read[field].dtype == expected[field].dtype
        np.testing.assert_array_equal(read[field], expected[field])


def test_a_compressed_element_does_not_grow_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    data = mat(np.zeros((3000, 1000), dtype=np.uint8))
    assert len(data) < 10_000
    assert read_struct(data, "GTinst", ("Segmentation",))["Segmentation"].shape == (3000, 1000)
    monkeypatch.setattr(matlab, "MAX_CONTENT", 1 << 21)
    with pytest.raises(MatlabError, match="unpacks to more than 2 MiB"):
        read_struct(data, "GTinst", ("Segmentation",))
    many = mat()[:128] + mat(np.zeros((1500, 1000), dtype=np.uint8), name="other")[128:] * 2 + mat()[128:]
    with pytest.raises(MatlabError, match="unpacks to more than 2 MiB"):
        read_struct(many, "GTinst", ("Segmentation",))


# Which format a folder has


def make_voc(root: Path, *image_ids: str) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id in image_ids:
        put(root / f"SegmentationObject/{image_id}.png")


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2012", "a/b/c/mine"])
def test_voc_is_found_at_any_place_in_the_folder(tmp_path: Path, place: str) -> None:
    make_voc(tmp_path / place)
    put(tmp_path / place / "ImageSets/Segmentation/train.txt", b"b\na\n")
    put(tmp_path / place / "ImageSets/Segmentation/val.txt", b"c\n")
    assert read_dataset(tmp_path).format == "PASCAL VOC"
    assert ids(tmp_path) == {"train": ["b", "a"], "val": ["c"]}


def test_voc_without_validation_list_has_only_a_train_split(tmp_path: Path) -> None:
    make_voc(tmp_path, "a", "b", "my image")
    assert ids(tmp_path) == {"train": ["a", "b", "my image"]}
    put(tmp_path / "ImageSets/Segmentation/trainval.txt", b"a\nb\n")
    assert ids(tmp_path) == {"train": ["a", "b"]}
    put(tmp_path / "ImageSets/Segmentation/train.txt", b"a\n")
    assert ids(tmp_path) == {"train": ["a"]}


def test_masks_are_found_with_their_suffix_in_any_case(tmp_path: Path) -> None:
    make_voc(tmp_path)
    put(tmp_path / "JPEGImages/a.JPG", image_bytes())
    with pytest.raises(DataError, match=r"SegmentationObject: has no \*\.png"):
        read_dataset(tmp_path)
    put(tmp_path / "SegmentationObject/.a.png")  # as macOS leaves them
    put(tmp_path / "SegmentationObject/a.PNG", png(SEGMENTATION))
    put(tmp_path / "SegmentationClass/a.Png", png(SEGMENTATION))
    put(tmp_path / "Annotations/a.XML", b"<annotation/>")
    put(tmp_path / "class_names.txt", b"_background_\nbolt\nnut\n")
    (source,) = read_dataset(tmp_path).splits["train"]
    image = source.read()
    assert [(instance.number, instance.class_index) for instance in image.instances] == [(1, 1), (2, 2)]
    assert image.has_xml
    assert {warning.file for warning in image.warnings} == {"Annotations/a.XML"}


def test_images_without_annotations_are_counted_if_no_list_names_the_images(sbd: Path, tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC", "a", "\u00dcbung")
    for name in ("a.jpg", "b.JPG", "c.png", "notes.txt", "U\u0308bung.jpg"):
        put(tmp_path / "VOC/JPEGImages" / name, image_bytes())
    (warning,) = read_dataset(tmp_path / "VOC").warnings
    assert str(warning).startswith(
        "JPEGImages: images without a mask in SegmentationObject are not used: 2, such as 'b'"
    )
    put(tmp_path / "VOC/ImageSets/Segmentation/train.txt", b"a\n")
    assert not read_dataset(tmp_path / "VOC").warnings  # a list omits images on purpose
    put(sbd / "img/more.jpg", image_bytes())
    assert not read_dataset(sbd).warnings
    (sbd / "train.txt").unlink()
    (warning,) = read_dataset(sbd).warnings
    assert str(warning).startswith("img: images without annotations in inst are not used: 1, such as 'more'")


def test_matlab_files_are_found_with_their_suffix_in_any_case(sbd: Path, tmp_path: Path) -> None:
    (sbd / "train.txt").unlink()
    (sbd / "inst/2008_000002.mat").rename(sbd / "inst/2008_000002.MAT")
    (source,) = read_dataset(tmp_path).splits["train"]
    assert len(source.read().instances) == 2


def test_voc_without_training_list_is_refused(tmp_path: Path) -> None:
    make_voc(tmp_path)
    put(tmp_path / "ImageSets/Segmentation/val.txt", b"a\n")
    with pytest.raises(DataError, match=r"train\.txt: no such file"):
        read_dataset(tmp_path)


def test_a_folder_that_voc_lacks_is_named(tmp_path: Path) -> None:
    make_voc(tmp_path)
    (tmp_path / "SegmentationClass").rmdir()
    with pytest.raises(DataError, match="has no folder SegmentationClass, which PASCAL VOC needs"):
        read_dataset(tmp_path)


def test_coco_is_recognized_by_its_instances_file_among_others(tmp_path: Path) -> None:
    put(tmp_path / "images.json/readme.txt")  # a folder with such a name is not a file
    put(tmp_path / "coco/train2017/a.jpg", image_bytes())
    tree = {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    put(tmp_path / "coco/annotations/instances_train2017.json", json.dumps(tree).encode())
    put(tmp_path / "coco/annotations/captions_train2017.json", json.dumps(tree).encode())
    put(tmp_path / "coco/annotations/more.json", json.dumps(tree).encode())
    put(tmp_path / "coco/annotations/notes.json", b"{}")
    assert ids(tmp_path) == {"train": ["coco/train2017/a.jpg"]}
    (warning,) = read_dataset(tmp_path).warnings
    assert str(warning).startswith("coco/annotations/more.json: not read, as there are files named instances_*")
    chosen = read_dataset(tmp_path, ReadOptions(annotations=["annotations/more.json"]))
    assert not chosen.warnings


@pytest.mark.parametrize("stray", [b"{}", b'{"images": []}', b"", b"[1, 2]", b"no json"])
def test_coco_is_distinguished_from_other_json_by_its_content(tmp_path: Path, stray: bytes) -> None:
    put(tmp_path / "images/a.jpg", image_bytes())
    tree = {"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    put(tmp_path / "train.json", json.dumps(tree).encode())
    put(tmp_path / "settings.json", stray)
    assert ids(tmp_path) == {"train": ["images/a.jpg"]}


def test_names_that_are_not_utf_8_are_problems_with_the_fix(tmp_path: Path) -> None:
    make_voc(tmp_path, "a", "\udcdcbung")  # Übung in Latin-1
    dataset = read_dataset(tmp_path)
    assert [source.image_id for source in dataset.splits["train"]] == ["a"]
    ((name, (problem,)),) = dataset.problems.items()
    assert name == "\\udcdcbung"
    assert str(problem).startswith("\\udcdcbung: has a name that is not UTF-8; rename it and its annotations, as with ")


def test_two_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC2007")
    make_voc(tmp_path / "VOC2012")
    with pytest.raises(
        DataError,
        match=r"more than one data set:\n.*VOC2007\n.*VOC2012\nName the folder of one, such as data.source=.*VOC2012 ",
    ):
        read_dataset(tmp_path)


def test_a_folder_with_only_images_is_refused_with_the_searched_formats(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", image_bytes())
    with pytest.raises(
        DataError,
        match=r"(?s)in a known format\. It has: a\.jpg\n.*PASCAL VOC: .*SegmentationObject",
    ):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="Run the step `ingest` first"):
        read_dataset(tmp_path / "nothing")
    for name in ("train2017.zip", "annotations.tar.gz"):
        put(tmp_path / name)
    with pytest.raises(DataError, match=r"Unpack annotations\.tar\.gz and train2017\.zip in that folder\.$"):
        read_dataset(tmp_path)


# One place for all callers


@pytest.mark.parametrize("depth", [5, 6])
def test_ingest_and_preprocess_search_equally_deep(tmp_path: Path, depth: int) -> None:
    make_voc(tmp_path / Path(*"abcdef"[:depth]), "a")
    for look in (read_dataset, dataset_files):
        if depth <= 5:
            assert look(tmp_path)
        else:
            with pytest.raises(DataError, match="up to 5 folders deep"):
                look(tmp_path)


def test_a_data_set_behind_links_is_found_once(tmp_path: Path) -> None:
    make_voc(tmp_path / "elsewhere", "a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/voc").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data/again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "data", target_is_directory=True)
    assert ids(tmp_path / "data") == {"train": ["a"]}


@pytest.mark.parametrize("look", [read_dataset, dataset_files])
def test_voc_and_coco_in_one_folder_are_refused_by_all_callers(tmp_path: Path, look: Any) -> None:
    make_voc(tmp_path / "voc", "a")
    put(tmp_path / "coco/train.json", b'{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match=r"more than one data set:\n.*voc\n.*coco/train\.json\nName the folder of one"):
        look(tmp_path)


def test_data_annotations_chooses_one_of_several_data_sets(tmp_path: Path) -> None:
    """As of labelme's files beside the COCO file that was made of them."""
    put(tmp_path / "a.jpg", image_bytes())
    put(tmp_path / "a.json", b'{"shapes": [], "imagePath": "a.jpg"}')
    rows = b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'
    put(tmp_path / "coco.json", rows)
    with pytest.raises(DataError, match=r"more than one data set:\n(.*\n)*Choose one .*data.annotations=\[coco.json\]"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="more than one data set"):
        read_dataset(tmp_path, ReadOptions(annotations=["other.json"]))
    for chosen in (["coco.json"], {"train": ["coco.json"]}):
        assert read_dataset(tmp_path, ReadOptions(annotations=chosen)).format == "COCO"
        assert [files.origin for files in dataset_files(tmp_path, chosen)] == [tmp_path]


@pytest.mark.parametrize("look", [read_dataset, dataset_files])
def test_images_of_two_voc_folders_next_to_sbd_are_refused(sbd: Path, tmp_path: Path, look: Any) -> None:
    (sbd / "img").rename(tmp_path / "JPEGImages")
    assert look(tmp_path)
    put(tmp_path / "VOC2012/JPEGImages/2008_000002.jpg", image_bytes())
    with pytest.raises(DataError, match="more than one data set"):
        look(tmp_path)


def test_a_parent_folder_of_coco_is_not_part_of_the_names(tmp_path: Path) -> None:
    put(tmp_path / "wrapper/images/a.jpg", image_bytes())
    tree = {"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    put(tmp_path / "wrapper/train.json", json.dumps(tree).encode())
    assert ids(tmp_path) == ids(tmp_path / "wrapper") == {"train": ["images/a.jpg"]}


def test_files_returns_what_read_needs(sbd: Path, tmp_path: Path) -> None:
    """Reading a copy of just those files gives the same images."""
    make_voc(tmp_path / "voc", "a")
    put(tmp_path / "coco/images/a.jpg", image_bytes())
    tree = {"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    put(tmp_path / "coco/train.json", json.dumps(tree).encode())
    for origin in (tmp_path / "voc", sbd, tmp_path / "coco"):
        copy = tmp_path / "copies" / origin.name
        for group in dataset_files(origin):
            for name in group.names:
                for path in [group.origin / name, *(group.origin / name).rglob("*")]:
                    if path.is_file():
                        put(copy / group.target / path.relative_to(group.origin), path.read_bytes())
        for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject") if origin.name == "voc" else ():
            (copy / "VOCdevkit/VOC2012" / folder).mkdir(parents=True, exist_ok=True)
        assert ids(copy) == ids(origin)


def test_two_formats_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="'COCO' is already registered"):
        register_format(coco)


@pytest.mark.parametrize("format", formats(), ids=lambda format: format.NAME)
@pytest.mark.parametrize("step", ["ingest", "preprocess"])
def test_the_steps_docs_have_a_row_for_each_format(repository: Path, step: str, format: Format) -> None:
    text = (repository / "components" / step / "README.md").read_text(encoding="utf-8")
    assert f"\n| {format.NAME} | {format.FOUND_BY} | " in text


def test_a_setting_that_the_format_does_not_use_is_said(tmp_path: Path) -> None:
    write(tmp_path, tree(annotation()))
    save_image(tmp_path)
    dataset = read_dataset(tmp_path, ReadOptions(class_names=["bolt"], crowds="objects"))
    assert [str(warning) for warning in dataset.warnings] == [
        ".: data.class_names is set, but it has no effect on the format COCO"
    ]
