"""Consecutive entries of a directory on their way to rows: who reads them, and their columns in order when they are read.

What a row is made of comes from several hands: small files from processes that read many at a time (small_files.py), others from
threads (file_reader.py), unchanged ones from the last version.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.importers.file_listing import MODE, MTIME, SIZE
from leptonstore.dataset.importers.file_reader import FileContent, FileReader
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer
from leptonstore.format.page import REFERENCE

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

Rows = np.ndarray[Any, np.dtype[np.int64]]


class FileBatch:
    """Rows [first, end) of the listing on their way to columns."""

    def __init__(self, reader: FileReader, first: int, end: int, before: Rows, head: Dataset | None) -> None:
        self._reader, self._first = reader, first
        self._stats = reader.listing.stats[first:end]
        self._paths = reader.listing.paths.slice(first, end - first)
        self._names: list[bytes] = self._paths.to_pylist()
        self._found: list[FileContent | None] = [None] * (end - first)
        self._small: list[tuple[Rows, Rows, bytes]] = []  # rows, their lengths, their contents joined
        kept = np.flatnonzero(before >= 0)
        if len(kept) and head is not None:
            self._keep(kept, head.take_stored(before[kept], "data"), head.take(before[kept], ["size"]))
        modes, sizes = self._stats[:, MODE] & 0o170000, self._stats[:, SIZE]
        self._is_small = (modes == stat.S_IFREG) & (sizes <= limits.TREE_INLINE_BYTES_MAX) & (reader.small is not None)
        self._is_small[[row for row, found in enumerate(self._found) if found is not None]] = False

    def _keep(self, rows: Rows, column: Column, sizes: pa.Table) -> None:
        """Take unchanged values from the last version, if the store still has what they refer to."""
        references = column.references if column.references is not None else np.zeros(len(rows), np.bool_)
        values = column.values.to_pylist()
        for row, value, is_reference, size in zip(
            rows.tolist(), values, references.tolist(), sizes.column(0).to_pylist(), strict=True
        ):
            if not is_reference or self._reader.still_has(REFERENCE.unpack(value)[0]):
                self._found[row] = FileContent(value, is_reference, size)

    def small_jobs(self) -> Iterator[Rows]:
        """Rows of small files, when there are processes that read these."""
        rows = np.flatnonzero(self._is_small)
        for first in range(0, len(rows), limits.SMALL_FILES_JOB):
            yield rows[first : first + limits.SMALL_FILES_JOB]

    def read_small(self, rows: Rows) -> None:
        """One small job, in a thread of the pool."""
        reader = self._reader
        if reader.stopped.is_set() or reader.small is None:
            return
        lengths, contents = reader.small.read([reader.place(self._names[row]) for row in rows.tolist()])
        whole = lengths >= 0
        reader.changed += (self._first + rows[whole & (lengths != self._stats[rows, SIZE])]).tolist()
        self._small.append((rows[whole], lengths[whole], contents))
        for row in rows[~whole].tolist():  # it has gone, has grown, or cannot be read: find out here
            self._found[row] = reader.read(self._first + row, self._names[row], int(self._stats[row, SIZE]))

    def jobs(self) -> Iterator[list[int]]:
        """All other rows that must be read: several together, a large one alone."""
        job: list[int] = []
        size = 0
        small = self._is_small.tolist()
        for row, (mode, length) in enumerate(self._stats[:, [MODE, SIZE]].tolist()):
            if small[row] or self._found[row] is not None:
                continue
            if not stat.S_ISREG(mode):
                self._found[row] = FileContent(self._reader.target(self._names[row], mode), False, 0)
                continue
            if job and size + length > limits.READ_JOB_BYTES:
                yield job
                job, size = [], 0
            job.append(row)
            size += length
        if job:
            yield job

    def read(self, rows: list[int]) -> None:
        """One job, in a thread of the pool."""
        for row in rows:
            if self._reader.stopped.is_set():
                return
            self._found[row] = self._reader.read(self._first + row, self._names[row], int(self._stats[row, SIZE]))

    def columns(self) -> list[Column]:
        """The columns of filetree.SCHEMA."""
        others = np.array([row for row, read in enumerate(self._found) if read is not None], np.int64)
        reads = [read for read in self._found if read is not None]
        small = sorted((job for job in self._small if len(job[0])), key=lambda job: int(job[0][0]))
        rows = np.concatenate([*(job[0] for job in small), others])
        order = np.argsort(rows)
        there = rows[order]  # the others have vanished
        known = [job[1] for job in small]
        sizes = np.concatenate([*known, np.array([read.size for read in reads], np.int64)])[order]
        lengths = np.concatenate([*known, np.array([len(read.value) for read in reads], np.int64)])[order]
        references = np.zeros(len(self._found), np.bool_)
        references[others] = [read.is_reference for read in reads]
        chosen = references[there]
        offsets = pa.py_buffer(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        joined = pa.py_buffer(b"".join(_in_order(small, others, [read.value for read in reads])))
        values = pa.Array.from_buffers(pa.large_binary(), len(there), [None, offsets, joined])

        stats, paths = self._stats[there], self._paths
        if len(there) < len(self._found):
            paths = paths.take(pa.array(there))
        kinds = np.select(
            [(stats[:, MODE] & 0o170000) == stat.S_IFDIR, (stats[:, MODE] & 0o170000) == stat.S_IFLNK],
            [filetree.DIRECTORY, filetree.SYMLINK],
            filetree.FILE,
        )
        return [
            Column(paths),
            Column(pa.array(kinds.astype(np.uint8))),
            Column(pa.array((stats[:, MODE] & 0o7777).astype(np.uint16))),
            Column(pa.array(np.ascontiguousarray(stats[:, MTIME]))),
            Column(pa.array(sizes)),
            Column(values, chosen if chosen.any() else None),
        ]


def _in_order(small: list[tuple[Rows, Rows, bytes]], others: Rows, values: list[bytes]) -> Iterator[Buffer]:
    """Contents and values in the order of their rows, uncopied. small: jobs in order, of which each has rows in order; others: the rows of
    `values`, in order."""
    begun = 0
    for rows, lengths, contents in small:
        view, at = memoryview(contents), 0
        until = int(np.searchsorted(others, rows[-1]))
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        for cut, value in zip(
            ends[np.searchsorted(rows, others[begun:until])].tolist(), values[begun:until], strict=True
        ):
            yield view[at:cut]
            yield value
            at = cut
        yield view[at:]
        begun = until
    yield from values[begun:]
