"""Count, min, max, mean, deviation and histogram of a stream of numbers, in bounded memory.

Three gatherers share one interface; `counter_for` chooses:

    _Dense    8- and 16-bit integers: a count per possible value. One pass, exact (integers throughout).
    _Sparse   lengths: a count per value that occurs. One pass, exact.
    _Wide     everything else: pass 1 merges means and squared deviations (Chan, Golub, LeVeque 1979), pass 2 bins.
              Exact to float64 rounding.

The deviation is that of a population (numpy.std). Histograms have the bins of numpy.histogram(values, bins=32).
NaN and infinities are counted in `not_finite` and take no part in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.limits import COUNT_VALUES_BYTES_MAX, HISTOGRAM_BINS
from leptonstore.process.statistics.results import Histogram, NumberStats


class Numbers:
    """Gathers numbers: `add` every batch, then, if `needs_second_pass`, `add_again` every batch, then `result`."""

    needs_second_pass = False

    def add(self, values: NDArray[Any]) -> None:
        """Take in a flat array."""
        raise NotImplementedError

    def add_again(self, values: NDArray[Any]) -> None:
        """Take in the same arrays once more."""

    def counts(self) -> dict[int, int] | None:
        """Occurrences of each value that occurs, ascending; None when values are not counted one by one."""
        return None

    def result(self) -> NumberStats:
        """The statistics so far."""
        raise NotImplementedError

    @staticmethod
    def count_bytes(values: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How often each byte value occurs, as 256 counts."""
        total = np.zeros(256, dtype=np.int64)
        for piece in _pieces(values.reshape(-1)):
            total += np.bincount(piece, minlength=256)
        return total

    @staticmethod
    def of_counts(counts: NDArray[np.int64]) -> Numbers:
        """A gatherer that has already seen the value i `counts[i]` times."""
        gatherer = _Dense(0, len(counts))
        gatherer.table += counts
        return gatherer


def counter_for(dtype: np.dtype[Any], sparse: bool = False) -> Numbers:
    """The gatherer for values of `dtype`; `sparse` when few distinct ones are expected."""
    if sparse:
        return _Sparse()
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        return _Dense(int(np.iinfo(dtype).min), 1 << (8 * dtype.itemsize))
    return _Wide()


class _Dense(Numbers):
    def __init__(self, lowest: int, size: int) -> None:
        self.lowest = lowest
        self.table = np.zeros(size, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        for piece in _pieces(values):
            shifted = piece if self.lowest == 0 else piece.astype(np.int64) - self.lowest
            self.table += np.bincount(shifted, minlength=len(self.table))

    def counts(self) -> dict[int, int]:
        present = np.flatnonzero(self.table)
        return dict(zip((present + self.lowest).tolist(), self.table[present].tolist(), strict=True))

    def result(self) -> NumberStats:
        return _of_counts(self.counts())


class _Sparse(Numbers):
    def __init__(self) -> None:
        self._values = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        new, times = np.unique(values, return_counts=True)
        merged, where = np.unique(np.concatenate([self._values, new]), return_inverse=True)
        counts = np.zeros(len(merged), dtype=np.int64)
        np.add.at(counts, where, np.concatenate([self._counts, times]))
        self._values, self._counts = merged, counts

    def counts(self) -> dict[int, int]:
        return dict(zip(self._values.tolist(), self._counts.tolist(), strict=True))

    def result(self) -> NumberStats:
        return _of_counts(self.counts())


class _Wide(Numbers):
    needs_second_pass = True

    def __init__(self) -> None:
        self._count = 0
        self._not_finite = 0
        self._min: int | float | None = None
        self._max: int | float | None = None
        self._mean = 0.0
        self._squares = 0.0  # sum of squared deviations from the mean
        self._edges: NDArray[Any] | None = None
        self._bins = np.zeros(HISTOGRAM_BINS, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        for piece in self._finite(values, count=True):
            low, high = piece.min().item(), piece.max().item()
            self._min = low if self._min is None else min(self._min, low)
            self._max = high if self._max is None else max(self._max, high)
            wide = piece.astype(np.float64)
            with np.errstate(over="ignore"):  # sums beyond float64 become infinite, and their results None
                mean = float(wide.mean())
                squares = float(np.square(wide - mean).sum())
            total = self._count + len(wide)
            shift = mean - self._mean
            self._squares += squares + shift * shift * self._count * len(wide) / total
            self._mean += shift * len(wide) / total
            self._count = total

    def add_again(self, values: NDArray[Any]) -> None:
        if self._min is None or self._max is None:
            return
        for piece in self._finite(values, count=False):
            binned = _histogram(piece, self._min, self._max)
            if binned is None:
                return
            self._bins += binned[0]
            self._edges = binned[1]

    def _finite(self, values: NDArray[Any], count: bool) -> Iterator[NDArray[Any]]:
        for piece in _pieces(values):
            if piece.dtype == np.float16:
                piece = piece.astype(np.float32)  # bin edges overflow in half precision
            if piece.dtype.kind == "f":
                finite = np.isfinite(piece)
                if not finite.all():
                    self._not_finite += int(len(piece) - finite.sum()) if count else 0
                    piece = piece[finite]
            if len(piece):
                yield piece

    def result(self) -> NumberStats:
        if not self._count:
            return NumberStats(0, self._not_finite, None, None, None, None, None)
        mean = self._mean if math.isfinite(self._mean) else None
        std = math.sqrt(self._squares / self._count) if math.isfinite(self._squares) else None
        shown = None if self._edges is None else Histogram(tuple(self._edges.tolist()), tuple(self._bins.tolist()))
        return NumberStats(self._count, self._not_finite, self._min, self._max, mean, std, shown)


def _pieces(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Slices that stay small when they are widened to eight bytes a value."""
    step = COUNT_VALUES_BYTES_MAX // max(values.dtype.itemsize, 1)
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _of_counts(counts: dict[int, int]) -> NumberStats:
    """Statistics of integers that were counted; integer arithmetic until the last division."""
    if not counts:
        return NumberStats(0, 0, None, None, None, None, None)
    total = sum(counts.values())
    first = sum(value * times for value, times in counts.items())
    second = sum(value * value * times for value, times in counts.items())
    std = math.sqrt((total * second - first * first) / (total * total))
    low, high = min(counts), max(counts)
    binned = _histogram(np.array(list(counts)), low, high, np.array(list(counts.values())))
    shown = None if binned is None else Histogram(tuple(binned[1].tolist()), tuple(binned[0].tolist()))
    return NumberStats(total, 0, low, high, first / total, std, shown)


def _histogram(
    values: NDArray[Any], low: float, high: float, times: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """numpy.histogram in HISTOGRAM_BINS equal bins; None when the range cannot be divided into finite bins."""
    if not math.isfinite(float(high) - float(low)):
        return None
    try:
        binned, edges = np.histogram(values, bins=HISTOGRAM_BINS, range=(low, high), weights=times)
    except ValueError:  # min and max are so close that floating point knows no 31 numbers between them
        return None
    return binned.astype(np.int64), edges
