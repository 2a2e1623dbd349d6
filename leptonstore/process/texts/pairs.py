"""From the features of all texts to pairs of similar ones, and to groups of them.

    texts with the same set of shingles   are one from here on
    likely pairs                          share the key of a band (minhash.py); found band by band, part by part of the keys' range
    pairs                                 likely pairs whose Jaccard similarity is at least the threshold, counted from their sketches
    groups                                what pairs connect (union-find: scipy's connected components)

Jaccard is exact where both sketches are whole sets. Else it is that of the hashes up to the least of the greatest hashes of sketches that
are not whole: an unbiased estimate from a random sample of the union of at least as many hashes as a sketch has.

Whether two texts are a pair depends on these two alone, with one exception: of a band's bucket with more than TEXT_BUCKET_ROWS_MAX texts,
each is compared with the next TEXT_BUCKET_NEXT and the first only.

Memory, beside the features: TEXT_PART_ROWS keys at a time (24 bytes each), TEXT_PAIR_VALUES hashes of sketches (some 60 bytes each),
and the pairs, 25 bytes each. Likely pairs, 16 bytes each, go to sorted runs on disk beyond SPILL_BYTES (store/runs.py). They grow with
the number of texts that are more or less alike: at most TEXT_BUCKET_NEXT + 1 for each text and band.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.process.texts.shingles import Sets
from leptonstore.store.runs import Keys, SortedRuns

Rows = NDArray[np.int64]

_ROW = np.dtype(">i8")
_ALL = np.int64(1 << 32)  # above every hash
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Features:
    """Of n texts with at least one shingle.

    digests: uint64, of the whole set. counts: int64, its size. sketches: its least hashes. keys: chunks of uint64 [., bands], n together.
    """

    digests: NDArray[np.uint64]
    counts: Rows
    sketches: Sets
    keys: list[NDArray[np.uint64]]

    def band(self, number: int, rows: Rows) -> NDArray[np.uint64]:
        """The keys of one band, of some texts."""
        return np.concatenate([part[:, number] for part in self.keys])[rows]


@dataclass(frozen=True)
class Pairs:
    """first < second: texts; score: Jaccard. exact: whether it was counted, not estimated. Sorted by (first, second), each pair once."""

    first: Rows
    second: Rows
    score: NDArray[np.float64]
    exact: NDArray[np.bool_]


def same_sets(features: Features) -> Rows:
    """For each text the first one with the same set of shingles (itself, where it is the first)."""
    order = np.lexsort((features.counts, features.digests))
    digests, counts = features.digests[order], features.counts[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (digests[1:] != digests[:-1]) | (counts[1:] != counts[:-1])
    first = np.empty(len(order), np.int64)
    if len(order):
        first[order] = np.minimum.reduceat(order, np.flatnonzero(begins))[np.cumsum(begins) - 1]
    return first


def similar_pairs(features: Features, alike: Rows, threshold: float) -> Pairs:
    """All pairs among texts with different sets. alike: what `same_sets` says."""
    rows = np.flatnonzero(alike == np.arange(len(alike)))
    counts = features.counts[rows]
    likely = SortedRuns(2 * _ROW.itemsize)
    for band in range(features.keys[0].shape[1] if features.keys else 0):
        for first, second in _sharing(features.band(band, rows)):
            smaller, larger = np.minimum(counts[first], counts[second]), np.maximum(counts[first], counts[second])
            possible = smaller >= threshold * larger - _ROUNDING  # J is at most the ratio of the sizes
            likely.add_block(_packed(rows[first[possible]], rows[second[possible]]))
    return _together(
        _verified(features, first, second, threshold) for first, second in _unpacked(likely.finish(), features.counts)
    )


def _sharing(keys: NDArray[np.uint64]) -> Iterator[tuple[Rows, Rows]]:
    """Positions (ascending) of two that have the same key. Part by part of the range of keys, which are as good as random.

    Keys lose the bits that a position takes: key and position in one number are sorted several times faster than by argsort. The pairs
    that this adds by chance (none for a million texts, 40,000 a band for a hundred million) are compared, and found to be none.
    """
    parts = -(-len(keys) // limits.TEXT_PART_ROWS)
    part_of = (keys >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) if parts > 1 else None
    bits = np.uint64(max(1, len(keys).bit_length()))
    for part in range(parts):
        inside = np.arange(len(keys)) if part_of is None else np.flatnonzero(part_of == part)
        both = keys[inside] >> bits << bits | inside.astype(np.uint64)
        both.sort()
        rows, here = (both & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), both >> bits
        begins = np.flatnonzero(np.concatenate([np.ones(len(here[:1]), np.bool_), here[1:] != here[:-1]]))
        sizes = np.diff(np.append(begins, len(here)))
        for size in np.unique(sizes[sizes > 1]).tolist():
            yield from _pairs_in(rows[begins[sizes == size][:, None] + np.arange(size)])


def _pairs_in(buckets: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Of [buckets, size]: pairs within each; of large ones not all (see above)."""
    size = buckets.shape[1]
    steps = size - 1 if size <= limits.TEXT_BUCKET_ROWS_MAX else limits.TEXT_BUCKET_NEXT
    for step in range(1, steps + 1):
        yield buckets[:, :-step].ravel(), buckets[:, step:].ravel()
    if steps < size - 1:
        rest = buckets[:, steps + 1 :]
        yield np.broadcast_to(buckets[:, :1], rest.shape).ravel(), rest.ravel()


