"""Classes that have far fewer rows than others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process import columns as column_values
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.checks.copies import codes
from leptonstore.process.findings import findings_table

RATIO_MAX = 10.0


@dataclass(frozen=True)
class ClassBalance(TableCheck):
    """All rows of classes that are rarer than the most frequent one by more than `ratio_max`.

    label: a column of classes (class labels, integers or strings); default: the first class label. ratio_max: 1 or more.
    score: rows of the most frequent class / rows of this one. group: the first row of the class.
    Rows without a label are of no class, and a class without rows has no row that could be found: `lepton analyse` counts them.
    """

    name: ClassVar[str] = "check.class_balance"
    memoised: ClassVar[bool] = False
    label: str = ""
    ratio_max: float = RATIO_MAX

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio_max >= 1:
            raise BadInput(f"{self.name}: ratio_max is a number from 1 on, not {self.ratio_max}")

    def bound(self, source: Dataset, schema: pa.Schema) -> Self:
        """With the name of the column."""
        return replace(self, label=chosen.class_column(self.name, schema, self.label))

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The label. Raises SchemaError."""
        return (chosen.class_column(self.name, schema, self.label),)

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """The name of the class."""
        self.looks_at(schema)
        return pa.schema([("class", pa.string())])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As `measures`."""
        (label,) = self.looks_at(batch.schema)
        return pa.RecordBatch.from_arrays([chosen.named_classes(batch, label)], names=["class"])

    def find_in(self, features: pa.Table) -> Found:
        """As the class says."""
        column = features["class"].combine_chunks()
        code, names = codes(column)
        known = ~column_values.null_mask(column)
        counts = np.bincount(code[known], minlength=len(names))
        most = int(counts.max(initial=0))
        ratio = most / np.maximum(counts, 1)
        rows = np.flatnonzero(known & (ratio > self.ratio_max)[code]) if most else np.zeros(0, np.int64)
        first = np.full(len(names), len(code))
        np.minimum.at(first, code[rows], rows)
        details = [
            f"{names[at] or 'the empty name'} has {counts[at]:,} rows, the most frequent class {most:,}"
            for at in code[rows].tolist()
        ]
        return Found(findings_table(self.tag, self.label, rows, details, ratio[code[rows]], None, first[code[rows]]))
