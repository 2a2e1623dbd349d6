"""Import of a directory of files, byte for byte (leptonstore.dataset.filetree says what is kept).

    list the tree -> find what is unchanged -> read, hash and compress the rest on all cores -> rows in order

Several small files are one job; a large file is read by one job in windows, whose pieces all threads compress. Memory is
bounded by the windows and by what the store lets be in flight, not by the tree.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from leptonstore import limits
from leptonstore.dataset import filetree
from leptonstore.dataset.importers.file_listing import (
    MODE,
    MTIME,
    SIZE,
    Listing,
    ListingMemory,
    list_tree,
    unchanged_rows,
)
from leptonstore.dataset.importers.read_worker import open_unnoticed
from leptonstore.dataset.importers.reading import name_of, reading
from leptonstore.dataset.importers.small_files import SmallFiles
from leptonstore.dataset.source import Source
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import SourceError
from leptonstore.format.page import REFERENCE
from leptonstore.store import Store
from leptonstore.store.references import Spot
from leptonstore.tiers.external import root_of, stamp_of

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset

Rows = np.ndarray[Any, np.dtype[np.int64]]
SWITCH_INTERVAL_S = 0.0005
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_source(path: Path, paranoid: bool = False, reference: bool = False) -> Source:
    """Every file, directory and link below `path`. Lists the tree; opens no file.

    paranoid: read every file, also those whose size, times and inode are as they were at the last import.
    reference: contents that would be chunks of their own stay in the files, and the store keeps where that is.
    Raises SourceError.
    """
    with reading(path):
        if not path.is_dir():
            raise SourceError(f"{path} is not a folder; give the folder whose files are to be kept", str(path))
    tree = _Tree(path, list_tree(path), paranoid, reference)
    lineage = {"format": "files", "root": name_of(path)}
    notes = tree.listing.notes
    if tree.listing.skipped:
        notes.append(f"{tree.listing.skipped} devices, pipes or sockets were left out")
    return Source(
        filetree.SCHEMA,
        ("path",),
        batches=lambda: iter(()),
        rows=len(tree.listing),
        lineage=lineage,
        stored=tree.columns,
        unchanged=tree.unchanged,
        published=tree.remember,
        notes=notes,
    )


@dataclass
class _Read:
    """One file as it was read: its content, or the reference to it in the store."""

    value: bytes
    is_reference: bool
    size: int


@dataclass
class _Tree:
    """One import of one tree."""

    root: Path
    listing: Listing
    paranoid: bool
    reference: bool
    _before: Rows | None = field(default=None, init=False)  # of each entry: its row in the head commit, or -1

    def _memory(self, store: Store, ref: str) -> ListingMemory:
        return ListingMemory(store.cache_path("trees"), self.root, ref, store.stored_name, store.sealer)

    def unchanged(self, store: Store, ref: str, head: Dataset) -> bool:
        """Whether every entry is as `head`, the last version on `ref`, has it."""
        before = None if self.paranoid else self._memory(store, ref).load(head.commit)
        if before is None:
            return False
        self._before = unchanged_rows(self.listing, before)
        return len(before) == len(self.listing) and bool((self._before == np.arange(len(before))).all())

    def remember(self, store: Store, ref: str, commit: str) -> None:
        """After the commit."""
        self._memory(store, ref).save(self.listing, commit)

    def columns(self, store: Store, head: Dataset | None) -> Iterator[list[Column]]:
        """The rows, some thousand at a time; file contents are put into `store`."""
        threads = len(os.sched_getaffinity(0))
        before = self._before if head is not None and self._before is not None else np.full(len(self.listing), -1)
        ahead: deque[tuple[list[Future[None]], _Batch]] = deque()
        with (
            _short_turns(),
            self._small_files(before, threads) as small,
            ThreadPoolExecutor(threads, "lepton-piece") as pieces,
            ThreadPoolExecutor(threads, "lepton-read") as pool,
        ):
            number = store.references.add_root(root_of(self.root)) if self.reference else None
            reader = _Reader(self.root, store, self.listing, pieces, small, number)
            try:
                for first, end in _batches(self.listing):
                    batch = _Batch(reader, first, end, before[first:end], head)
                    jobs = [pool.submit(batch.read_small, job) for job in batch.small_jobs()]
                    ahead.append(([*jobs, *(pool.submit(batch.read, job) for job in batch.jobs())], batch))
                    if len(ahead) > 2:
                        yield _finished(*ahead.popleft())
                while ahead:
                    yield _finished(*ahead.popleft())
            except BaseException:
                reader.stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if reader.vanished:
            self.listing.notes.append(f"{reader.vanished} files vanished while the tree was read")
        if reader.changed:
            self.listing.notes.append(
                f"{len(reader.changed)} files changed while they were read; import again for a clean copy"
            )
            self.listing.stats[reader.changed, MTIME] = -1  # never taken for unchanged

    def _small_files(self, before: Rows, processes: int) -> contextlib.AbstractContextManager[SmallFiles | None]:
        """Processes for reading small files, when there are enough of these to be worth it."""
        stats = self.listing.stats
        wanted = ((stats[:, MODE] & 0o170000) == stat.S_IFREG) & (stats[:, SIZE] <= limits.TREE_INLINE_BYTES_MAX)
        if int((wanted & (before < 0)).sum()) < limits.SMALL_FILES_MIN or not SmallFiles.possible():
            return contextlib.nullcontext()
        return SmallFiles(processes)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Threads that hash and compress ask for the interpreter every millisecond or so; the usual turn of 5 ms starves them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _batches(listing: Listing) -> Iterator[tuple[int, int]]:
    """[first, end) of rows that are read together: bounded rows and, but for single large files, bytes."""
    sizes = np.where((listing.stats[:, MODE] & 0o170000) == stat.S_IFREG, listing.stats[:, SIZE], 0)
    sums = np.cumsum(np.minimum(sizes, limits.IMPORT_BATCH_BYTES_MAX))
    first = 0
    while first < len(listing):
        base = int(sums[first - 1]) if first else 0
        end = int(np.searchsorted(sums, base + 4 * limits.IMPORT_BATCH_BYTES_MAX, side="right"))
        end = min(max(end, first + 1), first + limits.IMPORT_BATCH_ROWS_MAX)
        yield first, end
        first = end


def _finished(jobs: list[Future[None]], batch: _Batch) -> list[Column]:
    for job in jobs:
        job.result()
    return batch.columns()


class _Batch:
    """Rows [first, end) of the listing on their way to columns."""

    def __init__(self, reader: _Reader, first: int, end: int, before: Rows, head: Dataset | None) -> None:
        self._reader, self._first = reader, first
        self._stats = reader.listing.stats[first:end]
        self._paths = reader.listing.paths.slice(first, end - first)
        self._names: list[bytes] = self._paths.to_pylist()
        self._found: list[_Read | None] = [None] * (end - first)
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
                self._found[row] = _Read(value, is_reference, size)

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
                self._found[row] = _Read(self._reader.target(self._names[row], mode), False, 0)
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
        place = np.full(len(self._found), -1, np.int64)  # of each row: where its value stands in `values`
        count, lengths = 0, np.zeros(1, np.int64)
        for rows, found, _ in self._small:
            place[rows] = np.arange(count, count + len(rows))
            count += len(rows)
            lengths = np.concatenate([lengths, found])
        joined = pa.py_buffer(b"".join(contents for _, _, contents in self._small))
        small = pa.Array.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(np.cumsum(lengths)), joined])
        others = [row for row, read in enumerate(self._found) if read is not None]
        reads = [read for read in self._found if read is not None]
        place[others] = np.arange(count, count + len(others))
        values = pa.concat_arrays([small, pa.array([read.value for read in reads], pa.large_binary())])
        sizes = np.concatenate([lengths[1:], np.array([read.size for read in reads], np.int64)])
        references = np.concatenate(
            [np.zeros(count, np.bool_), np.array([read.is_reference for read in reads], np.bool_)]
        )

        there = np.flatnonzero(place >= 0)  # the others have vanished
        stats, paths = self._stats[there], self._paths.take(pa.array(there))
        kinds = np.select(
            [(stats[:, MODE] & 0o170000) == stat.S_IFDIR, (stats[:, MODE] & 0o170000) == stat.S_IFLNK],
            [filetree.DIRECTORY, filetree.SYMLINK],
            filetree.FILE,
        )
        chosen = references[place[there]]
        return [
            Column(paths),
            Column(pa.array(kinds.astype(np.uint8))),
            Column(pa.array((stats[:, MODE] & 0o7777).astype(np.uint16))),
            Column(pa.array(np.ascontiguousarray(stats[:, MTIME]))),
            Column(pa.array(sizes[place[there]])),
            Column(values.take(pa.array(place[there])), chosen if chosen.any() else None),
        ]


class _Reader:
    """Reads files into the store. Used by all threads of a pool."""

    def __init__(
        self,
        root: Path,
        store: Store,
        listing: Listing,
        pieces: ThreadPoolExecutor,
        small: SmallFiles | None,
        number: int | None = None,
    ) -> None:
        """`pieces`: the pool that stores pieces of large files; its jobs wait for nothing. `small`: reads small files. number: of the root
        that is referred to, where files are not copied."""
        self._number = number
        self.store, self.listing, self.small = store, listing, small
        self.stopped = threading.Event()
        self.vanished = 0
        self.changed: list[int] = []
        self._root = os.fsencode(root)
        self._chunker = store.chunker
        self._pieces = pieces
        self._local = threading.local()

    def place(self, name: bytes) -> bytes:
        """Where an entry lies."""
        return os.path.join(self._root, name)

    def still_has(self, digest: Digest) -> bool:
        """Whether a value of the last version need not be read again."""
        return self.store.known(digest, referred=self._number is not None)

    def target(self, name: bytes, mode: int) -> bytes:
        """Where a link leads; nothing for a directory."""
        if not stat.S_ISLNK(mode):
            return b""
        try:
            return os.readlink(self.place(name))
        except OSError as error:
            raise self._refused(name, error) from error

    def _refused(self, name: bytes, error: OSError) -> SourceError:
        place = os.fsdecode(self.place(name))
        why = (error.strerror or str(error)).lower()
        return SourceError(f"cannot read {place}: {why}; check its permissions, or leave it out", place)

    def read(self, row: int, name: bytes, size: int) -> _Read | None:
        """The file as it is now; None when it has vanished. Raises SourceError or StoreFull."""
        try:
            fd = open_unnoticed(self.place(name), _FLAGS)
        except FileNotFoundError:
            self.vanished += 1
            return None
        except OSError as error:
            raise self._refused(name, error) from error
        try:
            spot = None if self._number is None else Spot(self._path(name), 0, stamp_of(os.fstat(fd)))
            if size > limits.READ_WINDOW_BYTES:
                return self._read_large(row, fd, spot)
            return self._read_small(row, fd, size, spot)
        except OSError as error:
            raise self._refused(name, error) from error
        finally:
            os.close(fd)

    def _path(self, name: bytes) -> str:
        """As a reference has it."""
        try:
            return name.decode()
        except UnicodeDecodeError:
            place = os.fsdecode(self.place(name))
            raise SourceError(
                f"the name {name!r} is not UTF-8: rename it, or import without --reference", place
            ) from None

    def _read_small(self, row: int, fd: int, size: int, spot: Spot | None) -> _Read:
        """A file that fits a window. The window is this thread's own, and free again once the content is put."""
        data: Buffer
        if (
            size <= limits.VALUE_INLINE_BYTES_MAX
        ):  # the store may keep small values back for a while: they own their memory
            data = os.read(fd, size + 1)
        else:
            window = self._own_window()[: size + 1]
            data = window[: os.readv(fd, [window])]
        if len(data) != size:
            if size != os.fstat(fd).st_size:
                self.changed.append(row)
            os.lseek(fd, 0, os.SEEK_SET)
            return self._read_large(row, fd, spot)
        return self._kept(data, spot)

    def _kept(self, data: Buffer, spot: Spot | None) -> _Read:
        """A file's whole content: in the page when it is small, else in the store."""
        size = len(data)
        if size <= limits.TREE_INLINE_BYTES_MAX:
            return _Read(bytes(data), False, size)
        if spot is not None and self._number is not None:
            digest = self.store.put_reference(data, self._number, _not_shorter(spot, size))
        else:
            digest = self.store.put(data, here=True)
        return _Read(REFERENCE.pack(digest, size), True, size)

    def _own_window(self) -> memoryview:
        window: memoryview | None = getattr(self._local, "window", None)
        if window is None:
            window = self._local.window = _window(limits.READ_WINDOW_BYTES + 1)
        return window

    def _read_large(self, row: int, fd: int, spot: Spot | None) -> _Read:
        """In windows whose pieces all threads compress. What is appended meanwhile is left for the next import."""
        size = os.fstat(fd).st_size
        if size != self.listing.stats[row, SIZE]:
            self.changed.append(row)
        pieces: list[Future[tuple[bytes, int]]] = []
        hasher, done, at = blake3(), 0, 0
        windows = [_Window(self._chunker.sizes.max_size + limits.READ_WINDOW_BYTES) for _ in range(2)]
        rest = memoryview(b"")
        while done < size and not self.stopped.is_set():
            windows.reverse()
            windows[0].wait()  # until its pieces are stored
            got = windows[0].fill(fd, rest, size - done)
            if not got:
                self.changed.append(row)  # it became shorter
                break
            data = windows[0].data
            hasher.update(data[len(rest) :])
            done += got
            cut = list(self._chunker.cut_stream(data))
            rest = memoryview(b"") if done == size else cut.pop()
            starts = itertools.accumulate(map(len, cut), initial=at)
            windows[0].jobs = [
                self._pieces.submit(self._put_piece, piece, start, spot)
                for piece, start in zip(cut, starts, strict=False)
            ]
            at += sum(map(len, cut))
            pieces += windows[0].jobs
        if len(rest):
            pieces.append(self._pieces.submit(self._put_piece, rest, at, spot))
        found = [piece.result() for piece in pieces]
        if done <= self._chunker.sizes.cut_above:  # a value of this length is one chunk, wherever it comes from
            os.lseek(fd, 0, os.SEEK_SET)
            return self._kept(os.read(fd, done), spot)
        digest = hasher.digest()
        self.store.put_chunk_list(digest, found, referred=spot is not None)
        return _Read(REFERENCE.pack(digest, done), True, done)

    def _put_piece(self, piece: memoryview, offset: int, spot: Spot | None) -> tuple[bytes, int]:
        if spot is not None and self._number is not None:
            there = _not_shorter(spot, offset + len(piece))._replace(offset=offset)
            return self.store.put_reference_piece(piece, self._number, there), len(piece)
        return self.store.put_piece(piece, here=True), len(piece)


def _not_shorter(spot: Spot, end: int) -> Spot:
    """Of a file that grew while it was read: the next check says that it changed."""
    return spot._replace(stamp=spot.stamp._replace(bytes=max(spot.stamp.bytes, end)))


def _window(size: int) -> memoryview:
    """Memory that is touched again and again: fresh memory costs more than reading into it does. (A bytearray would be
    zeroed first, while all other threads wait.)"""
    return memoryview(np.empty(size, np.uint8).data)


class _Window:
    """A part of a large file in memory, and the jobs that still work on it."""

    def __init__(self, size: int) -> None:
        self._memory = _window(size)
        self.data = self._memory[:0]
        self.jobs: list[Future[tuple[bytes, int]]] = []

    def wait(self) -> None:
        """Until nobody uses it. Raises what a job raised."""
        for job in self.jobs:
            job.result()

    def fill(self, fd: int, rest: memoryview, left: int) -> int:
        """`rest` of the window before, then what comes next in the file; returns how much that is, 0 at its end."""
        start = len(rest)
        self._memory[:start] = rest
        got = os.readv(fd, [self._memory[start : start + min(limits.READ_WINDOW_BYTES, left)]])
        self.data = self._memory[: start + got]
        return got
