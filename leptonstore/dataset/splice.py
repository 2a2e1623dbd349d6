"""The one primitive of editing: take rows out of a version and put rows in, and store the tree of what results.

Only row groups that an edit touches are read and cut again, from the cut before the edit to the next old cut that comes out again; all
others, and every node above them alone, are taken over by their digests. Each level of nodes is cut again in the same way around the
nodes that changed below. So the cost grows with the number of edits and the height of the tree, and memory holds one row group and the
nodes that changed.

The promise (tests/property/test_splice.py): the root is the one that TreeWriter makes of the same rows, whatever edits led there.

    level 0   old rows with edits     -> GroupWriter  -> runs: old rows [start, end) are now these row groups
    level n   old nodes with runs     -> ParentWriter -> runs: old rows [start, end) are now these nodes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.groups import GroupWriter, read_column, stored_columns
from leptonstore.dataset.tree import ParentWriter, Span, Tree, TreeReader, TreeWriter, put_levels, tree_of
from leptonstore.dataset.values import Column
from leptonstore.errors import BadInput, SchemaError
from leptonstore.format.node import Child, RowGroup

Inserted: TypeAlias = "pa.RecordBatch | pa.Table | Sequence[list[Column]] | None"
_T = TypeVar("_T")
_New = TypeVar("_New", contravariant=True)


@dataclass(frozen=True)
class Splice:
    """At row `at` of the old version take out `delete` rows, and put `insert` in their place.

    insert: rows with the schema of the version; or columns as pages keep them (`Dataset.iter_stored`), whose large values are in
    the store already and are not read.
    """

    at: int
    delete: int = 0
    insert: Inserted = None


def splice(base: Dataset, splices: Iterable[Splice], progress: Callable[[int], None] = lambda rows: None) -> Tree:
    """Store the tree of `base` with these edits; nothing refers to it yet. The schema and identity are those of `base`.

    splices: sorted by `at`, and disjoint; they are consumed one by one, so a generator keeps memory small. In a keyed table the caller
    keeps the order of the key. progress: called with the number of rows that were written anew.
    Raises BadInput (edits out of order or range, keys out of order), SchemaError (rows that do not fit), StoreFull, ChunkMissing,
    ChunkCorrupt.
    """
    if base.selection is not None:
        raise BadInput(f"{base!r} is a selection; edit the version that it was taken from")
    commit, store = base.commit_object, base.store
    edits = (_Edit(one.at, one.at + one.delete, one.insert) for one in _in_order(splices, commit.rows))
    if commit.root is None:
        writer = TreeWriter(store, commit.schema, commit.identity, commit.keyed)
        for edit in edits:
            for columns in _columns(base, edit.new):
                writer.append_columns(columns)
                progress(writer.rows)
        root, plain_bytes = writer.finish()
        return Tree(root, writer.rows, plain_bytes)
    reader = TreeReader(store, commit.root, commit.rows, f"{base.name}@{base.ref}")
    runs = list(_recut(edits, reader, 0, _RowLevel(base, reader, progress)))
    return _rebuild(base, reader, runs)


class _Edit(NamedTuple, Generic[_T]):
    """What stands at the old rows [start, end) is replaced by `new`."""

    start: int
    end: int
    new: _T


Run: TypeAlias = "_Edit[list[Child]]"


def _in_order(splices: Iterable[Splice], rows: int) -> Iterator[Splice]:
    last = 0
    for one in splices:
        if one.delete < 0 or one.at < last or one.at + one.delete > rows:
            raise BadInput(
                f"rows {one.at}-{one.at + one.delete} are out of order, or not all in a version of {rows} rows"
            )
        last = one.at + one.delete
        if one.delete or one.insert is not None:
            yield one


class _Level(Protocol[_New]):
    """How one level is written anew."""

    @property
    def open(self) -> bool:
        """Whether something stands after the last cut."""

    def keep(self, start: int, end: int) -> None:
        """Pass on what stands at the old rows [start, end), which lie in one node of this level."""

    def add(self, new: _New) -> None:
        """Pass on what is new."""

    def take(self) -> list[Child]:
        """The nodes that were closed since the last call."""

    def finish(self) -> list[Child]:
        """Close what is open, and `take`."""


def _recut(edits: Iterable[_Edit[_T]], reader: TreeReader, level: int, writer: _Level[_T]) -> Iterator[Run]:
    """Edits of what lies below `level` -> runs of that level.

    A run begins at an old cut before its first edit, and ends where an old cut comes out again (or the table does): from there on all
    cuts are the old ones. The one node at the top is always cut again as a whole.
    """
    start: int | None = None  # of the run that is open
    at = 0  # the old rows up to here have been passed on, when a run is open
    for edit in edits:
        while start is not None and at < edit.start:  # not at the edit itself: it would begin the next run
            node = reader.span(level, at)
            if at == node.start and not writer.open and level < reader.height:
                yield from _run(start, at, writer.take())
                start = None
            else:
                until = min(node.end, edit.start)
                writer.keep(at, until)
                at = until
        if start is None:
            start = at = reader.span(level, min(edit.start, reader.rows - 1)).start
            if at < edit.start:
                writer.keep(at, edit.start)
        writer.add(edit.new)
        at = edit.end
    if start is None:
        return
    while at < reader.rows:
        node = reader.span(level, at)
        if at == node.start and not writer.open and level < reader.height:
            break
        writer.keep(at, node.end)
        at = node.end
    yield from _run(start, at, writer.finish())


def _run(start: int, end: int, new: list[Child]) -> Iterator[Run]:
    """None when an edit put nothing in the place of nothing."""
    if new or end > start:
        yield _Edit(start, end, new)


class _RowLevel:
    """Level 0: rows are cut into row groups."""

    def __init__(self, base: Dataset, reader: TreeReader, progress: Callable[[int], None]) -> None:
        commit = base.commit_object
        self._base, self._reader, self._progress = base, reader, progress
        self._writer = GroupWriter(base.store, commit.schema, commit.identity, commit.keyed)
        self._written = 0
        self._read: tuple[Span, list[Column]] | None = None

    @property
    def open(self) -> bool:
        return self._writer.open

    def keep(self, start: int, end: int) -> None:
        if self._read is None or not self._read[0].start <= start < self._read[0].end:
            self._read = self._columns_at(start)
        span, columns = self._read
        self._append([column.slice(start - span.start, end - span.start) for column in columns])

    def _columns_at(self, row: int) -> tuple[Span, list[Column]]:
        base, (span, group) = self._base, self._reader.node(0, row)
        assert isinstance(group, RowGroup)
        if len(group.columns) != len(base.schema):
            raise SchemaError(f"a row group has {len(group.columns)} columns, its version {len(base.schema)}")
        name = f"{base.name}@{base.ref}"
        return span, [
            read_column(base.store, parts, field, span.start, name)
            for field, parts in zip(base.schema, group.columns, strict=True)
        ]

    def add(self, new: Inserted) -> None:
        for columns in _columns(self._base, new):
            self._append(columns)

    def _append(self, columns: list[Column]) -> None:
        self._writer.append(columns)
        self._written += len(columns[0].values)
        self._progress(self._written)

    def take(self) -> list[Child]:
        return self._writer.take()

    def finish(self) -> list[Child]:
        return self._writer.finish()


class _NodeLevel:
    """A level above: nodes are cut into parents."""

    def __init__(self, base: Dataset, reader: TreeReader, level: int) -> None:
        self._reader, self._level = reader, level
        self._writer = ParentWriter(base.store, level)

    @property
    def open(self) -> bool:
        return self._writer.open

    def keep(self, start: int, end: int) -> None:
        self._writer.append(self._reader.children(self._level - 1, start, end))

    def add(self, new: list[Child]) -> None:
        self._writer.append(new)

    def take(self) -> list[Child]:
        return self._writer.take()

    def finish(self) -> list[Child]:
        return self._writer.finish()


def _columns(base: Dataset, inserted: Inserted) -> Iterator[list[Column]]:
    """Inserted rows as pages keep them, in pieces that fit in memory."""
    if inserted is None:
        return
    if isinstance(inserted, (pa.RecordBatch, pa.Table)):
        table = pa.Table.from_batches([inserted]) if isinstance(inserted, pa.RecordBatch) else inserted
        for batch in table.to_batches(max_chunksize=limits.ROW_GROUP_ROWS_AVG):
            yield stored_columns(base.store, base.schema, batch)
        return
    for columns in inserted:
        if len(columns) != len(base.schema):
            raise SchemaError(f"{len(columns)} columns are inserted where the version has {len(base.schema)}")
        yield columns


def _rebuild(base: Dataset, reader: TreeReader, runs: list[Run]) -> Tree:
    """The levels above the row groups that changed, up to the new root."""
    for level in range(reader.height + 1):
        if level:
            runs = list(_recut(runs, reader, level, _NodeLevel(base, reader, level)))
        if level == reader.height:
            break
        only = _only_node(reader, level, runs)
        if only is not None:  # one node is left (or none): a tree has no level above that
            return tree_of(only)
    if not runs:  # the edits changed nothing
        return tree_of([reader.root.child])
    (whole,) = runs
    return put_levels(base.store, whole.new, reader.height)


def _only_node(reader: TreeReader, level: int, runs: list[Run]) -> list[Child] | None:
    """All nodes of the level when there are fewer than two of them, else None."""
    new = list(chain.from_iterable(run.new for run in runs))
    kept = reader.rows - sum(run.end - run.start for run in runs)
    if kept == 0:
        return new if len(new) < 2 else None
    if new:
        return None
    first = 0  # the first row that no run covers
    for run in runs:
        if run.start > first:
            break
        first = run.end
    child = reader.span(level, first).child
    return [child] if child.rows == kept else None
