"""Tables of files: what a checkpoint or a model bundle is. Each is a commit of its own with columns `path` and `data`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.refs import MAIN, resolve_ref, writable_ref
from leptonstore.dataset.schema import path_field
from leptonstore.dataset.source import Source
from leptonstore.dataset.write import publish_commit, write_table
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, RefMissing
from leptonstore.format.commit import Commit
from leptonstore.store import Store

SCHEMA = pa.schema([path_field("path"), pa.field("data", pa.large_binary(), nullable=False)])


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
    files: Iterable[tuple[str, Buffer]],
    lineage: dict[str, Any],
    message: str = "",
    branch: str = MAIN,
    metrics: dict[str, Any] | None = None,
) -> FileTable:
    """Store files as one parentless commit and move <kind>/<name>/<branch> to it.

    Paths must be unique. Equal content and lineage are the same commit. Raises BadInput, StoreFull or Conflict.
    """
    store.refresh()
    ref, record = writable_ref(store, kind, name, branch)
    root, rows, plain_bytes = write_table(store, Source(SCHEMA, ("path",), lambda: _batches(files)))
    commit = Commit(kind, SCHEMA, ("path",), root, rows, plain_bytes, (), message, lineage)
    digest = publish_commit(store, commit, ref, record.commit if record else None, metrics)
    return FileTable(Dataset(store, name, branch, digest))


def _batches(files: Iterable[tuple[str, Buffer]]) -> Iterator[pa.RecordBatch]:
    """One batch a file, so that a large one is put into the store before the next is asked for."""
    seen: set[str] = set()
    for path, data in files:
        if path in seen:
            raise BadInput(f"two files are called {path!r}")
        seen.add(path)
        view = memoryview(data).cast("B")
        offsets = pa.array([0, len(view)], pa.int64()).buffers()[1]
        array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(view)])
        yield pa.RecordBatch.from_arrays([pa.array([path], pa.string()), array], schema=SCHEMA)
