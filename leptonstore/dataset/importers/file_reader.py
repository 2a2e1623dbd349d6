"""Reads files into the store: small ones become bytes for a page, larger ones chunks; large ones are compressed by all threads at once."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from leptonstore import limits
from leptonstore.dataset.importers.file_listing import SIZE, Listing
from leptonstore.dataset.importers.read_worker import open_unnoticed
from leptonstore.dataset.importers.small_files import SmallFiles
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import SourceError
from leptonstore.format.page import REFERENCE
from leptonstore.store import Store
from leptonstore.store.references import Spot
from leptonstore.tiers.external import stamp_of

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass
class FileContent:
    """One file as it was read: its content, or the reference to it in the store."""

    value: bytes
    is_reference: bool
    size: int


class FileReader:
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

    def read(self, row: int, name: bytes, size: int) -> FileContent | None:
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

    def _read_small(self, row: int, fd: int, size: int, spot: Spot | None) -> FileContent:
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

    def _kept(self, data: Buffer, spot: Spot | None) -> FileContent:
        """A file's whole content: in the page when it is small, else in the store."""
        size = len(data)
        if size <= limits.TREE_INLINE_BYTES_MAX:
            return FileContent(bytes(data), False, size)
        if spot is not None and self._number is not None:
            digest = self.store.put_reference(data, self._number, _not_shorter(spot, size))
        else:
            digest = self.store.put(data, here=True)
        return FileContent(REFERENCE.pack(digest, size), True, size)

    def _own_window(self) -> memoryview:
        window: memoryview | None = getattr(self._local, "window", None)
        if window is None:
            window = self._local.window = _window(limits.READ_WINDOW_BYTES + 1)
        return window

    def _read_large(self, row: int, fd: int, spot: Spot | None) -> FileContent:
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
        return FileContent(REFERENCE.pack(digest, done), True, done)

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
