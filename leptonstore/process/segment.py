"""A segment: what happens to the rows of a piece in one pass over a version; the Step (engine/pieces.py) of a pipeline.

    stages       chains of row operations (chain.py), and verdicts: what table operations decided in earlier passes, looked up by row number
    then one of  a table operation's features, a group operation's partials, or the rows as the new version stores them

Columns that nobody touches pass as they are. Findings of stages that an earlier pass has told of are not told again.
How many rows came to each operation, and how many of them went on, travels with the findings, as rows that `untold` takes out again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import values as column_values
from leptonstore.dataset.rules import check_rows, rules_of
from leptonstore.dataset.scan import slice_ends
from leptonstore.dataset.schema import array_planes, inline_bytes
from leptonstore.dataset.values import Column, intern, one_array
from leptonstore.errors import LeptonError, OperationFailed
from leptonstore.format.page import fixed_width
from leptonstore.process.chain import Chain, resolved
from leptonstore.process.engine.pieces import Piece, Rows
from leptonstore.process.engine.unread import Held, Unread, may_stay_unread, whole
from leptonstore.process.findings import SCHEMA, Action, findings_table, joined
from leptonstore.process.memo import Memo
from leptonstore.process.operation import GroupOperation, Made, Operation, RowOperation, TableOperation
from leptonstore.process.outcomes import Outcomes
from leptonstore.store import Store

FAILED = "failed"  # the check that findings of rows name that an operation failed on
_COUNTED = "\0counted"


@dataclass(frozen=True)
class Verdict:
    """What a table operation decided. Of each row that came to it: its number, whether it goes on, and values.

    rows: ascending; a row that is not among them was left out while it was measured.
    """

    number: int
    rows: Rows
    keep: NDArray[np.bool_] | None
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring(RowOperation):
    """The features of a table operation, as a row operation makes columns: so they are kept in the memo, and rows that fail are found."""

    operation: TableOperation

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the operation."""
        return self.operation.name

    @property
    def memoised(self) -> bool:  # type: ignore[override]
        """As the operation."""
        return self.operation.memoised

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """As the operation."""
        return self.operation.reads(schema)

    def by_digest(self, schema: pa.Schema) -> tuple[str, ...]:
        """As the operation."""
        return self.operation.by_digest(schema)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """The features, and nothing else. A row that cannot be measured has nulls, whatever it says."""
        return pa.schema([one.with_nullable(True) for one in self.operation.features(schema)])

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """All of them."""
        return tuple(self.output(schema).names)

    def recipe(self) -> dict[str, Any]:
        """Of the features alone."""
        return {"features of": self.operation.features_recipe()}

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Measure."""
        made = self.operation.measure(batch)
        return Made(columns=dict(zip(made.schema.names, made.columns, strict=True)))


Stage = Chain | Verdict


@dataclass(frozen=True)
class Segment:
    """source: schema of the version. schema: of what comes out. stored: whether that is to be stored (else it is looked at by the driver).

    told: how many stages earlier passes have told of. group: the operation whose partials come out. memo: whether there is one. Pickles.
    """

    bounded: ClassVar[bool] = True

    source: pa.Schema
    stages: tuple[Stage, ...]
    schema: pa.Schema
    stored: bool
    dataset: str
    told: int = 0
    memo: bool = True
    group: GroupOperation | None = None
    group_schema: pa.Schema | None = None
    group_number: int = 0

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The columns of the version that are looked at, or that come out."""
        wanted = set(self._comes_out)
        for stage in self.stages:
            if isinstance(stage, Chain):
                wanted.update(stage.reads)
        return tuple(name for name in self.source.names if name in wanted)

    @property
    def _comes_out(self) -> Sequence[str]:
        """Columns that are needed after all stages."""
        if self.group is not None:
            assert self.group_schema is not None
            return self.group.reads(self.group_schema)
        return self.schema.names

    @cached_property
    def _wanted(self) -> list[frozenset[str]]:
        """For each stage: the columns that somebody after it wants."""
        wanted = set(self._comes_out)
        out = []
        for stage in reversed(self.stages):
            out.append(frozenset(wanted))
            if isinstance(stage, Chain):
                wanted.update(stage.reads)
        return out[::-1]

    @cached_property
    def makes_values(self) -> bool:
        """Whether values of no fixed width are made that come out."""
        made = {name for stage in self.stages if isinstance(stage, Chain) for name in stage.writes}
        return any(fixed_width(one.type) is None for one in self.schema if one.name in made)

    @cached_property
    def unread(self) -> dict[str, bytes]:
        """Columns in which a chain looks up rows by digest, and whose values nobody else wants, unless it left them alone."""
        out: dict[str, bytes] = {}
        seen: set[str] = set()
        for stage, wanted in zip(self.stages, self._wanted, strict=True):
            if isinstance(stage, Verdict):
                seen.update(stage.columns)
                continue
            for name in stage.reads:
                if name in seen or not (stage.memoised and self.memo) or not may_stay_unread(self.source.field(name)):
                    continue
                if name not in wanted or name in stage.writes:
                    out[name] = stage.recipe
            seen.update(stage.reads, stage.writes)
        return out

    def __call__(self, piece: Piece, store: Store) -> Piece:
        """As Step says. Raises OperationFailed, RuleBroken, and what reading and putting raise."""
        memo = Memo.of(store) if self.memo else None
        rows = piece.rows
        columns: dict[str, Held] = {**piece.columns, **piece.unread}
        findings: list[pa.Table | None] = [piece.findings]
        for at, (stage, wanted) in enumerate(zip(self.stages, self._wanted, strict=True)):
            if not len(rows):
                break
            if isinstance(stage, Verdict):
                rows, columns = _judged(stage, rows, columns, wanted)
                continue
            outcomes, reused = stage.outcomes(rows, columns, store, memo, wanted)
            if at >= self.told:
                findings += [_findings(stage, outcomes, rows), _counted(stage, outcomes, rows, reused)]
            rows, columns = _gone_on(stage, outcomes, rows, columns, wanted)
        if self.group is not None:
            return self._partials(self.group, rows, columns, store, findings)
        if self.stored:
            made = {one.name: self._stored(one, columns, rows, store) for one in self.schema} if len(rows) else {}
        else:
            made = {one.name: whole(columns[one.name]) for one in self.schema} if len(rows) else {}
        if not len(rows):
            made = {one.name: Column(pa.array([], one.type)) for one in self.schema}
        return Piece(rows, made, joined(findings))

    def _stored(self, one: pa.Field, columns: Mapping[str, Held], rows: Rows, store: Store) -> Column:
        """A column as pages keep it: large values are put into the store, and its rules kept."""
        column = whole(columns[one.name])
        at = self.source.get_field_index(one.name)
        rules = [rule for rule in rules_of(one) if rule.kind != "unique"]
        if rules and (column.references is None or at < 0 or rules_of(self.source.field(at)) != rules_of(one)):
            ends = {*slice_ends([column], len(rows)), *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)}
            start = 0
            for stop in sorted(ends):  # rows that follow each other, so that the error can number them
                plain = resolved(store, column, one, np.arange(start, stop), rows, self.dataset)
                batch = pa.RecordBatch.from_arrays([plain], schema=pa.schema([one]))
                check_rows(batch.schema, batch, int(rows[start]))
                start = stop
        return (
            column
            if column.references is not None
            else intern(store, column.values, inline_bytes(one), plane_width=array_planes(one) or 0)
        )

    def _partials(
        self,
        group: GroupOperation,
        rows: Rows,
        columns: Mapping[str, Held],
        store: Store,
        findings: list[pa.Table | None],
    ) -> Piece:
        """The groups of a piece: no more rows than it has; their numbers mean nothing."""
        assert self.group_schema is not None
        fields = [self.group_schema.field(name) for name in group.reads(self.group_schema)]
        found: list[pa.RecordBatch] = []
        start = 0
        values = {one.name: whole(columns[one.name]) for one in fields} if len(rows) else {}
        for stop in slice_ends(list(values.values()), len(rows)) if len(rows) else ():
            some = np.arange(start, stop)
            arrays = [resolved(store, values[one.name], one, some, rows, self.dataset) for one in fields]
            try:
                found.append(group.partial(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))))
            except (LeptonError, MemoryError):
                raise
            except Exception as error:
                raise OperationFailed(
                    f"operation {self.group_number} ({group.name}) failed on rows {rows[start]} to {rows[stop - 1]} of {self.dataset}: "
                    f"{type(error).__name__}: {error}",
                    group.name,
                    None,
                    str(error),
                ) from error
            start = stop
        made = None
        if found:
            made = group.merged(pa.Table.from_batches(found)) if len(found) > 1 else pa.Table.from_batches(found)
        counted = _tally(self.group_number, rows, {"in": len(rows), "kept": len(rows)}) if len(rows) else None
        count = 0 if made is None else made.num_rows
        out = {
            one.name: Column(pa.array([], one.type) if made is None else one_array(made.column(one.name)))
            for one in self.schema
        }
        return Piece(rows[:count], out, joined([*findings, counted]))


