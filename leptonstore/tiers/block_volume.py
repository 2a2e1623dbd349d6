"""An open block volume: which packs are on it, its free space, and the order of writes that keeps both true.

    seal    units written -> fdatasync -> header block -> fdatasync -> the pack is known, here and (by the note) elsewhere
    delete  header block freed -> fdatasync -> the pack is forgotten, here and by the note -> its units may be used again

Invariants:
- A unit is overwritten only while no header on the device, in whatever state a power loss leaves it, lists it in a sealed pack.
- A header is written only when the bytes of its pack are durable. Both copies of a header stand in different sectors, so that one that
  was torn reads as it was before or as it should be.
- The map of packs is derived from the headers (block_scan.py); nothing else is believed.
- One process writes (flock, held from the first change on until the volume is closed here). The first thing it does is to make durable
  what it found, for its predecessor may have been killed before it did so, and to mend copies that differ.

A forked child starts as a reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path

from leptonstore import limits
from leptonstore.errors import BadInput, Conflict, FormatDamaged, StoreFull
from leptonstore.format import volume as lvb
from leptonstore.format.volume import Note, SegmentHeader, Superblock
from leptonstore.tiers import durable
from leptonstore.tiers.block_scan import Descriptor, VolumeReader
from leptonstore.tiers.direct import REFUSED, Buffers, write_all


def parse_pack(pack: str) -> bytes:
    """32 hex digits -> 16 bytes. Raises BadInput."""
    try:
        parsed = bytes.fromhex(pack)
    except ValueError:
        parsed = b""
    if len(parsed) != 16 or not any(parsed) or parsed.hex() != pack:
        raise BadInput(f"{pack!r} is no id of a pack: 32 hexadecimal digits, in lower case, and not all zero")
    return parsed


class Volume(VolumeReader):
    """A volume, shared by whoever uses it in this process. Any thread.

    Those who may write `hold` it and `let_go`; with the last one the lock goes, and another process may write. Files are closed with
    the object.
    """

    def __init__(self, path: Path) -> None:
        """Raises as VolumeReader does."""
        self._writer: Descriptor | None = None  # holds the lock
        self._direct_writer: Descriptor | None = None  # around the page cache
        self._disk: ThreadPoolExecutor | None = None
        self._holders: set[int] = set()  # ids of objects
        self._changing = threading.RLock()  # header blocks and superblocks are being changed; taken before `_lock`
        self.buffers = Buffers(limits.APPEND_BUFFER_BYTES, spare_max=4)
        self._used = bytearray()  # one byte a unit
        self._free_units = self._next_unit = 0  # `_next_unit`: those before it are used
        self._free_headers: list[int] = []  # a heap
        super().__init__(path)
        _volumes.add(self)

    def hold(self, user: object) -> None:
        """`user`, who may write, uses it."""
        self._holders.add(id(user))  # add and discard are atomic

    def let_go(self, user: object, wait: bool = True) -> None:
        """And uses it no more. Without `wait`, nothing happens while another thread changes something: in a destructor, which may run
        in any thread at any moment, for that thread's own user will let go, too."""
        self._holders.discard(id(user))
        if not self._changing.acquire(blocking=wait):
            return
        try:
            if not self._holders and self._writer is not None:
                with self._lock:
                    self._writer.unlock()
                    self._writer = self._direct_writer = None
                    self._is_writer, self._noted = False, b""
        finally:
            self._changing.release()

    # -- the one writer ------------------------------------------------------------------------------------------

    def be_writer(self) -> None:
        """Become the process that writes. Raises Conflict, NotPermitted, FormatDamaged (a header is damaged)."""
        with self._changing:
            if self._writer is None:
                with durable.failures_named(self.path):
                    file = self._open_again(os.O_RDWR)
                    self._lock_volume(file.fd)
                    self._take_over(file)
            if self.damaged:
                number, why = next(iter(self.damaged.items()))
                raise FormatDamaged(
                    f"the volume {self.path} takes no packs: {why}, and what is free space is not known ({len(self.damaged)} "
                    f"such headers, the first is {number}); copy its packs to another tier and format it again"
                )

    def claim(self, store_id: bytes) -> bool:
        """As BlockTier.claim."""
        if self.superblock.store_id == store_id:
            return True
        self.be_writer()
        with self._changing:
            if self.superblock.store_id != store_id and not any(self.superblock.store_id):
                with durable.failures_named(self.path):
                    self._write_superblocks(self._writer_fd(), replace(self.superblock, store_id=store_id))
            return self.superblock.store_id == store_id

    def _lock_volume(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = lvb.parse_note(os.pread(fd, lvb.BLOCK_BYTES, lvb.NOTE_OFFSET))
            who = f"process {note.process} on {note.host}" if note else "another process"
            raise Conflict(
                f"the volume {self.path} is being written by {who}: wait until it ends or stop it, or write to another tier "
                "(reading goes on)"
            ) from None

    def _take_over(self, file: Descriptor) -> None:
        """With the lock: nobody else changes anything from here on."""
        os.fdatasync(file.fd)  # what is read from here on is on the device
        with self._lock:
            self._copies = [(-1, -1)] * len(
                self._copies
            )  # read all of them: a write that failed may have left anything
            self._scan()
            self._mend(file.fd)
            self._used = bytearray(self.superblock.units)
            for header in self._headers:
                for unit in header.units:
                    if self._used[unit]:
                        raise FormatDamaged(f"the volume {self.path} is damaged: two packs share its unit {unit}")
                    self._used[unit] = 1
            self._free_headers = [header.number for header in self._headers if not header.pack]  # sorted: a heap
            self._free_units, self._next_unit = self._used.count(0), 0
            self._direct_writer = self._open_direct(os.O_RDWR)
            self._writer, self._is_writer = file, True
            self._write_note()

    def _mend(self, fd: int) -> None:
        """Copies that differ become equal: an old one must not come to count when the new one is damaged."""
        torn = self._unequal - set(self.damaged)
        for number in torn:
            self._put_header(fd, self._headers[number])
        if torn:
            os.fdatasync(fd)
        self._unequal -= torn
        if not self._mirrored:
            self._write_superblocks(fd, self.superblock, times=1)

    def _write_superblocks(self, fd: int, superblock: Superblock, times: int = 2) -> None:
        """Write the next generations, each durable before the next."""
        for _ in range(times):
            superblock = replace(superblock, generation=superblock.generation + 1)
            write_all(fd, memoryview(superblock.encode()), superblock.copy_offset)
            os.fdatasync(fd)
        self.superblock = superblock

    def _put_header(self, fd: int, header: SegmentHeader) -> None:
        block = header.encode(self.superblock)
        write_all(fd, memoryview(block), self.superblock.header_offset(header.number))
        self._copies[header.number] = lvb.sequences_of(block)

    def _writer_fd(self) -> int:
        assert self._writer is not None, "only the writer gets here"
        return self._writer.fd

    def _write_header(self, header: SegmentHeader) -> None:
        self._put_header(self._writer_fd(), header)
        os.fdatasync(self._writer_fd())

    def _write_note(self) -> None:
        note = Note(self._sequence, os.getpid() & 0xFFFFFFFF, socket.gethostname())
        write_all(self._writer_fd(), memoryview(note.encode()), lvb.NOTE_OFFSET)

    # -- space ---------------------------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int]:
        """`count` free units, the first ones. Raises StoreFull, and then takes none."""
        with self._lock:
            if count > self._free_units:
                raise self._full(f"{self._free_units} of its {self.superblock.units} units are free")
            units, at = [], self._next_unit
            for _ in range(count):
                at = self._used.find(0, at)
                self._used[at] = 1
                units.append(at)
            self._free_units -= count
            self._next_unit = at + 1 if units else at
            return units

    def take(self, unit: int) -> bool:
        """Make a free unit used, until `release`; False when it is not free."""
        with self._lock:
            if self._used[unit]:
                return False
            self._used[unit] = 1
            self._free_units -= 1
            return True

    def release(self, units: Sequence[int]) -> None:
        """They are free again."""
        with self._lock:
            for unit in units:
                self._used[unit] = 0
            self._free_units += len(units)
            self._next_unit = min([self._next_unit, *units])

    def _full(self, why: str) -> StoreFull:
        return StoreFull(
            f"the volume {self.path} is full ({why}): free some space (`lepton gc` removes what no version needs), or add another "
            "tier; what was stored before is intact"
        )

    def write_units(self, units: Sequence[int], data: memoryview, offset: int) -> None:
        """Write whole blocks of a pack, around the page cache where the device takes that. Not durable before `sync`."""
        done = 0
        for place, length in self.superblock.runs(units, offset, len(data)):
            self._write(data[done : done + length], place)
            done += length

    def write_at(self, place: int, data: memoryview) -> None:
        """Write whole blocks to the device; for those who know what stands there. Not durable before `sync`."""
        self._write(data, place)

    def _write(self, data: memoryview, place: int) -> None:
        if self._direct_writer is not None:
            try:
                write_all(self._direct_writer.fd, data, place)
                return
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
        write_all(self._writer_fd(), data, place)

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._writer_fd())

    # -- changes -------------------------------------------------------------------------------------------------

    def publish(self, pack: str, length: int, units: Sequence[int]) -> None:
        """A pack whose bytes are durable is sealed; or else its units are free, unless the device fails.

        Raises StoreFull, FormatDamaged (the id is taken).
        """
        with self._changing:
            try:
                number = self._free_header(pack)
            except BaseException:
                self.release(units)
                raise
            header = SegmentHeader(number, self._sequence + 1, bytes.fromhex(pack), length, tuple(units))
            try:
                self._write_header(header)
                with self._lock:
                    self._replace(header)
                self._write_note()
            except BaseException:
                self._take_back(header)
                raise

    def _free_header(self, pack: str) -> int:
        with self._lock:
            if pack in self._packs:
                raise FormatDamaged(f"{self.path} has a pack {pack} already: ids of packs are never reused")
        if not self._free_headers:
            self._extend_headers()
        return heappop(self._free_headers)

    def _extend_headers(self) -> None:
        """Blocks that hold anything become free headers, and then count."""
        old = self.superblock
        count = min(limits.VOLUME_HEADERS_STEP, old.units - old.headers)
        if not count:
            raise self._full(f"all of its {old.units} segment headers are in use; `lepton gc` merges small packs")
        write_all(self._writer_fd(), memoryview(bytes(count * lvb.BLOCK_BYTES)), old.header_offset(old.headers))
        os.fdatasync(self._writer_fd())
        self._write_superblocks(self._writer_fd(), replace(old, headers=old.headers + count))
        with self._lock:
            for number in range(old.headers, old.headers + count):
                self._headers.append(SegmentHeader(number, 0))
                self._copies.append((-1, -1))
                heappush(self._free_headers, number)

    def _take_back(self, header: SegmentHeader) -> None:
        """Writing a header failed, and nobody knows what stands there. What cannot be freed now is known again after the next open."""
        free = SegmentHeader(header.number, header.sequence + 1)
        with self._lock:
            self._replace(free)
        with contextlib.suppress(OSError):
            self._write_header(free)
            heappush(self._free_headers, header.number)
            self.release(header.units)

    def delete(self, pack: str) -> None:
        """Free a pack's units, durably; no error when it is not there. Raises Conflict or NotPermitted."""
        if self.find(pack) is None:
            return
        self.be_writer()
        with self._changing:
            header = self.find(pack)
            if header is None:
                return
            free = SegmentHeader(header.number, self._sequence + 1)
            with durable.failures_named(self.path):
                self._write_header(free)
            with self._lock:
                self._replace(free)
            self._write_note()
            heappush(self._free_headers, header.number)
            self.release(header.units)

    # -- the process ---------------------------------------------------------------------------------------------

    def disk_thread(self) -> Executor:
        """Writes packs."""
        with self._lock:
            if self._disk is None:
                self._disk = ThreadPoolExecutor(1, "lepton-volume")
            return self._disk

    def after_fork(self) -> None:
        """In a child: the parent is the one that writes, if anybody is. Nothing of the parent's is unlocked."""
        self._changing, self._disk = threading.RLock(), None
        self.buffers = Buffers(limits.APPEND_BUFFER_BYTES, spare_max=4)
        self._writer = self._direct_writer = None
        self.forget()

    def __del__(self) -> None:
        if self._disk is not None:
            self._disk.shutdown(wait=False)


# -- one object a volume and process: its threads must not meet the lock of their own process ----------------------------

_shared: weakref.WeakValueDictionary[tuple[int, int, int], Volume] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()
_volumes: weakref.WeakSet[Volume] = weakref.WeakSet()  # all that are open


def shared_volume(path: Path) -> Volume:
    """The open volume at `path`, opened if it is not. Raises as Volume does."""
    with _shared_lock:
        try:
            status = os.stat(path)
        except OSError:
            return Volume(path)  # which says what is wrong
        key = (status.st_dev, status.st_ino, status.st_rdev)
        volume = _shared.get(key)
        if volume is None:
            volume = _shared[key] = Volume(path)
        return volume


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for volume in list(_volumes):
        volume.after_fork()


os.register_at_fork(after_in_child=_after_fork)
