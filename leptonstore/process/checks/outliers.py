"""Numbers far from all others of their column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.checks.robust import robust_spread
from leptonstore.process.findings import findings_table, joined

Z_MAX = 5.0  # of normal data one row in two million is further away; for small samples Iglewicz and Hoaglin (robust.py) say 3.5


@dataclass(frozen=True)
class Outliers(TableCheck):
    """Numbers whose robust z is over `z_max`: |value - median| / (1.4826 x median of |value - median|), exact. Infinities are always found.

    columns: of numbers; default: all but class labels, truth values and what identifies rows.
    Where more than half of the values are equal the mean takes the place of the second median; a column of one or two values has no
    outliers. score: the robust z (infinite for an infinity). Nulls and NaN are check.nulls'. 8 bytes are held for each row and column.
    """

    name: ClassVar[str] = "check.outliers"
    memoised: ClassVar[bool] = False
    columns: Sequence[str] = ()
    z_max: float = Z_MAX

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.z_max > 0:
            raise BadInput(f"{self.name}: z_max is a number above 0, not {self.z_max}")

    def bound(self, source: Dataset, schema: pa.Schema) -> Self:
        """With the names of the columns; what identifies rows is not among them, unless it was asked for."""
        if self.columns:
            return replace(self, columns=self.looks_at(schema))
        plain = pa.schema([one for one in schema if one.name not in source.identity])
        return replace(self, columns=self.looks_at(plain))

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns. Raises SchemaError."""
        return chosen.chosen_columns(self.name, schema, self.columns, chosen.is_measured, "numbers")

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """A double for each column, by place: a column may be called as it likes."""
        return pa.schema([(f"value{at}", pa.float64()) for at in range(len(self.looks_at(schema)))])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As `measures`."""
        arrays = [pc.cast(batch.column(name), pa.float64(), safe=False) for name in self.looks_at(batch.schema)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(batch.schema))

    def find_in(self, features: pa.Table) -> Found:
        """Column by column."""
        return Found(
            joined(
                self._column(name, features[f"value{at}"].to_numpy().astype(np.float64, copy=False))
                for at, name in enumerate(self.columns)
            )
        )

    def _column(self, name: str, values: NDArray[np.float64]) -> pa.Table:
        scores, median = robust_z(values)
        rows = np.flatnonzero(scores > self.z_max)
        details = [
            f"{value:g}, {score:,.1f} robust standard deviations from the median {median:g}"
            if np.isfinite(score)
            else f"{value:g}"
            for value, score in zip(values[rows].tolist(), scores[rows].tolist(), strict=True)
        ]
        return findings_table(self.tag, name, rows, details, scores[rows])


def robust_z(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The robust z of each value (0 for NaN, infinite for infinities), and the median of the finite ones."""
    finite = np.isfinite(values)
    known = values[finite]
    scores = np.where(np.isinf(values), np.inf, 0.0)
    if not len(known):
        return scores, 0.0
    median = float(np.median(known))
    if not bool(((known == known.min()) | (known == known.max())).all()):  # of two values none is an outlier
        away = np.abs(known - median)
        with np.errstate(over="ignore"):  # too far away for a number is infinitely far
            scores[finite] = away / robust_spread(away)
    return scores, median
