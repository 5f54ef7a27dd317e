"""Reading VOC files and turning masks and XML into instances and COCO JSON."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from PIL import Image
from pycocotools import mask as mask_utils

from yolact.errors import DataError
from yolact.formats.dataset import AnnotatedImage
from yolact.formats.instances import coco_annotation, instances_from_index_mask
from yolact.formats.mask_classes import VOC_MASKS, MaskClasses
from yolact.formats.problems import Problem, ProblemError
from yolact.formats.voc import VocFolder, image_numbers, joint_histogram, object_classes, read_voc_image
from yolact.formats.voc_files import SEGMENTATION_SETS, has_image, read_image_list
from yolact.palette import voc_palette

PERSON, DOG = 15, 12
OBJECTS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 2, 2, 0, 0],
        [0, 1, 1, 1, 2, 2, 0, 0],
        [0, 1, 1, 1, 2, 2, 255, 0],
        [0, 255, 255, 255, 255, 255, 255, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=np.uint8,
)
CLASSES = np.select([OBJECTS == 1, OBJECTS == 2, OBJECTS == 255], [PERSON, DOG, 255], 0).astype(np.uint8)


def png(mask: np.ndarray, palette: np.ndarray | None = None, mode: str = "P") -> bytes:
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette((voc_palette() if palette is None else palette).tobytes())
    elif mode != image.mode:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (8, 6), mode: str = "RGB", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if len(mode) > 1 else pixels[:, :, 0], mode).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def xml_object(
    name: str, box: tuple[float, ...], flags: str = "<truncated>0</truncated><difficult>0</difficult>"
) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{flags}<bndbox>{sides}</bndbox></object>"


def xml(*objects: str, head: str = "<size><width>8</width><height>6</height></size>") -> bytes:
    return f"<annotation>{head}{''.join(objects)}</annotation>".encode()


PERSON_XML = xml_object("person", (2, 2, 4, 4))
DOG_XML = xml_object("dog", (5, 2, 6, 4), "<truncated>1</truncated><difficult>1</difficult>")


def read_split(root: Path, split: str) -> list[str]:
    return read_image_list(root / SEGMENTATION_SETS / f"{split}.txt", split, partial(has_image, root, "JPEGImages"))


@dataclass
class Voc:
    """A VOC2012 folder with the image ``a``, whose files a test replaces."""

    root: Path

    def put(self, file: str, data: bytes) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def image(self, data: bytes) -> None:
        self.put("JPEGImages/a.jpg", data)

    def objects(self, data: bytes) -> None:
        self.put("SegmentationObject/a.png", data)

    def classes(self, data: bytes) -> None:
        self.put("SegmentationClass/a.png", data)

    def annotation(self, data: bytes) -> None:
        self.put("Annotations/a.xml", data)

    def problems(self) -> list[str]:
        with pytest.raises(ProblemError) as caught:
            self.read()
        return [str(problem) for problem in caught.value.problems]

    def problem(self) -> str:
        (only,) = self.problems()
        return only

    def dropped(self) -> str:
        """The problem of the only object that costs itself, and not the image."""
        (only,) = self.read().dropped
        assert only.kind
        return str(only)

    def read(self, classes: MaskClasses = VOC_MASKS) -> AnnotatedImage:
        return read_voc_image(VocFolder(self.root), "a", classes)


def make_voc(folder: Path) -> Voc:
    made = Voc(folder / "VOCdevkit" / "VOC2012")
    made.put("ImageSets/Segmentation/train.txt", b"a\n")
    made.image(jpeg())
    made.objects(png(OBJECTS))
    made.classes(png(CLASSES))
    return made


@pytest.fixture
def voc(tmp_path: Path) -> Voc:
    return make_voc(tmp_path)


# Instances


def test_touching_instances_give_tight_boxes_areas_classes_and_masks_without_void(voc: Voc) -> None:
    image = voc.read()
    assert (image.width, image.height, image.image.file, image.has_xml) == (8, 6, "JPEGImages/a.jpg", False)
    person, dog = image.instances
    assert (person.class_index, person.box, person.area) == (PERSON, (1, 1, 3, 3), 9)
    assert (dog.class_index, dog.box, dog.area) == (DOG, (4, 1, 2, 3), 6)
    # Down the columns, 6 pixels each: 7 zeros, then 3 ones and 3 zeros a column; zeros to 48.
    by_hand = mask_utils.frPyObjects({"size": [6, 8], "counts": [7, 3, 3, 3, 3, 3, 26]}, 6, 8)
    assert person.counts == by_hand["counts"].decode()
    assert image.warnings == ()


def test_instance_gets_its_majority_class_and_ignores_void(voc: Voc) -> None:
    objects = np.zeros((6, 8), dtype=np.uint8)
    objects[:, :5] = 7  # 30 pixels
    classes = np.where(objects == 7, PERSON, 0).astype(np.uint8)
    classes[:, 0] = 255  # 6 of them undecided
    classes[0, 1] = DOG  # 1 of 24: 4.2 percent, a slip
    voc.objects(png(objects))
    voc.classes(png(classes))
    (instance,) = voc.read().instances
    assert (instance.number, instance.class_index, instance.area) == (7, PERSON, 30)


def test_image_without_objects_is_a_negative(voc: Voc) -> None:
    voc.objects(png(np.zeros((6, 8), dtype=np.uint8)))
    voc.classes(png(np.zeros((6, 8), dtype=np.uint8)))
    image = voc.read()
    assert (image.instances, image.warnings) == ((), ())


@given(
    np_st.arrays(
        np.uint8,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.sampled_from([0, 1, 2, 3, 254, 255]),
    ),
    st.fixed_dictionaries({index: st.integers(1, 20) for index in (1, 2, 3, 254)}),
)
def test_instances_equal_those_read_pixel_by_pixel(objects: np.ndarray, class_of: dict[int, int]) -> None:
    classes = np.zeros_like(objects)
    for index, class_index in class_of.items():
        classes[objects == index] = class_index
    classes[objects == 255] = 255
    found = {
        i.number: i
        for i in instances_from_index_mask(objects, object_classes(joint_histogram(objects, classes), range(1, 21)))
    }
    assert set(found) == set(objects.ravel().tolist()) - {0, 255}
    for index, instance in found.items():
        pixels = [(y, x) for y in range(objects.shape[0]) for x in range(objects.shape[1]) if objects[y, x] == index]
        rows, columns = [y for y, _ in pixels], [x for _, x in pixels]
        box = (min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)
        assert (instance.area, instance.box, instance.class_index) == (len(pixels), box, class_of[index])
        encoded = mask_utils.encode(np.asfortranarray(objects == index, dtype=np.uint8))
        assert instance.counts == encoded["counts"].decode()


# XML and masks


def test_flags_go_to_the_instance_with_matching_box_and_class(voc: Voc) -> None:
    voc.annotation(xml(DOG_XML, PERSON_XML))
    image = voc.read()
    person, dog = image.instances
    assert (person.difficult, person.truncated) == (False, False)
    assert (dog.difficult, dog.truncated) == (True, True)
    assert image.has_xml
    assert image.warnings == ()


def test_parts_of_a_person_are_not_objects(voc: Voc) -> None:
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    voc.annotation(xml(PERSON_XML.replace("</object>", f"{part}</object>"), DOG_XML))
    assert voc.read().warnings == ()


def test_two_objects_of_one_class_are_matched_by_overlap_not_by_order(voc: Voc) -> None:
    voc.classes(png(np.where(CLASSES == DOG, PERSON, CLASSES).astype(np.uint8)))
    voc.annotation(xml(DOG_XML.replace("dog", "person"), PERSON_XML))
    left, right = voc.read().instances
    assert (left.difficult, right.difficult) == (False, True)


def large_square(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A person of ``side`` x ``side`` pixels at (30, 30) of a 100 x 100 image."""
    objects = np.zeros((100, 100), dtype=np.uint8)
    objects[30 : 30 + side, 30 : 30 + side] = 1
    return objects, np.where(objects == 1, PERSON, 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("side", "box", "fits"),
    [
        # XML boxes count from 1 with both ends: 31 to 40 is 30 to 39 from 0.
        (10, (31, 31, 40, 40), True),
        (10, (26, 26, 45, 45), True),  # 5 pixels of void on every side: plain IoU is 0.25
        (10, (22, 22, 49, 49), True),  # 9 pixels: grown to 20 x 20 of 28 x 28, IoU 0.51
        (10, (21, 21, 50, 50), False),  # 10 pixels: grown to 20 x 20 of 30 x 30, IoU 0.44
        (40, (31, 31, 50, 70), True),  # half of the mask: IoU 0.5
        (40, (31, 31, 49, 70), False),  # 19 of 40 columns: IoU 0.475
    ],
)
def test_boxes_match_within_the_void_band(voc: Voc, side: int, box: tuple[float, ...], fits: bool) -> None:
    objects, classes = large_square(side)
    voc.image(jpeg((100, 100)))
    voc.objects(png(objects))
    voc.classes(png(classes))
    voc.annotation(xml(xml_object("person", box), head=""))
    image = voc.read()
    (instance,) = image.instances
    assert (instance.difficult is not None) == fits
    reasons = [str(warning) for warning in image.warnings]
    assert len(reasons) == (0 if fits else 2)
    if not fits:
        assert "no box matches the mask of object index 1 (person)" in reasons[0]
        assert "object 1 (person) matches no mask" in reasons[1]


