"""A chain: row operations that follow each other and look at each other's columns, done as one.

    values that the chain reads -> their digests -> a key for each row -> memo
                                                                           └ not there -> operation after operation -> outcomes, kept

What an operation makes and the next one changes is never stored, nor kept: an image is decoded, cropped and scaled, and only what comes
out at the end goes on. Only values that an operation looks at are read from the store.

    key    BLAKE3 of the chain's recipe (32) and, for each column that it reads, the digest of the value (16) and whether there is one (1)

A row that an operation fails on is not kept in the memo: what failed once may have been the machine's fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.groups import told_at
from leptonstore.dataset.values import Asked, Column
from leptonstore.digest import digest_of
from leptonstore.errors import LeptonError, OperationFailed, listed
from leptonstore.format.page import fixed_width
from leptonstore.format.schema import field_to_json
from leptonstore.process.digests import as_numbers, digest_field, stored_digests
from leptonstore.process.engine.ended import check_running
from leptonstore.process.engine.unread import Held, Unread
from leptonstore.process.memo import Memo
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.outcomes import Outcomes, Part, Rows, assembled
from leptonstore.store import Store

_LAYOUT = 2  # of keys and outcomes: raised when either changes


@dataclass(frozen=True)
class Chain:
    """operations: one or more. schemas: of the rows before each of them, and after the last. number: of the first, from 1, in the pipeline.

    dataset: NAME@REF of what is read, for messages. memoised: whether results are kept. one_failure: whether the first failing row ends it
    all. Pickles. Any thread, several at once.
    """

    operations: tuple[RowOperation, ...]
    schemas: tuple[pa.Schema, ...]
    number: int
    dataset: str
    memoised: bool
    one_failure: bool

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The columns whose values it looks at, as they come to it."""
        found: dict[str, None] = {}
        made: set[str] = set()
        for operation, schema in zip(self.operations, self.schemas, strict=False):
            found.update(dict.fromkeys(name for name in operation.reads(schema) if name not in made))
            # What an operation only may write can still be what came.
            made.update(name for name in _new(schema, operation.output(schema)))
        return tuple(found)

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The columns that it may write, of those that it leaves."""
        pairs = zip(self.operations, self.schemas, strict=False)
        names = dict.fromkeys(name for operation, schema in pairs for name in operation.writes(schema))
        return tuple(name for name in names if name in self.schemas[-1].names)

    @cached_property
    def recipe(self) -> bytes:
        """Names what becomes of values."""
        said = {
            "layout": _LAYOUT,
            "operations": [operation.recipe() for operation in self.operations],
            "reads": [field_to_json(self.schemas[0].field(name)) for name in self.reads],
            # Outcomes are kept by place: the order follows columns of the version that no operation looks at.
            "writes": [field_to_json(self.schemas[-1].field(name)) for name in self.writes],
        }
        return digest_of(json.dumps(said, sort_keys=True, ensure_ascii=False).encode())

    def keys(self, columns: Mapping[str, Held]) -> list[bytes]:
        """The memo's key of each row."""
        parts: list[NDArray[np.uint8]] = []
        for name in self.reads:
            column = columns[name]
            digests = column.stored_digests() if isinstance(column, Unread) else stored_digests(column)
            parts.append(as_numbers(digests).view(np.uint8).reshape(len(digests), -1))
            parts.append(np.asarray(digests.is_valid()).astype(np.uint8).reshape(-1, 1))
        joined = np.concatenate(parts, axis=1)
        width, data, start = joined.shape[1], joined.tobytes(), blake3(self.recipe)
        keys = []
        for at in range(0, len(data), width):
            hasher = start.copy()
            hasher.update(data[at : at + width])
            keys.append(hasher.digest())
        return keys

    # -- rows ------------------------------------------------------------------------------------------------------

    def outcomes(
        self, rows: Rows, columns: Mapping[str, Held], store: Store, memo: Memo | None, wanted: frozenset[str]
    ) -> tuple[Outcomes, int]:
        """(what becomes of some rows, how many of them were in the memo). rows: their numbers, for messages; at least one.

        wanted: the columns whose values are of use to anybody. Raises OperationFailed (`one_failure`), and what reading and putting raise.
        """
        types = [self.schemas[-1].field(name).type if name in wanted else None for name in self.writes]
        parts: list[Part] = []
        missing = np.arange(len(rows))
        keys: list[bytes] = []
        if memo is not None and self.memoised and self.reads:
            keys = self.keys(columns)
            parts, missing = self._remembered(memo, keys, types)
        first, which = missing, np.arange(len(missing))
        if keys and len(missing) > 1:  # equal values are worked on once
            seen: dict[bytes, int] = {}
            which = np.array([seen.setdefault(keys[at], len(seen)) for at in missing.tolist()])
            first = missing[np.unique(which, return_index=True)[1]]
        given = {name: _with_rows(columns[name], first) for name in self.reads} if len(first) else {}
        done = 0
        for stop in self._ends(given, first):
            check_running()
            some = first[done:stop]
            made = self._computed(rows[some], {name: _taken(given[name], some) for name in self.reads}, store)
            if memo is not None and keys:
                self._remember(memo, [keys[at] for at in some.tolist()], made)
            mine = np.flatnonzero((which >= done) & (which < stop))
            parts.append(Part(made, which[mine] - done, missing[mine]))
            done = stop

        def original(column: int, some: Rows) -> pa.Array:
            name = self.writes[column]
            return resolved(
                store, _with_rows(columns[name], some), self.schemas[0].field(name), some, rows, self.dataset
            )

        return assembled(parts, len(rows), types, original), len(rows) - len(missing)

    def _remembered(
        self, memo: Memo, keys: list[bytes], types: Sequence[pa.DataType | None]
    ) -> tuple[list[Part], NDArray[np.int64]]:
        """(parts that are in the memo, rows that are not)."""
        places = memo.places(keys)
        at, (names, which) = np.flatnonzero(places.found), np.unique(places.blocks, return_inverse=True)
        parts, have = [], np.zeros(len(keys), np.bool_)
        for number, name in enumerate(names.tolist()):
            mine = np.flatnonzero(which == number)
            to, inner = at[mine], places.rows[mine]
            held = memo.outcomes(name, [keys[one] for one in to.tolist()], inner, types)
            if held is not None:
                parts.append(Part(held, inner, to))
                have[to] = True
        return parts, np.flatnonzero(~have)

    def _remember(self, memo: Memo, keys: list[bytes], made: Outcomes) -> None:
        failed = made.fates < 0
        if not failed.any():
            memo.put_rows(keys, made)
            return
        good = np.flatnonzero(~failed)
        if len(good):  # those that failed have no values in its columns
            said = made.said.take(pa.array(good))
            memo.put_rows([keys[at] for at in good.tolist()], Outcomes(made.fates[good], said, made.columns))

    def _ends(self, columns: Mapping[str, Column], rows: Rows) -> Iterator[int]:
        """Where to cut `rows`, so that what is held of them at a time is bounded."""
        width = max(
            sum(fixed_width(field.type) or 0 for field in schema if field.name in {*self.reads, *self.writes})
            for schema in self.schemas
        )
        sizes = np.full(len(rows), width + 1, np.int64)
        for column in columns.values():
            if column.references is not None:
                sizes += column.referenced_sizes()[rows]
        totals = np.cumsum(sizes)
        start = 0
        while start < len(rows):
            before = int(totals[start - 1]) if start else 0
            full = int(np.searchsorted(totals, before + limits.CHAIN_BATCH_BYTES, side="right"))
            start = max(start + 1, min(full, start + limits.CHAIN_BATCH_ROWS, len(rows)))
            yield start

    # -- computing -------------------------------------------------------------------------------------------------

    def _computed(self, rows: Rows, columns: dict[str, Column], store: Store) -> Outcomes:
        """The outcomes of all rows, none of which is looked up."""
        fates = np.zeros(len(rows), np.int16)
        found: dict[int, list[list[Any]]] = {}
        reasons: dict[int, str] = {}
        alive = np.arange(len(rows))
        values = _Values(columns, store, rows, self.dataset)
        for at, operation in enumerate(self.operations):
            if not len(alive):
                break
            before, after = self.schemas[at], self.schemas[at + 1]
            batch = values.batch(operation, before)
            made, good, failed = self._applied(at, batch, rows[alive])
            stays = np.zeros(len(alive), np.bool_)
            stays[good if made.keep is None else good[made.keep]] = True
            for row, reason in failed.items():
                fates[alive[row]], reasons[int(alive[row])] = -(at + 1), reason
            dropped = np.setdiff1d(np.flatnonzero(~stays), list(failed))
            fates[alive[dropped]] = at + 1
            if made.findings is not None:
                for one in made.findings.to_pylist():
                    found.setdefault(int(alive[good[one["row"]]]), []).append(_said(one))
            values.use(made.columns, good, stays, after)
            alive = alive[stays]
        final = self.schemas[-1]
        names = self.writes
        made_columns = tuple(
            values.written.get(name) if len(alive) else pa.array([], final.field(name).type) for name in names
        )
        texts: list[str | None] = [None] * len(rows)
        for row, told in found.items():
            texts[row] = json.dumps(told)
        for row, reason in reasons.items():
            texts[row] = json.dumps({"failed": reason, "found": found.get(row, [])})
        return Outcomes(fates, pa.array(texts, pa.string()), made_columns)

    def _applied(self, at: int, batch: pa.RecordBatch, rows: Rows) -> tuple[Made, NDArray[np.int64], dict[int, str]]:
        """(what operation `at` made, of which rows of the batch, why it failed on the others)."""
        operation = self.operations[at]
        good, failed = np.arange(batch.num_rows), dict[int, str]()
        made, error = _tried(operation, batch)
        if made is None:
            for row, reason in _failing(operation, batch, 0):
                failed[row] = reason
                if self.one_failure:
                    self.raise_failed(operation, int(rows[row]), reason)
            good = np.setdiff1d(good, list(failed))
            if failed and not len(good):  # it may raise on no rows, too
                before, after = self.schemas[at], self.schemas[at + 1]
                empty = {
                    name: pa.array([], after.field(name).type)
                    for name in operation.writes(before)
                    if name in after.names
                }
                return Made(empty), good, failed
            made, error = _tried(operation, batch.take(pa.array(good))) if failed else (None, error)
            if made is None:
                raise OperationFailed(
                    f"{self.said(operation)} fails on {len(good)} rows of {self.dataset} together (rows {rows[good[0]]} to "
                    f"{rows[good[-1]]}), and on none of them alone: {error}",
                    operation.name,
                    None,
                    error,
                )
        failures = {row: _encodable(reason) for row, reason in made.failed.items()} | self._lacking(at, made, len(good))
        if failures:
            if self.one_failure:
                row = min(failures)
                self.raise_failed(operation, int(rows[good[row]]), failures[row])
            failed.update({int(good[row]): reason for row, reason in failures.items()})
            made, good = _without(made, failures, len(good), good)
        return made, good, failed

    def _lacking(self, at: int, made: Made, count: int) -> dict[int, str]:
        """Holds what an operation gave against what it said; rows where it left out a value that has to be there."""
        operation, before, after = self.operations[at], self.schemas[at], self.schemas[at + 1]

        def wrong(what: str) -> OperationFailed:
            return OperationFailed(f"{self.said(operation)} gave {what}", operation.name, None, what)

        if made.keep is not None and len(made.keep) != count:
            raise wrong(f"{len(made.keep)} answers of which rows to keep for {count} rows")
        for name in _new(before, after):
            if name not in made.columns and len(made.failed) < count:
                raise wrong(f"no column {name!r}, which its output has")
        allowed = operation.writes(before)
        lacking: dict[int, str] = {}
        for name, array in made.columns.items():
            if name not in allowed:
                raise wrong(f"a column {name!r} that it did not say that it writes ({listed(allowed)})")
            field = after.field(name)
            if array.type != field.type:
                raise wrong(f"values of type {array.type} in column {name!r}, where its output has {field.type}")
            if len(array) != count:
                raise wrong(f"{len(array)} values of column {name!r} for {count} rows")
            if not field.nullable and array.null_count:
                for row in np.flatnonzero(np.asarray(array.is_null())).tolist():
                    if row not in made.failed and (made.keep is None or made.keep[row]):
                        lacking.setdefault(row, f"it gave no value for column {name!r}, which has no nulls")
        return lacking

    def raise_failed(self, operation: Operation, row: int, reason: str) -> None:
        """Raise OperationFailed of a row."""
        raise OperationFailed(
            f"{self.said(operation)} failed on row {row} of {self.dataset}: {reason}; correct the row or the operation, or leave such "
            'rows out with on_error = "quarantine"',
            operation.name,
            row,
            reason,
        )

    def said(self, operation: Operation) -> str:
        """What messages call an operation of this chain."""
        number = next(at for at, one in enumerate(self.operations) if one is operation)
        return f"operation {self.number + number} ({operation.name})"


