"""From the set of shingles of a text to a signature that resembles those of similar sets, and to keys that likely pairs share.

Signature: one-permutation MinHash (Li, Owen, Zhang 2012). The range of hashes is cut into `count` bins; a bin's value is its least hash.
A bin without one takes the value of another, the first that has one in an order that is the bin's own (densification: Shrivastava 2017,
with orders without repetition). As with `count` permutations, two signatures agree in each place with a probability that is their
sets' Jaccard similarity J. It costs one pass over sorted hashes instead of `count` (docs/decisions/0050 has the times).

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
_FEW = 16  # bins with a value; with no more, all of them are compared at once, instead of one place of the orders after the other
_SPARSE = 16  # empty bins are looked at one by one when only one in so many is empty


def recall(similarity: float, bands: int, rows: int) -> float:
    """The share of pairs of this similarity that share the key of a band."""
    return 1 - (1 - similarity**rows) ** bands


def bands_for(threshold: float, count: int) -> tuple[int, int]:
    """(bands, rows): the fewest candidates (the most rows a band) with which RECALL_MIN of pairs at the threshold are found.

    One row a band where even that is too few.
    """
    for rows in range(count, 1, -1):
        if recall(threshold, count // rows, rows) >= RECALL_MIN:
            return count // rows, rows
    return count, 1


@cache
def _orders(count: int) -> tuple[NDArray[np.intp], NDArray[np.uint16]]:
    """For each bin, an order of all bins: [place, bin] -> the bin at this place of its order; [other bin, bin] -> the place of that one."""
    pairs = np.arange(count * count, dtype=np.uint64).reshape(count, count)
    orders = np.argsort(mixed(pairs + np.uint64(0xA0761D6478BD642F)), axis=1, kind="stable")
    places = np.empty((count, count), np.uint16)
    np.put_along_axis(places, orders, np.arange(count, dtype=np.uint16)[None, :], axis=1)
    return np.ascontiguousarray(orders.T), np.ascontiguousarray(places.T)


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
    filled = count - (found == _NONE).sum(axis=1)
    few = np.flatnonzero((filled > 0) & (filled <= _FEW))
    if len(few):
        found[few] = _of_few(found[few])
    many = np.flatnonzero((filled > _FEW) & (filled < count))
    if len(many):
        found[many] = _of_many(found[many])


def _of_few(found: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Of all bins with a value, the one whose place in the order is the least."""
    orders, places = _orders(found.shape[1])
    row, source = np.nonzero(found != _NONE)
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    nearest = np.minimum.reduceat(places[source], begins, axis=0)  # [text, bin]
    chosen = orders[nearest, np.arange(found.shape[1])]
    # A bin with a value need not be the first of its own order: it keeps what it has.
    return np.where(found == _NONE, np.take_along_axis(found, chosen, axis=1), found)


def _of_many(found: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Place by place of the orders: of all bins of all texts while many are empty, then of the empty ones."""
    count = found.shape[1]
    orders, _ = _orders(count)
    by_bin = np.ascontiguousarray(found.T)  # what is copied from bin to bin lies together
    filled = by_bin.copy()
    place = 0
    while np.count_nonzero(empty := filled == _NONE) * _SPARSE >= empty.size:
        np.copyto(filled, by_bin[orders[place]], where=empty)
        place += 1
    bin_, row = np.nonzero(empty)
    while len(row):
        taken = by_bin[orders[place, bin_], row]
        done = taken != _NONE
        filled[bin_[done], row[done]] = taken[done]
        row, bin_ = row[~done], bin_[~done]
        place += 1
    return filled.T


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
