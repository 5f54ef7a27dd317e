"""Class lists of mask images, as annotation tools write them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.errors import DataError, SettingsError
from yolact.formats.mask_classes import chosen_classes, read_class_list, read_class_lists


def written(folder: Path, data: bytes, name: str = "class_names.txt") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    "data",
    [
        b"_background_\nbolt\nnut",
        b"__ignore__\n_background_\nbolt\nnut\n",
        b"\xef\xbb\xbf_background_\r\nbolt\r\nnut\r\n",
        "_background_\r\nbolt\r\nnut\r\n".encode("utf-16"),
        b"# my classes\n\nbackground\n  bolt  \n\nnut\n",
        b"BackGround\nbolt\nnut\n",
        b"backgroud\nbolt\nnut\n",
        b"none\nbolt\nnut\n",
        b"0 nothing\n1 bolt\n2 nut\n",
        b"1: bolt\n2: nut\n",
        b"background:0,0,0::\nbolt:250,50,83::\nnut:42,125,209::\n",
        b"# label:color_rgb:parts:actions\nbolt:250,50,83::\nnut:42,125,209::\nbackground:0,0,0::\n",
        b"nothing:0,0,0::\nbolt:250,50,83:head,thread:\nnut:42, 125, 209\n",
        b"background:::\nbolt:::\nnut:::\n",
    ],
    ids=range(14),
)
def test_names_are_read_in_the_order_of_the_indices(tmp_path: Path, data: bytes) -> None:
    found = read_class_list(written(tmp_path, data))
    assert (found.names, found.indices) == (("bolt", "nut"), (1, 2))
    assert found.has_background
    if b"250" in data:
        assert found.colours == {0x000000: 0, 0xFA3253: 1, 0x2A7DD1: 2}


def test_without_a_background_the_names_count_from_1(tmp_path: Path) -> None:
    found = read_class_list(written(tmp_path, b"bolt\nnut\n"))
    assert (found.names, found.indices, found.has_background) == (("bolt", "nut"), (1, 2), False)


def test_a_background_in_another_colour_is_index_0_and_black_may_be_a_class(tmp_path: Path) -> None:
    found = read_class_list(written(tmp_path, b"tar:0,0,0::\nbackground:255,255,255::\n"))
    assert (found.names, found.colours) == (("tar",), {0x000000: 1, 0xFFFFFF: 0})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "names no class"),
        (b"# nothing\n\n", "names no class"),
        (b"_background_\n", "names only the background"),
        (b"bolt\nnut\nbolt\n", "line 3: the class 'bolt' is already on line 1"),
        (b"bolt:1,2,3::\nnut:1,2,3::\n", "line 2: 'nut' has the colour 1,2,3 of 'bolt'"),
        (b"bolt:1,2,300::\n", "line 1: a colour has three values from 0 to 255"),
        (b"bolt:1,2,3::\nnut\n", "line 2: 'nut' has no colour, but other lines do"),
        (b"b\x00lt\n", "line 1: 'b\\x00lt' is not a class name"),
        (b"bolt:" + b"9" * 400 + b",0,0::\n", "line 1: a colour has three values"),
        (b"x\n" * 600_000, "has more than 1000000 bytes"),
        (b" x" * 40_000, "line 1: 'x x x"),
        (b"\xffbolt", "not a UTF-8 text file"),
        (
            "".join(f"c{n}\n" for n in range(255)).encode(),
            "names 255 classes, but masks have only the indices",
        ),
    ],
    ids=range(13),
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_class_list(written(tmp_path, data))
    assert "class_names.txt" in str(caught.value)
    assert message in str(caught.value)


def test_lists_are_found_in_any_letter_case_and_must_agree(tmp_path: Path) -> None:
    assert read_class_lists(tmp_path) is None
    written(tmp_path, b"__ignore__\n_background_\nbolt\nnut\n", "Labels.txt")
    written(tmp_path, b"background:0,0,0::\nbolt:250,50,83::\nnut:42,125,209::\n", "labelmap.txt")
    found = read_class_lists(tmp_path)
    assert found is not None
    assert (found.names, found.origin, len(found.colours)) == (("bolt", "nut"), "labelmap.txt", 3)
    written(tmp_path, b"_background_\nnut\nbolt\n", "class_names.txt")
    with pytest.raises(DataError, match=r"labelmap\.txt lists the classes bolt, nut, but class_names\.txt nut, bolt"):
        read_class_lists(tmp_path)


def test_the_setting_replaces_names_and_keeps_colours(tmp_path: Path) -> None:
    listed = read_class_list(written(tmp_path, b"background:0,0,0::\nbolt:250,50,83::\nnut:42,125,209::\n"))
    found = chosen_classes(["Bolzen", "Mutter"], listed)
    assert (found.names, found.colours) == (("Bolzen", "Mutter"), listed.colours)
    with pytest.raises(SettingsError, match=r"has 1 names, but .* colours of 2 classes: bolt, nut"):
        chosen_classes(["Bolzen"], listed)
    assert chosen_classes("voc", None).name(15) == "person"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=6), st.binary(max_size=60), st.booleans())
def test_any_text_is_a_list_of_different_names_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], junk: bytes, text: bool
) -> None:
    path = written(tmp_path_factory.getbasetemp(), "\n".join(lines).encode() if text else junk)
    with suppress(DataError):
        found = read_class_list(path)
        assert 0 < len(found.names) == len(set(found.names)) <= 254
        assert all(name.strip() and name.isprintable() for name in found.names)
        assert set(found.colours.values()) <= {0, *found.indices}
