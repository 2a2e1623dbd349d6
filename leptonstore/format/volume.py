"""LVB1: the bytes of a block volume, which holds packs on a file of fixed size or a raw block device. Little-endian.

    +------------+------------+------+-----------------------+-------+--------+--------+-- … --+
    | superblock | superblock | note | segment headers       |  gap  | unit 0 | unit 1 |       |
    +------------+------------+------+-----------------------+-------+--------+--------+-- … --+
    0            4 KiB        8 KiB  12 KiB, 4 KiB a unit            data offset, a multiple of the unit

A segment is one pack: a header block, which lists the units that its bytes fill in turn. Any free unit serves any pack, so that space
cannot be too scattered to be used; what is lost is less than a unit a pack. Nothing in a unit is ever taken for a header.

Everything but the units is sectors of 512 bytes: 480 bytes and their BLAKE3-256, rest of the block zero. So one that was half written is
known to be, and what was there before stands in another sector:

    superblock  0 magic "LVB1" | 4 major u8 | 5 minor u8 | 6 zero u16 | 8 required features u32 | 12 optional features u32
                16 generation u64 | 24 volume id (16) | 40 store id (16, or zero) | 56 size u64 | 64 data offset u64
                72 unit u32 | 76 units u32 | 80 headers in use u32 | 84 zero
                The valid copy of the higher generation counts; generation g stands in copy g % 2.
    header      0 magic "LSEG" | 4 major u8 | 5 state u8 (0 free, 1 sealed) | 6 units of the pack u16 | 8 number u32 | 12 zero u32
                16 sequence u64 | 24 volume id (16) | 40 pack id (16) | 56 length u64 | 64 unit u32 each, at most 104 | zero
                Twice in its block, at 0 and at 2,048: the valid copy of the higher sequence counts; zeros are a free one.
    note        0 magic "LNOT" | 4 zero u32 | 8 sequence u64 | 16 process u32 | 20 host (64) | zero
                Who writes, and the sequence of the last change: a hint for other processes of the host, of no use after a crash.

Header blocks from `headers in use` on were never written and hold anything. A reader refuses a larger major version or a required feature
that it does not know; magic, versions and check of a superblock stay where they are in all versions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from leptonstore.digest import DIGEST_BYTES, digest_of
from leptonstore.errors import FormatDamaged, FormatTooNew
from leptonstore.version import __version__

MAJOR, MINOR = 1, 0
BLOCK_BYTES, SECTOR_BYTES = 4096, 512
NOTE_OFFSET, HEADERS_OFFSET = 2 * BLOCK_BYTES, 3 * BLOCK_BYTES
UNITS_PER_PACK_MAX = 104  # what fits a sector
UNIT_BYTES_MIN, UNIT_BYTES_MAX = BLOCK_BYTES, 64 << 20
FREE, SEALED = 0, 1

_CHECKED_BYTES = SECTOR_BYTES - DIGEST_BYTES
_COPIES = (0, BLOCK_BYTES // 2)
_SUPERBLOCK = struct.Struct("<4sBBHIIQ16s16sQQIII")
_HEADER = struct.Struct("<4sBBHIIQ16s16sQ")
_NOTE = struct.Struct("<4sIQI64s")
_SEQUENCE = struct.Struct("<Q")
_BLANK = bytes(SECTOR_BYTES)


def _sector(content: bytes) -> bytes:
    content = content.ljust(_CHECKED_BYTES, b"\0")
    return content + digest_of(content)


def _whole(sector: bytes) -> bool:
    return len(sector) == SECTOR_BYTES and digest_of(sector[:_CHECKED_BYTES]) == sector[_CHECKED_BYTES:]


@dataclass(frozen=True)
class Superblock:
    """What a volume is. `headers`: header blocks that are in use, counted from the first; `size` in bytes."""

    volume_id: bytes
    size: int
    data_offset: int
    unit: int
    units: int
    headers: int = 0
    generation: int = 0
    store_id: bytes = bytes(16)

    @property
    def copy_offset(self) -> int:
        """Where this generation stands."""
        return self.generation % 2 * BLOCK_BYTES

    @property
    def capacity(self) -> int:
        """Bytes that packs can take."""
        return self.units * self.unit

    def encode(self) -> bytes:
        """4 KiB."""
        ids, place = (self.volume_id, self.store_id), (self.size, self.data_offset)
        counts = (self.unit, self.units, self.headers)
        head = _SUPERBLOCK.pack(b"LVB1", MAJOR, MINOR, 0, 0, 0, self.generation, *ids, *place, *counts)
        return _sector(head).ljust(BLOCK_BYTES, b"\0")

    @staticmethod
    def header_offset(number: int) -> int:
        """Where a header block stands."""
        return HEADERS_OFFSET + number * BLOCK_BYTES

    def runs(self, units: Sequence[int], offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset on the volume, length) of the pieces of a pack's bytes; neighbouring units are one piece."""
        begin = count = 0
        while length > 0:
            place = self.data_offset + units[offset // self.unit] * self.unit + offset % self.unit
            piece = min(self.unit - offset % self.unit, length)
            if count and begin + count == place:
                count += piece
            else:
                if count:
                    yield begin, count
                begin, count = place, piece
            offset, length = offset + piece, length - piece
        if count:
            yield begin, count


def laid_out(volume_id: bytes, size: int, unit: int, store_id: bytes = bytes(16)) -> Superblock | None:
    """The superblock of a new volume with as many units as `size` has room for; None when it has none for a single one."""
    units = max(0, (size - HEADERS_OFFSET) // (unit + BLOCK_BYTES))
    while units:
        data_offset = -(-(HEADERS_OFFSET + units * BLOCK_BYTES) // unit) * unit
        if data_offset + units * unit <= size:
            return Superblock(volume_id, size, data_offset, unit, units, store_id=store_id)
        units -= 1
    return None


def begins_like_a_volume(data: bytes) -> bool:
    """Whether either superblock has the magic, intact or not."""
    return data[:4] == b"LVB1" or data[BLOCK_BYTES : BLOCK_BYTES + 4] == b"LVB1"


def parse_superblocks(data: bytes, what: str) -> tuple[Superblock, bool]:
    """The first 8 KiB of a volume -> the superblock that counts, and whether the other copy says the same.

    `what` names the volume in errors. Raises FormatDamaged or FormatTooNew.
    """
    found = []
    for start in (0, BLOCK_BYTES):
        sector = data[start : start + SECTOR_BYTES]
        superblock = _superblock(sector, what) if _whole(sector) and sector[:4] == b"LVB1" else None
        if superblock is not None and superblock.copy_offset == start:
            found.append(superblock)
    if not found:
        raise FormatDamaged(f"{what} is damaged: neither of its superblocks is intact; restore it from a copy")
    newest = max(found, key=lambda superblock: superblock.generation)
    same = all((one.volume_id, one.headers) == (newest.volume_id, newest.headers) for one in found)
    return newest, len(found) == 2 and same


def _superblock(sector: bytes, what: str) -> Superblock | None:
    fields = _SUPERBLOCK.unpack_from(sector)
    _, major, minor, _, required, _, generation, volume_id, store_id, size, data_offset, unit, units, headers = fields
    if major > MAJOR:
        raise FormatTooNew(
            f"{what} has format {major}.{minor}; this LeptonStore ({__version__}) reads up to {MAJOR}.x: upgrade LeptonStore"
        )
    if required:
        raise FormatTooNew(
            f"{what} needs features {required:#x}, which this LeptonStore ({__version__}) lacks: upgrade LeptonStore"
        )
    placed = HEADERS_OFFSET + units * BLOCK_BYTES <= data_offset and data_offset + units * unit <= size
    if not placed or not unit_is_legal(unit) or data_offset % BLOCK_BYTES or not headers <= units:
        return None
    return Superblock(volume_id, size, data_offset, unit, units, headers, generation, store_id)


def unit_is_legal(unit: int) -> bool:
    """Whether it is a power of two in its bounds."""
    return UNIT_BYTES_MIN <= unit <= UNIT_BYTES_MAX and unit & (unit - 1) == 0


@dataclass(frozen=True)
class SegmentHeader:
    """A header block: one pack and its units in order, or (without a pack) free."""

    number: int
    sequence: int
    pack: bytes = b""
    length: int = 0
    units: tuple[int, ...] = ()

    def encode(self, superblock: Superblock) -> bytes:
        """4 KiB."""
        state, pack = (SEALED, self.pack) if self.pack else (FREE, bytes(16))
        ids = (superblock.volume_id, pack)
        head = _HEADER.pack(
            b"LSEG", MAJOR, state, len(self.units), self.number, 0, self.sequence, *ids, self.length
        ) + struct.pack(f"<{len(self.units)}I", *self.units)
        half = _sector(head).ljust(BLOCK_BYTES // 2, b"\0")
        return half + half


def sequences_of(block: bytes) -> tuple[int, int]:
    """Of the two copies of a header block, unchecked: they change whenever it does."""
    return _SEQUENCE.unpack_from(block, _COPIES[0] + 16)[0], _SEQUENCE.unpack_from(block, _COPIES[1] + 16)[0]


def copies_equal(block: bytes) -> bool:
    """Whether both copies of a header are the same bytes."""
    first, second = (block[start : start + SECTOR_BYTES] for start in _COPIES)
    return first == second


def parse_header(block: bytes, number: int, superblock: Superblock) -> SegmentHeader:
    """A header block. Raises FormatDamaged when neither copy is intact."""
    found = []
    for start in _COPIES:
        sector = block[start : start + SECTOR_BYTES]
        header = SegmentHeader(number, 0) if sector == _BLANK else _header(sector, number, superblock)
        if header is not None:
            found.append(header)
    if not found:
        raise FormatDamaged(f"segment header {number} is damaged: neither of its copies is intact")
    return max(found, key=lambda header: header.sequence)


def _header(sector: bytes, number: int, superblock: Superblock) -> SegmentHeader | None:
    if not _whole(sector):
        return None
    magic, major, state, count, its_number, _, sequence, volume_id, pack, length = _HEADER.unpack_from(sector)
    ours = (magic, its_number, volume_id) == (b"LSEG", number, superblock.volume_id)
    if not ours or major > MAJOR or state not in (FREE, SEALED) or count > UNITS_PER_PACK_MAX:
        return None
    if state == FREE:
        return SegmentHeader(number, sequence)
    units = struct.unpack_from(f"<{count}I", sector, _HEADER.size)
    if count != -(-length // superblock.unit) or len(set(units)) != count:
        return None
    if pack == bytes(16) or any(unit >= superblock.units for unit in units):
        return None
    return SegmentHeader(number, sequence, pack, length, units)


class Note(NamedTuple):
    """Who writes to a volume, and its last change."""

    sequence: int
    process: int
    host: str

    def encode(self) -> bytes:
        """4 KiB."""
        host = self.host.encode("ascii", "replace")[:64]
        return _sector(_NOTE.pack(b"LNOT", 0, self.sequence, self.process, host)).ljust(BLOCK_BYTES, b"\0")


def parse_note(block: bytes) -> Note | None:
    """The note; None when there is none that can be read."""
    sector = block[:SECTOR_BYTES]
    if not _whole(sector) or sector[:4] != b"LNOT":
        return None
    _, _, sequence, process, host = _NOTE.unpack_from(sector)
    text = host.rstrip(b"\0").decode("ascii", "replace")
    return Note(sequence, process, "".join(letter for letter in text if letter.isprintable()))
