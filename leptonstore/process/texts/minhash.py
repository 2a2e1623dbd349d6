"""From the set of shingles of a text to a signature that resembles those of similar sets, and to keys that likely pairs share.

Signature: one-permutation MinHash (Li, Owen, Zhang 2012). The range of hashes is cut into `count` bins; a bin's value is its least hash.
A bin without one takes the value of another, the first that has one in an order that is the bin's own (densification: Shrivastava 2017,
with orders without repetition). As for `count` permutations, two signatures agree in each place with the probability J of their sets'
Jaccard similarity. It costs one pass over sorted hashes instead of `count` (docs/decisions/0050: 15 times less).

Keys: the signature is cut into bands of some rows each; a band's key is a hash of its rows. Two texts share a key of a band with the
probability J**rows, one of all bands with 1 - (1 - J**rows)**bands.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.process.texts.shingles import Sets, mixed

RECALL_MIN = 0.995  # of pairs that are exactly as similar as the threshold; more similar ones are found more surely

_NONE = np.uint32(0xFFFFFFFF)
_FEW = (
    8  # bins with a value; with fewer, all orders are looked at at once, instead of one place of them after the other
)


def bands_for(threshold: float, count: int) -> tuple[int, int]:
    """(bands, rows): the fewest candidates (the most rows a band) with which RECALL_MIN of pairs at the threshold are found.

    One row a band where even that is too few.
    """
    for rows in range(count, 1, -1):
        bands = count // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL_MIN:
            return bands, rows
    return count, 1


@cache
def _orders(count: int) -> tuple[NDArray[np.intp], NDArray[np.uint16]]:
    """For each bin, an order of all bins ([bin, place] -> bin), and the place of each in it ([bin, bin] -> place)."""
    pairs = np.arange(count * count, dtype=np.uint64).reshape(count, count)
    orders = np.argsort(mixed(pairs + np.uint64(0xA0761D6478BD642F)), axis=1, kind="stable")
    places = np.empty((count, count), np.uint16)
    np.put_along_axis(places, orders, np.arange(count, dtype=np.uint16)[None, :], axis=1)
    return orders, places


def signatures(sets: Sets, count: int) -> NDArray[np.uint32]:
    """uint32, [texts, count]; count is a power of two. A text without shingles has 2**32 - 1 in all places."""
    texts = len(sets.offsets) - 1
    found = np.full((texts, count), _NONE, np.uint32)
    if len(sets.values):
        shift = np.uint32(32 - (count.bit_length() - 1))
        rows = np.repeat(np.arange(texts, dtype=np.int64), np.diff(sets.offsets))
        places = rows * count + (sets.values >> shift)
        first = np.ones(len(places), np.bool_)
        first[1:] = places[1:] != places[:-1]
        least = sets.values[first] & ((np.uint32(1) << shift) - np.uint32(1))
        found.reshape(-1)[places[first]] = least
        _densify(found)
    return found


def _densify(found: NDArray[np.uint32]) -> None:
    """Fill the bins without a value, in place."""
    count = found.shape[1]
    orders, places = _orders(count)
    empty = found == _NONE
    filled = count - empty.sum(axis=1)
    few = np.flatnonzero((filled > 0) & (filled <= _FEW))
    if len(few):
        row, source = np.nonzero(~empty[few])
        begins = np.flatnonzero(np.diff(row, prepend=-1))
        nearest = np.minimum.reduceat(places[:, source].T, begins, axis=0)  # [text, bin] -> the best place
        chosen = orders[np.arange(count)[None, :], nearest]
        # A bin with a value is not the first of its own order: it keeps what it has.
        found[few] = np.where(empty[few], found[few[:, None], chosen], found[few])
    many = np.flatnonzero((filled > _FEW) & (filled < count))
    row, bin_ = np.nonzero(empty[many])
    row = many[row]
    original = found.copy() if len(row) else found
    for place in range(count):
        if not len(row):
            return
        taken = original[row, orders[bin_, place]]
        done = taken != _NONE
        found[row[done], bin_[done]] = taken[done]
        row, bin_ = row[~done], bin_[~done]


def band_keys(signature: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """uint64, [texts, bands]. Compared within a band only."""
    used = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    keys = np.zeros((len(signature), bands), np.uint64)
    factor = 0x9E3779B97F4A7C15
    for row in range(rows):
        keys += used[:, :, row].astype(np.uint64) * np.uint64(factor)
        factor = factor * 0xD1342543DE82EF95 % (1 << 64)
    return mixed(keys)


def set_digests(sets: Sets) -> NDArray[np.uint64]:
    """One number for each set: equal sets have equal ones, others with a probability of 2**-64."""
    running = np.zeros(len(sets.values) + 1, np.uint64)
    np.cumsum(mixed(sets.values.astype(np.uint64) + np.uint64(1 << 32)), out=running[1:])
    return mixed(running[sets.offsets[1:]] - running[sets.offsets[:-1]] + np.diff(sets.offsets).astype(np.uint64))


def sketches(sets: Sets, most: int) -> Sets:
    """The `most` least hashes of each set: all of it where it is no larger."""
    counts = np.diff(sets.offsets)
    if not len(counts) or counts.max() <= most:
        return sets
    position = np.arange(len(sets.values)) - np.repeat(sets.offsets[:-1], counts)
    offsets: NDArray[Any] = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.minimum(counts, most))])
    return Sets(sets.values[position < most], offsets)
