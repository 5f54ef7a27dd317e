"""Choosing validation images, finding near-duplicates, and selecting classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.errors import SettingsError
from yolact.formats import duplicates
from yolact.formats.classes import select_classes
from yolact.formats.duplicates import bit_count, first_similar_pairs, picture_groups, similar_hashes
from yolact.formats.split import choose


def alone(classes_of: dict[str, set[int]]) -> dict[str, str]:
    return {name: name for name in classes_of}


def many_images() -> dict[str, set[int]]:
    """1000 images; class k of 0 to 5 is in about one of 2, 4, 8, … 64 of them."""
    rng = np.random.default_rng(0)
    return {f"p{n}": {k for k in range(6) if rng.random() < 0.5 ** (k + 1)} for n in range(1000)}


def test_every_class_and_the_images_without_objects_get_their_share() -> None:
    images = many_images()
    val = choose(images, alone(images), 0.2, seed=0).images
    assert abs(len(val) - 200) <= 10
    for label in range(6):
        showing = {name for name, classes in images.items() if label in classes}
        assert abs(len(val & showing) - 0.2 * len(showing)) <= max(2, 0.03 * len(showing))
    empty = {name for name, classes in images.items() if not classes}
    assert len(val & empty) == round(0.2 * len(empty))


def test_the_choice_depends_only_on_the_seed_and_the_names() -> None:
    images = many_images()
    shuffled = {name: images[name] for name in sorted(images, key=lambda name: name[::-1])}
    first = choose(images, alone(images), 0.1, seed=0)
    assert first == choose(shuffled, alone(shuffled), 0.1, seed=0)
    assert first != choose(images, alone(images), 0.1, seed=1)


def test_a_class_of_two_images_is_in_both_splits() -> None:
    images = {f"p{n}": {0} for n in range(50)} | {"rare1": {0, 1}, "rare2": {1}}
    assert len(choose(images, alone(images), 0.1, seed=3).images & {"rare1", "rare2"}) == 1


PHOTOS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sets(st.integers(0, 3)), max_size=30)
GROUPS = st.lists(st.integers(0, 5), min_size=30, max_size=30)


def grouped(images: dict[str, set[int]], numbers: list[int]) -> dict[str, str]:
    """Each image's group, named after its first image: images of one number, or only those of number 0."""
    group_of: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, number in zip(sorted(images), numbers, strict=False):
        group_of[name] = first.setdefault(number, name) if number else name
    return group_of


@given(PHOTOS, GROUPS, st.sampled_from([0.02, 0.1, 0.3, 0.7, 0.95]), st.integers(0, 5))
def test_both_splits_have_objects_and_only_reported_groups_are_split(
    images: dict[str, set[int]], numbers: list[int], fraction: float, seed: int
) -> None:
    group_of = grouped(images, numbers)
    choice = choose(images, group_of, fraction, seed)
    assert choice.images <= set(images)
    divided = {name for names in choice.divided for name in names}
    for name, group in group_of.items():
        if name not in divided:
            assert (name in choice.images) == (group in choice.images)
    showing = {name for name, classes in images.items() if classes}
    if len(showing) >= 2:
        assert 0 < len(showing & choice.images) < len(showing)


def test_images_that_are_all_near_duplicates_are_split_by_the_requested_fraction() -> None:
    images = many_images()
    choice = choose(images, dict.fromkeys(images, "p0"), 0.2, seed=0)
    assert [set(names) for names in choice.divided] == [set(images)]
    assert choice.images == choose(images, alone(images), 0.2, seed=0).images


def test_a_large_group_stays_whole_if_the_others_are_enough() -> None:
    images = {f"p{number:03}": {0} for number in range(200)}
    group_of = {name: "p000" if name < "p100" else name for name in images}
    choice = choose(images, group_of, 0.1, seed=0)
    assert choice.divided == ()
    assert len(choice.images) == 20
    assert min(choice.images) >= "p100"


@pytest.mark.parametrize(("groups", "size"), [(10, 10), (3, 33), (2, 5)])
def test_whole_groups_are_added_up_to_a_third_of_the_images_and_split_beyond(groups: int, size: int) -> None:
    images = {f"p{number:03}": {0} for number in range(100)}
    group_of = {name: f"p{int(name[1:]) * groups // 100 * -(-100 // groups):03}" for name in images}
    choice = choose(images, group_of, 0.05, seed=0)
    assert len(choice.images) == size
    assert len(choice.divided) == (1 if groups == 2 else 0)


