"""Rows of SQL: a query of DuckDB's over a database file, Parquet, CSV and whatever else DuckDB reads, kept up to date by key.

The query is the user's own: it may read what the user may (unlike `lepton sql`, which is closed). Each row gets `digest` (BLAKE3 of its
values as canonical JSON), `source`, `collected_at` and `licence`; rows whose digest did not change stay as they are.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.optional import require_module
from leptonstore.dataset.refs import MAIN
from leptonstore.dataset.sql import require_one_that_reads
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, DuplicateKey, SchemaError, SourceError
from leptonstore.process.collect.collect import PROVENANCE, Collected, head_of, now, put_rows
from leptonstore.store import Store


def collect_sql(
    store: Store,
    name: str,
    statement: str,
    key: tuple[str, ...],
    database: str | Path | None = None,
    branch: str = MAIN,
    licence: str | None = None,
    delete: bool = False,
    clock: Callable[[], datetime.datetime] = now,
    author: str = "",
    progress: Callable[[int], None] = lambda rows: None,
) -> Collected:
    """Bring the rows of `name` up to date with what `statement` gives. database: a file of DuckDB's, opened for reading; None: none.

    Raises BadInput (the statement, a key that is not among its columns), SchemaError, DuplicateKey, SourceError (the database),
    MissingExtra.
    """
    duckdb = require_module("collecting from SQL", "collect", "duckdb")
    if not key:
        raise BadInput("rows of SQL need a key: the columns that tell which row is which when the query runs again")
    done = Collected()
    source = f"sql:{Path(database).name}" if database is not None else "sql"
    try:
        connection = duckdb.connect(str(database), read_only=True) if database is not None else duckdb.connect()
    except duckdb.Error as error:
        raise SourceError(f"cannot open {database}: {_said(error)}", str(database)) from None
    with connection:
        try:
            require_one_that_reads(connection, statement)
            batches = connection.sql(statement).to_arrow_reader(limits.SQL_BATCH_ROWS)
            schema = _schema(batches.schema, key)
            head = head_of(store, name, branch, schema, key)
            there = {} if head is None else _digests_there(head.to_arrow([*key, "digest"]), key)
            seen: set[tuple[Any, ...]] = set()
            for batch in batches:
                rows = batch.to_pylist()
                digests = [_digest(row) for row in rows]
                keys = [tuple(row[one] for one in key) for row in rows]
                for (
                    one
                ) in keys:  # also of one with the same values: whichever came last would win, and win anew each time
                    if one in seen:
                        named = ", ".join(f"{name} = {value!r}" for name, value in zip(key, one, strict=True))
                        raise DuplicateKey(
                            f"the query gives two rows with {named[:200]}; make it give one for each key"
                        )
                    seen.add(one)
                new = [at for at, one in enumerate(keys) if there.get(one) != digests[at]]
                known = sum(keys[at] in there for at in new)
                done.added += len(new) - known
                done.changed += known
                done.unchanged += len(rows) - len(new)
                if new:
                    table = _with_provenance(
                        batch.take(pa.array(new)), [digests[at] for at in new], source, licence, clock(), schema
                    )
                    head = put_rows(store, name, branch, head, table, key, f"collect {len(new):,} rows of SQL", author)
                progress(len(seen))
        except duckdb.Error as error:
            raise BadInput(f"the statement cannot run: {_said(error)}") from None
    gone = [one for one in there if one not in seen]
    done.gone = len(gone)
    if gone and delete and head is not None:
        table = pa.table(
            {one: pa.array([row[at] for row in gone], head.schema.field(one).type) for at, one in enumerate(key)}
        )
        head = head.delete(keys=table, message=f"collect: {len(gone):,} rows are gone", author=author)
        done.removed = len(gone)
    done.dataset = head
    return done


def _schema(found: pa.Schema, key: tuple[str, ...]) -> pa.Schema:
    for one in key:
        if one not in found.names:
            raise BadInput(f"the key {one!r} is no column of the query, which gives {', '.join(found.names)}")
    for one in PROVENANCE:
        if one.name in found.names:
            raise SchemaError(
                f"the query gives a column {one.name!r}, which is where provenance goes; rename it (AS …)"
            )
    fields = [one.with_nullable(one.name not in key) for one in found]
    return pa.schema([*fields, *PROVENANCE])


def _with_provenance(
    batch: pa.RecordBatch,
    digests: list[str],
    source: str,
    licence: str | None,
    time: datetime.datetime,
    schema: pa.Schema,
) -> pa.Table:
    count = batch.num_rows
    more = [pa.array(digests), pa.array([source] * count), pa.array([time] * count, schema.field("collected_at").type)]
    arrays = [*batch.columns, *more, pa.array([licence] * count, pa.string())]
    for at, one in enumerate(schema):
        if not one.nullable and arrays[at].null_count:
            raise SchemaError(f"the query gives a row without {one.name!r}, which is its key")
    return pa.Table.from_arrays(arrays, schema=schema)


def _digests_there(table: pa.Table, key: tuple[str, ...]) -> dict[tuple[Any, ...], str]:
    columns = [table[one].to_pylist() for one in (*key, "digest")]
    return {tuple(row[:-1]): row[-1] for row in zip(*columns, strict=True)}


def _digest(row: dict[str, Any]) -> str:
    return digest_of(
        json.dumps(row, sort_keys=True, default=repr, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hex()


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
