"""Which source of a mixture stands at which position, and which of its draws that is: a pure function of weights and a key.

Positions count from 0 on. A *stretch* begins where weights change, and holds until the next one. Within a stretch:

    counts   Of the first n positions of a stretch (n a multiple of 256) each source has a number that depends on nothing but n and the
             weights: n is split at the root of a binary tree over the sources, in their order, and the parts again. The left part of n is
             floor((n * left + floor(both / 2)) / both) for the weights of the two sides; the right part is the rest. All parts grow with
             n and never shrink, they add up to n, and each level adds at most half a sample of error. So a source is never off by more
             than half a sample for two sources, one for four, 1.5 for eight, however long the stretch: nothing drifts.
             (Rounding the cumulated weights, which is simpler, lets a source's count shrink from one block to the next.)
    blocks   A stretch is cut into blocks of 256 positions, in each of which a source has the difference of two such counts. A keyed
             permutation of the block's slots decides where they stand, so that no source always meets the same place of a batch.
    draws    The d-th position that a source has since position 0, stretches before included, is its draw d. A stretch that ends inside
             a block has had the draws of the positions that were there, and no other: nothing is skipped.

    slots    x = (x * a_i + b_i) mod 256;  x = x ^ (x >> s_i)   for i = 0, 1, 2, 3;  s = (5, 4, 3, 4)
    a_i, b_i bytes 2i (made odd) and 2i + 1 of mix64(start of the block * 0x9e3779b97f4a7c15 + key)
    mix64    the finalizer of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators")
             (three rounds leave correlations of 1 % between slots, four none that 20,000 blocks show)

Weights are whole numbers that add up to 2^30, so all of this is exact. Memory: 8 bytes per stretch and source; O(log stretches) to find
a position. Nothing of this may change without a new version of the mixture's order: golden vectors in tests/unit/test_mixing.py pin it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import isfinite
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loaders.order import Rows

BLOCK = 256  # positions; a slot number is one byte
WEIGHT_TOTAL = 1 << 30  # what the weights add up to; products with a remainder below it fit 60 bits
SOURCES_MAX = 256  # a source's number is one byte in the table of a block
POSITION_MAX = 1 << 62  # so that sums of two positions fit int64
_BLOCKS_AT_ONCE = 512  # of which tables are made together: some 3 MiB

Weights: TypeAlias = tuple[int, ...]
Labels: TypeAlias = npt.NDArray[np.uint8]
_Words: TypeAlias = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = (5, 4, 3, 4)


def whole_weights(weights: Mapping[str, float], names: Sequence[str]) -> Weights:
    """The weights in the order of `names`, in shares of WEIGHT_TOTAL: rounded down, and the largest remainders up.

    They need not add up to 1. Raises ValueError, naming the source, for one that is missing, unknown, negative or too small to count,
    and when all are zero.
    """
    odd = [name for name in [*names, *weights] if (name in weights) != (name in names)]
    if odd:
        there = "has no weight" if odd[0] in names else f"is no source; there are {', '.join(names)}"
        raise ValueError(f"weights of a mixture name every source once: {odd[0]!r} {there}")
    for name in names:
        if not isfinite(weights[name]) or weights[name] < 0:
            raise ValueError(f"the weight of {name!r} must be a number of 0 or more, not {weights[name]}")
    parts = [Fraction(float(weights[name])) for name in names]
    if not sum(parts):
        raise ValueError("all weights of the mixture are zero: give at least one source a positive weight")
    exact = [part / sum(parts) * WEIGHT_TOTAL for part in parts]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(whole)), key=lambda at: (whole[at] - exact[at], at))
    for at in by_remainder[: WEIGHT_TOTAL - sum(whole)]:
        whole[at] += 1
    for name, share, part in zip(names, whole, parts, strict=True):
        if part and not share:
            raise ValueError(f"the weight of {name!r} is below 2^-30 of the sum: make it larger, or zero")
    return tuple(whole)


def weights_text(weights: Weights, names: Sequence[str]) -> str:
    """For people: "web=0.7 code=0.3"."""
    return " ".join(f"{name}={share / WEIGHT_TOTAL:.4g}" for name, share in zip(names, weights, strict=False))


def apportioned(totals: Rows, weights: Rows) -> Rows:
    """The part of each source in `totals` positions. Shapes: (n,) and (n or 1, sources) -> (n, sources)."""
    sources = weights.shape[1]
    spare = (1 << (sources - 1).bit_length()) - sources
    levels = [np.pad(weights, ((0, 0), (0, spare)))]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1][:, 0::2] + levels[-1][:, 1::2])
    counts = totals[:, None]
    for both, sides in pairwise(reversed(levels)):
        left, whole = sides[:, 0::2], np.maximum(both, 1)
        # Quotient and remainder apart: a count times a weight can need 92 bits.
        part = counts // whole * left + (counts % whole * left + (both >> 1)) // whole
        counts = np.stack((part, counts - part), axis=2).reshape(len(totals), sides.shape[1])
    return counts[:, :sources]


class Mixing:
    """The sources of all positions under one key. Immutable; any thread.

    starts:  positions where stretches begin: int64, ascending, the first is 0.
    weights: int64, shape (stretches, sources); each line adds up to WEIGHT_TOTAL.
    key:     64 bits.
    """

    def __init__(self, starts: Rows, weights: Rows, key: int) -> None:
        self._starts, self._weights, self._key = starts, weights, np.uint64(key)
        self.sources = weights.shape[1]
        sizes = np.diff(starts)
        within = self._counts_within(np.arange(len(sizes)), sizes)
        self._before = np.zeros((len(starts), self.sources), np.int64)
        np.cumsum(within, axis=0, out=self._before[1:])

    def counts(self, positions: Rows) -> Rows:
        """How often each source stands before each of the given positions: shape (n,) -> (n, sources)."""
        stretch = np.searchsorted(self._starts, positions, side="right") - 1
        return self._before[stretch] + self._counts_within(stretch, positions - self._starts[stretch])

    def draws(self, positions: Rows) -> tuple[Labels, Rows]:
        """(number of the source, number of its draw) at each of the given positions, 0 <= position < POSITION_MAX."""
        labels, draws = np.empty(len(positions), np.uint8), np.empty(len(positions), np.int64)
        if not len(positions):
            return labels, draws
        stretch = np.searchsorted(self._starts, positions, side="right") - 1
        offsets = positions - self._starts[stretch]
        firsts = positions - (offsets & (BLOCK - 1))
        # Which blocks there are, each once, and the positions that lie in each.
        order = None if (firsts[1:] >= firsts[:-1]).all() else np.argsort(firsts, kind="stable")
        ordered = firsts if order is None else firsts[order]
        cuts = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(positions)]))
        for at in range(0, len(cuts) - 1, _BLOCKS_AT_ONCE):
            here = cuts[at : at + _BLOCKS_AT_ONCE + 1]
            places = slice(here[0], here[-1]) if order is None else order[here[0] : here[-1]]
            heads = here[:-1] if order is None else order[here[:-1]]
            table, numbers = self._tables(stretch[heads], offsets[heads] // BLOCK)
            line = np.repeat(np.arange(len(heads)), np.diff(here))
            slot = offsets[places] & (BLOCK - 1)
            labels[places], draws[places] = table[line, slot], numbers[line, slot]
        return labels, draws

    def _tables(self, stretch: Rows, block: Rows) -> tuple[Labels, Rows]:
        """(source, draw) of all positions of some blocks: two arrays of shape (blocks, 256)."""
        first, cut, labels = self._blocks(stretch, block)
        by_source = np.argsort(labels, axis=1, kind="stable")
        places = np.empty(labels.shape, np.int64)
        np.put_along_axis(places, by_source, np.arange(BLOCK)[None], axis=1)
        # The places of a source run from cut[source] on, its draws from first[source] on.
        shift = self._before[stretch] + first - cut
        return labels, places + np.take_along_axis(shift, labels.astype(np.intp), axis=1)

    def _blocks(self, stretch: Rows, block: Rows) -> tuple[Rows, Rows, Labels]:
        """(counts of the stretch before each block, counts of lower sources in it, sources in it, shape (blocks, 256))."""
        weights = self._weights[stretch]
        first = apportioned(block * BLOCK, weights)
        sizes = apportioned((block + 1) * BLOCK, weights) - first
        sources = np.tile(np.arange(self.sources, dtype=np.uint8), len(block))
        in_order = np.repeat(sources, sizes.reshape(-1)).reshape(-1, BLOCK)
        slots = _permuted_slots(self._starts[stretch] + block * BLOCK, self._key)
        cut = np.cumsum(sizes, axis=1) - sizes
        return first, cut, np.take_along_axis(in_order, slots.astype(np.intp), axis=1)

    def _counts_within(self, stretch: Rows, positions: Rows) -> Rows:
        """Counts of the first `positions` positions of each stretch, shape (n, sources)."""
        out = apportioned(positions // BLOCK * BLOCK, self._weights[stretch])
        inside = np.flatnonzero(positions & (BLOCK - 1))
        for at in range(0, len(inside), _BLOCKS_AT_ONCE):
            some = inside[at : at + _BLOCKS_AT_ONCE]
            _, _, labels = self._blocks(stretch[some], positions[some] // BLOCK)
            line, slot = np.nonzero(np.arange(BLOCK) < (positions[some] & (BLOCK - 1))[:, None])
            flat = np.bincount(line * self.sources + labels[line, slot], minlength=len(some) * self.sources)
            out[some] += flat.reshape(len(some), self.sources)
        return out


def _permuted_slots(starts: Rows, key: np.uint64) -> Labels:
    """A permutation of 0..255 for each block, given where it starts: shape (blocks, 256)."""
    words = _mix64(starts.astype(np.uint64) * _GOLDEN + key)
    constants = np.ascontiguousarray(words.astype("<u8")).view(np.uint8).reshape(-1, 8)
    slots = np.tile(np.arange(BLOCK, dtype=np.uint8), (len(starts), 1))
    for turn, shift in enumerate(_SHIFTS):
        slots *= constants[:, 2 * turn, None] | np.uint8(1)
        slots += constants[:, 2 * turn + 1, None]
        slots ^= slots >> np.uint8(shift)
    return slots


def _mix64(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
