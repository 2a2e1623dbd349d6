"""Where values stand in order: quantiles, distribution function and histogram, from a summary that merges.

A summary is values with weights. While there are few different values, each has the number of its rows, and all is exact. Else the sorted
values are cut into buckets of about equal weight, each of which its middle value stands for: a rank is off by half a bucket at most,
whatever the values are. Towards both ends buckets shrink to single values (1, 1, 2, 2, 4, 4, …), so that tails are as fine as t-digest
has them. Merging is putting the points of two summaries together: the errors add up (as shares of the values: stay what they are). What
has too many points is cut again, which adds half a bucket. Deterministic: no random numbers, unlike KLL; no adversary, unlike t-digest,
whose errors are those of average data. (Agarwal, Cormode, Huang, Phillips, Wei, Yi: Mergeable summaries, 2012, section 4.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.process.statistics.record import Arrays, take
from leptonstore.process.statistics.results import Histogram, Quantile

Counts = NDArray[np.int64]
TYPES = {"f": "<f8", "i": "<i8", "u": "<u8"}


@dataclass(frozen=True)
class Ranks:
    """values: ascending, each once (float64, int64 or uint64). weights: rows that each stands for. error: of a rank, in rows; 0: exact."""

    values: NDArray[Any]
    weights: Counts
    error: int = 0

    @classmethod
    def empty(cls, kind: str) -> Ranks:
        """Of no values. kind: "f", "i" or "u"."""
        return cls(np.zeros(0, TYPES[kind]), np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: NDArray[Any], weights: Counts, points: int, exact: int) -> Ranks:
        """Of ascending, different values: as they are when there are at most `exact`, else in about `points` buckets."""
        if len(values) <= exact:
            return cls(values, weights)
        return cls(values, weights)._cut(points)

    @classmethod
    def merged(cls, parts: Sequence[Ranks]) -> Ranks:
        """Of all values of all parts, which are of one type; at most STATISTICS_POINTS_MAX points, and the tails."""
        values, weights = summed([part.values for part in parts], [part.weights for part in parts])
        whole = cls(values, weights, sum(part.error for part in parts))
        return whole._cut(limits.STATISTICS_POINTS_MAX) if len(values) > limits.STATISTICS_POINTS_MAX else whole

    @property
    def count(self) -> int:
        """Values."""
        return int(self.weights.sum())

    @property
    def share_error(self) -> float:
        """`error` as a share of the values."""
        return self.error / self.count if self.error else 0.0

    def _cut(self, points: int) -> Ranks:
        below = np.cumsum(self.weights)
        ends = bucket_ends(int(below[-1]), points)
        starts = np.concatenate(([0], ends[:-1]))
        first, middle, last = (
            np.searchsorted(below, at, side="right") for at in (starts, (starts + ends - 1) // 2, ends - 1)
        )
        sizes = ends - starts
        mixed = sizes[first != last]  # a bucket of equal values is exact
        error = int(mixed.max()) // 2 if len(mixed) else 0
        keep = np.concatenate(([True], middle[1:] != middle[:-1]))
        return Ranks(self.values[middle[keep]], np.add.reduceat(sizes, np.flatnonzero(keep)), self.error + error)

    def below(self, at: NDArray[Any], inclusive: bool = True) -> NDArray[np.int64]:
        """How many values are less than each of `at` (or equal to it), give or take `error`."""
        total = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.weights)))
        found: NDArray[np.int64] = total[np.searchsorted(self.values, at, side="right" if inclusive else "left")]
        return found

    def quantiles(self, shares: Sequence[float]) -> tuple[Quantile, ...]:
        """The least value that at least such a share of the values does not exceed; none without values."""
        if not len(self.values):
            return ()
        below = np.cumsum(self.weights)
        wanted = np.maximum(np.ceil(np.array(shares) * float(below[-1])), 1)
        places = np.minimum(np.searchsorted(below, wanted), len(below) - 1)
        return tuple(Quantile(share, value) for share, value in zip(shares, self.values[places].tolist(), strict=True))

    def histogram(self, low: float, high: float) -> Histogram | None:
        """HISTOGRAM_BINS equal bins from `low` to `high`, the least and the greatest value (as numpy.histogram has them).

        None when the range cannot be divided into finite bins.
        """
        if not len(self.values) or not math.isfinite(float(high) - float(low)):
            return None
        try:
            wide, ends = self.values.astype(np.float64), (float(low), float(high))  # numpy bins no uint64 over 2^63
            counts, edges = np.histogram(wide, limits.HISTOGRAM_BINS, ends, weights=self.weights)
        except ValueError:  # min and max are so close that floating point knows no 31 numbers between them
            return None
        return Histogram(
            tuple(edges.tolist()), tuple(counts.astype(np.int64).tolist()), min(2 * self.error, self.count)
        )

    def arrays(self) -> Arrays:
        """To be kept; of a block, whose weights fit in 32 bits."""
        return {
            "values": self.values,
            "weights": self.weights.astype(np.uint32),
            "error": np.array([self.error], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, kind: str) -> Ranks:
        """What was kept. Raises FormatDamaged."""
        values = take(arrays, "values", TYPES[kind])
        weights = take(arrays, "weights", "<u4", len(values)).astype(np.int64)
        error = int(take(arrays, "error", "<i8", 1)[0])
        if not bool((values[1:] > values[:-1]).all()) or not weights.all() or error < 0:
            raise FormatDamaged("sketch has values that do not ascend")
        if kind == "f" and not np.isfinite(values).all():
            raise FormatDamaged("sketch has values that are not finite")
        return cls(values, weights, error)


def summed(values: Sequence[NDArray[Any]], weights: Sequence[Counts]) -> tuple[NDArray[Any], Counts]:
    """Several ascending lists of values with weights as one: equal values are one, with the sum of their weights."""
    together, rows = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(together, kind="stable")
    together, rows = together[order], rows[order]
    if not len(together):
        return together, rows
    starts = np.flatnonzero(np.concatenate(([True], together[1:] != together[:-1])))
    return together[starts], np.add.reduceat(rows, starts)


def runs(ordered: NDArray[Any]) -> tuple[NDArray[Any], Counts]:
    """The different values of a sorted array, and how often each occurs."""
    new = ordered[1:] != ordered[:-1]
    if new.all():
        return ordered, np.ones(len(ordered), np.int64)
    starts = np.concatenate(([0], np.flatnonzero(new) + 1))
    return ordered[starts], np.diff(starts, append=len(ordered))


@lru_cache(256)
def bucket_ends(total: int, points: int) -> Counts:
    """Where `total` weights in order are cut: about `points` buckets, which grow from 1 at both ends as powers of two do."""
    step = -(-total // points)
    tail = np.repeat(1 << np.arange(max(step - 1, 0).bit_length()), 2)
    middle = total - 2 * int(tail.sum())
    if middle < 0:
        tail, middle = tail[:0], total
    buckets = -(-middle // step)
    inner = np.diff(np.arange(buckets + 1) * middle // max(buckets, 1))
    ends: Counts = np.cumsum(np.concatenate((tail, inner, tail[::-1])), dtype=np.int64)
    ends.setflags(write=False)
    return ends