def test_xml_of_another_size_is_a_warning(voc: Voc) -> None:
    head = "<size><width>16</width><height>12</height></size>"
    voc.annotation(xml(PERSON_XML, DOG_XML, head=head))
    (warning,) = voc.read().warnings
    assert str(warning).startswith("Annotations/a.xml: states the size 16 x 12, but the image is 8 x 6")


@pytest.mark.parametrize("name", ["cat", "Person", "unicorn"])
def test_an_object_with_another_class_in_the_xml_is_dropped(voc: Voc, name: str) -> None:
    voc.annotation(xml(xml_object(name, (2, 2, 4, 4)), DOG_XML))
    assert f"Annotations/a.xml: object 1 is {name}, but the masks show person there" in voc.dropped()
    assert [item.class_index for item in voc.read().instances] == [DOG]


def test_an_xml_object_of_an_unknown_class_that_matches_no_mask_is_a_warning(voc: Voc) -> None:
    voc.annotation(xml(PERSON_XML, DOG_XML, xml_object("unicorn", (7, 5, 8, 6))))
    (warning,) = voc.read().warnings
    assert "object 3 ('unicorn', which is no class of VOC's 20) matches no mask and is ignored" in warning.reason


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<annotation><object>", "not well-formed XML"),
        (b"\x00\xff\xfe", "not well-formed XML"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "not well-formed XML"),
        (b"", "is empty"),
        (b"<html/>", "begins with <html>, not <annotation>"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "remove it"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "remove it"),
        (xml(PERSON_XML.replace("<xmin>2</xmin>", "")), "object 1 (person): <bndbox> needs the numbers"),
        (xml(xml_object("person", (5, 2, 4, 4))), "object 1 (person): <bndbox> needs the numbers"),
        (xml(xml_object("person", (2, 2, 4, float("nan")))), "object 1 (person): <bndbox> needs the numbers"),
        (xml(xml_object("person", (2, 2, 4, 1e300))), "object 1 (person): <bndbox> needs the numbers"),
    ],
)
def test_broken_xml_is_a_problem(voc: Voc, data: bytes, message: str) -> None:
    voc.annotation(data)
    problem = voc.problem()
    assert problem.startswith("Annotations/a.xml: ")
    assert message in problem


