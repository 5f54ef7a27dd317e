"""Choosing validation photos, finding photos of one picture, and picking classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.data.classes import select_classes
from yolact.data.duplicates import bit_count, similar_pairs
from yolact.data.split import choose_validation, groups_of
from yolact.errors import SettingsError


def alone(classes_of: dict[str, set[int]]) -> dict[str, str]:
    return {name: name for name in classes_of}


def many_photos() -> dict[str, set[int]]:
    """1000 photos; class k of 0 to 5 is in about one of 2, 4, 8, … 64 of them."""
    rng = np.random.default_rng(0)
    return {f"p{n}": {k for k in range(6) if rng.random() < 0.5 ** (k + 1)} for n in range(1000)}


def test_every_class_and_the_photos_without_objects_have_their_share() -> None:
    photos = many_photos()
    val = choose_validation(photos, alone(photos), 0.2, seed=0)
    assert abs(len(val) - 200) <= 10
    for label in range(6):
        showing = {name for name, classes in photos.items() if label in classes}
        assert abs(len(val & showing) - 0.2 * len(showing)) <= max(2, 0.03 * len(showing))
    empty = {name for name, classes in photos.items() if not classes}
    assert len(val & empty) == round(0.2 * len(empty))


def test_the_choice_hangs_on_the_seed_and_the_names_alone() -> None:
    photos = many_photos()
    shuffled = {name: photos[name] for name in sorted(photos, key=lambda name: name[::-1])}
    first = choose_validation(photos, alone(photos), 0.1, seed=0)
    assert first == choose_validation(shuffled, alone(shuffled), 0.1, seed=0)
    assert first != choose_validation(photos, alone(photos), 0.1, seed=1)


def test_a_class_of_two_photos_is_in_both_splits() -> None:
    photos = {f"p{n}": {0} for n in range(50)} | {"rare1": {0, 1}, "rare2": {1}}
    assert len(choose_validation(photos, alone(photos), 0.1, seed=3) & {"rare1", "rare2"}) == 1


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sets(st.integers(0, 3)), max_size=30),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=8),
    st.integers(0, 5),
)
def test_photos_of_one_picture_are_never_parted(
    photos: dict[str, set[int]], links: list[tuple[int, int]], seed: int
) -> None:
    names = sorted(photos)
    pairs = [(names[a], names[b]) for a, b in links if a < len(names) and b < len(names)]
    val = choose_validation(photos, groups_of(names, pairs), 0.3, seed)
    assert val <= set(names)
    assert all((a in val) == (b in val) for a, b in pairs)


def test_links_through_others_make_one_group() -> None:
    groups = groups_of("abcde", [("d", "b"), ("b", "e")])
    assert groups == {"a": "a", "b": "b", "c": "c", "d": "b", "e": "b"}


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_pairs_equal_those_of_comparing_one_by_one(first: list[int], second: list[int]) -> None:
    second = second + [value ^ 0b1011 for value in first[:3]] + [value ^ 0x80000001F0000003 for value in first[:3]]
    found = list(similar_pairs(np.array(first, dtype=np.uint64), np.array(second, dtype=np.uint64), 6))
    assert found == [
        (i, j) for i, a in enumerate(first) for j, b in enumerate(second) if bin(a ^ b).count("1") <= 6
    ]  # fmt: skip


def test_pairs_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact.data.duplicates.BLOCK", 2)
    hashes = np.array([0, 2**63, 5, 2**40 - 1, 5], dtype=np.uint64)
    assert (2, 4) in list(similar_pairs(hashes, hashes, 0))


@given(st.integers(0, 2**64 - 1))
def test_bits_are_counted(value: int) -> None:
    assert bit_count(np.array([value], dtype=np.uint64)).tolist() == [value.bit_count()]


CLASSES = {1: "person", 7: "dog", 9: "cat"}


def test_all_classes_keep_their_ids() -> None:
    assert select_classes(CLASSES, None) == (CLASSES, {1: 1, 2: 7, 3: 9})


def test_a_list_picks_classes_in_its_order() -> None:
    assert select_classes(CLASSES, ["cat", "person"]) == ({1: "cat", 2: "person"}, {1: 2, 3: 1})


def test_a_mapping_renames_and_merges() -> None:
    wanted = {"dog": "pet", "person": "human", "cat": "pet"}
    assert select_classes(CLASSES, wanted) == ({1: "pet", 2: "human"}, {1: 2, 2: 1, 3: 1})


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"data\.classes: .* no class 'persn'\. Did you mean 'person'\?"):
        select_classes(CLASSES, ["persn"])
    with pytest.raises(SettingsError, match="The source has: person, dog, cat"):
        select_classes(CLASSES, {"zebra": "horse"})
