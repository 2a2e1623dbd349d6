"""Runs a check on a table as a pipeline does: bound to it, in batches, features gathered in row order; and what it found, as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from leptonstore.process.checks.check import Check, RowCheck, TableCheck
from leptonstore.process.findings import SCHEMA, joined
from leptonstore.process.operation import Made


@dataclass(frozen=True)
class Searched:
    """As much of a dataset as checks look at before they run."""

    table: pa.Table
    identity: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: Any, columns: Sequence[str]) -> pa.Table:
        return self.table.select(list(columns)).take(rows)


def made_by(check: Check, table: pa.Table, identity: Sequence[str] = ("id",), batch_rows: int = 7) -> Made:
    """What becomes of the whole table."""
    bound = check.bound(Searched(table, tuple(identity)), table.schema)  # type: ignore[arg-type]
    bound.output(table.schema)
    batches = table.select(list(bound.reads(table.schema))).combine_chunks().to_batches(batch_rows)
    if isinstance(bound, TableCheck):
        features = [bound.measure(batch) for batch in batches]
        assert all(one.schema.equals(bound.features(table.schema)) for one in features)
        return bound.decide(pa.Table.from_batches(features, bound.features(table.schema)))
    assert isinstance(bound, RowCheck)
    made = [bound.apply(batch) for batch in batches]
    at = SCHEMA.get_field_index("row")
    findings = []
    for place, one in enumerate(made):
        assert one.findings is not None
        rows = pa.array(one.findings["row"].to_numpy() + place * batch_rows)
        findings.append(one.findings.set_column(at, SCHEMA.field(at), rows))
    keep = [one.keep for one in made]
    columns = {name: pa.chunked_array([one.columns[name] for one in made]).combine_chunks() for name in made[0].columns}
    whole = None if keep[0] is None else [bool(one) for part in keep if part is not None for one in part]
    return Made(columns, whole, joined(findings))  # type: ignore[arg-type]


def found_by(
    check: Check, table: pa.Table, identity: Sequence[str] = ("id",), batch_rows: int = 7
) -> list[dict[str, Any]]:
    """Its findings."""
    findings = made_by(check, table, identity, batch_rows).findings
    assert findings is not None and findings.schema.equals(SCHEMA)
    rows: list[dict[str, Any]] = findings.to_pylist()
    return rows


def rows_of(findings: Sequence[dict[str, Any]], *fields: str) -> list[Any]:
    """Of each finding its row, or a tuple of the fields that are named."""
    if not fields:
        return [one["row"] for one in findings]
    return [tuple(one[name] for name in ("row", *fields)) for one in findings]
