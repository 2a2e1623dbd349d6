"""SQL over the datasets of a store, by DuckDB (extra `sql`).

    select label, count(*) from mnist group by label                a dataset is a table: NAME, or "NAME@REF" in double quotes
    select count(*) from "mnist@v1" a join "mnist@v2" b using (id)  with other characters than letters, digits and _ quoted, too

Columns and conditions are pushed down to the pages (arrow_dataset.py); float16 columns show as float32. The database is in memory, empty
but for the datasets, and closed to everything else: no file, no network, no extension, no Python variable, no spilling to disk; one
statement, which reads. So a query that somebody else wrote can read this store, and use up memory and time, and nothing more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import Any, Self, TypeVar

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.arrow_dataset import ArrowDataset
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.optional import require_module
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.refs import list_refs, split_spec
from leptonstore.errors import BadInput, LeptonError, RefMissing, listed
from leptonstore.store import Store

_T = TypeVar("_T")
_READ = ("SELECT", "EXPLAIN")
_OPTIONS = {"python_enable_replacements": "false", "temp_directory": ""}
_LOCK = "set enable_external_access=false; set lock_configuration=true"


class Query:
    """The rows of a running query, as batches; iterate once. `schema` is known before the first row."""

    def __init__(self, reader: pa.RecordBatchReader, run: _Interruptible, errors: _Errors) -> None:
        self.schema: pa.Schema = reader.schema
        self._reader, self._run, self._errors = reader, run, errors

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while True:
            with self._errors.named():
                batch = self._run(lambda: next(self._reader, None))
            if batch is None:
                return
            yield batch


def query(store: Store, statement: str, names: Sequence[str] = ()) -> pa.Table:
    """The result of one statement as a table in memory; see `open_query`."""
    with open_query(store, statement, names) as running:
        return pa.Table.from_batches(list(running), running.schema)


@contextlib.contextmanager
def open_query(store: Store, statement: str, names: Sequence[str] = ()) -> Iterator[Query]:
    """Run one statement that reads. Tables are the datasets that it names, and those of `names` (NAME or NAME@REF; one of them
    with a ref is also called by its bare name, when no other is).

    Raises MissingExtra without DuckDB, BadInput (the statement), RefMissing, ChunkMissing or ChunkCorrupt.
    """
    duckdb = require_module("SQL", "sql", "duckdb")
    errors = _Errors(duckdb, store)
    with duckdb.connect(":memory:", config=_OPTIONS) as connection, _Interruptible(connection) as run:

        def begin() -> pa.RecordBatchReader:
            require_one_that_reads(connection, statement)
            for table, dataset in _tables(store, connection.get_table_names(statement), names).items():
                connection.register(table, _Watched(dataset, errors.of_scans))
            connection.execute(_LOCK)
            return connection.sql(statement).to_arrow_reader(limits.SQL_BATCH_ROWS)

        with errors.named():
            reader = run(begin)
        yield Query(reader, run, errors)


class _Interruptible:
    """Calls DuckDB on a thread of its own, so that Ctrl-C reaches this one; then the query is told to stop."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pool = ThreadPoolExecutor(1, "lepton-sql")

    def __call__(self, work: Callable[[], _T]) -> _T:
        future = self._pool.submit(work)
        try:
            return future.result()
        except BaseException:
            while not future.done():  # what was about to begin when it was told would not have heard
                self._connection.interrupt()
                wait([future], timeout=0.05)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)


def require_one_that_reads(connection: Any, statement: str) -> None:
    """Raises BadInput for several statements, and for one that changes something."""
    found = connection.extract_statements(statement)
    if len(found) != 1 or found[0].type.name not in _READ:
        kinds = ", ".join(one.type.name for one in found) or "nothing"
        raise BadInput(f"one SELECT is run at a time (also DESCRIBE, SUMMARIZE, EXPLAIN), not {kinds}")


def _tables(store: Store, named: set[str], names: Sequence[str]) -> dict[str, Dataset]:
    tables = {name: Dataset.open(store, name) for name in names}
    bare = [split_spec(name)[0] for name in names]
    for name, short in zip(names, bare, strict=True):
        if bare.count(short) == 1:
            tables.setdefault(short, tables[name])
    for name in sorted(named - set(tables)):
        # What is no dataset may be a table of DuckDB's own (information_schema.tables); if not, DuckDB says so.
        with contextlib.suppress(RefMissing, BadInput):
            tables[name] = Dataset.open(store, name)
    return tables


class _Watched(ArrowDataset):
    """Remembers why a scan failed: DuckDB passes on the text only."""

    def __init__(self, dataset: Dataset, errors: list[LeptonError]) -> None:
        super().__init__(dataset, widen=True)
        self._errors = errors

    def _batches(self, schema: pa.Schema, predicate: Predicate | None, batch_size: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from super()._batches(schema, predicate, batch_size)
        except LeptonError as error:
            self._errors.append(error)
            raise


class _Errors:
    """What a query failed with, as the error that it is to be."""

    def __init__(self, duckdb: ModuleType, store: Store) -> None:
        self.of_scans: list[LeptonError] = []
        self._duckdb, self._store = duckdb, store

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Inside, what DuckDB raises becomes the error that a scan failed with, or BadInput."""
        try:
            yield
        except (self._duckdb.Error, pa.ArrowException, RuntimeError) as error:
            if self.of_scans:
                raise self.of_scans[0] from None
            text = " ".join(str(error).split("\n\n")[0].split())
            if isinstance(error, self._duckdb.CatalogException):
                there = sorted({info.name for info in list_refs(self._store, "dataset")})
                text += f"; datasets here: {listed(there)}"
            if isinstance(error, self._duckdb.CatalogException) or 'near "@"' in text:
                text += '; names with a dot, and versions other than main, stand in double quotes: "NAME@REF"'
            raise BadInput(f"SQL: {text}") from None
