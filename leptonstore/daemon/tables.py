"""Rows of dataset versions as record batches: `rows` (a range, or what a condition is true for) and `take` (any rows, in any order).

    rows    one row group after another -> columns as their pages keep them: views -> slices of BATCH_BYTES -> large values copied in
    take    stretches of TAKE_BYTES, gathered -> slices as above

A batch has BATCH_BYTES, or the rows that the client asked for in one. Rows of fixed width are handed on as they lie in a page of the hot
cache (or of this process): no byte is copied before gRPC does it. Large values are copied once, into the column that they stand in, and
small row groups are read together. All in the thread that asks: threads that decode side by side (dataset/scan.py) took the
interpreter's lock from each other and from the one that sends, and cost a third more; only where a request takes longer than its bytes
(an object store) are they worth it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore.cache import HotCache
from leptonstore.daemon import bounds
from leptonstore.daemon.arguments import Arguments
from leptonstore.daemon.sight import Sight
from leptonstore.dataset import Dataset
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.refs import list_refs, resolve_ref
from leptonstore.dataset.scan import scan
from leptonstore.digest import Buffer, parse_hex
from leptonstore.errors import BadInput, RefMissing
from leptonstore.format.commit import KINDS
from leptonstore.store import Store

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal

Batches = Iterator[pa.RecordBatch]
Rows = np.ndarray[Any, np.dtype[np.int64]]


def dataset_named(spec: str) -> str:
    """The name in NAME@REF; the rest is looked at when it is resolved."""
    for at, letter in enumerate(spec):
        if letter in "@~^":
            return spec[:at]
    return spec


class Tables:
    """The versions that are read, each opened once and kept with its nodes and pages. Any thread."""

    def __init__(self, store: Store, sight: Sight, cache: HotCache | None = None) -> None:
        self._store, self._sight, self._cache = store, sight, cache
        self._guard = threading.Lock()
        self._open: OrderedDict[tuple[str, str], Dataset] = OrderedDict()

    def dataset(self, principal: Principal, told: Arguments) -> Dataset:
        """The version that a request names: `dataset`, and `kind`. The caller has asked for the scope. Raises RefMissing, BadInput."""
        spec, kind = told.text("dataset"), told.text("kind", "dataset")
        if kind not in KINDS:
            raise BadInput(f"'kind' is one of {', '.join(KINDS)}")
        name = dataset_named(spec)
        try:
            name, ref, commit = resolve_ref(self._store, kind, spec)
        except RefMissing:
            if not list_refs(self._store, kind, name):
                raise RefMissing(f"no {kind} {name!r} in this store") from None  # and not which others there are
            raise
        visible = self._sight(principal)
        if visible is not None and not visible([parse_hex(commit)])[0]:
            raise RefMissing(f"{kind} {name!r} has no version {ref!r}")
        with self._guard:
            found = self._open.get((name, commit))
            if found is None:
                found = Dataset(self._store, name, ref, commit)
                if self._cache is not None:
                    found = found.cached(self._cache)
                self._open[name, commit] = found
                while len(self._open) > bounds.DATASETS_OPEN_MAX:
                    self._open.popitem(last=False)
            self._open.move_to_end((name, commit))
        return found

    def rows(self, principal: Principal, told: Arguments) -> tuple[pa.Schema, Batches]:
        """Rows [start, stop) of the version; where: only those for which a condition is true."""
        ds = self.dataset(principal, told)
        fields = ds.fields(told.names("columns"))
        count = len(ds)
        start = told.number("start", 0, 1 << 62, 0)
        stop = told.number("stop", 0, 1 << 62, count)
        if not start <= stop <= count:
            raise BadInput(f"rows {start} to {stop}: {ds.label} has {count} rows")
        batch_rows = told.number("batch_rows", 1, bounds.BATCH_ROWS_MAX, None)
        where = told.text("where", None, most=16_384)
        schema = pa.schema(fields)
        if where is None:
            found = _range(ds, fields, start, stop)
        else:
            found = _where(ds, fields, start, stop, Predicate(where, ds.schema))
        return schema, sized(found, batch_rows)

    def take(self, principal: Principal, told: Arguments, payload: Buffer) -> tuple[pa.Schema, Batches]:
        """The rows whose numbers `payload` lists (int64 little-endian), in that order; a number may come several times."""
        ds = self.dataset(principal, told)
        fields = ds.fields(told.names("columns"))
        if len(payload) % 8:
            raise BadInput(f"a list of row numbers has {len(payload)} bytes: no multiple of 8")
        rows = np.frombuffer(payload, "<i8").astype(np.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(ds)):
            raise BadInput(f"a row out of range: {ds.label} has {len(ds)} rows")
        schema = pa.schema(fields)
        return schema, sized(_gathered(ds, fields, rows), told.number("batch_rows", 1, bounds.BATCH_ROWS_MAX, None))


def _range(ds: Dataset, fields: list[pa.Field], start: int, stop: int) -> Batches:
    """Rows [start, stop) of the version."""
    if start == stop or not fields:
        return
    if ds.store.far:
        for first in range(start, stop, bounds.ROWS_AT_ONCE):
            rows = np.arange(first, min(first + bounds.ROWS_AT_ONCE, stop), dtype=np.int64)
            for _, batch in scan(ds, fields, rows, lend=True):  # gRPC lets go of each when it is sent
                yield batch
        return
    row_bytes = _row_bytes(ds, fields, start)
    together = max(1, bounds.BATCH_BYTES_MIN // max(1, row_bytes))  # rows that are worth a batch
    at = start
    while at < stop:
        leaf = ds.leaves.find(at)
        end = min(stop, leaf.end if leaf.end - at >= together else at + together)
        yield from _sliced(ds, fields, np.arange(at, end, dtype=np.int64), lend=True)
        at = end


def _where(ds: Dataset, fields: list[pa.Field], start: int, stop: int, predicate: Predicate) -> Batches:
    """Those of rows [start, stop) for which it is true."""
    names = [field.name for field in fields]
    if (start, stop) == (0, len(ds)):
        yield from ds.scan(names, predicate)
        return
    for first in range(start, stop, bounds.ROWS_AT_ONCE):
        rows = np.arange(first, min(first + bounds.ROWS_AT_ONCE, stop), dtype=np.int64)
        yield from ds.select(rows).scan(names, predicate)


def _gathered(ds: Dataset, fields: list[pa.Field], rows: Rows) -> Batches:
    """Rows in any order."""
    if not len(rows) or not fields:
        return
    step = max(1, min(len(rows), bounds.TAKE_BYTES // max(1, _row_bytes(ds, fields, int(rows[0])))))
    for first in range(0, len(rows), step):
        yield from _sliced(ds, fields, rows[first : first + step], lend=False)


def _sliced(ds: Dataset, fields: list[pa.Field], rows: Rows, lend: bool) -> Batches:
    """Batches of about BATCH_BYTES; of a single row that is larger, one."""
    columns = ds.pages.gather(rows, fields, lend=lend)
    sizes = np.zeros(len(rows), np.int64)
    for column in columns:
        sizes += column.values.nbytes // len(rows)
        if column.references is not None:
            sizes += column.referenced_sizes()
    total, at = np.cumsum(sizes), 0
    while at < len(rows):
        before = int(total[at - 1]) if at else 0
        if int(total[-1]) - before <= bounds.BATCH_BYTES + bounds.BATCH_BYTES_MIN:
            end = len(rows)  # no small rest
        else:
            end = max(at + 1, int(np.searchsorted(total, before + bounds.BATCH_BYTES, side="right")))
        yield ds.ask([column.slice(at, end) for column in columns], fields, rows[at:end]).batch()
        at = end


def _row_bytes(ds: Dataset, fields: list[pa.Field], row: int) -> int:
    """Bytes of a row in its pages, as the row group of `row` has them: of fixed width it is exact, of others a value has at most 16 KiB."""
    group = ds.pages.layout(ds.leaves.find(row)).group
    indices = [ds.schema.get_field_index(field.name) for field in fields]
    return sum(part.page_bytes for index in indices for part in group.columns[index]) // max(1, group.rows)


def sized(batches: Batches, rows: int | None) -> Batches:
    """The same rows in batches of `rows` each (the last has the rest, and none has much more than BATCH_BYTES_MAX bytes); for None, small
    ones joined up to BATCH_BYTES_MIN and large ones cut to about BATCH_BYTES without a copy."""
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        for piece in _cut(batch, rows):
            if rows is None and not held and piece.nbytes >= bounds.BATCH_BYTES_MIN:
                yield piece
                continue
            held.append(piece)
            count, size = count + piece.num_rows, size + piece.nbytes
            if size >= (bounds.BATCH_BYTES_MIN if rows is None else bounds.BATCH_BYTES_MAX) and (
                rows is None or count < rows
            ):
                yield _joined(held)
                held, count, size = [], 0, 0
            while rows is not None and count >= rows:
                joined = _joined(held)
                yield joined.slice(0, rows)
                rest = joined.slice(rows)
                held, count, size = ([rest] if rest.num_rows else []), rest.num_rows, rest.nbytes
    if held:
        yield _joined(held)


def _cut(batch: pa.RecordBatch, rows: int | None) -> Batches:
    if rows is None and batch.nbytes > 2 * bounds.BATCH_BYTES and batch.num_rows > 1:
        step = max(1, batch.num_rows * bounds.BATCH_BYTES // batch.nbytes)
        for first in range(0, batch.num_rows, step):
            yield batch.slice(first, step)
    elif batch.num_rows:
        yield batch


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
