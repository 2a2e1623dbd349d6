"""Tables of files: what a checkpoint or a model bundle is. Each is a commit of its own with columns `path` and `data`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.large_values import references_of
from leptonstore.dataset.refs import MAIN, resolve_ref, writable_ref
from leptonstore.dataset.schema import INLINE_BYTES, inline_bytes, path_field
from leptonstore.dataset.source import Source
from leptonstore.dataset.values import Column, intern
from leptonstore.dataset.write import publish_commit, write_table
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import BadInput, ChunkMissing, RefMissing
from leptonstore.format.commit import Commit
from leptonstore.format.page import REFERENCE
from leptonstore.store import Store

SCHEMA = pa.schema([path_field("path"), pa.field("data", pa.large_binary(), nullable=False)])
# Of a table in which each file is a chunk of its own: what several writers put can be named in it without being read.
APART = pa.schema([SCHEMA.field("path"), SCHEMA.field("data").with_metadata({INLINE_BYTES: b"1"})])


class StoredValue(NamedTuple):
    """A file's bytes that were put into the store already, by this process or by another that flushed them."""

    digest: Digest
    length: int


Content: TypeAlias = Buffer | StoredValue


class FileTable:
    """A version of a table of files, read by path. Every read is checked against its digest."""

    def __init__(self, table: Dataset) -> None:
        self.table = table
        self._rows = {path: row for row, path in enumerate(table.to_arrow(["path"]).column(0).to_pylist())}

    @classmethod
    def open(cls, store: Store, kind: str, spec: str) -> FileTable:
        """`spec` is NAME or NAME@branch. Raises RefMissing."""
        return cls(Dataset(store, *resolve_ref(store, kind, spec)))

    @property
    def commit(self) -> str:
        """Digest of the commit (hex)."""
        return self.table.commit

    @property
    def lineage(self) -> dict[str, Any]:
        """What it was made from."""
        return self.table.commit_object.lineage

    def __repr__(self) -> str:
        return f"<FileTable {self.table.label} {self.commit[:12]}: {len(self._rows):,} files>"

    def _repr_html_(self) -> str:
        """For notebooks: the first files."""
        from leptonstore.dataset.notebook import files_html

        return files_html(self)

    def paths(self) -> list[str]:
        """Paths of all files, in the order they were written."""
        return list(self._rows)

    def stored(self) -> dict[str, StoredValue | bytes]:
        """Where each file's bytes are: a chunk of its own, or the bytes themselves when they stand in a page. Reads pages only."""
        found: dict[str, StoredValue | bytes] = {}
        paths = iter(self._rows)
        for _, (column,) in self.table.iter_stored(["data"]):
            marked = np.zeros(len(column.values), np.bool_) if column.references is None else column.references
            referred = iter(zip(*references_of(column.values, marked), strict=True)) if marked.any() else iter(())
            for value, is_reference in zip(column.values, marked.tolist(), strict=True):
                if is_reference:
                    digest, length = next(referred)
                    found[next(paths)] = StoredValue(digest, int(length))
                else:
                    found[next(paths)] = value.as_py()
        return found

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises RefMissing, ChunkMissing or ChunkCorrupt."""
        if path not in self._rows:
            raise RefMissing(f"{self.table.name}@{self.table.ref} has no file {path!r}; it has {', '.join(self._rows)}")
        value: bytes = self.table.take([self._rows[path]], ["data"]).column(0)[0].as_py()
        return value


def write_files(
    store: Store,
    kind: str,
    name: str,
    files: Iterable[tuple[str, Content]],
    lineage: dict[str, Any],
    message: str = "",
    branch: str = MAIN,
    metrics: dict[str, Any] | None = None,
    apart: bool = False,
) -> FileTable:
    """Store files as one parentless commit and move <kind>/<name>/<branch> to it.

    Paths must be unique. Equal content and lineage are the same commit. apart: each file is a chunk of its own, also a small one (the
    schema says so). A StoredValue is looked up, and from then on held against garbage collection like what this process put itself;
    whoever else put it must have flushed it, and its claims (`Store.hand_over`) end after this returned.
    Raises BadInput, StoreFull, Conflict, or ChunkMissing for a StoredValue that is not there (any more): put it again.
    """
    store.refresh()
    ref, record = writable_ref(store, kind, name, branch)
    schema = APART if apart else SCHEMA
    source = Source(schema, ("path",), lambda: iter(()), stored=lambda store, head: _stored(store, schema, files))
    root, rows, plain_bytes = write_table(store, source)
    commit = Commit(kind, schema, ("path",), root, rows, plain_bytes, (), message, lineage)
    digest = publish_commit(store, commit, ref, record.commit if record else None, metrics)
    return FileTable(Dataset(store, name, branch, digest))


def _stored(store: Store, schema: pa.Schema, files: Iterable[tuple[str, Content]]) -> Iterator[list[Column]]:
    """Columns as pages keep them: one file at a time, so that a large one is put before the next is asked for; stored ones together."""
    inline = inline_bytes(schema.field("data"))
    seen: set[str] = set()
    waiting: list[tuple[str, StoredValue]] = []
    for path, data in files:
        if path in seen:
            raise BadInput(f"two files are called {path!r}")
        seen.add(path)
        if isinstance(data, StoredValue) and data.length > inline:
            if not store.known(data.digest):
                raise ChunkMissing(data.digest.hex(), path)
            waiting.append((path, data))
            if len(waiting) < limits.ROW_GROUP_ROWS_MIN:
                continue
        if waiting:
            yield _referring(waiting)
            waiting = []
        if not isinstance(data, StoredValue):
            yield _put(store, inline, path, data)
        elif data.length <= inline:  # so short a value stands in the page, whoever put it
            yield _put(store, inline, path, store.get(data.digest))
    if waiting:
        yield _referring(waiting)


def _put(store: Store, inline: int, path: str, data: Buffer) -> list[Column]:
    view = memoryview(data).cast("B")
    offsets = pa.array([0, len(view)], pa.int64()).buffers()[1]
    array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(view)])
    return [Column(pa.array([path], pa.string())), intern(store, array, inline)]


def _referring(files: list[tuple[str, StoredValue]]) -> list[Column]:
    values = pa.array([REFERENCE.pack(*value) for _, value in files], pa.large_binary())
    return [Column(pa.array([path for path, _ in files], pa.string())), Column(values, np.ones(len(files), np.bool_))]