class _Values:
    """The columns of the rows of a chain that still go on; large values are read when an operation wants them."""

    def __init__(self, columns: dict[str, Column], store: Store, rows: Rows, dataset: str) -> None:
        self._stored, self._store, self._rows, self._dataset = columns, store, rows, dataset
        self._plain: dict[str, pa.Array] = {}
        self.written: dict[str, pa.Array] = {}

    def batch(self, operation: RowOperation, schema: pa.Schema) -> pa.RecordBatch:
        """What the operation is given."""
        by_digest = set(operation.by_digest(schema))
        fields, arrays = [], []
        for name in operation.reads(schema):
            field = schema.field(name)
            if name in by_digest and name not in self.written and name not in self._plain:
                fields.append(digest_field(field))
                arrays.append(stored_digests(self._stored[name]))
                continue
            fields.append(field)
            arrays.append(self._value(name, field))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _value(self, name: str, field: pa.Field) -> pa.Array:
        if name in self.written:
            return self.written[name]
        if name not in self._plain:
            column = self._stored[name]
            every = np.arange(len(self._rows))
            self._plain[name] = resolved(self._store, column, field, every, self._rows, self._dataset)
        return self._plain[name]

    def use(self, made: Mapping[str, pa.Array], good: Rows, stays: NDArray[np.bool_], after: pa.Schema) -> None:
        """Go on with the rows that stay, and with what was made of `good`."""
        if len(good) == len(stays) and bool(stays.all()):
            self.written.update(made)
        else:
            keep, of_good = pa.array(stays), pa.array(np.flatnonzero(stays[good]))
            self.written = {name: array.filter(keep) for name, array in self.written.items()}
            self.written.update({name: array.take(of_good) for name, array in made.items()})
            self._plain = {name: array.filter(keep) for name, array in self._plain.items()}
            at = np.flatnonzero(stays)
            self._stored = {name: column_values.take(column, at) for name, column in self._stored.items()}
            self._rows = self._rows[stays]
        for gone in set(self.written) - set(after.names):
            del self.written[gone]


