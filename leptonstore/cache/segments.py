"""Segment files `<ordinal>.seg`: preallocated, written by offset, mapped read-only, and removed when nobody looks at them any more.

    record   key 32 | length u64 | check 16 (BLAKE3 of the value) | magic 8 | value | zeros up to a multiple of 64

Pins. Whoever has a view of a segment holds a shared flock on its file, by a descriptor that dies with the last view. So pinned bytes of all
processes are known (a segment whose file cannot be locked exclusively), a killed process pins nothing, and a forked child that
inherits a view inherits its lock. Taking it costs a hit nothing while another view of the same segment is alive; and exclusive locks
are held by whoever evicts, for an instant, on what is dead or is about to be.

Invariants:
- A pin is taken first, then the table is asked again whether the segment is live. Eviction marks it DEAD first, then looks for pins.
- The file of a dead segment stays in the directory until nobody has it pinned; it is truncated before it is unlinked, so that mappings
  of it that other processes keep, but do not look at, hold no memory. Hence: all memory of the cache is in files with a name.
- Nothing is written through a mapping: a full device is ENOSPC from posix_fallocate or pwrite, not SIGBUS.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import numpy as np

from leptonstore import limits
from leptonstore.cache.table import DEAD, FREE, LIVE, UNIT_BYTES, Place, Table
from leptonstore.digest import Buffer, digest_of

_RECORD = Struct("<32sQ16s8s")
_MAGIC = b"LHCREC\x00\x01"
_CHECK_BYTES = 16
TABLE = "table"  # name of the table's file
RECORD_BYTES = _RECORD.size


def stored_bytes(length: int) -> int:
    """What a value of `length` bytes takes in a segment."""
    return -(-(RECORD_BYTES + length) // UNIT_BYTES) * UNIT_BYTES


def record_header(key: bytes, value: Buffer) -> bytes:
    """The header of a value's record: 64 bytes."""
    return _RECORD.pack(key, memoryview(value).nbytes, digest_of(value)[:_CHECK_BYTES], _MAGIC)


class _Pin:
    """A descriptor that holds a shared lock; closed when the last view of the segment has gone."""

    __slots__ = ("_close", "_file")

    def __init__(self, file: int) -> None:
        self._file = file
        self._close: Callable[[int], None] = os.close  # still there when the interpreter takes its modules apart

    def __del__(self) -> None:
        self._close(self._file)


class _View(np.ndarray):
    """All bytes of a mapped segment. Every memoryview of it keeps it alive, and it keeps its pin."""

    pin: _Pin


class _Mapping:
    """A segment mapped by this process."""

    __slots__ = ("map", "view")

    def __init__(self, path: str) -> None:
        # mmap keeps a duplicate of its descriptor: of one without a lock, or the lock would last as long as the mapping.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.map = mmap.mmap(file, os.fstat(file).st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
        self.view: Callable[[], _View | None] = lambda: None


