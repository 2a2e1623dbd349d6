"""Pearson's correlation of all pairs of number columns, from co-moments that merge.

Of each pair (i, j), over the rows in which both have a finite value: their number, the mean of i, the squared deviations of i, and the
products of the deviations of both. Merged as Chan, Golub and LeVeque (1979) merge variances; Bennett and others (2009) do so with
covariances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.process import columns
from leptonstore.process.statistics.column import Kind, Watched
from leptonstore.process.statistics.record import pack, take, unpack
from leptonstore.process.statistics.results import Correlation

Square = NDArray[np.float64]


def correlated(watched: Sequence[Watched]) -> tuple[list[str], list[str]]:
    """(the columns that are compared, those that are too many): numbers that are no class labels."""
    names = [one.field.name for one in watched if one.kind is Kind.NUMBERS and one.names is None and not one.path]
    return names[: limits.CORRELATION_COLUMNS_MAX], names[limits.CORRELATION_COLUMNS_MAX :]


@dataclass(frozen=True)
class CoMoments:
    """[i, j] of each: over the rows with both, their number; the mean of i; the squared deviations of i; the products of both."""

    rows: NDArray[np.int64]
    means: Square
    squares: Square
    products: Square

    @classmethod
    def of(cls, arrays: Sequence[pa.Array]) -> CoMoments:
        """Of some rows of number columns."""
        size, count = len(arrays), len(arrays[0])
        values = np.empty((size, count), np.float64)
        there = np.ones((size, count), np.float64)
        shift, held = np.zeros(size, np.float64), np.full(size, float(count))
        with np.errstate(over="ignore", invalid="ignore"):
            for at, array in enumerate(arrays):
                mine = values[at]
                mine[:] = as_floats(array)
                finite = np.isfinite(mine)
                if not finite.all():
                    mine[~finite] = 0.0
                    there[at] = finite
                    held[at] = float(np.count_nonzero(finite))
                # Sums of deviations from about the middle keep their digits; the rows that are absent stay 0.
                shift[at] = float(mine.sum()) / held[at] if held[at] else 0.0
                mine -= shift[at]
                if held[at] < count:
                    mine *= there[at]
            # What a column is without is looked at for those that are without something alone.
            some = np.flatnonzero(held < count)
            masks = there[some].T
            rows = np.minimum(held[:, None], held[None, :])
            rows[:, some] = there @ masks
            rows[some] = rows[:, some].T
            sums = np.repeat(values.sum(axis=1)[:, None], size, axis=1)
            sums[:, some] = values @ masks
            products = values @ values.T
            square = np.square(values, out=there)
            squares = np.repeat(square.sum(axis=1)[:, None], size, axis=1)
            squares[:, some] = square @ masks
            share = np.maximum(rows, 1)
            squares = np.maximum(squares - sums * sums / share, 0)
            products = products - sums * sums.T / share
            return cls(rows.astype(np.int64), shift[:, None] + sums / share, squares, products)

    @classmethod
    def merged(cls, parts: Sequence[CoMoments]) -> CoMoments:
        """Of all rows of all parts, in row order; at least one."""
        whole = parts[0]
        with np.errstate(over="ignore", invalid="ignore"):
            for part in parts[1:]:
                rows = whole.rows + part.rows
                some = np.maximum(rows, 1)
                shift = np.where((whole.rows > 0) & (part.rows > 0), part.means - whole.means, 0.0)
                weight = whole.rows * (part.rows / some)
                means = np.where(whole.rows == 0, part.means, whole.means + shift * part.rows / some)
                squares = whole.squares + part.squares + shift * shift * weight
                products = whole.products + part.products + shift * shift.T * weight
                whole = cls(rows, means, squares, products)
        return whole

    def result(self, names: Sequence[str], left_out: Sequence[str]) -> Correlation:
        """For people."""
        values: list[tuple[float | None, ...]] = []
        for i in range(len(names)):
            values.append(tuple(self._coefficient(i, j) for j in range(len(names))))
        rows = tuple(tuple(row) for row in self.rows.tolist())
        return Correlation(tuple(names), tuple(values), rows, tuple(left_out))

    def _coefficient(self, i: int, j: int) -> float | None:
        first, second = float(self.squares[i, j]), float(self.squares[j, i])
        spread = math.sqrt(first) * math.sqrt(second)
        if not math.isfinite(spread) or spread <= 0 or self.rows[i, j] < 2:
            return None
        if i == j:
            return 1.0
        return max(-1.0, min(1.0, float(self.products[i, j]) / spread))

    def encode(self) -> bytes:
        """To be kept."""
        squares = {"means": self.means, "squares": self.squares, "products": self.products}
        return pack({"rows": self.rows.reshape(-1)} | {name: one.reshape(-1) for name, one in squares.items()})

    @classmethod
    def decode(cls, data: bytes, columns_: int, rows: int) -> CoMoments:
        """What was kept of `rows` rows of so many columns. Raises FormatDamaged."""
        arrays, size = unpack(data), columns_ * columns_
        counts = take(arrays, "rows", "<i8", size).reshape(columns_, columns_)
        if bool((counts < 0).any()) or bool((counts > rows).any()):
            raise FormatDamaged("co-moments are not of these rows")
        means, squares, products = (
            take(arrays, name, "<f8", size).reshape(columns_, columns_) for name in ("means", "squares", "products")
        )
        return cls(counts, means, squares, products)


def as_floats(array: pa.Array) -> NDArray[np.float64]:
    """Numbers as float64; null is NaN."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64(), safe=False)
    found: NDArray[np.float64] = array.to_numpy(zero_copy_only=False).astype(np.float64)
    if array.null_count and pa.types.is_floating(array.type):
        found[columns.null_mask(array)] = np.nan
    return found