def resolved(store: Store, column: Column, field: pa.Field, some: Rows, rows: Rows, dataset: str) -> pa.Array:
    """Plain values of the rows `some` of a column. rows: the numbers of all of the column's, for messages."""
    chosen, numbers = _taken(column, some), rows[some]
    if chosen.references is None:
        return chosen.values

    def told(one: Column, _: pa.Field) -> None:
        assert one.references is not None
        for at in np.flatnonzero(one.references).tolist():
            with told_at(f"{dataset} row {numbers[at]} column {field.name!r}"):
                column_values.resolve(store, one.slice(at, at + 1), field.type)

    return Asked(store, [chosen], [field.with_nullable(True)], told).batch().column(0)


def _tried(operation: RowOperation, batch: pa.RecordBatch) -> tuple[Made | None, str]:
    """(what it made, None when it raised; what it raised). Raises LeptonErrors as they are: they are about no row."""
    try:
        return operation.apply(batch), ""
    except (LeptonError, MemoryError):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")
        return None, _encodable(text[: limits.FAILURE_CHARS_MAX])


def _encodable(text: str) -> str:
    """Without lone surrogates, of which file names that are not UTF-8 bring some: no column of text can hold them."""
    return text.encode(errors="backslashreplace").decode()


def _failing(operation: RowOperation, batch: pa.RecordBatch, first: int) -> Iterator[tuple[int, str]]:
    """(row, why) of the rows of a batch, on which the operation raises, that it raises on: in order, found by halving."""
    if batch.num_rows == 1:
        made, reason = _tried(operation, batch)
        if made is None:
            yield first, reason
        return
    half = batch.num_rows // 2
    for start, some in ((0, batch.slice(0, half)), (half, batch.slice(half))):
        if some.num_rows == 1 or _tried(operation, some)[0] is None:
            yield from _failing(operation, some, first + start)


