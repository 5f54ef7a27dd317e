"""Near-duplicate images, found by their difference hashes."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_DISTANCE = 6
"""Bits of 64 in which the hashes of near-duplicates may differ. Our choice, measured on 258 real images: halved
or enlarged and saved again with quality 60, or brightened by a fifth, 99 of 100 stay within 6 bits, while any two
different images are more than 10 apart."""

HASH_BITS = 64

MAX_CANDIDATES = 1 << 20
"""Pairs compared at once; several arrays of 8 bytes each."""


def similar_hashes(first: np.ndarray, second: np.ndarray, max_distance: int) -> Iterator[np.ndarray]:
    """Find pairs of hashes that differ in at most ``max_distance`` bits, without comparing all pairs.

    Two such hashes are equal in at least one of ``max_distance + 1`` bands of bits (multi-index hashing; Norouzi,
    Punjani and Fleet, CVPR 2012, section 3), so only hashes with an equal band are compared.

    Args:
        first: (M,) uint64.
        second: (N,) uint64.
        max_distance: bits, below 64.

    Yields:
        (K, 2) int64: indices into ``first`` and ``second``; each pair once, in no particular order.
    """
    bands = _bands(max_distance + 1)
    for number, band in enumerate(bands):
        for rows, columns in _equal_keys(first & band, second & band):
            differing = first[rows] ^ second[columns]
            near = bit_count(differing) <= max_distance
            for earlier in bands[:number]:  # already found by that band
                near &= (differing & earlier) != 0
            yield np.stack((rows[near], columns[near]), axis=1)


def _bands(count: int) -> list[np.uint64]:
    """Bit masks of contiguous bands that together cover all bits, as equal in width as possible."""
    edges = [HASH_BITS * place // count for place in range(count + 1)]
    return [np.uint64((1 << end) - (1 << start)) for start, end in pairwise(edges)]


def _equal_keys(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of equal values in two arrays, (K,) int64 each, with K at most about `MAX_CANDIDATES`."""
    order = np.argsort(second, kind="stable")
    starts, ends = (np.searchsorted(second, first, side=side, sorter=order) for side in ("left", "right"))
    totals = np.cumsum(ends - starts)
    start = 0
    while start < len(first):
        done = int(totals[start - 1]) if start else 0
        end = max(int(np.searchsorted(totals, done + MAX_CANDIDATES, side="right")), start + 1)
        counts = ends[start:end] - starts[start:end]
        rows = np.repeat(np.arange(start, end), counts)
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield rows, order[starts[rows] + steps]
        start = end


def picture_groups(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """Index of the first image of each image's group, (N,) int64; groups are connected components of similar images.

    Args:
        hashes: (N,) uint64.
        max_distance: bits.
    """
    distinct, firsts, which = np.unique(hashes, return_index=True, return_inverse=True)
    labels = np.arange(len(distinct))
    for pairs in similar_hashes(distinct, distinct, max_distance):
        linked = labels[pairs]
        links = coo_array((np.ones(len(linked), dtype=bool), linked.T), shape=(len(distinct),) * 2)
        labels = connected_components(links, directed=False)[1][labels]
    first_of = np.full(len(distinct), len(hashes))
    np.minimum.at(first_of, labels, firsts)
    return np.asarray(first_of[labels][which])


def first_similar_pairs(
    first: np.ndarray, second: np.ndarray, max_distance: int, limit: int
) -> tuple[int, list[tuple[int, int]]]:
    """Count the pairs that differ in at most ``max_distance`` bits, and list the first ``limit`` of them.

    Args:
        first: (M,) uint64; equal values are compared once, so copies cost nothing.
        second: (N,) uint64, likewise.
        max_distance: bits.
        limit: pairs.

    Returns:
        The number of pairs, and indices into ``first`` and ``second``, in ascending order.
    """
    rows, columns = _Distinct(first), _Distinct(second)
    count = 0
    kept = np.zeros((0, 2), dtype=np.int64)
    for pairs in similar_hashes(rows.hashes, columns.hashes, max_distance):
        count += int(rows.counts[pairs[:, 0]] @ columns.counts[pairs[:, 1]])
        kept = np.concatenate((kept, pairs))
        # Each row stands for at least one pair of images, so rows beyond the limit are never needed.
        kept = kept[np.lexsort((columns.firsts[kept[:, 1]], rows.firsts[kept[:, 0]]))[:limit]]
    partners: dict[int, list[int]] = defaultdict(list)
    for row, column in kept.tolist():
        partners[row].append(column)
    places = heapq.merge(*([(place, row) for place in rows.places(row)[:limit].tolist()] for row in partners))
    found: list[tuple[int, int]] = []
    for place, row in places:
        if len(found) >= limit:
            break
        others = np.sort(np.concatenate([columns.places(column)[:limit] for column in partners[row]]))
        found += [(place, other) for other in others.tolist()]
    return count, found[:limit]


class _Distinct:
    """The distinct values among hashes, and the indices of each."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes, self.firsts, which, self.counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        self._order = np.argsort(which, kind="stable")
        self._ends = np.cumsum(self.counts)

    def places(self, number: int) -> np.ndarray:
        """Indices of the distinct value with that number, ascending."""
        end = self._ends[number]
        return self._order[end - self.counts[number] : end]


def bit_count(values: np.ndarray) -> np.ndarray:
    """Population count of uint64 values, as uint64 (Warren, Hacker's Delight, section 5-1)."""
    ones = [np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)]
    values = values - ((values >> np.uint64(1)) & ones[0])
    values = (values & ones[1]) + ((values >> np.uint64(2)) & ones[1])
    values = (values + (values >> np.uint64(4))) & ones[2]
    return np.asarray((values * np.uint64(0x0101010101010101)) >> np.uint64(56))