def test_boxes_with_decimals_are_read(voc: Voc) -> None:
    voc.annotation(xml(xml_object("person", (2.4, 1.6, 4.2, 4)), DOG_XML))
    assert voc.read().warnings == ()


# Images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_colour_grey_and_cmyk_images_are_read(voc: Voc, mode: str) -> None:
    voc.image(jpeg(mode=mode))
    assert len(voc.read().instances) == 2


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.Jpeg", "a.png", "a.PNG"])
def test_image_is_found_with_its_suffix_in_any_case(voc: Voc, name: str) -> None:
    (voc.root / "JPEGImages" / "a.jpg").unlink()
    voc.put(
        f"JPEGImages/{name}", jpeg() if "j" in name.lower() else png(np.zeros((6, 8, 3), dtype=np.uint8), mode="RGB")
    )
    assert voc.read().image.file == f"JPEGImages/{name}"


@pytest.mark.parametrize("name", ["my image 7", "été 夏", "-1"])
def test_names_with_spaces_and_other_scripts_are_read(voc: Voc, name: str) -> None:
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationObject", "png"), ("SegmentationClass", "png")):
        (voc.root / folder / f"a.{ending}").rename(voc.root / folder / f"{name}.{ending}")
    voc.put("ImageSets/Segmentation/train.txt", f"{name}\r\n\r\n".encode("utf-8-sig"))
    (image_id,) = read_split(voc.root, "train")
    assert len(read_voc_image(VocFolder(voc.root), image_id).instances) == 2