def _without(
    made: Made, failures: Mapping[int, str], count: int, good: NDArray[np.int64]
) -> tuple[Made, NDArray[np.int64]]:
    """What was made of the rows that did not fail."""
    fine = np.ones(count, np.bool_)
    fine[list(failures)] = False
    at = pa.array(np.flatnonzero(fine))
    findings = made.findings
    if findings is not None:
        places = np.cumsum(fine) - 1
        rows = findings["row"].to_numpy()
        findings = findings.filter(pa.array(fine[rows]))
        findings = findings.set_column(0, findings.schema.field(0), pa.array(places[rows[fine[rows]]]))
    columns = {name: array.take(at) for name, array in made.columns.items()}
    return Made(columns, None if made.keep is None else made.keep[fine], findings), good[fine]


def _said(found: Mapping[str, Any]) -> list[Any]:
    return [found["check"], found["column"], found["score"], found["detail"], found["action"]]


def _new(before: pa.Schema, after: pa.Schema) -> list[str]:
    return [
        field.name
        for field in after
        if field.name not in before.names or not before.field(field.name).equals(field, check_metadata=True)
    ]


def _with_rows(column: Held, rows: Rows) -> Column:
    return column.with_rows(rows) if isinstance(column, Unread) else column


def _taken(column: Column, rows: Rows) -> Column:
    if len(rows) == len(column.values) and bool((rows == np.arange(len(rows))).all()):
        return column
    return column_values.take(column, rows)


def linked(operations: Sequence[tuple[RowOperation, pa.Schema]]) -> list[list[int]]:
    """Which of some row operations that follow each other become one chain: lists of their numbers, in order.

    An operation joins the chain before it when it looks at a column of it; one that is not worth looking up (`memoised` False) only when it
    needs what the chain makes. Those that nobody looks up are one chain, whatever they look at.
    """
    chains: list[list[int]] = []
    touched: set[str] = set()
    written: set[str] = set()
    memoised = False
    for number, (operation, schema) in enumerate(operations):
        reads, writes = set(operation.reads(schema)), set(operation.writes(schema))
        if chains and memoised:
            joins = bool(reads & written) or (operation.memoised and bool((reads | writes) & touched))
        else:
            joins = bool(chains) and not operation.memoised
        if not joins:
            chains.append([])
            touched, written, memoised = set(), set(), operation.memoised
        chains[-1].append(number)
        touched |= reads | writes
        written |= writes
    return chains
