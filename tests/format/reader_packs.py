"""The part of the independent reader that takes packs apart (docs/FORMAT.md, "Packs"); see reader.py for the rest."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

import zstandard
from reader_common import MIB, digest_of, need

NONE = 0xFFFFFFFF
CHUNK, CHUNK_LIST, DICTIONARY, GROUP, REFERENCE = 1, 2, 3, 4, 5
RAW, ZSTD, PLANES = 0, 1, 2
ENCRYPTED = 1
MEMBER = 1
_RECORD = struct.Struct("<4sBBBBIQQ32sI")
_ROW = struct.Struct("<32sQQQBBBBI")


class Row(NamedTuple):
    """A row of a footer."""

    name: bytes
    offset: int
    stored: int
    raw: int
    kind: int
    codec: int
    flags: int
    width: int
    place: int


class Keys(Protocol):
    """What an encrypted store has beside; see reader_sealed.py."""

    def name(self, digest: bytes) -> bytes:
        """What packs call the chunk with this digest."""

    def open_payload(self, header: bytes, offset: int, head: bytes, payload: bytes) -> bytes:
        """The encoded bytes of the record at `offset`; `header` is that of the pack, `head` 60 bytes of the record."""


class Record(NamedTuple):
    """A chunk, chunk list or dictionary, decoded and checked. `grouped`: it shares its record with others."""

    name: bytes
    kind: int
    codec: int
    ordinal: int
    grouped: bool
    plain: bytes


@dataclass
class PackReader:
    """One pack, read whole and verified."""

    pack_id: str
    header: bytes
    content: int
    keys: Keys | None
    records: list[Record] = field(default_factory=list)
    dictionaries: list[bytes] = field(default_factory=list)

    def name_of(self, plain: bytes) -> bytes:
        """What the pack calls a chunk of these bytes."""
        digest = digest_of(plain)
        return digest if self.keys is None else self.keys.name(digest)


def read_pack(data: bytes, pack_id: str, store_id: bytes, keys: Keys | None = None) -> PackReader:
    """Header, trailer, footer, then the records from byte 128 to the footer, one directly after another."""
    need(128 + 80 <= len(data) <= 64 * MIB, "pack: its size")
    magic, major, _, content, zero, required, _ = struct.unpack_from("<4sBBBBII", data)
    need(magic == b"LPK1" and major == 1 and content in (1, 2) and zero == 0, "pack header")
    need(required == (ENCRYPTED if keys else 0), "pack: a required feature that this reader lacks, or none")
    need(data[16:32] == store_id and data[32:48].hex() == pack_id, "pack header: another store or id")
    need(data[88:96] == bytes(8) and data[96:128] == digest_of(data[:96]), "pack header: its check")
    pack = PackReader(pack_id, data[:128], content, keys)
    rows, end = _footer(data)
    position = 128
    for offset, group in groupby(rows, key=lambda row: row.offset):
        need(offset == position, "records do not follow one another")
        position = _record(pack, data[:end], offset, list(group))
    need(position == end, "bytes between the records and the footer")
    return pack


def _footer(data: bytes) -> tuple[list[Row], int]:
    """The rows, and where the records end."""
    trailer = data[-80:]
    magic, major, _, zero, count, at, length, total, zero2 = struct.unpack_from("<4sBBHQQQQQ", trailer)
    need(magic == b"LEND" and major == 1 and zero == 0 and zero2 == 0, "pack trailer")
    need(total == len(data) and at + length + 80 == total and at >= 128 and count <= MIB, "pack trailer: bounds")
    stored = data[at : at + length]
    need(trailer[48:] == digest_of(data[:128] + stored + trailer[:48]), "pack: check of header, footer and trailer")
    rows = [Row(*fields) for fields in _ROW.iter_unpack(decode(PLANES, stored, 64 * count, 64, None))]
    order = [(row.offset, row.place & 0xFFFF if row.flags & MEMBER else 0) for row in rows]
    need(order == sorted(set(order)), "footer: its order")
    return rows, at


def _record(pack: PackReader, data: bytes, offset: int, rows: list[Row]) -> int:
    """Add the chunks of the record at `offset`, which `rows` describe; where the next one begins."""
    need(offset + 64 <= len(data), "record: outside the pack")
    head = data[offset : offset + 64]
    magic, kind, codec, flags, width, ordinal, stored, raw, name, crc = _RECORD.unpack(head)
    end = offset + 64 + stored
    need(magic == b"LREC" and end <= len(data), "record: its bounds")
    payload = data[offset + 64 : end]
    need(crc == zlib.crc32(head[:60], zlib.crc32(payload)), "record: CRC")
    need(
        kind in (CHUNK, CHUNK_LIST, DICTIONARY, GROUP, REFERENCE) and codec in (RAW, ZSTD, PLANES),
        "record: kind or codec",
    )
    need(flags == 0 and raw <= 16 * MIB and width in ((2, 4, 8) if codec == PLANES else (0,)), "record: header")
    dictionary = None
    if kind == DICTIONARY:
        need(ordinal == len(pack.dictionaries), "dictionary: its ordinal")
    elif kind == REFERENCE:
        need(codec == RAW and pack.keys is None, "reference: encoded, or in an encrypted pack")
    elif ordinal != NONE:
        need(codec == ZSTD and ordinal < len(pack.dictionaries), "record: its dictionary does not stand before it")
        dictionary = pack.dictionaries[ordinal]
    if pack.keys is not None:
        payload = pack.keys.open_payload(pack.header, offset, head[:60], payload)
    plain = decode(codec, payload, raw, width, dictionary)
    if kind == CHUNK_LIST:
        parse_chunk_list(plain)
    elif kind == REFERENCE:
        need(parse_reference(plain).length == ordinal, "reference: its length is not in its header")
    else:
        need(pack.name_of(plain) == name, "record: plain bytes do not match the digest")
    if kind == GROUP:
        _members(pack, plain, rows, (stored, codec, ordinal))
        return end
    need(rows == [Row(name, offset, stored, raw, kind, codec, 0, width, ordinal)], "footer: a row is not as its record")
    pack.records.append(Record(name, kind, codec, NONE if kind == REFERENCE else ordinal, False, plain))
    if kind == DICTIONARY:
        pack.dictionaries.append(plain)
    return end


def _members(pack: PackReader, plain: bytes, rows: list[Row], record: tuple[int, int, int]) -> None:
    """The chunks of a group."""
    stored, codec, ordinal = record
    need(2 <= len(plain) <= 16 << 10, "group: its size")
    (count,) = struct.unpack_from("<H", plain)
    lengths = struct.unpack_from(f"<{count}H", plain, 2)
    need(count == len(rows) and 2 + 2 * count + sum(lengths) == len(plain) and max(lengths) < 4096, "group: its table")
    at = 2 + 2 * count
    for row, length in zip(rows, lengths, strict=True):
        member = plain[at : at + length]
        place = at | len(plain) << 16
        expected = Row(pack.name_of(member), row.offset, stored, length, CHUNK, codec, MEMBER, 0, place)
        need(row == expected, "footer: a row is not as its member of a group")
        pack.records.append(Record(row.name, CHUNK, codec, ordinal, True, member))
        at += length


def decode(codec: int, payload: bytes, raw: int, width: int, dictionary: bytes | None) -> bytes:
    """The plain bytes of a payload."""
    if codec == RAW:
        need(len(payload) == raw, "raw record: length")
        return payload
    need(zstandard.frame_content_size(payload) == raw, "zstd frame: announces another length")
    prepared = {} if dictionary is None else {"dict_data": zstandard.ZstdCompressionDict(dictionary)}
    decompressor = zstandard.ZstdDecompressor(**prepared)
    plain = bytes(decompressor.decompress(payload, max_output_size=raw, allow_extra_data=False))
    need(len(plain) == raw, "zstd frame: length")
    if codec == PLANES:
        count = raw // width
        out = bytearray(plain)
        for plane in range(width):
            out[plane : count * width : width] = plain[plane * count : (plane + 1) * count]
        return bytes(out)
    return plain


def parse_chunk_list(data: bytes) -> list[tuple[bytes, int]]:
    """(digest, length) of each piece."""
    need(len(data) >= 48 and data[:4] == b"LCL1", "chunk list: magic")
    count, total = struct.unpack_from("<IQ", data, 4)
    need(len(data) == 16 + 40 * count + 32 and data[-32:] == digest_of(data[:-32]), "chunk list: length or check")
    pieces = [struct.unpack_from("<32sQ", data, 16 + 40 * index) for index in range(count)]
    need(sum(length for _, length in pieces) == total, "chunk list: sum")
    return [(digest, length) for digest, length in pieces]


class Reference(NamedTuple):
    """Where a chunk stands."""

    root: int
    path: str
    offset: int
    length: int


def parse_reference(plain: bytes) -> Reference:
    """The bytes of a record of kind 5."""
    need(36 <= len(plain) <= 2048, "reference: its size")
    magic, root, offset, length, size, path_bytes, version_bytes = struct.unpack_from("<4sIQQQHH", plain)
    need(magic == b"LRF1" and len(plain) == 36 + path_bytes + version_bytes and version_bytes <= 256, "reference")
    need(0 < length <= 16 * MIB and offset <= 1 << 46, "reference: its bounds")
    need(size == (1 << 64) - 1 or offset + length <= size <= 1 << 46, "reference: outside of its object")
    path, version = plain[36 : 36 + path_bytes].decode(), plain[36 + path_bytes :].decode()
    need(not {"", ".", ".."} & set(path.split("/")) and "\\" not in path, "reference: its path")
    need(all(ord(char) >= 32 and ord(char) != 127 for char in path) and version.isprintable(), "reference: its text")
    return Reference(root, path, offset, length)
