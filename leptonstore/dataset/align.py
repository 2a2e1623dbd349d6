"""Two sequences side by side: which elements of one are those of the other, in order. Pure: hashes in, positions out.

Patience diff (Bram Cohen): what is equal at both ends, then what occurs once in both; of those the longest run that ascends in both
are anchors, and between anchors the same again. Where nothing occurs once, runs of elements are looked at, and in the end the n-th
occurrence here stands for the n-th there. Any answer ascends in both sequences and pairs equal hashes only; that it is the longest one
is likely, not promised.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np

from leptonstore.dataset.cut import U64

Positions = np.ndarray[Any, np.dtype[np.int64]]
_RUN_MAX = 64  # elements of a run that may stand for its first one
_NONE: Positions = np.empty(0, np.int64)


def align(one: U64, other: U64) -> tuple[Positions, Positions]:
    """Positions of equal elements, ascending in both. Memory: about 100 bytes an element; time: n log n."""
    ones: list[Positions] = []
    others: list[Positions] = []
    open_spans = [(0, len(one), 0, len(other))]
    while open_spans:
        a, a_end, b, b_end = open_spans.pop()
        head = _equal_ahead(one[a:a_end], other[b:b_end])
        tail = _equal_ahead(one[a + head : a_end][::-1], other[b + head : b_end][::-1])
        for start_a, start_b, count in ((a, b, head), (a_end - tail, b_end - tail, tail)):
            if count:
                ones.append(np.arange(start_a, start_a + count))
                others.append(np.arange(start_b, start_b + count))
        a, a_end, b, b_end = a + head, a_end - tail, b + head, b_end - tail
        if a == a_end or b == b_end:
            continue
        here, there = _anchors(one[a:a_end], other[b:b_end])
        if not len(here):
            continue
        here, there = here + a, there + b
        ones.append(here)
        others.append(there)
        # What lies between two anchors, where both sides have something.
        starts_a, ends_a = np.concatenate(([a], here + 1)), np.concatenate((here, [a_end]))
        starts_b, ends_b = np.concatenate(([b], there + 1)), np.concatenate((there, [b_end]))
        both = np.flatnonzero((starts_a < ends_a) & (starts_b < ends_b))
        open_spans += zip(*(bound[both].tolist() for bound in (starts_a, ends_a, starts_b, ends_b)), strict=True)
    if not ones:
        return _NONE, _NONE
    found, paired = np.concatenate(ones), np.concatenate(others)
    order = np.argsort(found)
    return found[order], paired[order]


def _equal_ahead(one: U64, other: U64) -> int:
    """How many elements are equal from the start on."""
    count = min(len(one), len(other))
    step = 64  # most often little is equal, or nearly everything
    at = 0
    while at < count:
        differ = one[at : min(at + step, count)] != other[at : min(at + step, count)]
        if differ.any():
            return at + int(differ.argmax())
        at, step = at + step, step * 8
    return count


def _anchors(one: U64, other: U64) -> tuple[Positions, Positions]:
    """Pairs that ascend in both; none only when no element of one is in the other."""
    _, names = np.unique(np.concatenate((one, other)), return_inverse=True)
    here, there = names[: len(one)], names[len(one) :]
    first_here, first_there, width = here, there, 1
    # Elements, then runs of 2, 4, … of them: what is frequent alone may be known by what follows it.
    while width <= _RUN_MAX and min(len(here), len(there)):
        found, paired = _once_in_both(here, there)
        if len(found):
            return _ascending(found, paired)
        most = int(max(here.max(), there.max())) + 1
        joined = [side[:-width] * most + side[width:] for side in (here, there)]
        _, names = np.unique(np.concatenate(joined), return_inverse=True)
        here, there = names[: len(joined[0])], names[len(joined[0]) :]
        width *= 2
    here, there = first_here, first_there
    most = len(here) + len(there)
    key_one, key_other = here * most + _occurrence(here), there * most + _occurrence(there)
    _, found, paired = np.intersect1d(key_one, key_other, assume_unique=True, return_indices=True)
    order = np.argsort(found)
    return _ascending(found[order], paired[order])


def _once_in_both(here: Positions, there: Positions) -> tuple[Positions, Positions]:
    """Pairs of what occurs exactly once in each."""
    size = int(max(here.max(), there.max())) + 1
    once = (np.bincount(here, minlength=size) == 1) & (np.bincount(there, minlength=size) == 1)
    place = np.full(size, -1)
    place[there] = np.arange(len(there))
    found = np.flatnonzero(once[here])
    return found, place[here[found]]


def _occurrence(names: Positions) -> Positions:
    """For each element, how many equal ones stand before it."""
    order = np.argsort(names, kind="stable")
    ranked = names[order]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(ranked)) + 1))
    first = np.repeat(starts, np.diff(np.concatenate((starts, [len(names)]))))
    out = np.empty(len(names), np.int64)
    out[order] = np.arange(len(names)) - first
    return out


def _ascending(found: Positions, paired: Positions) -> tuple[Positions, Positions]:
    """Of pairs in the order of `found`, the most of them whose `paired` ascends too (Fredman 1975)."""
    if not len(paired) or bool((np.diff(paired) > 0).all()):
        return found, paired
    tails: list[int] = []  # least last value of an ascending run of each length, and where that stands
    places: list[int] = []
    before = [-1] * len(paired)
    for at, value in enumerate(paired.tolist()):
        length = bisect_left(tails, value)
        if length:
            before[at] = places[length - 1]
        if length == len(tails):
            tails.append(value)
            places.append(at)
        else:
            tails[length], places[length] = value, at
    kept, at = [], places[-1]
    while at >= 0:
        kept.append(at)
        at = before[at]
    chosen = np.array(kept[::-1])
    return found[chosen], paired[chosen]