def near(first: list[int], second: list[int], bits: int) -> list[tuple[int, int]]:
    """All pairs, compared one by one."""
    return [(i, j) for i, a in enumerate(first) for j, b in enumerate(second) if (a ^ b).bit_count() <= bits]


def changed(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


HASH = st.integers(0, 2**64 - 1)
FLIPS = st.lists(st.lists(st.integers(0, 63), max_size=9), max_size=25)


@given(st.lists(HASH, min_size=1, max_size=4), FLIPS, FLIPS, st.integers(0, 9), st.integers(1, 40))
def test_pairs_equal_those_of_comparing_one_by_one(
    seeds: list[int], left: list[list[int]], right: list[list[int]], max_distance: int, limit: int
) -> None:
    first = [changed(seeds[number % len(seeds)], bits) for number, bits in enumerate(left)]
    second = [changed(seeds[number % len(seeds)], bits) for number, bits in enumerate(right)]
    arrays = np.array(first, dtype=np.uint64), np.array(second, dtype=np.uint64)
    wanted = near(first, second, max_distance)
    found = [tuple(pair) for pairs in similar_hashes(*arrays, max_distance) for pair in pairs.tolist()]
    assert sorted(found) == wanted
    assert first_similar_pairs(*arrays, max_distance, limit) == (len(wanted), wanted[:limit])


@given(st.lists(HASH, min_size=1, max_size=4), FLIPS, st.integers(0, 9))
def test_groups_are_those_of_linking_pair_after_pair(
    seeds: list[int], flips: list[list[int]], max_distance: int
) -> None:
    hashes = [changed(seeds[number % len(seeds)], bits) for number, bits in enumerate(flips)]
    wanted = list(range(len(hashes)))
    for _ in hashes:  # as often as the longest chain has links
        for i, j in near(hashes, hashes, max_distance):
            wanted[i] = wanted[j] = min(wanted[i], wanted[j])
    assert picture_groups(np.array(hashes, dtype=np.uint64), max_distance).tolist() == wanted


def test_pairs_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    hashes[200:] = hashes[:100] ^ np.uint64(0b1011 << 20)
    wanted = near(hashes.tolist(), hashes.tolist(), 6)
    assert len(wanted) == 500
    for most in (1, 7, 100):
        monkeypatch.setattr(duplicates, "MAX_CANDIDATES", most)
        assert first_similar_pairs(hashes, hashes, 6, 1000) == (500, wanted)


def test_few_of_many_hashes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^30 pairs of 2^15 hashes; at random, 7 bands of 9 bits leave 7 of 2^9 of them."""
    compared = []

    def counted(values: np.ndarray) -> np.ndarray:
        compared.append(len(values))
        return bit_count(values)

    monkeypatch.setattr(duplicates, "bit_count", counted)
    hashes = np.random.default_rng(0).integers(0, 2**64, 1 << 15, dtype=np.uint64)
    picture_groups(hashes, 6)
    assert sum(compared) < 2**30 / 50


def test_many_equal_hashes_are_compared_once() -> None:
    hashes = np.zeros(100_000, dtype=np.uint64)
    assert picture_groups(hashes, 6).tolist() == [0] * 100_000
    assert first_similar_pairs(hashes, hashes, 6, 3) == (10**10, [(0, 0), (0, 1), (0, 2)])


@given(st.integers(0, 2**64 - 1))
def test_bits_are_counted(value: int) -> None:
    assert bit_count(np.array([value], dtype=np.uint64)).tolist() == [value.bit_count()]


CLASSES = {1: "person", 7: "dog", 9: "cat"}


def test_all_classes_keep_their_ids() -> None:
    assert select_classes(CLASSES, None) == (CLASSES, {1: 1, 2: 7, 3: 9})


def test_a_list_selects_classes_in_its_order() -> None:
    assert select_classes(CLASSES, ["cat", "person"]) == ({1: "cat", 2: "person"}, {1: 2, 3: 1})


def test_a_mapping_renames_and_merges() -> None:
    wanted = {"dog": "pet", "person": "human", "cat": "pet"}
    assert select_classes(CLASSES, wanted) == ({1: "pet", 2: "human"}, {1: 2, 2: 1, 3: 1})


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"data\.classes: .* no class 'persn'\. Did you mean 'person'\?"):
        select_classes(CLASSES, ["persn"])
    with pytest.raises(SettingsError, match="The source has: person, dog, cat"):
        select_classes(CLASSES, {"zebra": "horse"})
