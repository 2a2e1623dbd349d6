"""Count, sum, mean and deviation that merge: in two parts or in one, to float64 rounding (sums of integers: exactly).

Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore.errors import FormatDamaged
from leptonstore.process.statistics.record import Arrays, take

_LOW = 32  # bits of a value that are summed apart, where a sum may not fit in 64


@dataclass(frozen=True)
class Moments:
    """Of `count` finite values: their mean and the sum of their squared deviations from it; for integers, their sum."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    total: int | None = None

    @classmethod
    def of(cls, values: NDArray[Any], weights: NDArray[np.int64] | None = None) -> Moments:
        """Of a flat array of float64, int64 or uint64 (each counted `weights` times)."""
        if not len(values):
            return cls()
        count = len(values) if weights is None else int(weights.sum())
        total = None if values.dtype.kind == "f" else _exact_sum(values, weights)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what float64 cannot hold becomes infinite, and is told as None
            wide = values.astype(np.float64)
            if total is not None:
                mean = total / count
            else:
                mean = float((wide if weights is None else wide * weights).sum()) / count
            wide -= mean
            np.square(wide, out=wide)
            squares = float((wide if weights is None else wide * weights).sum())
        return cls(count, mean, squares, total)

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Of all values of all parts."""
        count, mean, squares, total = 0, 0.0, 0.0, 0
        whole = True
        for part in parts:
            if not part.count:
                continue
            together = count + part.count
            shift = part.mean - mean
            squares += part.squares + (shift * shift * count * part.count / together if count else 0.0)
            mean = mean + shift * part.count / together if count else part.mean
            count = together
            whole = whole and part.total is not None
            total += part.total or 0
        if whole and count:
            mean = total / count
        return cls(count, mean, squares, total if whole and count else None)

    @property
    def average(self) -> float | None:
        """The mean, None without values or when float64 cannot hold it."""
        return self.mean if self.count and math.isfinite(self.mean) else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the population, None as `average`."""
        return math.sqrt(self.squares / self.count) if self.count and math.isfinite(self.squares) else None

    def arrays(self) -> Arrays:
        """To be kept."""
        found: Arrays = {
            "count": np.array([self.count], np.int64),
            "mean": np.array([self.mean, self.squares], np.float64),
        }
        if self.total is not None:
            found["total"] = np.frombuffer(self.total.to_bytes(16, "little", signed=True), np.uint8)
        return found

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Moments:
        """What was kept. Raises FormatDamaged."""
        count = int(take(arrays, "count", "<i8", 1)[0])
        mean, squares = take(arrays, "mean", "<f8", 2).tolist()
        if count < 0 or squares < 0:
            raise FormatDamaged("sketch counts less than nothing")
        total = None
        if "total" in arrays:
            total = int.from_bytes(take(arrays, "total", "u1", 16).tobytes(), "little", signed=True)
        return cls(count, mean, squares, total)


def _exact_sum(values: NDArray[Any], weights: NDArray[np.int64] | None) -> int:
    """Of 64-bit integers; `weights` are so few rows that halves of a value times them fit in 64 bits."""
    reach = max(abs(int(values.min())), abs(int(values.max())))
    rows = len(values) if weights is None else int(weights.sum())
    if reach * rows < 1 << 63:
        return int((values if weights is None else values.astype(np.int64) * weights).sum())
    low, high = values & values.dtype.type((1 << _LOW) - 1), values >> values.dtype.type(_LOW)
    if weights is None:
        return (int(high.sum()) << _LOW) + int(low.sum())
    return sum(value * times for value, times in zip(values.tolist(), weights.tolist(), strict=True))