@pytest.mark.parametrize(("stored", "listed"), [("U\u0308bung", "\u00dcbung"), ("\u00dcbung", "U\u0308bung")])
def test_names_are_found_in_another_unicode_form(voc: Voc, stored: str, listed: str) -> None:
    voc.annotation(xml(PERSON_XML, DOG_XML))
    endings = {"JPEGImages": "jpg", "SegmentationObject": "png", "SegmentationClass": "png", "Annotations": "xml"}
    for folder, ending in endings.items():
        (voc.root / folder / f"a.{ending}").rename(voc.root / folder / f"{stored}.{ending}")
    voc.put("ImageSets/Segmentation/train.txt", f"{listed}\n".encode())
    (image_id,) = read_split(voc.root, "train")
    image = read_voc_image(VocFolder(voc.root), image_id)
    assert (len(image.instances), image.has_xml, image.image.file) == (2, True, f"JPEGImages/{stored}.jpg")
    voc.put("ImageSets/Segmentation/train.txt", f"{listed}\n{stored}\n".encode())
    with pytest.raises(DataError, match=r"line 2: .* is already on line 1"):
        read_split(voc.root, "train")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is not a JPEG, PNG, WEBP, BMP or TIFF file (it begins with b'<html>no')"),
        (jpeg((64, 64))[: len(jpeg((64, 64))) // 2], "cannot be decoded to its end"),
        (jpeg((64, 64))[:100], "replace the file"),
        (png(np.zeros((6, 8), dtype=np.uint16), mode="I;16"), "save it with 8 bits per channel"),
    ],
    ids=["empty", "web page", "half", "header only", "16-bit"],
)
def test_damaged_image_is_a_problem(voc: Voc, data: bytes, message: str) -> None:
    voc.image(data)
    problem = voc.problem()
    assert problem.startswith("JPEGImages/a.jpg: ")
    assert message in problem


def test_masks_of_the_stored_image_are_read_in_its_frame(voc: Voc) -> None:
    voc.image(jpeg(orientation=6))
    image = voc.read()
    assert (image.width, image.height, image.upright_by_size, len(image.instances)) == (8, 6, False, 2)


def test_masks_drawn_on_the_upright_image_are_recognized_by_their_size(voc: Voc) -> None:
    voc.image(jpeg((6, 8), orientation=6))
    image = voc.read()
    assert (image.width, image.height, image.upright_by_size, len(image.instances)) == (8, 6, True, 2)