def _judged(
    verdict: Verdict, rows: Rows, columns: Mapping[str, Held], wanted: frozenset[str]
) -> tuple[Rows, dict[str, Held]]:
    at = np.searchsorted(verdict.rows, rows)
    there = at < len(verdict.rows)
    there[there] = verdict.rows[at[there]] == rows[there]
    stays = there.copy()
    if verdict.keep is not None:
        stays[there] = verdict.keep[at[there]]
    kept = np.flatnonzero(stays)
    out = {name: _of_rows(column, kept) for name, column in columns.items() if name in wanted}
    for name, array in verdict.columns.items():
        if name in wanted:
            out[name] = column_values.take(Column(array), at[kept])
    return rows[kept], out


def _gone_on(
    chain: Chain, outcomes: Outcomes, rows: Rows, columns: Mapping[str, Held], wanted: frozenset[str]
) -> tuple[Rows, dict[str, Held]]:
    kept = np.flatnonzero(outcomes.kept)
    made = {
        name: Column(array) for name, array in zip(chain.writes, outcomes.columns, strict=True) if array is not None
    }
    after = chain.schemas[-1]
    out = {
        name: _of_rows(column, kept)
        for name, column in columns.items()
        if name in wanted and name not in made and name in after.names
    }
    out.update({name: column for name, column in made.items() if name in wanted})
    return rows[kept], out


