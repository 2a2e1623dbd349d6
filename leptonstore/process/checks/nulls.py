"""Missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.schema import class_names
from leptonstore.errors import BadInput
from leptonstore.format.page import is_variable
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import TAGS, Found, RowCheck
from leptonstore.process.columns import field_of, null_mask
from leptonstore.process.findings import findings_table


@dataclass(frozen=True)
class Nulls(RowCheck):
    """Rows in which values are missing; one finding for each. NaN counts as missing.

    columns: default: all. fill: what "fix" writes, by column: {"age": 0, "label": "unknown"} (a class by its name or number).
    score: how many of the columns are missing. column: which.
    """

    name: ClassVar[str] = "check.nulls"
    memoised: ClassVar[bool] = False
    can_fix: ClassVar[bool] = True
    columns: Sequence[str] = ()
    fill: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action == "fix" and not self.fill:
            raise BadInput(f"{self.name} with the action 'fix' needs `fill`: what to write, by column")
        if self.fill and self.action != "fix":
            raise BadInput(f"{self.name} writes `fill` only with the action 'fix', not {self.action!r}")

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The columns. Raises SchemaError, and BadInput for a filling that does not fit."""
        wanted = self.columns or tuple(self.fill) or [name for name in schema.names if name != TAGS]
        found = chosen.chosen_columns(self.name, schema, tuple(wanted), lambda _: True, "anything")
        for name, value in self.fill.items():
            _filling(field_of(self.name, schema, name), value)
        return tuple(dict.fromkeys((*found, *self.fill)))

    def fixes(self, schema: pa.Schema) -> tuple[str, ...]:
        """What is filled."""
        return tuple(self.fill)

    def by_digest(self, schema: pa.Schema) -> tuple[str, ...]:
        """Strings and bytes, unless they are filled: whether a value is there can be seen without it."""
        return tuple(
            name for name in self.looks_at(schema) if is_variable(schema.field(name).type) and name not in self.fill
        )

    def find(self, batch: pa.RecordBatch) -> Found:
        """As the class says."""
        names = [name for name in batch.schema.names if name != TAGS]
        missing = (
            np.stack([_missing(batch.column(name)) for name in names], axis=1) if names else np.zeros((0, 0), bool)
        )
        rows = np.flatnonzero(missing.any(axis=1))
        which = [", ".join(names[at] for at in np.flatnonzero(missing[row])) for row in rows.tolist()]
        scores = missing[rows].sum(axis=1).astype(np.float64)
        details = ["no value" if count == 1 else f"no value in {count:.0f} columns" for count in scores.tolist()]
        fixed = {name: self._filled(batch, name) for name in self.fill} if self.action == "fix" else None
        return Found(findings_table(self.tag, which, rows, details, scores), fixed)

    def _filled(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        column = batch.column(name)
        value = _filling(batch.schema.field(name), self.fill[name])
        return pc.if_else(pa.array(_missing(column)), value, column)


def _missing(column: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not pa.types.is_floating(column.type):
        return null_mask(column)
    return np.asarray(pc.fill_null(pc.is_nan(column), True).to_numpy(zero_copy_only=False))


def _filling(column: pa.Field, value: Any) -> pa.Scalar:
    """The value in the type of its column. Raises BadInput."""
    names = class_names(column)
    if names is not None and isinstance(value, str):
        if value not in names:
            raise BadInput(f"check.nulls cannot fill column {column.name!r} with {value!r}: it is none of its classes")
        value = names.index(value)
    try:
        return pa.scalar(value, column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise BadInput(f"check.nulls cannot fill column {column.name!r} of {column.type} with {value!r}") from None
