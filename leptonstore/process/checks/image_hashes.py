"""Perceptual hashes of thumbnails, and the pairs that they propose.

A hash is the signs of the lowest coefficients of a discrete cosine transform (pHash: Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 2010), a product with a matrix of small integers that is exact in float32. There are two kinds:

    FINE    192 bits of every image: all frequencies that survive noise and compression. Digits on a plain ground need so many.
    COARSE  96 bits of images that fill their frame, of the whole and of six parts of it (WINDOWS), so that a copy that was cropped meets
    its original

Two images are proposed when a hash of one agrees with one of the same kind of the other in all bits of one band, and in all but a few of
all its bits, and one of the two is of a whole image. (Bands: Indyk and Motwani, "Approximate Nearest Neighbors", 1998; of bits: Manku,
Jain, Das Sarma, "Detecting Near-Duplicates for Web Crawling", 2007.) That is a property of the two images: whatever else there is
changes nothing, as long as no more than NEAR_BAND_ROWS_MAX have the same band.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from leptonstore.limits import NEAR_BAND_ROWS_MAX, NEAR_PAIRS_CHUNK
from leptonstore.process.checks.image_thumbnails import EDGE, Thumbnails
from leptonstore.process.operation import Bits


@dataclass(frozen=True)
class Kind:
    """bits: of a hash. apart_max: bits in which two hashes may differ. bands, band_bits: see above."""

    bits: int
    apart_max: int
    bands: int
    band_bits: int


FINE = Kind(192, 24, 32, 24)
COARSE = Kind(96, 14, 32, 18)
_UNIT = 63  # of the largest number in the matrix: sums stay below 2^24

_ROWS_CHUNK = 4_096

Window = tuple[float, float, float, float]

# top, left, bottom, right, as shares of the image that are left out.
WINDOWS: tuple[Window, ...] = (
    (0.0, 0.0, 0.0, 0.0),
    (0.025, 0.025, 0.025, 0.025),
    (0.05, 0.05, 0.05, 0.05),
    (0.05, 0.0, 0.0, 0.0),
    (0.0, 0.05, 0.0, 0.0),
    (0.0, 0.0, 0.05, 0.0),
    (0.0, 0.0, 0.0, 0.05),
)

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]


def proposed(thumbnails: Thumbnails, plain: Bits) -> Rows:
    """(n, EDGE, EDGE) -> (m, 2) rows, the lower first, each pair once, in order. plain: which have a plain ground."""
    count = len(thumbnails)
    every, filled = np.arange(count), np.flatnonzero(~plain)
    pairs = _within(FINE, _signs(FINE, thumbnails, every, WINDOWS[:1])[0], every, count)
    parts = _signs(COARSE, thumbnails, filled, WINDOWS)
    more = _within(COARSE, np.concatenate(parts), np.tile(filled, len(WINDOWS)), len(filled))
    lower, higher = (np.concatenate([pairs[at], more[at]]) for at in (0, 1))
    names = np.unique(lower * count + higher)
    return np.stack([names // max(1, count), names % max(1, count)], axis=1)


def _signs(kind: Kind, thumbnails: Thumbnails, rows: Rows, windows: Sequence[Window]) -> list[Hashes]:
    """Of each window (n, words): the signs of the coefficients of these rows."""
    out = np.zeros((len(windows), len(rows), -(-kind.bits // 64) * 8), np.uint8)
    for low in range(0, len(rows), _ROWS_CHUNK):
        some = thumbnails[rows[low : low + _ROWS_CHUNK]].reshape(-1, EDGE * EDGE).astype(np.float32)
        for at, window in enumerate(windows):
            values = some @ _matrix(kind.bits, window)
            out[at, low : low + len(some), : kind.bits // 8] = np.packbits(values > 0, axis=1, bitorder="little")
    return list(out.view("<u8"))


@cache
def _matrix(bits: int, window: Window) -> NDArray[np.float32]:
    """(pixels, bits): the part of the thumbnail, stretched to the whole, then the cosine transform; rounded to whole numbers."""
    top, left, bottom, right = window
    down, across = stretch(top, bottom), stretch(left, right)
    waves = np.cos(np.pi * (np.arange(EDGE) + 0.5) * np.arange(EDGE)[:, None] / EDGE)
    places = [(i, j) for i in range(EDGE) for j in range(EDGE) if i + j]
    places.sort(key=lambda at: (at[0] ** 2 + at[1] ** 2, at))
    rows = [np.outer(waves[i] @ down, waves[j] @ across).reshape(-1) for i, j in places[:bits]]
    found = np.array([np.rint(row * (_UNIT / np.abs(row).max())) for row in rows])
    return np.ascontiguousarray(found.T).astype(np.float32)


def stretch(before: float, after: float) -> NDArray[np.float64]:
    """(EDGE, EDGE): what is left of an axis without these shares of its ends, resampled to the whole; linear between neighbours."""
    places = EDGE * before + (np.arange(EDGE) + 0.5) * (1 - before - after) - 0.5
    return np.maximum(0.0, 1 - np.abs(np.clip(places, 0, EDGE - 1)[:, None] - np.arange(EDGE)))


@cache
def _bands(kind: Kind) -> list[list[int]]:
    """Which bits each band has, the same for ever: chosen by a linear congruential generator (Knuth's MMIX)."""
    chosen = []
    state = 1
    for _ in range(kind.bands):
        left = list(range(kind.bits))
        band = []
        for _ in range(kind.band_bits):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            band.append(left.pop((state >> 33) % len(left)))
        chosen.append(sorted(band))
    return chosen


def _within(kind: Kind, found: Hashes, rows: Rows, whole: int) -> tuple[Rows, Rows]:
    """The pairs of rows whose hashes, the first `whole` of which are of whole images, are near each other: lower, higher; each once."""
    count = int(rows.max(initial=0)) + 1
    pairs = np.zeros(0, np.int64)
    for band in _bands(kind):
        fresh = [pairs]
        for one, other in _equal(_keys(found, band), whole, kind.band_bits):
            near = np.bitwise_count(found[one] ^ found[other]).sum(axis=1) <= kind.apart_max
            a, b = rows[one[near]], rows[other[near]]
            fresh.append(np.unique((np.minimum(a, b) * count + np.maximum(a, b))[a != b]))
        pairs = np.unique(np.concatenate(fresh))
    return pairs // count, pairs % count


def _keys(found: Hashes, band: Sequence[int]) -> NDArray[np.uint32]:
    key = np.zeros(len(found), np.uint32)
    for at, bit in enumerate(band):
        key |= ((found[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1)).astype(np.uint32) << np.uint32(at)
    return key


def _equal(keys: NDArray[np.uint32], whole: int, bits: int) -> Iterator[tuple[Rows, Rows]]:
    """Places with equal keys: each of the first `whole` with those of them that follow it, each later one with all of them;
    NEAR_BAND_ROWS_MAX at most, some NEAR_PAIRS_CHUNK at a time."""
    order = np.argsort(keys[:whole], kind="stable")
    known = keys[order]
    places = np.concatenate([order, np.arange(whole, len(keys))])
    begins = np.arange(1, len(keys) + 1)
    follow = np.empty(len(keys), np.int64)
    follow[:whole] = np.searchsorted(known, known, side="right") - begins[:whole]
    if len(keys) > whole:  # a table, since looking up in random order costs most of the time
        starts = np.searchsorted(known, np.arange((1 << bits) + 1, dtype=np.uint32))
        begins[whole:] = starts[keys[whole:]]
        follow[whole:] = starts[keys[whole:] + np.uint32(1)] - begins[whole:]
    np.minimum(follow, NEAR_BAND_ROWS_MAX, out=follow)
    before = np.concatenate([[0], np.cumsum(follow)])
    low = 0
    while low < len(places):
        high = max(low + 1, int(np.searchsorted(before, before[low] + NEAR_PAIRS_CHUNK, side="right")) - 1)
        counts = follow[low:high]
        step = np.arange(before[high] - before[low]) - np.repeat(before[low:high] - before[low], counts)
        yield np.repeat(places[low:high], counts), order[np.repeat(begins[low:high], counts) + step]
        low = high
