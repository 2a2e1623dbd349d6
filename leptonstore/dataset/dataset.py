"""Dataset: one version of a table of samples, read in place.

Reading labels never touches images; `ds[i]` reads the pages that the row stands in (pages.py); `ds.cached(place)` reads them, and large
values, through the hot cache of the host. Any thread. Datasets pickle: they carry the store's place, the version, the selection and the
cache's place, and reopen lazily.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.dataset import values as column_values
from leptonstore.dataset.cached import CacheLink
from leptonstore.dataset.editing import Editing
from leptonstore.dataset.groups import told_at
from leptonstore.dataset.history import History
from leptonstore.dataset.optional import require_module
from leptonstore.dataset.pages import Pages
from leptonstore.dataset.refs import MAIN, resolve_ref
from leptonstore.dataset.row_numbers import row_numbers
from leptonstore.dataset.rows import RowReader
from leptonstore.dataset.scan import scan
from leptonstore.dataset.schema import class_names
from leptonstore.dataset.stats import DatasetStats, version_stats
from leptonstore.dataset.tree import Leaf, Leaves, Rows
from leptonstore.dataset.values import Asked, Column
from leptonstore.digest import digest_of, parse_hex
from leptonstore.errors import BadInput, ChunkCorrupt, SchemaError, listed
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.store import Store
from leptonstore.tiers.chunks import ChunkFinder

if TYPE_CHECKING:
    from leptonstore.dataset.arrow_dataset import ArrowDataset
    from leptonstore.dataset.predicate import Predicate
    from leptonstore.dataset.rows_in import RowsIn

SPLIT_COLUMN = "split"
_NAMED_COLUMNS = 12  # in __repr__


class Dataset(Editing, History):
    """A version of a dataset, or a selection of its rows. Open one with `Dataset.open`; it never changes."""

    __lepton_dataset__ = True  # how `loaders` knows one without importing leptonstore

    def __init__(
        self,
        store: Store,
        name: str,
        ref: str,
        commit: str,
        selection: Rows | None = None,
        cache: CacheLink | None = None,
    ) -> None:
        self.name, self.ref, self.commit = name, ref, commit
        self.selection = selection
        self.cache = cache  # None: reads go to the store
        self._store: Store | None = store
        self._url = store.url
        # Of an encrypted store: where its passphrase or key file can be read again, never the secret.
        self._secret_source = store.secret_source
        self._prepare()

    def _prepare(self) -> None:
        self._commit_object: Commit | None = None
        self._chunks: ChunkFinder | None = None
        self._leaves: Leaves | None = None
        self._pages: Pages | None = None
        self._rows: RowReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("name", "ref", "commit", "selection", "cache", "_url", "_secret_source")
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

    @classmethod
    def create(
        cls,
        store: Store,
        name: str,
        rows: RowsIn | Mapping[str, Any],
        key: str | Sequence[str] | None = None,
        message: str = "",
        branch: str = MAIN,
        author: str = "",
    ) -> Dataset:
        """The first version of a dataset, from what a program has.

        rows: a table, batch, reader, data frame or `Source`; a list of dicts; or columns by name: arrays of shape (rows, *shape), which
        become tensors, Arrow arrays, lists. key: the columns that identify a row; then rows are sorted by them, and each stands once.
        Raises Conflict when the branch exists, BadInput, SchemaError (names the column), DuplicateKey, StoreFull.
        """
        from leptonstore.dataset.create import create_dataset

        return create_dataset(store, name, rows, key, message, branch, author)

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store, reopened when this came out of a pickle."""
        if self._store is None:
            self._store = Store.open(self._url, unlock=self._secret_source)
        return self._store

    @property
    def chunks(self) -> ChunkFinder:
        """What the dataset reads from: the store, or the hot cache before it. Raises BadInput when that may not keep its values."""
        if self._chunks is None:
            self._chunks = self.store if self.cache is None else self.cache.chunks(self.store)
        return self._chunks

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
        names = self.column_names
        more = f" and {len(names) - _NAMED_COLUMNS} more columns" if len(names) > _NAMED_COLUMNS else ""
        selected = "" if self.selection is None else f" of {self.commit_object.rows:,}"
        listed = ", ".join(names[:_NAMED_COLUMNS])
        return f"<Dataset {self.label} {self.commit[:12]}: {len(self):,}{selected} rows, {listed}{more}>"

    def _repr_html_(self) -> str:
        """For notebooks: the first rows."""
        from leptonstore.dataset.notebook import dataset_html

        return dataset_html(self)

    def at(self, ref: str, commit: str) -> Dataset:
        """Another version of this dataset: commit (hex), under the name `ref`."""
        return Dataset(self.store, self.name, ref, commit)

    # -- selections ----------------------------------------------------------------------------------------------

    def select(self, rows: Sequence[int] | Rows) -> Dataset:
        """A view of some rows of this one, in the order given. Raises BadInput for rows out of range, or what is no row number."""
        view = self._view(self._base_rows(row_numbers(rows)), self.cache)
        view._chunks, view._leaves = self._chunks, self.leaves
        view._pages, view._rows = self.pages, self._row_reader
        return view

    def _view(self, selection: Rows | None, cache: CacheLink | None) -> Dataset:
        view = Dataset(self.store, self.name, self.ref, self.commit, selection, cache)
        view._commit_object = self._commit_object
        return view

    def cached(self, cache: str | os.PathLike[str] | HotCache, budget_bytes: int | None = None) -> Dataset:
        """The same rows, read through the hot cache in directory `cache`, which all processes of this host may share.

        budget_bytes: of the whole cache; None: as it is (a new one: a quarter of what is free there). Views of the result, and what comes
        out of its pickle, read through the cache, too. A cache that cannot be used is told by one warning, and reading goes on without it;
        raises BadInput for a directory outside RAM when the store is encrypted.
        """
        view = self._view(self.selection, CacheLink(cache, budget_bytes))
        _ = view.chunks  # opens it: what is wrong is told here
        return view

    def uncached(self) -> Dataset:
        """The same rows, read from the store."""
        return self if self.cache is None else self._view(self.selection, None)

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

    def fields(self, columns: Sequence[str] | None) -> list[pa.Field]:
        """The fields of some columns, in the order given; of all for None. Raises SchemaError, naming the columns that there are."""
        if columns is None:
            return list(self.schema)
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise SchemaError(
                f"{self.name}@{self.ref} has no column {unknown[0]!r}; it has {listed(self.schema.names)}"
            )
        return [self.schema.field(name) for name in columns]

    @property
    def label(self) -> str:
        """NAME@REF, as messages call it."""
        return f"{self.name}@{self.ref}"

    @property
    def leaves(self) -> Leaves:
        """The row groups; nodes are read as they are needed. Raises FormatDamaged."""
        if self._leaves is None:
            commit = self.commit_object
            self._leaves = Leaves(self.chunks, commit.root, commit.rows)
        return self._leaves

    @property
    def _row_reader(self) -> RowReader:
        if self._rows is None:
            self._rows = RowReader(self.chunks, self.schema, self.leaves, self.pages, self.label)
        return self._rows

    def spans(self) -> Iterator[tuple[int, Leaf, Rows | None]]:
        """(position of the first row in this view, row group, its rows in this view's order or None for all)."""
        spans = self._spans()
        while True:
            with told_at(f"{self.label} rows 0-{self.commit_object.rows - 1} (a tree node)"):
                span = next(spans, None)
            if span is None:
                return
            yield span

    def _spans(self) -> Iterator[tuple[int, Leaf, Rows | None]]:
        if self.selection is None:
            for leaf in self.leaves.spans():
                yield leaf.first, leaf, None
            return
        for start in range(0, len(self.selection), limits.SELECTION_ROWS_BATCH):
            rows = self.selection[start : start + limits.SELECTION_ROWS_BATCH]
            found, numbers = self.leaves.locate(rows)
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
            for one, other in pairwise(cuts):
                yield start + one, found[int(numbers[one])], rows[one:other]

    @property
    def pages(self) -> Pages:
        """The pages of the version. Raises as `leaves` does."""
        if self._pages is None:
            self._pages = Pages(self.chunks, self.leaves, self.schema, self.label, on_host=self.cache is not None)
        return self._pages

    def ask(self, columns: list[Column], fields: list[pa.Field], base_rows: Rows) -> Asked:
        """The large values of some rows, which are `base_rows` of the version, are looked for; errors name the row."""

        def told(column: Column, field: pa.Field) -> None:
            assert column.references is not None
            for at in column.references.nonzero()[0].tolist():
                with told_at(f"{self.name}@{self.ref} row {base_rows[at]} column {field.name!r}"):
                    column_values.resolve(self.chunks, column.slice(at, at + 1), field.type)

        return Asked(self.chunks, columns, fields, told)

    def _batches(self, fields: list[pa.Field], base_rows: Rows) -> Iterator[pa.RecordBatch]:
        """Rows of the version in the order given, in batches of as many rows as a row group may have."""
        columns = self.pages.gather(base_rows, fields) if fields and len(base_rows) else []
        step = limits.ROW_GROUP_ROWS_MAX
        for first in range(0, len(base_rows), step):
            rows = base_rows[first : first + step]
            yield self.ask([column.slice(first, first + len(rows)) for column in columns], fields, rows).batch()

    def iter_batches(
        self, columns: Sequence[str] | None = None, keep: bool = True
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(position of the first row in this view, batch), one or more a row group, in this view's order.

        A batch holds a row group, or as many of its rows as refer to SCAN_SLICE_BYTES; some are read ahead (scan.py).
        keep: whether decoded pages are kept for what is read next, up to PAGE_CACHE_BYTES.
        """
        fields = self.fields(columns)
        rows = np.arange(len(self), dtype=np.int64) if self.selection is None else self.selection
        return scan(self, fields, rows, keep)

    def scan(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | Predicate | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the rows that `filter` (a pyarrow.compute expression) is true for, in this view's order; none is empty.

        Row groups whose bounds say no are not read; of the others, the filter's columns, and of the rest what holds rows that fit
        (scan.py). Raises SchemaError (columns), BadInput (the filter).
        """
        fields = self.fields(columns)
        if filter is None:
            yield from (batch for _, batch in self.iter_batches(columns))
            return
        for _, batch in _scan(self, filter, fields):
            yield batch

    def count(self, expression: pc.Expression) -> int:
        """How many rows `expression` is true for. Raises BadInput."""
        return sum(len(positions) for positions, _ in _scan(self, expression, None))

    def filter(self, expression: pc.Expression | str) -> Dataset:
        """A view of the rows that `expression` is true for: of pyarrow.compute, or as in `lepton delete --where`.

        Reads the columns that it names, now. Raises BadInput.
        """
        found = [positions for positions, _ in _scan(self, expression, None)]
        return self.select(np.concatenate(found) if found else [])

    def to_arrow(self, columns: Sequence[str] | None = None, filter: pc.Expression | str | None = None) -> pa.Table:
        """The view (or what `filter` is true for, as in `scan`) as a table in memory."""
        return pa.Table.from_batches(list(self.scan(columns, filter)), pa.schema(self.fields(columns)))

    def to_pandas(self, columns: Sequence[str] | None = None, filter: pc.Expression | str | None = None) -> Any:
        """`to_arrow` as a DataFrame; a tensor becomes a flat list. Raises MissingExtra without pandas."""
        require_module("to_pandas", "pandas", "pandas")
        return self.to_arrow(columns, filter).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None, filter: pc.Expression | str | None = None) -> Any:
        """`to_arrow` as a DataFrame of polars; Raises MissingExtra without polars."""
        polars = require_module("to_polars", "polars", "polars")
        return polars.from_arrow(self.to_arrow(columns, filter))

    def to_tf(
        self, columns: Sequence[str] | None = None, batch_rows: int | None = None, drop_remainder: bool = False
    ) -> Any:
        """The view as a `tf.data.Dataset` of dicts {column: tensor}, in this order, of known cardinality (tf_dataset.py says which types).

        batch_rows: elements are batches of so many rows (the last one of what is left, or left out with drop_remainder); None: single rows.
        Raises MissingExtra without TensorFlow, SchemaError for a column that has no tensors; while it is read, for a null without a value.
        """
        from leptonstore.dataset.tf_dataset import to_tf

        return to_tf(self, columns, batch_rows, drop_remainder)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The view as a stream of batches, for what reads Arrow's C interface: pyarrow.table(ds), polars.from_arrow(ds)."""
        return pa.RecordBatchReader.from_batches(self.schema, self.scan()).__arrow_c_stream__(requested_schema)

    def to_pyarrow_dataset(self, widen: bool = False) -> ArrowDataset:
        """A pyarrow.dataset.Dataset over this view, which DuckDB, polars and pandas read with filters and columns pushed down.

        widen: show float16 columns as float32, for engines that have no float16 (DuckDB).
        """
        from leptonstore.dataset.arrow_dataset import ArrowDataset

        return ArrowDataset(self, widen=widen)

    def read_rows(self, rows: Rows, fields: list[pa.Field]) -> pa.RecordBatch:
        """Rows of the version, at least one, in the order given. Raises ChunkMissing or ChunkCorrupt."""
        return self.ask(self.pages.gather(rows, fields) if fields else [], fields, rows).batch()

    def take(self, rows: Sequence[int] | Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Some rows, in the order asked for; what they need is read together, and once. Raises BadInput for rows out of range."""
        fields = self.fields(columns)
        base = self._base_rows(row_numbers(rows))
        step = limits.ROW_GROUP_ROWS_MAX
        ascending = len(base) > step and bool((base[1:] >= base[:-1]).all())
        # Many rows in row order are read piece by piece, as more of a column than Arrow keeps in one array may be asked for.
        stretches = [base[at : at + step] for at in range(0, len(base), step)] if ascending else [base]
        batches = [batch for stretch in stretches for batch in self._batches(fields, stretch)]
        return pa.Table.from_batches(batches, pa.schema(fields))

    def iter_stored(self, names: Sequence[str]) -> Iterator[tuple[int, list[Column]]]:
        """(position of the first row, columns as the pages keep them: large values stay references), in this view's order."""
        fields = self.fields(names)
        starts = self.leaves.starts
        if self.selection is None:
            for index in range(len(starts) - 1):
                rows = np.arange(starts[index], starts[index + 1])
                yield int(starts[index]), self.pages.gather(rows, fields, keep=False)
            return
        for first in range(0, len(self), limits.ROW_GROUP_ROWS_AVG):
            rows = np.arange(first, min(first + limits.ROW_GROUP_ROWS_AVG, len(self)), dtype=np.int64)
            yield first, [self.take_stored(rows, name) for name in names]

    @contextlib.contextmanager
    def errors_at(self, row: int, name: str) -> Iterator[None]:
        """Inside, a chunk that is missing or corrupt is named with this row and column of the version."""
        base = row if self.selection is None else int(self.selection[row])
        with told_at(f"{self.name}@{self.ref} row {base} column {name!r}"):
            yield

    def take_stored(self, rows: Rows, name: str) -> Column:
        """The values of one column as the pages keep them: large ones stay references. Raises as `take` does."""
        field = self.fields([name])[0]
        base = self._base_rows(row_numbers(rows))
        if not len(base):
            return Column(pa.array([], field.type))
        return self.pages.gather(base, [field])[0]

    def __getitem__(self, key: int | slice) -> Any:
        """`ds[i]`: a dict of Python and numpy values. `ds[a:b]`: a table. Raises IndexError past the end."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self)), dtype=np.int64))
        rows = len(self)
        if not -rows <= key < rows:
            raise IndexError(f"row {key}: {self.label} has {rows} rows")
        row = key + rows if key < 0 else key
        return self._row_reader.one(row if self.selection is None else int(self.selection[row]))

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Several rows as dicts; torch's DataLoader calls this once a batch."""
        base = self._base_rows(row_numbers(rows))
        return self._row_reader.many(base.tolist())

    def head(self, rows: int = 10, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The first rows as dicts, as `ds[i]` gives them, of some columns. Raises SchemaError."""
        names = [field.name for field in self.fields(columns)]
        count = min(rows, len(self))
        base = np.arange(count, dtype=np.int64) if self.selection is None else self.selection[:count]
        return self._row_reader.many(base.tolist(), names)

    def stats(self) -> DatasetStats:
        """Sizes of the whole version (also for a view). Raises ChunkMissing or ChunkCorrupt."""
        commit = self.commit_object
        return version_stats(
            self.store, self.commit, commit.plain_bytes, commit.rows, len(self.leaves.digests), commit.schema
        )


def _scan(
    ds: Dataset, filter: pc.Expression | Predicate, fields: list[pa.Field] | None
) -> Iterator[tuple[Rows, pa.RecordBatch | None]]:
    # Imported where it is needed: pyarrow.dataset loads pandas where there is one, which takes 0.2 s.
    from leptonstore.dataset.filtering import filtered
    from leptonstore.dataset.predicate import Predicate

    return filtered(ds, filter if isinstance(filter, Predicate) else Predicate(filter, ds.schema), fields)
