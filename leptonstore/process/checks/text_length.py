"""check.text_length: texts that are too short or too long, by bounds or by what is usual among the others.

    min, max   bounds, each may be left out
    robust     how many robust standard deviations from the median a length may be, of the logarithms of lengths (lengths of
               texts are spread by factors; robust.py says what the deviation is). All rows are measured first.

Nulls are left to check.nulls.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process import columns
from leptonstore.process.checks.check import Check, Found, RowCheck, TableCheck
from leptonstore.process.checks.robust import robust_spread
from leptonstore.process.findings import findings_table
from leptonstore.process.operation import Operation
from leptonstore.process.operations.parameters import one_of
from leptonstore.process.texts.characters import versions
from leptonstore.process.texts.column import counted, number_in, text_column, whole_number_in
from leptonstore.process.texts.shingles import word_counts


@dataclass(frozen=True)
class _Length(Check):
    """What both ways have in common."""

    name: ClassVar[str] = "check.text_length"

    column: str | None = None
    unit: str = "characters"
    min: int | None = None
    max: int | None = None
    robust: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.name, "unit", self.unit, ("characters", "words"))
        for name in ("min", "max"):
            if getattr(self, name) is not None:
                whole_number_in(self.name, name, getattr(self, name), 0)
        if self.robust is not None:
            number_in(self.name, "robust", self.robust, 0)
        if self.min is None and self.max is None and self.robust is None:
            raise BadInput(f"{self.name}: say min, max or robust")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise BadInput(f"{self.name}: min ({self.min}) is above max ({self.max})")

    def libraries(self) -> dict[str, str]:
        """Unicode's version says what a word is."""
        return versions() if self.unit == "words" else {}

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts."""
        return (text_column(schema, self.column, self.name),)

    def lengths(self, texts: pa.Array) -> NDArray[np.int64]:
        """Of each text, -1 where it is null."""
        if self.unit == "words":
            found = word_counts(texts)
        else:
            found = columns.indices(pc.utf8_length(texts))
        found[columns.null_mask(texts)] = -1
        return found

    def bounded(self, lengths: NDArray[np.int64], column: str, low: float, high: float, usual: str = "") -> pa.Table:
        """Findings about what is outside of [low, high]; score: by what factor it is too short or too long (1 where the bound is 0)."""
        wrong = np.flatnonzero((lengths >= 0) & ((lengths < low) | (lengths > high)))
        here = lengths[wrong]
        score = np.where(here < low, low / np.maximum(here, 1), here / max(high, 1))
        least = f"at least {low:,.0f}" if low > 0 else ""
        most = f"at most {high:,.0f}" if high < np.inf else ""
        wanted = " and ".join(one for one in (least, most) if one)
        wanted += " are usual" if usual else " are wanted"
        details = [f"{counted(length, self.unit[:-1])}; {wanted}" for length in here.tolist()]
        return findings_table(self.tag, column, wrong, details, score)


@dataclass(frozen=True)
class TextLength(_Length, RowCheck):
    """Texts that are too short or too long, by bounds or (robust) by what is usual among the others.

    column: of texts; None: the only one. unit: "characters" (code points) or "words".
    min, max: that are wanted. robust: how many robust standard deviations from the median are, of the logarithm of the length.
    """

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """Itself, or what looks at all rows first."""
        if self.robust is None:
            return self
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return RobustTextLength(**given | {"column": text_column(schema, self.column, self.name)})

    def find(self, batch: pa.RecordBatch) -> Found:
        """By bounds."""
        low, high = self.min or 0, np.inf if self.max is None else self.max
        return Found(self.bounded(self.lengths(batch.column(0)), batch.schema.names[0], low, high))


@dataclass(frozen=True)
class RobustTextLength(_Length, TableCheck):
    """By what is usual among all rows, and by bounds where they are narrower."""

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """The length."""
        return pa.schema([pa.field("length", pa.int64())])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Of each text; -1: null."""
        return pa.RecordBatch.from_arrays([pa.array(self.lengths(batch.column(0)))], schema=self.measures(batch.schema))

    def find_in(self, features: pa.Table) -> Found:
        """What is too far from the median."""
        lengths = features["length"].to_numpy()
        known = np.log1p(lengths[lengths >= 0])
        low, high = 0.0, np.inf
        if len(known):
            median = np.median(known)
            reach = (self.robust or 0.0) * robust_spread(np.abs(known - median))
            low, high = np.ceil(np.expm1(median - reach) - 1e-9), np.floor(np.expm1(median + reach) + 1e-9)
        low, high = max(low, self.min or 0), min(high, np.inf if self.max is None else self.max)
        return Found(self.bounded(lengths, self.column or "text", low, high, "usual"))