def test_of_vocs_own_images_it_is_known_that_they_were_shown_as_stored(voc: Voc) -> None:
    for name, upright in (("2007_000001", False), ("a", None)):
        for folder, data in (("SegmentationObject", png(OBJECTS)), ("SegmentationClass", png(CLASSES))):
            voc.put(f"{folder}/{name}.png", data)
        voc.put(f"JPEGImages/{name}.jpg", jpeg(orientation=3))
        image = read_voc_image(VocFolder(voc.root), name)
        assert (image.upright_by_size, image.upright) == (None, upright)


def test_masks_of_one_image_in_two_frames_are_a_problem(voc: Voc) -> None:
    voc.image(jpeg((6, 8), orientation=6))
    voc.classes(png(np.ascontiguousarray(CLASSES.T)))
    assert voc.problem().startswith("SegmentationObject/a.png: is 8 x 6 pixels, but the image is 6 x 8")


def test_an_unknown_exif_orientation_is_ignored(voc: Voc) -> None:
    voc.image(jpeg(orientation=9))
    assert voc.read().warnings == ()


def test_a_cmyk_image_is_read_with_a_warning(voc: Voc) -> None:
    voc.image(jpeg(mode="CMYK"))
    (warning,) = voc.read().warnings
    assert str(warning).startswith("JPEGImages/a.jpg: has CMYK colours")


def animated_png() -> bytes:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_an_animated_image_is_a_problem(voc: Voc) -> None:
    voc.image(animated_png())
    assert voc.problem().startswith("JPEGImages/a.jpg: is an animation of 2 frames; save the frame that")


def test_255_indices_are_254_objects_and_void(voc: Voc) -> None:
    objects = np.repeat(np.arange(256, dtype=np.uint8), 2).reshape(16, 32)
    voc.image(jpeg((32, 16)))
    voc.objects(png(objects))
    voc.classes(png(np.where((objects > 0) & (objects < 255), PERSON, 0).astype(np.uint8)))
    image = voc.read()
    assert [(i.number, i.area) for i in image.instances] == [(number, 2) for number in range(1, 255)]


def test_an_xml_bomb_is_refused_before_it_expands(voc: Voc) -> None:
    layers = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "boom">{layers}]><annotation>&e11;</annotation>'
    voc.annotation(bomb.encode())
    assert voc.problem().startswith("Annotations/a.xml: has a document type definition")


# Masks


