"""Dataset: one version of a table of samples, read in place.

Reading labels never touches images; `ds[i]` reads one row group's pages of the columns asked for; decoded pages are kept in a
bounded cache. Any thread. Datasets pickle: they carry the store's place, the version and the selection, and reopen lazily.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import values as column_values
from leptonstore.dataset.editing import Editing
from leptonstore.dataset.history import History
from leptonstore.dataset.refs import resolve_ref
from leptonstore.dataset.schema import class_names
from leptonstore.dataset.stats import DatasetStats, version_stats
from leptonstore.dataset.tree import Leaves
from leptonstore.dataset.values import Column
from leptonstore.digest import digest_of, parse_hex
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, FormatDamaged, SchemaError
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.format.node import RowGroup
from leptonstore.format.page import decode_page
from leptonstore.store import Store

Rows = np.ndarray[Any, np.dtype[np.int64]]
SPLIT_COLUMN = "split"
READ_THREADS = 2  # row groups decoded at once by a scan; memory grows by one row group each


class Dataset(Editing, History):
    """A version of a dataset, or a selection of its rows. Open one with `Dataset.open`; it never changes."""

    __lepton_dataset__ = True  # how `loaders` knows one without importing leptonstore

    def __init__(self, store: Store, name: str, ref: str, commit: str, selection: Rows | None = None) -> None:
        self.name, self.ref, self.commit = name, ref, commit
        self.selection = selection
        self._store: Store | None = store
        self._url = store.url
        # Of an encrypted store: where its passphrase or key file can be read again, never the secret.
        self._secret_source = store.secret_source
        self._prepare()

    def _prepare(self) -> None:
        self._commit_object: Commit | None = None
        self._leaves: Leaves | None = None
        self._pages: OrderedDict[tuple[int, str], Column] = OrderedDict()
        self._groups: dict[int, RowGroup] = {}
        self._pages_bytes = 0
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("name", "ref", "commit", "selection", "_url", "_secret_source")
        return {key: getattr(self, key) for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._store = None
        self._prepare()

    @classmethod
    def open(cls, store: Store | str | Path, spec: str) -> Dataset:
        """`spec` is NAME, NAME@branch, NAME@tag, NAME@<commit>, NAME@ref~2 or NAME@2026-11-01 (dataset/refs.py).

        Raises StoreMissing, RefMissing or BadInput.
        """
        opened = store if isinstance(store, Store) else Store.open(store)
        return cls(opened, *resolve_ref(opened, "dataset", spec))

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store, reopened when this came out of a pickle."""
        if self._store is None:
            self._store = Store.open(self._url, unlock=self._secret_source)
        return self._store

    @property
    def commit_object(self) -> Commit:
        """The commit: parents, message, lineage. Raises ChunkMissing or ChunkCorrupt."""
        if self._commit_object is None:
            try:
                self._commit_object = parse_commit(self.store.get(parse_hex(self.commit)))
            except ChunkCorrupt as error:
                raise error.at(f"{self.name}@{self.ref} (its commit: all rows)") from None
        return self._commit_object

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema with the semantic types in its field metadata."""
        return self.commit_object.schema

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return self.commit_object.identity

    @property
    def keyed(self) -> bool:
        """Whether these are a key: rows stand in its order, each key once."""
        return self.commit_object.keyed

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.schema.names)

    @property
    def fingerprint(self) -> str:
        """Names this version and selection: the commit, and a digest of the selected rows."""
        if self.selection is None:
            return self.commit
        return f"{self.commit}+{digest_of(np.ascontiguousarray(self.selection).tobytes()).hex()[:16]}"

    def __len__(self) -> int:
        return self.commit_object.rows if self.selection is None else len(self.selection)

    def __repr__(self) -> str:
        return f"<Dataset {self.name}@{self.ref} {self.commit[:12]}: {len(self)} rows, {', '.join(self.column_names)}>"

    def at(self, ref: str, commit: str) -> Dataset:
        """Another version of this dataset: commit (hex), under the name `ref`."""
        return Dataset(self.store, self.name, ref, commit)

    # -- selections ----------------------------------------------------------------------------------------------

    def select(self, rows: Sequence[int] | Rows) -> Dataset:
        """A view of some rows of this one, in the order given. Raises BadInput for rows out of range."""
        chosen = self._base_rows(np.asarray(rows, np.int64))
        view = Dataset(self.store, self.name, self.ref, self.commit, chosen)
        view._commit_object, view._leaves = self._commit_object, self._leaves
        return view

    def splits(self) -> list[str]:
        """Names in the `split` column; none when there is no such column."""
        index = self.schema.get_field_index(SPLIT_COLUMN)
        return (class_names(self.schema.field(index)) or []) if index >= 0 else []

    def split(self, name: str) -> Dataset:
        """A view of the rows whose `split` is `name`. Raises BadInput, naming the splits that there are."""
        names = self.splits()
        if name not in names:
            raise BadInput(f"{self.name}@{self.ref} has no split {name!r}; it has: {', '.join(names) or 'none'}")
        codes = self.to_arrow([SPLIT_COLUMN]).column(0).to_numpy()
        return self.select(np.flatnonzero(codes == names.index(name)))

    # -- reading -------------------------------------------------------------------------------------------------

    def _base_rows(self, rows: Rows) -> Rows:
        """Positions in this view -> rows of the version; negative positions count from the end."""
        count = len(self)
        if rows.ndim != 1:
            raise BadInput(f"rows must be one-dimensional, not {rows.ndim}-dimensional")
        rows = np.where(rows < 0, rows + count, rows)
        if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= count):
            raise BadInput(f"row out of range: {self.name}@{self.ref} has {count} rows")
        return rows if self.selection is None else self.selection[rows]

    def _fields(self, columns: Sequence[str] | None) -> list[pa.Field]:
        if columns is None:
            return list(self.schema)
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise SchemaError(f"{self.name}@{self.ref} has no column {unknown[0]!r}; it has {self.schema.names}")
        return [self.schema.field(name) for name in columns]

    @property
    def leaves(self) -> Leaves:
        """The row groups. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        if self._leaves is None:
            commit = self.commit_object
            try:
                self._leaves = Leaves(self.store, commit.root, commit.rows)
            except ChunkCorrupt as error:
                raise error.at(f"{self.name}@{self.ref} rows 0-{commit.rows - 1} (a tree node)") from None
        return self._leaves

    def _page(self, index: int, field: pa.Field) -> Column:
        """All values of one column in one row group, as the pages keep them; from the cache when it is there."""
        with self._lock:
            key = (index, field.name)
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
        # Read outside the lock, so that several threads decode several pages at once; two of one page is harmless.
        column = self._read_page(index, field)
        with self._lock:
            if key in self._pages:
                return self._pages[key]
            self._pages[key] = column
            self._pages_bytes += column.values.nbytes
            while self._pages_bytes > limits.PAGE_CACHE_BYTES and len(self._pages) > 1:
                self._pages_bytes -= self._pages.popitem(last=False)[1].values.nbytes
            return column

    def _read_page(self, index: int, field: pa.Field) -> Column:
        at = int(self.leaves.starts[index])
        try:
            if index not in self._groups:
                self._groups[index] = self.leaves.group(index)
        except ChunkCorrupt as error:
            last = int(self.leaves.starts[index + 1]) - 1
            raise error.at(f"{self.name}@{self.ref} rows {at}-{last} (a tree node)") from None
        pieces = []
        for part in self._groups[index].columns[self.schema.get_field_index(field.name)]:
            where = f"{self.name}@{self.ref} rows {at}-{at + part.rows - 1} column {field.name!r}"
            with _told_at(where):
                page = decode_page(self.store.get(part.digest), field.type)
            if len(page.values) != part.rows:
                raise FormatDamaged(f"{where}: page has {len(page.values)} rows where its node says {part.rows}")
            pieces.append(Column(page.values, page.references))
            at += part.rows
        return column_values.concat(pieces)

    def _resolve(self, column: Column, field: pa.Field, base_rows: Rows) -> pa.Array:
        """Read the values that stand elsewhere; errors name the row."""
        if column.references is None:
            return column.values
        try:
            return column_values.resolve(self.store, column, field.type)
        except (ChunkCorrupt, ChunkMissing):
            for at in column.references.nonzero()[0].tolist():
                with _told_at(f"{self.name}@{self.ref} row {base_rows[at]} column {field.name!r}"):
                    column_values.resolve(self.store, column.slice(at, at + 1), field.type)
            raise

    def _group_batch(self, index: int, fields: list[pa.Field], base_rows: Rows) -> pa.RecordBatch:
        """Rows of one row group, in the order given."""
        first, end = int(self.leaves.starts[index]), int(self.leaves.starts[index + 1])
        whole = len(base_rows) == end - first and bool((np.diff(base_rows) == 1).all())
        arrays = []
        for field in fields:
            column = self._page(index, field)
            if not whole:
                column = column_values.take(column, base_rows - first)
            arrays.append(self._resolve(column, field, base_rows))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(position of the first row in this view, batch), one or more a row group, in this view's order."""
        fields = self._fields(columns)
        rows = np.arange(len(self), dtype=np.int64) if self.selection is None else self.selection
        if not len(rows):
            return
        groups = np.searchsorted(self.leaves.starts, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(groups)) + 1
        ends = [*cuts.tolist(), len(rows)]
        spans = list(zip([0, *cuts.tolist()], ends, strict=True))

        def read(span: tuple[int, int]) -> pa.RecordBatch:
            return self._group_batch(int(groups[span[0]]), fields, rows[span[0] : span[1]])

        if len(spans) <= 2:
            yield from ((span[0], read(span)) for span in spans)
            return
        # Reading, decompressing and hashing release the GIL: a few row groups ahead, in order.
        with ThreadPoolExecutor(READ_THREADS, "lepton-read") as pool:
            ahead: deque[tuple[int, Future[pa.RecordBatch]]] = deque()
            try:
                for span in spans:
                    ahead.append((span[0], pool.submit(read, span)))
                    if len(ahead) > READ_THREADS:
                        start, future = ahead.popleft()
                        yield start, future.result()
                while ahead:
                    start, future = ahead.popleft()
                    yield start, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole view as a table in memory."""
        batches = [batch for _, batch in self.iter_batches(columns)]
        return pa.Table.from_batches(batches, pa.schema(self._fields(columns)))

    def _by_group(self, base: Rows) -> tuple[list[tuple[int, Rows]], Rows]:
        """Rows of the version by row group: (row group, its rows in the order asked), and where each row asked for stands
        when those are put one after another."""
        groups = np.searchsorted(self.leaves.starts, base, side="right") - 1
        order = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[order])) + 1
        parts = [(int(groups[chosen[0]]), base[chosen]) for chosen in np.split(order, cuts) if len(chosen)]
        back = np.empty(len(base), np.int64)
        back[order] = np.arange(len(base))
        return parts, back

    def take(self, rows: Sequence[int] | Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Some rows, in the order asked for; each row group is read once. Raises BadInput for rows out of range."""
        fields = self._fields(columns)
        base = self._base_rows(np.asarray(rows, np.int64))
        parts, back = self._by_group(base)
        batches = [self._group_batch(index, fields, rows_of) for index, rows_of in parts]
        table = pa.Table.from_batches(batches, pa.schema(fields))
        if bool((back == np.arange(len(base))).all()):
            return table
        arrays = []
        for chunked in table.columns:
            column = column_values.concat([Column(chunk) for chunk in chunked.chunks])
            arrays.append(column_values.take(column, back).values)
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def iter_stored(self, names: Sequence[str]) -> Iterator[tuple[int, list[Column]]]:
        """(position of the first row, columns as the pages keep them: large values stay references), in this view's order."""
        fields = self._fields(names)
        starts = self.leaves.starts
        if self.selection is None:
            for index in range(len(starts) - 1):
                yield int(starts[index]), [self._read_page(index, field) for field in fields]
            return
        for first in range(0, len(self), limits.ROW_GROUP_ROWS_AVG):
            rows = np.arange(first, min(first + limits.ROW_GROUP_ROWS_AVG, len(self)), dtype=np.int64)
            yield first, [self.take_stored(rows, name) for name in names]

    @contextlib.contextmanager
    def errors_at(self, row: int, name: str) -> Iterator[None]:
        """Inside, a chunk that is missing or corrupt is named with this row and column of the version."""
        base = row if self.selection is None else int(self.selection[row])
        with _told_at(f"{self.name}@{self.ref} row {base} column {name!r}"):
            yield

    def take_stored(self, rows: Rows, name: str) -> Column:
        """The values of one column as the pages keep them: large ones stay references. Raises as `take` does."""
        field = self._fields([name])[0]
        base = self._base_rows(np.asarray(rows, np.int64))
        parts, back = self._by_group(base)
        pieces = [
            column_values.take(self._page(index, field), rows_of - int(self.leaves.starts[index]))
            for index, rows_of in parts
        ]
        return column_values.take(column_values.concat(pieces), back)

    def __getitem__(self, key: int | slice) -> Any:
        """`ds[i]`: a dict of Python and numpy values. `ds[a:b]`: a table. Raises IndexError past the end."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self)), dtype=np.int64))
        if not -len(self) <= key < len(self):
            raise IndexError(f"row {key}: {self.name}@{self.ref} has {len(self)} rows")
        return self.__getitems__([key])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Several rows as dicts; torch's DataLoader calls this once a batch."""
        table = self.take(rows)
        columns = {
            field.name: python_values(chunked, field)
            for field, chunked in zip(table.schema, table.columns, strict=True)
        }
        return [{name: column[at] for name, column in columns.items()} for at in range(len(rows))]

    def stats(self) -> DatasetStats:
        """Sizes of the whole version (also for a view). Raises ChunkMissing or ChunkCorrupt."""
        commit = self.commit_object
        return version_stats(
            self.store, self.commit, commit.plain_bytes, commit.rows, len(self.leaves.digests), commit.schema
        )


@contextlib.contextmanager
def _told_at(where: str) -> Iterator[None]:
    """Inside, a chunk that is missing or corrupt is named with the place in the dataset that it costs."""
    try:
        yield
    except ChunkCorrupt as error:
        raise error.at(where) from None
    except ChunkMissing as error:
        raise ChunkMissing(error.digest, where) from None


def python_values(chunked: pa.ChunkedArray, field: pa.Field) -> Sequence[Any]:
    """Values for people and for torch: numpy arrays for tensors, Python values for the rest."""
    if isinstance(field.type, pa.FixedShapeTensorType) and chunked.null_count == 0:
        column = column_values.concat([Column(chunk) for chunk in chunked.chunks]) if chunked.num_chunks else None
        return [] if column is None else list(column.values.to_numpy_ndarray())
    return list(chunked.to_pylist())