def _of_rows(column: Held, rows: NDArray[np.int64]) -> Held:
    if isinstance(column, Unread):
        return column if len(rows) == len(column) else column.take(rows)
    return column if len(rows) == len(column.values) else column_values.take(column, rows)


# -- what is said of rows --------------------------------------------------------------------------------------------


def _findings(chain: Chain, outcomes: Outcomes, rows: Rows) -> pa.Table | None:
    """What the operations of a chain said."""
    spoken = np.flatnonzero(np.asarray(outcomes.said.is_valid()))
    if not len(spoken):
        return None
    found: list[dict[str, Any]] = []
    for at, text in zip(spoken.tolist(), outcomes.said.take(pa.array(spoken)).to_pylist(), strict=True):
        row, fate = int(rows[at]), int(outcomes.fates[at])
        told = json.loads(text)
        if fate < 0:
            found.append(failure(chain.operations[-fate - 1], chain.schemas[-fate - 1], row, told["failed"]))
            told = told["found"]
        for check, column, score, detail, action in told:
            found.append(
                {"row": row, "check": check, "column": column, "score": score, "detail": detail, "action": action}
            )
    return pa.Table.from_pylist(found, SCHEMA)


def failure(operation: Operation, schema: pa.Schema, row: int, reason: str) -> dict[str, Any]:
    """The finding of a row that an operation failed on, and that is left out for it."""
    column = ", ".join(operation.reads(schema))
    detail = f"{operation.name}: {reason}"
    return {"row": row, "check": FAILED, "column": column, "detail": detail, "action": Action.DROP.value}


def _counted(chain: Chain, outcomes: Outcomes, rows: Rows, reused: int) -> pa.Table:
    """How many rows came to each operation of a chain, and what became of them."""
    left, tables = len(rows), []
    for at, _ in enumerate(chain.operations):
        dropped = int((outcomes.fates == at + 1).sum())
        failed = int((outcomes.fates == -(at + 1)).sum())
        counts = {"in": left, "kept": left - dropped - failed, "failed": failed}
        if at == 0 and chain.memoised:
            counts |= {"reused": reused, "computed": len(rows) - reused}
        tables.append(_tally(chain.number + at, rows, counts))
        left -= dropped + failed
    return pa.concat_tables(tables)


def _tally(number: int, rows: Rows, counts: Mapping[str, int]) -> pa.Table:
    return findings_table(_COUNTED, str(number), rows[:1], [json.dumps(counts)])


def untold(findings: pa.Table) -> tuple[pa.Table, dict[int, Counter[str]]]:
    """(findings, counts of each operation by its number: rows "in", "kept", "failed", and "reused", "computed" of a chain at its first)."""
    marks = np.asarray(findings["check"].to_numpy() == _COUNTED, np.bool_)
    counts: dict[int, Counter[str]] = {}
    for number, text in _texts(findings.filter(pa.array(marks))):
        counts.setdefault(number, Counter()).update(json.loads(text))
    return findings.filter(pa.array(~marks)), counts


def _texts(findings: pa.Table) -> Iterator[tuple[int, str]]:
    for number, text in zip(findings["column"].to_pylist(), findings["detail"].to_pylist(), strict=True):
        yield int(number), text
