"""An open block volume: which packs are on it, its free space, and the order of writes that keeps both true.

    seal    units written -> fdatasync -> header block -> fdatasync -> the pack is known, here and (by the note) elsewhere
    delete  header block freed -> fdatasync -> the pack is forgotten, here and by the note -> its units may be used again

Invariants:
- A unit is overwritten only while no header on the device, in whatever state a power loss leaves it, lists it in a sealed pack.
- A header is written only when the bytes of its pack are durable. Both copies of a header stand in different sectors, so that one that
  was torn reads as it was before or as it should be.
- The map of packs is derived from the headers whenever a volume is opened, or another process changed it; nothing else is believed.
- One process writes (flock, held from the first change on until the volume is closed here). The first thing it does is to make durable
  what it found, for its predecessor may have been killed before it did so, and to mend copies that differ.

Readers in other processes look at the note before and after they read: a pack that was deleted meanwhile is missing, not altered. All
processes must be on one host. A forked child starts as a reader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from urllib.parse import unquote, urlparse

from leptonstore import limits
from leptonstore.errors import BadInput, Conflict, FormatDamaged, NotPermitted, StoreFull, StoreMissing
from leptonstore.format import volume as lvb
from leptonstore.format.volume import Note, SegmentHeader, Superblock
from leptonstore.tiers import durable
from leptonstore.tiers.direct import REFUSED, Buffers, write_all

TORN_READ_TRIES = 5  # of a header block that its writer may be changing at this moment


def volume_path(url: str | Path) -> Path:
    """A path, or block:///path, as an absolute path."""
    text = str(url)
    if text.startswith("block:"):
        text = unquote(urlparse(text).path)
    if not text or "://" in text:
        raise BadInput(f"{url}: give the path of a volume, or block:///path")
    return Path(text).expanduser().absolute()


def length_of(fd: int) -> int:
    """Bytes of an open file or block device."""
    return os.lseek(fd, 0, os.SEEK_END)


def parse_pack(pack: str) -> bytes:
    """32 hex digits -> 16 bytes. Raises BadInput."""
    try:
        parsed = bytes.fromhex(pack)
    except ValueError:
        parsed = b""
    if len(parsed) != 16 or not any(parsed) or parsed.hex() != pack:
        raise BadInput(f"{pack!r} is no id of a pack: 32 hexadecimal digits, in lower case, and not all zero")
    return parsed