class Segments:
    """The segment files of one cache directory, as one process sees them. Any thread; "locked": the host's lock is held."""

    def __init__(self, folder: Path, table: Table) -> None:
        self._folder, self._table = str(folder), table
        self._maps: dict[int, _Mapping] = {}
        self._checked: dict[int, set[int]] = {}  # of each segment, the offsets of values that matched their check
        self._evictions = -1

    def path(self, ordinal: int) -> str:
        """Where a segment's file is."""
        return f"{self._folder}/{ordinal}.seg"

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, key: bytes, place: Place) -> memoryview | None:
        """The value of `key`, when it is what stands there and is whole. Valid for as long as it is referenced."""
        view = self._pinned(place.ordinal)
        if view is None:
            return None
        whole = view.data
        start = place.offset + RECORD_BYTES
        if start > len(whole):
            return None
        found, length, check, magic = _RECORD.unpack_from(whole, place.offset)
        if found != key or magic != _MAGIC or length > len(whole) - start:
            return None
        value = whole[start : start + length]
        if place.offset not in self._checked.get(place.ordinal, ()):
            if digest_of(value)[:_CHECK_BYTES] != check:
                return None
            self._checked.setdefault(place.ordinal, set()).add(place.offset)
        return value

    def _pinned(self, ordinal: int) -> _View | None:
        """A view of a live segment, or None."""
        if not self._table.is_live(ordinal):  # also when we have it pinned: what was cleared is gone for everybody
            return None
        mapping = self._maps.get(ordinal)
        if mapping is not None:
            view = mapping.view()
            if view is not None:
                return view
        file = self.open_pinned(ordinal)
        if file is None:
            return None
        pin = _Pin(file)
        if mapping is None:
            self._forget()
            try:
                mapping = self._maps.setdefault(ordinal, _Mapping(self.path(ordinal)))
            except (OSError, ValueError):  # too many mappings, or a file that somebody truncated
                return None
        # Not a view of another array: numpy's views of views refer to the innermost array of their own type, and would pass the pin by.
        view = _View(len(mapping.map), np.uint8, mapping.map)
        view.pin = pin
        mapping.view = weakref.ref(view)
        return view

    def open_pinned(self, ordinal: int, mode: int = os.O_RDONLY) -> int | None:
        """A descriptor that pins a live segment until it is closed; None when it is not live (any more)."""
        try:
            file = os.open(self.path(ordinal), mode | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if self._share(file) and self._table.is_live(ordinal):
                return file
        except OSError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None

    @staticmethod
    def _share(file: int) -> bool:
        """Whoever evicts holds the lock for an instant, unless it was stopped just then: do not wait for that."""
        for _ in range(limits.CACHE_PIN_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(limits.CACHE_LOCK_POLL_S_MAX / limits.CACHE_PIN_TRIES)
        return False

    def _forget(self) -> None:
        """Unmap what was evicted since the last look, and the oldest when there are too many; views that are alive keep theirs."""
        for ordinal in list(self._maps)[: max(0, len(self._maps) - limits.CACHE_MAPPINGS_MAX)]:
            self._maps.pop(ordinal, None)
        evictions = self._table.evictions
        if evictions == self._evictions:
            return
        self._evictions = evictions
        for ordinal in [ordinal for ordinal in list(self._maps) if not self._table.is_live(ordinal)]:
            self._maps.pop(ordinal, None)
        for ordinal in [ordinal for ordinal in list(self._checked) if not self._table.is_live(ordinal)]:
            self._checked.pop(ordinal, None)

    def close(self) -> None:
        """Forget all mappings; views that are alive stay valid."""
        self._maps.clear()

    # -- changing, locked ------------------------------------------------------------------------------------------

    def make(self, size: int) -> int | None:
        """Locked. A new live segment of `size` bytes that are there already; None without a free slot.

        Raises OSError: ENOSPC, or FileNotFoundError when the directory belongs to another table meanwhile.
        """
        if os.stat(f"{self._folder}/{TABLE}").st_ino != self._table.inode:
            raise FileNotFoundError(2, "its files were replaced", self._folder)
        ordinal = self._table.begin_segment(size)
        if ordinal is None:
            return None
        path = self.path(ordinal)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, size)
            finally:
                os.close(file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._table.set_state(ordinal, FREE)
            raise
        self._table.set_state(ordinal, LIVE)
        return ordinal

    @contextlib.contextmanager
    def unpinned(self, ordinal: int) -> Iterator[int | None]:
        """Locked. A descriptor of a live segment that nobody has pinned at this moment, else None. It is a pin itself."""
        file = self.open_pinned(ordinal, os.O_RDWR)
        if file is None:
            yield None
            return
        try:
            free = _try_lock(file)
            fcntl.flock(file, fcntl.LOCK_SH)
            yield file if free else None
        finally:
            os.close(file)

    def remove(self, ordinal: int) -> bool:
        """Locked. Give back the memory of a dead segment unless somebody has it pinned. True when it is gone."""
        path = self.path(ordinal)
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self._table.set_state(ordinal, FREE)
            return True
        try:
            if not _try_lock(file):
                return False
            os.ftruncate(file, 0)
            os.unlink(path)
        finally:
            os.close(file)
        self._table.set_state(ordinal, FREE)
        return True

    def reclaim(self) -> tuple[int, int]:
        """Locked. Remove dead segments that nobody has pinned; bytes that are linked, and that are dead and pinned."""
        linked = pinned = 0
        for ordinal, state, size in list(self._table.segments()):
            if state == LIVE:
                linked += size
            elif state == DEAD and not self.remove(ordinal):
                pinned += size
        return linked, pinned

    def sweep(self) -> None:
        """Locked. Remove what no live process can have left: the files of a table that was replaced, temporaries (whose makers died, as
        they hold no lock any more), and segments whose file is not there or not whole (somebody deleted it, or the power failed).
        """
        for ordinal, state, size in list(self._table.segments()):
            try:
                whole = os.stat(self.path(ordinal)).st_size == size
            except OSError:
                whole = False
            if state == LIVE and not whole:
                self._table.set_state(ordinal, DEAD)
        known = {f"{ordinal}.seg" for ordinal, _, _ in self._table.segments()}
        for entry in list(os.scandir(self._folder)):
            if entry.name.endswith(".tmp") or (entry.name.endswith(".seg") and entry.name not in known):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_record(file: int, offset: int, header: bytes, value: Buffer) -> None:
    """Write a record at its place in a segment. Raises OSError."""
    os.pwrite(file, header, offset)
    whole, done = memoryview(value), 0
    if whole.nbytes:
        whole = whole.cast("B")
    while done < whole.nbytes:  # the system takes at most 2 GiB at a time
        done += os.pwrite(file, whole[done:], offset + len(header) + done)
