"""Class labels that belong to no class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_names
from leptonstore.process import columns as column_values
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.findings import findings_table, joined


@dataclass(frozen=True)
class LabelsOutOfRange(RowCheck):
    """Labels below 0 or without a name. columns: class labels with names; default: all of them, a split too. score: none."""

    name: ClassVar[str] = "check.labels_out_of_range"
    memoised: ClassVar[bool] = False
    columns: Sequence[str] = ()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns. Raises SchemaError."""
        what = "class labels with names"
        return chosen.chosen_columns(self.name, schema, self.columns, lambda field: bool(class_names(field)), what)

    def find(self, batch: pa.RecordBatch) -> Found:
        """As the class says."""
        found = []
        for column in self.looks_at(batch.schema):
            classes = len(class_names(batch.schema.field(column)) or ())
            array = batch.column(column)
            values = column_values.indices(array)
            rows = np.flatnonzero(((values < 0) | (values >= classes)) & ~column_values.null_mask(array))
            details = [
                f"{value} is not one of {classes} classes (0 to {classes - 1})" for value in values[rows].tolist()
            ]
            found.append(findings_table(self.tag, column, rows, details))
        return Found(joined(found))
