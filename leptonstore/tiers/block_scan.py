"""A block volume as a reader sees it: the map from packs to the units that hold them, derived from the segment headers.

    note as before? -> the map is right: pread the units of the pack -> note still as before? -> the bytes are the pack's

The headers are read when a volume is opened, and again when the note says that its writer, in another process, changed something: only
those that changed are parsed. A pack that was deleted while it was read is missing, not altered: its writer changes header and note
before it gives the units away. All processes must be on one host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from leptonstore import limits
from leptonstore.errors import BadInput, Conflict, FormatDamaged, NotPermitted, StoreMissing
from leptonstore.format import volume as lvb
from leptonstore.format.volume import SegmentHeader, Superblock

TORN_READ_TRIES = 5  # of a header block that its writer may be changing at this moment
OPEN_PACKS_MAX = 64  # descriptors kept for reading


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


class Descriptor:
    """An open file that closes with its last user."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def unlock(self) -> None:
        """Closing is not enough: a forked child may hold a copy."""
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def __del__(self) -> None:
        fd, self.fd = (
            self.fd,
            -1,
        )  # whoever still knows it, being destroyed in the same cycle, must not take another file for it
        os.close(fd)


class VolumeReader:
    """A volume as it stands, for reading. Any thread."""

    def __init__(self, path: Path) -> None:
        """Raises StoreMissing, BadInput (no volume), NotPermitted, FormatDamaged (too small, truncated, altered) or FormatTooNew."""
        self.path = path
        self._file = Descriptor(_open(path))
        self._direct: Descriptor | None = None
        self._direct_tried = False
        self._by_pack: OrderedDict[str, Descriptor] = OrderedDict()
        self._lock = threading.RLock()  # what is known; held for moments, and while headers are read
        self._is_writer = False  # nobody else changes anything: what is known is true
        self._packs: dict[str, SegmentHeader] = {}
        self._headers: list[SegmentHeader] = []
        self._copies: list[tuple[int, int]] = []  # the sequences of both copies of each header
        self._unequal: set[int] = set()  # headers whose copies differ
        self.damaged: dict[int, str] = {}  # number of a header -> what is wrong with it
        self._sequence = 0  # the highest of a header
        self._noted = b""  # the note when headers were last read
        self.superblock, self._mirrored = self._read_superblock()
        self.refresh()

    # -- what is there -------------------------------------------------------------------------------------------

    def _read_superblock(self) -> tuple[Superblock, bool]:
        size, data = length_of(self._file.fd), os.pread(self._file.fd, lvb.NOTE_OFFSET, 0)
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
        if self._is_writer:
            return
        note = os.pread(self._file.fd, lvb.BLOCK_BYTES, lvb.NOTE_OFFSET)
        if note == self._noted:
            return
        with self._lock:
            if not self._is_writer:
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
            blocks = memoryview(os.pread(self._file.fd, count * lvb.BLOCK_BYTES, superblock.header_offset(first)))
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
                    block = os.pread(self._file.fd, lvb.BLOCK_BYTES, self.superblock.header_offset(number))
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

    def read_into(self, fd: int, memory: memoryview, units: Sequence[int], offset: int) -> None:
        """Fill `memory` with the bytes of a pack from `offset` on. Raises OSError, also when the volume ends before them."""
        done = 0
        for place, length in self.superblock.runs(units, offset, len(memory)):
            end = done + length
            while done < end:
                count = os.preadv(fd, [memory[done:end]], place + done - end + length)
                if count == 0:
                    raise OSError(errno.EIO, "the volume ends before its packs do: is it truncated?", str(self.path))
                done += count

    def read_at(self, place: int, length: int) -> bytes:
        """What stands anywhere on the device. Raises OSError."""
        return os.pread(self._file.fd, length, place)

    def read_units(self, pack: str, units: Sequence[int], offset: int, length: int) -> bytes:
        """Bytes of a pack, through the page cache. Raises OSError."""
        runs = list(self.superblock.runs(units, offset, length))
        file = self._file_of(pack)
        if len(runs) == 1:
            data = os.pread(file.fd, length, runs[0][0])
            if len(data) == length:
                return data
        joined = bytearray(length)
        self.read_into(file.fd, memoryview(joined), units, offset)
        return bytes(joined)

    def _file_of(self, pack: str) -> Descriptor:
        """A descriptor for each pack: the kernel reads ahead of each one by itself."""
        with self._lock:
            if pack in self._by_pack:
                self._by_pack.move_to_end(pack)
                return self._by_pack[pack]
            try:
                file = self._by_pack[pack] = self._open_again(os.O_RDONLY)
            except (OSError, Conflict):  # the name is gone, or there are too many open files
                return self._file
            if len(self._by_pack) > OPEN_PACKS_MAX:
                self._by_pack.popitem(last=False)
            return file

    def direct_reader(self) -> Descriptor | None:
        """What reads around the page cache; None where nothing does."""
        with self._lock:
            if not self._direct_tried:
                self._direct, self._direct_tried = self._open_direct(os.O_RDONLY), True
            return self._direct

    def _open_direct(self, flags: int) -> Descriptor | None:
        try:
            return self._open_again(flags | os.O_DIRECT)
        except OSError:  # EINVAL and others
            return None

    def _open_again(self, flags: int) -> Descriptor:
        file = Descriptor(os.open(self.path, flags | os.O_CLOEXEC))
        if not os.path.samestat(os.fstat(file.fd), os.fstat(self._file.fd)):
            raise Conflict(f"{self.path} is another file now than when it was opened: open the volume again")
        return file

    def forget(self) -> None:
        """In a forked child: another thread of the parent may have been in the middle of anything."""
        self._lock, self._is_writer = threading.RLock(), False
        self._packs, self._headers, self._copies, self._unequal, self.damaged = {}, [], [], set(), {}
        self._by_pack, self._noted = OrderedDict(), b""


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