def _packed(first: Rows, second: Rows) -> Keys:
    """Pairs as keys that sort like them."""
    both = np.stack([first, second], axis=1).astype(_ROW)
    return both.reshape(-1).view(f"S{2 * _ROW.itemsize}")


def _unpacked(pairs: Keys, counts: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Some pairs at a time, of TEXT_PAIR_VALUES shingles together (a pair of more is one alone)."""
    step = max(1, limits.TEXT_PAIR_VALUES // 16)
    for start in range(0, len(pairs), step):
        rows = np.ascontiguousarray(pairs[start : start + step]).view(_ROW).astype(np.int64).reshape(-1, 2)
        values = np.cumsum(counts[rows].sum(axis=1))
        begin = 0
        while begin < len(rows):
            before = int(values[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(values, before + limits.TEXT_PAIR_VALUES, "right")))
            yield rows[begin:end, 0], rows[begin:end, 1]
            begin = end


def _verified(features: Features, first: Rows, second: Rows, threshold: float) -> Pairs:
    """Those of the pairs that are similar."""
    sketches = features.sketches
    sizes = np.diff(sketches.offsets)
    # The greatest hash up to which both sketches are complete.
    ends = np.where(sizes < features.counts, sketches.values[np.maximum(sketches.offsets[1:], 1) - 1], _ALL)
    until = np.minimum(ends[first], ends[second])
    left, left_rows = _gathered(sketches, first, until)
    right, right_rows = _gathered(sketches, second, until)
    # Both ascend; the sorted union is found by merging, which is what a stable sort of two runs does.
    whole = np.concatenate([left, right])
    whole.sort(kind="stable")
    pair = (whole[1:] >> np.uint64(32))[whole[1:] == whole[:-1]].astype(np.int64)
    common = np.bincount(pair, minlength=len(first))
    union = np.bincount(left_rows, minlength=len(first)) + np.bincount(right_rows, minlength=len(first)) - common
    score = common / np.maximum(union, 1)
    kept = score >= threshold - _ROUNDING
    return Pairs(first[kept], second[kept], score[kept], (until == _ALL)[kept])


def _gathered(sketches: Sets, rows: Rows, until: NDArray[np.int64]) -> tuple[NDArray[np.uint64], Rows]:
    """Hashes up to `until` of the sketches of `rows`, each below the number of its place in `rows`; ascending. And those numbers."""
    sizes = np.diff(sketches.offsets)[rows]
    number = np.repeat(np.arange(len(rows)), sizes)
    begins = np.cumsum(sizes) - sizes
    values = sketches.values[np.arange(len(number)) + (sketches.offsets[rows] - begins)[number]]
    if bool((until < _ALL).any()):
        kept = values <= until[number]
        number, values = number[kept], values[kept]
    return number.astype(np.uint64) << np.uint64(32) | values, number


def _together(parts: Iterable[Pairs]) -> Pairs:
    none = np.zeros(0, np.int64)
    every = [Pairs(none, none, np.zeros(0), np.zeros(0, np.bool_)), *parts]
    return Pairs(
        *(np.concatenate([getattr(part, name) for part in every]) for name in ("first", "second", "score", "exact"))
    )