def grey_png(bits: int) -> bytes:
    """A grey PNG of 8 x 6 pixels with ``bits`` bits a pixel, all 0; Pillow writes none with 2 or 4."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    rows = (b"\x00" + b"\x00" * bits) * 6  # 8 pixels are `bits` bytes
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def transparent_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 6), (128, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mask", ["SegmentationObject/a.png", "SegmentationClass/a.png"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no such file; each image needs its mask"),
        (b"", "is empty"),
        (jpeg(), "is not a PNG file"),
        (png(OBJECTS)[:60], "replace the file"),
        (png(voc_palette()[OBJECTS] + np.uint8(1), mode="RGB"), "has 4 colours on 48 of 48 pixels not in VOC"),
        (transparent_png(), "has transparent pixels"),
        (grey_png(1), "is 1-bit grey"),
        (grey_png(4), "is 4-bit grey"),
        (png(np.zeros((6, 8), dtype=np.uint16), mode="I;16"), "is 16-bit grey"),
        (png(OBJECTS[:, :7]), "is 7 x 6 pixels, but the image is 8 x 6"),
    ],
    ids=["missing", "empty", "jpeg", "cut", "other colours", "transparent", "1-bit", "4-bit", "16-bit", "size"],
)
def test_unusable_mask_is_a_problem(voc: Voc, mask: str, data: bytes | None, message: str) -> None:
    if data is None:
        (voc.root / mask).unlink()
    else:
        voc.put(mask, data)
    problem = voc.problem()
    assert problem.startswith(f"{mask}: ")
    assert message in problem


def test_grey_masks_and_masks_with_another_palette_are_read(voc: Voc) -> None:
    voc.objects(png(OBJECTS, mode="L"))
    voc.classes(png(CLASSES, palette=np.random.default_rng(0).integers(1, 31, (256, 3), dtype=np.uint8)))
    assert [i.class_index for i in voc.read().instances] == [PERSON, DOG]


def test_mask_whose_indices_an_editor_renumbered_is_a_problem(voc: Voc) -> None:
    renumbered = np.select([CLASSES == PERSON, CLASSES == DOG, CLASSES == 255], [1, 2, 3], 0).astype(np.uint8)
    voc.classes(png(renumbered, palette=voc_palette()[[0, PERSON, DOG, 255]]))
    problem = voc.problem()
    assert problem.startswith("SegmentationClass/a.png: has VOC's colours under other indices")
    assert "save it with VOC's own palette" in problem


def test_object_without_class_pixels_is_dropped(voc: Voc) -> None:
    for background in (0, 255):
        voc.classes(png(np.where(CLASSES == DOG, background, CLASSES).astype(np.uint8)))
        dropped = voc.dropped()
        assert dropped.startswith("SegmentationObject/a.png: object 2 (6 pixels) has no class")
        assert "draw its class" in dropped
        assert [item.class_index for item in voc.read().instances] == [PERSON]


def test_object_over_two_classes_is_dropped(voc: Voc) -> None:
    classes = CLASSES.copy()
    classes[1, 1] = DOG  # 1 of 9 pixels
    voc.classes(png(classes))
    dropped = voc.dropped()
    assert dropped.startswith("SegmentationObject/a.png: object 1 is mostly person, but 11% of it is dog")
    assert "give each object one class" in dropped
    assert [item.class_index for item in voc.read().instances] == [DOG]


def test_class_index_beyond_the_twenty_is_a_problem(voc: Voc) -> None:
    voc.classes(png(np.where(CLASSES == DOG, 21, CLASSES).astype(np.uint8)))
    assert voc.problem().startswith(
        "SegmentationClass/a.png: has class index 21, but there are only 0 (background), 1 to 20"
    )


def test_class_that_no_object_has_is_counted_as_a_dropped_object(voc: Voc) -> None:
    voc.objects(png(np.where(OBJECTS == 2, 0, OBJECTS).astype(np.uint8)))
    assert voc.dropped().startswith(
        "SegmentationClass/a.png: shows dog on 6 pixels, but SegmentationObject has no object there; draw the object"
    )


def test_class_pixels_outside_their_object_are_a_warning(voc: Voc) -> None:
    objects = OBJECTS.copy()
    objects[1, 4:6] = 0
    voc.objects(png(objects))
    (warning,) = voc.read().warnings
    assert str(warning).startswith("SegmentationClass/a.png: 2 of 6 pixels of dog belong to no object")


def test_all_problems_of_an_image_are_reported_together(voc: Voc) -> None:
    (voc.root / "JPEGImages/a.jpg").unlink()
    (voc.root / "SegmentationObject/a.png").unlink()
    voc.classes(b"x")
    voc.annotation(b"x")
    files = [problem.split(":")[0] for problem in voc.problems()]
    assert files == ["JPEGImages/a.jpg", "SegmentationObject/a.png", "SegmentationClass/a.png", "Annotations/a.xml"]


# Damage of any kind

PARTS: list[tuple[str, bytes]] = [
    ("JPEGImages/a.jpg", jpeg()),
    ("SegmentationObject/a.png", png(OBJECTS)),
    ("SegmentationClass/a.png", png(CLASSES)),
    ("Annotations/a.xml", xml(PERSON_XML, DOG_XML)),
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Voc:
    return make_voc(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(
    part=st.sampled_from(PARTS),
    damage=st.one_of(
        st.binary(max_size=40).map(lambda junk: lambda good: junk),
        st.integers(0, 2000).map(lambda end: lambda good: good[:end]),
        st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=8)).map(
            lambda at: lambda good: good[: at[0]] + at[1] + good[at[0] + len(at[1]) :]
        ),
        st.tuples(st.integers(0, 1500), st.text(max_size=8)).map(
            lambda at: lambda good: good[: at[0]] + at[1].encode() + good[at[0] :]
        ),
    ),
)
def test_damaged_files_raise_nothing_but_problems(
    fuzzed: Voc, part: tuple[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    for file, good in PARTS:
        fuzzed.put(file, damage(good) if file == part[0] else good)
    problems: tuple[Problem, ...] = ()
    try:
        image = fuzzed.read()
    except ProblemError as error:
        problems = error.problems
    assert all(problem.file and problem.reason for problem in problems)
    assert problems or (image.width, image.height) == (8, 6)


# Splits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"a  1\nb -1\nc  0\n", "class list of ImageSets/Main"),
        (b"a\nb\na\n", "line 3: 'a' is already on line 1"),
        (b"a\n../b\n", "line 2: '../b' is a path"),
        (b"JPEGImages/a.jpg SegmentationClass/b.png\n", "pairs the image 'a' with the mask 'b'"),
        (b"a\tb\n", "line 1: 'a\\tb' contains a tab"),
        (b"a.jpg " * 20_000, "is too long for a name"),
        (b"\xff\xfea\x00", "not a UTF-8 text file"),
    ],
    ids=range(9),
)
def test_invalid_split_file_is_refused(voc: Voc, text: bytes, message: str) -> None:
    voc.put("ImageSets/Segmentation/train.txt", text)
    with pytest.raises(DataError) as caught:
        read_split(voc.root, "train")
    assert "ImageSets/Segmentation/train.txt" in str(caught.value)
    assert message in str(caught.value)


def test_names_that_end_in_a_number_are_not_a_class_list(voc: Voc) -> None:
    voc.put("ImageSets/Segmentation/train.txt", "Übung 1\ndog 1\n".encode())
    voc.put("JPEGImages/dog 1.JPG", jpeg())
    voc.put("JPEGImages/dog.jpg", jpeg())
    assert read_split(voc.root, "train") == ["Übung 1", "dog 1"]
    (voc.root / "JPEGImages/dog 1.JPG").unlink()
    with pytest.raises(DataError, match="'Übung 1': this is a class list"):
        read_split(voc.root, "train")
    (voc.root / "JPEGImages/dog.jpg").unlink()
    assert read_split(voc.root, "train") == ["Übung 1", "dog 1"]  # neither exists: each is reported as a missing image


def test_a_missing_split_file_is_refused(voc: Voc) -> None:
    with pytest.raises(DataError, match=r"val\.txt: no such file"):
        read_split(voc.root, "val")


# COCO


def test_image_numbers_are_the_digits_of_voc_names_or_count_from_one() -> None:
    assert image_numbers(["2012_000001", "2007_000032"]) == {"2012_000001": 2012000001, "2007_000032": 2007000032}
    assert image_numbers(["b", "2007_000032", "a"]) == {"2007_000032": 1, "a": 2, "b": 3}
    assert image_numbers(["٢٠٠٧_000032"]) == {"٢٠٠٧_000032": 1}  # digits of other scripts are not a VOC name


def test_coco_annotation_has_flags_only_if_the_xml_object_was_found(voc: Voc) -> None:
    voc.annotation(xml(DOG_XML))
    person, dog = (coco_annotation(item, item.class_index) for item in voc.read().instances)
    counts = person["segmentation"].pop("counts")
    assert mask_utils.decode({"size": [6, 8], "counts": counts}).tolist() == (OBJECTS == 1).tolist()
    assert person == {
        "category_id": PERSON,
        "bbox": [1, 1, 3, 3],
        "area": 9,
        "iscrowd": 0,
        "segmentation": {"size": [6, 8]},
    }
    assert (dog["difficult"], dog["truncated"]) == (1, 1)
