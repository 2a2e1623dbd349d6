"""A block volume as a tier: packs on a preallocated file or a raw block device (format/volume.py has the bytes).

    create_pack -> bytes collect in aligned memory -> free units, 4 MiB at a time, around the page cache -> seal (block_volume.py)

It holds packs only: a store's config and log live elsewhere. Where the device or filesystem refuses O_DIRECT (tmpfs), reads and writes go
through the page cache; every promise is the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput
from leptonstore.format.volume import UNITS_PER_PACK_MAX, SegmentHeader
from leptonstore.tiers import block_wipe, durable
from leptonstore.tiers.block_scan import volume_path
from leptonstore.tiers.block_volume import Volume, parse_pack, shared_volume
from leptonstore.tiers.direct import ALIGN, REFUSED, Appender, ThreadMemory


def open_block(url: str | Path) -> BlockTier:
    """The volume at a path or block:///path. Those who open it in one process share one view of it.

    Raises StoreMissing, BadInput (no volume), NotPermitted, FormatDamaged (truncated, altered) or FormatTooNew.
    """
    return BlockTier(shared_volume(volume_path(url)))


class _UnitAppender(Appender):
    """Appends to units of a volume, which it takes as it needs them."""

    def __init__(self, volume: Volume, pack: str) -> None:
        super().__init__(-1, -1, volume.buffers, volume.disk_thread)
        self._volume, self._pack = volume, pack
        self.units: list[int] = []

    def _prepare(self, start: int, end: int) -> None:
        missing = -(-end // self._volume.superblock.unit) - len(self.units)
        if len(self.units) + missing > UNITS_PER_PACK_MAX:
            most = UNITS_PER_PACK_MAX * self._volume.superblock.unit
            raise BadInput(f"a pack on the volume {self._volume.path} has at most {most} bytes; this one is longer")
        self.units += self._volume.allocate(missing)

    def _write(self, memory: memoryview, offset: int) -> None:
        self._volume.write_units(self.units, memory, offset)

    def _write_last(self, memory: memoryview, filled: int, offset: int) -> None:
        self._prepare(offset, offset + filled)
        whole = -(-filled // ALIGN) * ALIGN
        memory[filled:whole] = bytes(whole - filled)
        self._volume.write_units(self.units, memory[:whole], offset)

    def _read_back(self, offset: int, length: int) -> bytes:
        return self._volume.read_units(self._pack, self.units, offset, length)


class BlockPackSink:
    """A pack being written to a volume. Its units are free again unless it is sealed."""

    _writing = _owner = False  # what it must let go of: the volume, and its units

    def __init__(self, volume: Volume, pack: str) -> None:
        parse_pack(pack)
        self._process, self._volume, self._pack = os.getpid(), volume, pack
        self._appender = _UnitAppender(volume, pack)
        volume.hold(self)
        self._writing = self._owner = True
        try:
            volume.be_writer()
        except BaseException:
            self._let_go()
            raise

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`. Raises StoreFull, also of an earlier write, or BadInput (longer than a pack may be)."""
        with durable.failures_named(self._volume.path):
            self._appender.append(*parts)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written, before the seal or after. Raises StoreFull of an earlier write."""
        with durable.failures_named(self._volume.path):
            return self._appender.read(offset, length)

    def seal(self) -> None:
        """Publish the pack. Raises StoreFull; or FormatDamaged when the id is taken (never in practice)."""
        with durable.failures_named(self._volume.path):
            length = self._appender.finish()
            self._volume.sync()
            self._owner = False
            self._volume.publish(self._pack, length, self._appender.units)
        self._let_go()

    def abort(self) -> None:
        """Wait until nothing is written any more, and give the units back."""
        if (
            self._process != os.getpid()
        ):  # a forked child holds a copy: the parent's disk thread and units are not its business
            return
        self._give_back()
        self._let_go()

    def _give_back(self) -> None:
        self._appender.settle()
        if self._owner:
            self._owner = False
            self._volume.release(self._appender.units)

    def _let_go(self, wait: bool = True) -> None:
        if self._writing:
            self._writing = False
            self._volume.let_go(self, wait)

    def __del__(self) -> None:
        if self._writing and self._process == os.getpid():
            self._give_back()
            self._let_go(wait=False)


class BlockTier:
    """PackStreamer and PackPruner. Any thread; one process at a time writes, on one host."""

    def __init__(self, volume: Volume) -> None:
        self.path = volume.path
        self._open: Volume | None = volume
        self._memory = ThreadMemory()
        volume.hold(self)

    @property
    def _volume(self) -> Volume:
        volume = self._open
        if volume is None:
            volume = shared_volume(self.path)
            volume.hold(self)
            self._open = volume
        return volume

    @property
    def url(self) -> str:
        """block:///path"""
        return f"block://{quote(str(self.path))}"

    @property
    def store_id(self) -> bytes:
        """The store that the volume was made for; zero for any."""
        return self._volume.superblock.store_id

    def claim(self, store_id: bytes) -> bool:
        """Make the volume that store's, durably: whether it is, False when it is another one's already. Raises Conflict, NotPermitted."""
        return self._volume.claim(store_id)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that packs can take."""
        return self._volume.superblock.capacity

    @property
    def used_bytes(self) -> int:
        """Bytes of `capacity_bytes` that sealed packs take: their lengths in whole units."""
        return self._volume.used_units * self._volume.superblock.unit

    @property
    def damaged_headers(self) -> dict[int, str]:
        """Segment headers that cannot be read: number -> why. While there are any, no pack can be added."""
        self._volume.refresh()
        return dict(self._volume.damaged)

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when it is not here."""
        segment = self._volume.find(pack)
        return None if segment is None else segment.length

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only where the pack ends. Raises FileNotFoundError or OSError."""
        volume = self._volume
        segment, length = self._found(volume, pack, offset, length)
        data = volume.read_units(pack, segment.units, offset, length) if length else b""
        self._confirm(volume, pack, segment)
        return data

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """`read` from the device, which leaves the page cache as it is. The calling thread's until its next call."""
        if length < limits.DIRECT_READ_BYTES_MIN:
            return self.read(pack, offset, length)
        volume = self._volume
        segment, length = self._found(volume, pack, offset, length)
        direct = volume.direct_reader()
        if direct is None or length == 0:
            return self.read(pack, offset, length)
        start = offset - offset % ALIGN
        end = -(-(offset + length) // ALIGN) * ALIGN
        memory = self._memory.take(end - start)
        place = slice(offset - start, offset - start + length)
        try:  # Asking the page cache first (RWF_NOWAIT) makes it read ahead: everything would be read twice.
            volume.read_into(direct.fd, memory, segment.units, start)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            return self.read(pack, offset, length)
        self._confirm(volume, pack, segment)
        return memory[place]

    def _found(self, volume: Volume, pack: str, offset: int, length: int) -> tuple[SegmentHeader, int]:
        segment = volume.find(pack)
        if segment is None:
            raise self._missing(pack)
        return segment, max(0, min(length, segment.length - offset))

    def _confirm(self, volume: Volume, pack: str, segment: SegmentHeader) -> None:
        """After a read: what was read was that pack's all the time."""
        if volume.find(pack) is not segment:
            raise self._missing(pack)

    def _missing(self, pack: str) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, f"the volume has no pack {pack}", str(self.path))

    def packs(self) -> Iterator[str]:
        """Ids of all sealed packs, in no order."""
        yield from self._volume.packs()

    def create_pack(self, pack: str) -> BlockPackSink:
        """Begin a pack under a new random id. Raises Conflict while another process writes, NotPermitted, or FormatDamaged."""
        return BlockPackSink(self._volume, pack)

    def delete_pack(self, pack: str) -> None:
        """Remove a pack, durably; no error when it is not there. Raises Conflict while another process writes, or NotPermitted."""
        self._volume.delete(pack)

    def wipe_free(self) -> int:
        """As FreeSpace.wipe_free. Raises Conflict while another process writes, NotPermitted or FormatDamaged."""
        return block_wipe.wipe(self._volume)

    def free_not_zero(self) -> int:
        """As FreeSpace.free_not_zero."""
        return block_wipe.not_zero(self._volume)

    def after_fork(self) -> None:
        """In a child process: volumes see to that by themselves."""

    def close(self) -> None:
        """Let the volume go: when all tiers and unfinished packs of this process have, another process may write.

        Using it again reopens it.
        """
        volume, self._open = self._open, None
        if volume is not None:
            volume.let_go(self)
        self._memory = ThreadMemory()

    def __del__(self) -> None:
        volume: Volume | None = getattr(self, "_open", None)
        if volume is not None:
            volume.let_go(self, wait=False)