class Volume:
    """A volume, shared by whoever uses it in this process. Any thread. Closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        """Raises StoreMissing, BadInput (no volume), NotPermitted, FormatDamaged (too small, truncated, altered) or FormatTooNew."""
        self.path = path
        self._disk: ThreadPoolExecutor | None = None
        self._writer_fd = self._direct_fd = self._fd = -1
        self._reading_direct = -2  # not tried yet
        self._fd = _open(path)
        self._lock = threading.RLock()  # what is known; held for moments, and while headers are read
        self._changing = threading.RLock()  # header blocks and superblocks are being changed; taken before `_lock`
        self._packs: dict[str, SegmentHeader] = {}
        self._headers: list[SegmentHeader] = []
        self._copies: list[tuple[int, int]] = []  # the sequences of both copies of each header
        self._unequal: set[int] = set()  # headers whose copies differ
        self.damaged: dict[int, str] = {}  # number of a header -> what is wrong with it
        self._used, self._free_units, self._free_headers = bytearray(), 0, [0][:0]
        self._next_unit, self._sequence = 0, 0
        self._noted = b""
        self.buffers = Buffers(limits.APPEND_BUFFER_BYTES, spare_max=4)
        self.superblock, self._mirrored = self._read_superblock()
        self.refresh()
        _volumes.add(self)

    # -- what is there -------------------------------------------------------------------------------------------

    def _read_superblock(self) -> tuple[Superblock, bool]:
        size, data = length_of(self._fd), os.pread(self._fd, lvb.NOTE_OFFSET, 0)
        if not lvb.begins_like_a_volume(data):
            why = "is too small to be" if size < lvb.HEADERS_OFFSET else "is not"
            raise BadInput(f"{self.path} {why} a LeptonStore volume: make one with `lepton tier format-block`")
        superblock, mirrored = lvb.parse_superblocks(data, f"the volume {self.path}")
        if size < superblock.size:
            raise FormatDamaged(
                f"the volume {self.path} is truncated: it has {size} of {superblock.size} bytes; restore it from a copy"
            )
        return superblock, mirrored

    def refresh(self) -> None:
        """See what another process changed since. Costs a read from memory when nothing was."""
        if self._writer_fd >= 0:
            return
        note = os.pread(self._fd, lvb.BLOCK_BYTES, lvb.NOTE_OFFSET)
        if note == self._noted:
            return
        with self._lock:
            if self._writer_fd < 0:
                self._scan()
                self._noted = note

    def _scan(self) -> None:
        """Read the header blocks, and parse those that changed."""
        superblock, self._mirrored = self._read_superblock()
        if superblock.volume_id != self.superblock.volume_id:
            raise FormatDamaged(f"the volume {self.path} was formatted anew while it was in use: open it again")
        self.superblock = superblock
        for number in range(len(self._headers), superblock.headers):
            self._headers.append(SegmentHeader(number, 0))
            self._copies.append((-1, -1))
        for first in range(0, superblock.headers, limits.VOLUME_HEADERS_STEP):
            count = min(limits.VOLUME_HEADERS_STEP, superblock.headers - first)
            blocks = memoryview(os.pread(self._fd, count * lvb.BLOCK_BYTES, superblock.header_offset(first)))
            for at in range(count):
                self._learn(first + at, bytes(blocks[at * lvb.BLOCK_BYTES : (at + 1) * lvb.BLOCK_BYTES]))

    def _learn(self, number: int, block: bytes) -> None:
        for attempt in range(TORN_READ_TRIES):
            copies = lvb.sequences_of(block)
            if copies == self._copies[number] and number not in self.damaged:
                return
            try:
                header = lvb.parse_header(block, number, self.superblock)
            except FormatDamaged as error:
                if attempt < TORN_READ_TRIES - 1:
                    block = os.pread(self._fd, lvb.BLOCK_BYTES, self.superblock.header_offset(number))
                    continue
                self.damaged[number] = str(error)
                header = SegmentHeader(number, 0)
            else:
                self.damaged.pop(number, None)
            self._replace(header)
            self._copies[number] = copies
            (self._unequal.discard if lvb.copies_equal(block) else self._unequal.add)(number)
            return

    def _replace(self, header: SegmentHeader) -> None:
        """Under the lock: a header as it stands on the volume now."""
        old = self._headers[header.number]
        known = self._packs.get(old.pack.hex())
        if old.pack and known is old:
            del self._packs[old.pack.hex()]
        self._headers[header.number] = header
        if header.pack:
            self._packs[header.pack.hex()] = header
        self._sequence = max(self._sequence, header.sequence)

    def find(self, pack: str) -> SegmentHeader | None:
        """Where a sealed pack lies."""
        self.refresh()
        with self._lock:
            return self._packs.get(pack)

    def packs(self) -> list[str]:
        """The ids of all sealed packs."""
        self.refresh()
        with self._lock:
            return list(self._packs)

    @property
    def used_units(self) -> int:
        """Units that sealed packs take."""
        self.refresh()
        with self._lock:
            return sum(len(header.units) for header in self._packs.values())

    def read_into(self, fd: int, memory: memoryview, units: Sequence[int], offset: int, flags: int = 0) -> None:
        """Fill `memory` with the bytes of a pack from `offset` on. Raises OSError, also when the volume ends before them."""
        done = 0
        for place, length in self.superblock.runs(units, offset, len(memory)):
            end = done + length
            while done < end:
                count = os.preadv(fd, [memory[done:end]], place + done - end + length, flags)
                if count == 0:
                    raise OSError(errno.EIO, "the volume ends before its packs do: is it truncated?", str(self.path))
                done += count

    def read_cached(self, memory: memoryview, units: Sequence[int], offset: int) -> None:
        """`read_into` of what is in the page cache. Raises BlockingIOError when some of it is not."""
        self.read_into(self._fd, memory, units, offset, os.RWF_NOWAIT)

    def read_units(self, units: Sequence[int], offset: int, length: int) -> bytes:
        """Bytes of a pack. Raises OSError."""
        runs = list(self.superblock.runs(units, offset, length))
        if len(runs) == 1:
            data = os.pread(self._fd, length, runs[0][0])
            if len(data) == length:
                return data
        joined = bytearray(length)
        self.read_into(self._fd, memoryview(joined), units, offset)
        return bytes(joined)

    def direct_reader(self) -> int:
        """A descriptor that reads around the page cache, -1 where there is none."""
        if self._reading_direct == -2:
            with self._lock:
                if self._reading_direct == -2:
                    self._reading_direct = self._open_direct(os.O_RDONLY)
        return self._reading_direct

    def _open_direct(self, flags: int) -> int:
        try:
            return self._open_again(flags | os.O_DIRECT)
        except OSError:  # EINVAL and others
            return -1

    def _open_again(self, flags: int) -> int:
        fd = os.open(self.path, flags | os.O_CLOEXEC)
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            raise Conflict(f"{self.path} is another file now than when it was opened: open the volume again")
        return fd

    # -- the one writer ------------------------------------------------------------------------------------------

    def be_writer(self) -> None:
        """Become the process that writes. Raises Conflict, NotPermitted, FormatDamaged (a header is damaged)."""
        with self._changing:
            if self._writer_fd < 0:
                with durable.failures_named(self.path):
                    fd = self._open_again(os.O_RDWR)
                    try:
                        self._lock_volume(fd)
                        self._take_over(fd)
                    except BaseException:
                        os.close(fd)
                        raise
            if self.damaged:
                number, why = next(iter(self.damaged.items()))
                raise FormatDamaged(
                    f"the volume {self.path} takes no packs: {why}, and what is free space is not known ({len(self.damaged)} "
                    f"such headers, the first is {number}); copy its packs to another tier and format it again"
                )

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

    def _take_over(self, fd: int) -> None:
        """With the lock: nobody else changes anything from here on."""
        os.fdatasync(fd)  # what is read from here on is on the device
        with self._lock:
            self._scan()
            self._mend(fd)
            self._used = bytearray(self.superblock.units)
            for header in self._headers:
                for unit in header.units:
                    if self._used[unit]:
                        raise FormatDamaged(f"the volume {self.path} is damaged: two packs share its unit {unit}")
                    self._used[unit] = 1
            self._free_headers = [header.number for header in self._headers if not header.pack]  # sorted: a heap
            self._free_units, self._next_unit = self._used.count(0), 0
            self._direct_fd = self._open_direct(os.O_RDWR)
            self._writer_fd = fd
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

    def _write_header(self, header: SegmentHeader) -> None:
        self._put_header(self._writer_fd, header)
        os.fdatasync(self._writer_fd)

    def _write_note(self) -> None:
        note = Note(self._sequence, os.getpid() & 0xFFFFFFFF, socket.gethostname())
        write_all(self._writer_fd, memoryview(note.encode()), lvb.NOTE_OFFSET)

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

    def _write(self, data: memoryview, place: int) -> None:
        if self._direct_fd >= 0:
            try:
                write_all(self._direct_fd, data, place)
                return
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
        write_all(self._writer_fd, data, place)

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._writer_fd)

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
        write_all(self._writer_fd, memoryview(bytes(count * lvb.BLOCK_BYTES)), old.header_offset(old.headers))
        os.fdatasync(self._writer_fd)
        self._write_superblocks(self._writer_fd, replace(old, headers=old.headers + count))
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
        self._lock, self._changing, self._disk = threading.RLock(), threading.RLock(), None
        self.buffers = Buffers(limits.APPEND_BUFFER_BYTES, spare_max=4)
        for fd in {self._writer_fd, self._direct_fd} - {-1}:
            os.close(fd)
        self._writer_fd = self._direct_fd = -1
        # Another thread of the parent may have been in the middle of a change.
        self._packs, self._headers, self._copies, self._noted = {}, [], [], b""

    def __del__(self) -> None:
        if self._disk is not None:
            self._disk.shutdown(wait=False)
        if self._writer_fd >= 0:
            fcntl.flock(self._writer_fd, fcntl.LOCK_UN)  # a child that was forked may hold a copy of the descriptor
        for fd in {self._fd, self._writer_fd, self._direct_fd, self._reading_direct} - {-1, -2}:
            os.close(fd)


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissing(
            f"there is no volume at {path}: make one with `lepton tier format-block`", str(path)
        ) from None
    except PermissionError as error:
        raise NotPermitted(f"this user may not read the volume {path} ({error.strerror}): ask its owner") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise BadInput(f"{path} is neither a file nor a block device: it cannot be a volume")
    return fd


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
