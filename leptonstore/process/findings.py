"""Findings: what checks have to say of rows. Each is a row of a table, with reason and score, so that people can look, sort and decide.

    row     int64    the row, from 0, in the version that was searched
    check   string   who says so: "duplicates", "undecodable", "near_duplicate_images", …, "failed" (quarantined by a pipeline)
    column  string   where it was seen; several: joined by ", "
    score   double   how strongly, as the check defines it (greater is worse); null where there is nothing to measure
    detail  string   one line for people; it names no row by its number (`other` does: rows are renumbered on their way through a pipeline)
    other   int64    the row that this one repeats, leaks or contradicts; null: none
    group   int64    rows that belong together have the same number (the lowest row among them); null: none
    action  string   what was done: "keep" (nothing), "drop", "tag", "fix"

Findings of a run are written as a version of the dataset NAME.findings, whose lineage names the commit that was searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("check", pa.string(), nullable=False),
        pa.field("column", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("other", pa.int64()),
        pa.field("group", pa.int64()),
        pa.field("action", pa.string(), nullable=False),
    ]
)


class Action(StrEnum):
    """What becomes of a row that a check found. The user's choice; the default is to keep it.

    KEEP: it stays as it is, and the finding is written. DROP: it is left out of the new version (and stays in the parent). TAG: its
    `findings` column names the check. FIX: the check writes what it holds to be right.
    """

    KEEP = "keep"
    DROP = "drop"
    TAG = "tag"
    FIX = "fix"


def findings_table(
    check: str,
    column: str | Sequence[str],
    rows: Sequence[int] | NDArray[Any],
    details: Iterable[str],
    scores: Sequence[float] | NDArray[Any] | None = None,
    others: Sequence[int | None] | NDArray[Any] | None = None,
    groups: Sequence[int | None] | NDArray[Any] | None = None,
    action: Action = Action.KEEP,
) -> pa.Table:
    """Findings of one check, in the order given. column: of all of them, or of each."""
    count = len(rows)
    none = pa.nulls(count, pa.int64())
    arrays = [
        pa.array(np.asarray(rows, np.int64)),
        pa.array([check] * count, pa.string()),
        pa.array([column] * count if isinstance(column, str) else list(column), pa.string()),
        pa.nulls(count, pa.float64()) if scores is None else pa.array(scores, pa.float64()),
        pa.array(list(details), pa.string()),
        none if others is None else pa.array(others, pa.int64()),
        none if groups is None else pa.array(groups, pa.int64()),
        pa.array([action.value] * count, pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def joined(tables: Iterable[pa.Table | None]) -> pa.Table:
    """All of them, by row, then in the order given."""
    whole = pa.concat_tables([SCHEMA.empty_table(), *(table for table in tables if table is not None)])
    order = np.argsort(whole["row"].to_numpy(), kind="stable")
    return whole.take(pa.array(order)).combine_chunks()


def renumbered(findings: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Findings whose row, other and group count from 0 in some rows, in the numbers that these have: `rows`."""
    numbers = pa.array(rows)
    for name in ("row", "other", "group"):
        at = findings.schema.get_field_index(name)
        findings = findings.set_column(at, findings.schema.field(at), numbers.take(findings[name].combine_chunks()))
    return findings


def rows_found(findings: pa.Table) -> NDArray[np.int64]:
    """The rows that have a finding, each once, ascending."""
    found: NDArray[np.int64] = np.unique(findings["row"].to_numpy())
    return found


def worst(findings: pa.Table, check: str, count: int) -> pa.Table:
    """The findings of a check with the greatest scores, at most `count`; those of one score, and those without any, in row order."""
    some = findings.filter(pc.field("check") == check)
    scores = some["score"].to_numpy()  # null is NaN, which sorts last
    return some.take(pa.array(np.lexsort((some["row"].to_numpy(), -scores))[:count]))


def counts(findings: pa.Table) -> dict[str, int]:
    """Number of findings of each check, the most frequent first."""
    found = pc.value_counts(findings["check"].combine_chunks()).to_pylist()
    return {one["values"]: one["counts"] for one in sorted(found, key=lambda one: (-one["counts"], one["values"]))}
