"""LPK1: the bytes of a pack. All integers are little-endian.

    +--------+----------------+---- … ----+--------+---------+
    | header | record, record, record, …  | footer | trailer |
    +--------+----------------+---- … ----+--------+---------+
     128 B     64 B + payload each          rows     80 B

    header   0 magic "LPK1" | 4 major u8 | 5 minor u8 | 6 content u8 (1 data, 2 metadata) | 7 zero u8
             8 required features u32 | 12 optional features u32 | 16 store id (16) | 32 pack id (16)
             48 epoch u64 | 56 salt (32) | 88 zero u64 | 96 BLAKE3-256 of bytes 0..96
    record   0 magic "LREC" | 4 kind u8 | 5 codec u8 | 6 flags u8 | 7 plane width u8 | 8 dictionary ordinal u32
             (0xffffffff: none) | 12 stored length u64 | 20 raw length u64 | 28 digest (32)
             60 CRC-32 of the payload and then bytes 0..60 | 64 payload
    footer   one zstd frame; in it, as 64 byte planes, rows of 64 bytes sorted by (offset, start in the group):
             0 digest (32) | 32 offset of the record u64 | 40 stored length u64 | 48 raw length u64
             56 kind u8 | 57 codec u8 | 58 flags u8 (1: member of a group) | 59 plane width u8
             60 dictionary ordinal u32; of a member: start in the group u16, plain bytes of the group u16;
                of a reference: plain bytes of the chunk that it stands for
    trailer  0 magic "LEND" | 4 major u8 | 5 minor u8 | 6 zero u16 | 8 records u64 | 16 footer offset u64
             24 footer length u64 | 32 pack length u64 | 40 zero u64 | 48 BLAKE3-256 of header + footer + trailer 0..48

Required features: 1 encrypted (see leptonstore/crypto.py: payloads are sealed, digests are keyed). Kinds: 1 chunk, 2
chunk list, 3 dictionary, 4 group, 5 reference (leptonstore/format/reference.py; codec 0, in no encrypted pack). Codecs:
0 raw, 1 zstd, 2 byte planes of `plane width` bytes, then zstd. The dictionary of ordinal n is the n-th dictionary
record of the same pack, counted from 0 in the order of offsets; it stands before the records that use it (codec 1 only)
and carries its own ordinal in that field, so that a walk that misses one does not shift the others.

A group holds chunks of less than 4 KiB that were put one after another, at most 16 KiB of plain bytes with its table:

    count u16 | length u16 each | the chunks

It has no footer row of its own: each of its members has one, with the member's digest and raw length and the offset and stored length of
the group's record. So 1 KB of JSON takes about 40 bytes beside its share of the payload, and not 128.

Look-up without an index: read the trailer from the end, the footer before it, search the digest, read the record and
verify it. Salvage without a footer: walk the records from byte 128; where one is damaged, search the next "LREC" whose
CRC holds. The digests of a group's members are those of their bytes.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, Buffer, Digest, digest_of, digest_of_parts
from leptonstore.errors import FormatDamaged, FormatTooNew
from leptonstore.format.planes import from_planes, to_planes

MAJOR, MINOR = 1, 0
HEADER_BYTES, RECORD_HEADER_BYTES, FOOTER_ROW_BYTES, TRAILER_BYTES = 128, 64, 64, 80
OVERHEAD_BYTES = HEADER_BYTES + TRAILER_BYTES

CONTENT_DATA, CONTENT_META = 1, 2
KIND_CHUNK, KIND_CHUNK_LIST, KIND_DICTIONARY, KIND_GROUP, KIND_REFERENCE = 1, 2, 3, 4, 5
_KINDS_IN_FOOTER = (KIND_CHUNK, KIND_CHUNK_LIST, KIND_DICTIONARY, KIND_REFERENCE)
FLAG_MEMBER = 1
CODEC_RAW, CODEC_ZSTD, CODEC_PLANES = 0, 1, 2
PLANE_WIDTHS = (2, 4, 8)
DICTIONARY_NONE = 0xFFFFFFFF
FEATURE_ENCRYPTED = 1
FEATURES_REQUIRED_KNOWN = FEATURE_ENCRYPTED

_HEADER = struct.Struct("<4sBBBBII16s16sQ32sQ")
_RECORD = struct.Struct("<4sBBBBIQQ32s")
HEAD_BYTES = _RECORD.size  # of a record header: all but its CRC
_FOOTER_ROW = struct.Struct("<32sQQQBBBBI")
_KIND_OF_ROW = 56  # offset of the kind in a footer row
_TRAILER = struct.Struct("<4sBBHQQQQQ")
_CRC = struct.Struct("<I")
_LIST_HEAD = struct.Struct("<4sIQ")
_LIST_PIECE = struct.Struct("<32sQ")
_MEMBER = struct.Struct("<H")
_ROW_STORED_BYTES = 35  # of a footer row in the compressed footer, about: a digest does not shrink


@dataclass(frozen=True)
class PackHeader:
    """The fixed header of a pack. `epoch`: that of the store when it was begun, which counts erasures; what is
    in the pack, its dictionaries too, was put and trained from then on."""

    content: int
    store_id: bytes
    pack_id: bytes
    salt: bytes
    epoch: int = 0
    required: int = 0

    @property
    def encrypted(self) -> bool:
        """Whether payloads are sealed and digests keyed."""
        return bool(self.required & FEATURE_ENCRYPTED)

    def encode(self) -> bytes:
        """128 bytes."""
        head = _HEADER.pack(
            b"LPK1",
            MAJOR,
            MINOR,
            self.content,
            0,
            self.required,
            0,
            self.store_id,
            self.pack_id,
            self.epoch,
            self.salt,
            0,
        )
        return head + digest_of(head)


def parse_header(data: bytes) -> PackHeader:
    """128 bytes -> header. Raises FormatDamaged or FormatTooNew."""
    if len(data) < HEADER_BYTES:
        raise FormatDamaged(f"header has {len(data)} of {HEADER_BYTES} bytes")
    head = bytes(data[: _HEADER.size])
    magic, major, minor, content, _, required, _, store_id, pack_id, epoch, salt, _ = _HEADER.unpack(head)
    if magic != b"LPK1":
        raise FormatDamaged("header does not begin with LPK1")
    if digest_of(head) != data[_HEADER.size : HEADER_BYTES]:
        raise FormatDamaged("header does not match its check")
    if major > MAJOR:
        raise FormatTooNew(f"pack {pack_id.hex()} has format {major}.{minor}: upgrade LeptonStore")
    if required & ~FEATURES_REQUIRED_KNOWN:
        raise FormatTooNew(f"pack {pack_id.hex()} needs features {required:#x}: upgrade LeptonStore")
    return PackHeader(content, store_id, pack_id, salt, epoch, required)


class RecordHeader(NamedTuple):
    """What stands before a payload: enough to decode and check it without anything else."""

    kind: int
    codec: int
    flags: int
    plane_width: int
    dictionary: int
    stored: int
    raw: int
    digest: Digest


class FooterRow(NamedTuple):
    """Where a chunk is. `offset` is that of its record's header; `stored` counts the record's payload only.

    The chunk is the whole record, or a member of a group: then `dictionary` says where in it (see `start` and `unpacked`).
    """

    digest: Digest
    offset: int
    stored: int
    raw: int
    kind: int
    codec: int
    flags: int
    plane_width: int
    dictionary: int

    @property
    def end(self) -> int:
        """Offset of the byte after the record."""
        return self.offset + RECORD_HEADER_BYTES + self.stored

    @property
    def is_member(self) -> bool:
        """Whether it is one of several chunks of a group."""
        return bool(self.flags & FLAG_MEMBER)

    @property
    def start(self) -> int:
        """Where its bytes begin among the plain bytes of the record."""
        return self.dictionary & 0xFFFF if self.is_member else 0

    @property
    def unpacked(self) -> int:
        """Plain bytes of the record, which a read decodes."""
        return self.dictionary >> 16 if self.is_member else self.raw

    @property
    def plain(self) -> int | None:
        """Plain bytes of the chunk that it tells, which for a reference stand elsewhere; None of a large value, whose pieces say."""
        if self.kind == KIND_REFERENCE:
            return self.dictionary
        return self.raw if self.kind == KIND_CHUNK else None

    @property
    def share(self) -> int:
        """Bytes of the pack that this chunk takes, its part of the footer included; of a member: in proportion."""
        record = RECORD_HEADER_BYTES + self.stored
        return _ROW_STORED_BYTES + (math.ceil(record * self.raw / max(1, self.unpacked)) if self.is_member else record)


def head_of_record(header: RecordHeader) -> bytes:
    """The first 60 bytes of a record: all of its header but the CRC."""
    return _RECORD.pack(
        b"LREC",
        header.kind,
        header.codec,
        header.flags,
        header.plane_width,
        header.dictionary,
        header.stored,
        header.raw,
        header.digest,
    )


def head_of_row(row: FooterRow) -> bytes:
    """`head_of_record` of the record that stands at `row`, which is no member of a group."""
    digest, _, stored, raw, kind, codec, flags, plane_width, dictionary = row
    return _RECORD.pack(b"LREC", kind, codec, flags, plane_width, dictionary, stored, raw, digest)


def encode_record(header: RecordHeader, payload_crc: int) -> bytes:
    """Header bytes (64) for a payload with `zlib.crc32(payload) == payload_crc`; write them, then the payload.

    The CRC runs over the payload first, so that it can be computed before the record's place is known.
    """
    head = head_of_record(header)
    return head + _CRC.pack(zlib.crc32(head, payload_crc))


def parse_record(data: Buffer, crc: bool = True) -> tuple[RecordHeader, memoryview]:
    """One whole record (header and payload, nothing after it) -> header and payload. Raises FormatDamaged.

    crc: check the CRC-32, at 2 GB/s here; not needed by who checks the digest of what the payload decodes to.
    """
    view = memoryview(data)
    if len(view) < RECORD_HEADER_BYTES:
        raise FormatDamaged(f"record header has {len(view)} of {RECORD_HEADER_BYTES} bytes")
    magic, *fields = _RECORD.unpack(view[: _RECORD.size])
    header = RecordHeader(*fields)
    if magic != b"LREC":
        raise FormatDamaged("record does not begin with LREC")
    payload = view[RECORD_HEADER_BYTES:]
    if header.stored != len(payload):
        raise FormatDamaged(f"record says {header.stored} stored bytes, the index says {len(payload)}")
    if crc:
        (stored_crc,) = _CRC.unpack(view[_RECORD.size : RECORD_HEADER_BYTES])
        if zlib.crc32(view[: _RECORD.size], zlib.crc32(payload)) != stored_crc:
            raise FormatDamaged("record does not match its CRC-32")
    return header, payload


def encode_end(header: bytes, rows: list[FooterRow], footer_offset: int) -> bytes:
    """Footer and trailer of a pack whose records end at `footer_offset`."""
    # In the order of the file all but the digests shrinks to about 3 bytes a row.
    ordered = sorted(rows, key=_place_in_pack)
    plain = b"".join(_FOOTER_ROW.pack(*row) for row in ordered)
    footer = zstandard.ZstdCompressor(level=1).compress(to_planes(plain, FOOTER_ROW_BYTES))
    length = footer_offset + len(footer) + TRAILER_BYTES
    trailer = _TRAILER.pack(b"LEND", MAJOR, MINOR, 0, len(rows), footer_offset, len(footer), length, 0)
    return footer + trailer + digest_of_parts((header, footer, trailer))


def _place_in_pack(row: FooterRow) -> int:
    """(offset, start) as one number: a third of the time of sorting by pairs."""
    return row[1] << 16 | (row[8] & 0xFFFF if row[6] & FLAG_MEMBER else 0)


_FRAME_BYTES = 2048  # more than zstd adds to 64 MiB that do not shrink: 3 bytes for each block of 128 KiB


def unpack_footer(footer: bytes, records: int) -> bytes:
    """The rows of a footer, 64 bytes each. Raises FormatDamaged; allocates twice the bytes of `records` rows at most."""
    size = records * FOOTER_ROW_BYTES
    if records > limits.PACK_RECORDS_MAX:
        raise FormatDamaged(f"footer of {records} rows")
    try:
        if zstandard.frame_content_size(footer) != size:
            raise FormatDamaged(f"footer does not hold the {records} rows that the trailer says")
        plain = zstandard.ZstdDecompressor().decompress(footer, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatDamaged(f"footer does not decompress ({error})") from None
    if len(plain) != size:
        raise FormatDamaged(f"footer has {len(plain)} bytes for {records} rows")
    return from_planes(plain, FOOTER_ROW_BYTES)


class Trailer(NamedTuple):
    """Where the footer is."""

    records: int
    footer_offset: int
    footer_bytes: int
    pack_bytes: int
    check: bytes


def parse_trailer(data: bytes, pack_bytes: int) -> Trailer:
    """The last 80 bytes of a pack of `pack_bytes` bytes. Raises FormatDamaged (bounds first) or FormatTooNew."""
    if len(data) != TRAILER_BYTES:
        raise FormatDamaged(f"trailer has {len(data)} of {TRAILER_BYTES} bytes: the pack is truncated")
    magic, major, minor, _, records, offset, length, total, _ = _TRAILER.unpack(data[: _TRAILER.size])
    if magic != b"LEND":
        raise FormatDamaged("no trailer at its end: the pack is truncated or was overwritten")
    if major > MAJOR:
        raise FormatTooNew(f"a pack has format {major}.{minor}: upgrade LeptonStore")
    if total != pack_bytes:
        raise FormatDamaged(f"trailer says {total} bytes, the pack has {pack_bytes}")
    if records > limits.PACK_RECORDS_MAX or length > records * FOOTER_ROW_BYTES + _FRAME_BYTES:
        raise FormatDamaged(f"trailer says {records} records in a footer of {length} bytes")
    if offset < HEADER_BYTES or offset + length + TRAILER_BYTES != pack_bytes:
        raise FormatDamaged("trailer places the footer outside the pack")
    return Trailer(records, offset, length, total, data[_TRAILER.size :])


def parse_footer(
    header: bytes, footer: bytes, trailer: bytes, pack_bytes: int, kind: int | None = None
) -> list[FooterRow]:
    """The rows of a footer (those of one kind only), checked against the trailer's digest. Raises FormatDamaged."""
    where = parse_trailer(trailer, pack_bytes)
    if len(footer) != where.footer_bytes:
        raise FormatDamaged(f"footer has {len(footer)} of {where.footer_bytes} bytes")
    if digest_of_parts((header, footer, trailer[: _TRAILER.size])) != where.check:
        raise FormatDamaged("header, footer and trailer do not match their check")
    footer = unpack_footer(footer, where.records)
    if kind is None:
        rows = [FooterRow(*fields) for fields in _FOOTER_ROW.iter_unpack(footer)]
    else:  # a few of very many
        rows, kinds = [], footer[_KIND_OF_ROW::FOOTER_ROW_BYTES]
        at = kinds.find(kind)
        while at >= 0:
            rows.append(FooterRow(*_FOOTER_ROW.unpack_from(footer, at * FOOTER_ROW_BYTES)))
            at = kinds.find(kind, at + 1)
    for row in rows:
        check_row(row, where.footer_offset)
    return rows


def check_row(row: FooterRow, records_end: int, group: bool = False) -> None:
    """Bounds of one footer row; group: or of a group's record. Raises FormatDamaged or FormatTooNew (an unknown kind or codec)."""
    if row.offset < HEADER_BYTES or row.end > records_end:
        raise FormatDamaged("footer places a record outside the pack")
    if row.raw > limits.CHUNK_BYTES_MAX:
        raise FormatDamaged(f"a record of {row.raw} bytes is over the limit of {limits.CHUNK_BYTES_MAX}")
    known = row.kind in _KINDS_IN_FOOTER or (group and row.kind == KIND_GROUP)
    if not known or row.codec > CODEC_PLANES:
        raise FormatTooNew(f"a record has kind {row.kind} and codec {row.codec}: upgrade LeptonStore")
    if (row.codec == CODEC_PLANES) != (row.plane_width in PLANE_WIDTHS):
        raise FormatDamaged(f"a record of codec {row.codec} has plane width {row.plane_width}")
    if row.is_member:
        inside = row.start + row.raw <= row.unpacked <= limits.GROUP_BYTES_MAX
        if row.kind != KIND_CHUNK or row.codec != CODEC_ZSTD or not inside:
            raise FormatDamaged("footer places a chunk outside its group")
    elif row.kind == KIND_REFERENCE:
        if row.codec != CODEC_RAW or row.raw > limits.REFERENCE_BYTES_MAX:
            raise FormatDamaged(f"a reference of codec {row.codec} and {row.raw} bytes")
        if not 0 < row.dictionary <= limits.CHUNK_BYTES_MAX:
            raise FormatDamaged(f"a reference to {row.dictionary} bytes is over the limit of {limits.CHUNK_BYTES_MAX}")
    elif row.dictionary != DICTIONARY_NONE and row.kind != KIND_DICTIONARY and row.codec != CODEC_ZSTD:
        raise FormatDamaged(f"a record of codec {row.codec} names a dictionary")


def salvage(data: Buffer) -> Iterator[FooterRow]:
    """Every record of a damaged pack whose CRC holds, in file order; needs neither header nor footer.

    A group comes as one row of kind 4: its members are known when it is decoded (`parse_group`).

    It gives up after SALVAGE_CRC_FACTOR times the pack's bytes were checked in vain: a pack that is full of false headers, each
    of which claims all that follows, would cost hours. Damage never comes near that: a damaged record is checked once.
    """
    view = memoryview(data)
    budget = limits.SALVAGE_CRC_FACTOR * len(view)
    raw = bytes(view) if not isinstance(data, bytes) else data
    at = raw.find(b"LREC", 0)
    while at >= 0 and budget >= 0:
        row = _record_at(view, at)
        if isinstance(row, int):
            budget -= row
            at = raw.find(b"LREC", at + 1)
        else:
            yield row
            at = row.end if raw[row.end : row.end + 4] == b"LREC" else raw.find(b"LREC", row.end)


def _record_at(view: memoryview, at: int) -> FooterRow | int:
    """The record there, or the bytes that were checked to find that there is none."""
    head = view[at : at + _RECORD.size]
    if len(head) < _RECORD.size:
        return 0
    _, *fields = _RECORD.unpack(head)
    header = RecordHeader(*fields)
    end = at + RECORD_HEADER_BYTES + header.stored
    if end > len(view):
        return 0
    row = FooterRow(
        header.digest,
        at,
        header.stored,
        header.raw,
        header.kind,
        header.codec,
        header.flags,
        header.plane_width,
        header.dictionary,
    )
    try:
        check_row(row, len(view), group=True)
        parse_record(view[at:end])
    except (FormatDamaged, FormatTooNew):
        return header.stored
    return row


def encode_group(members: Sequence[Buffer]) -> bytes:
    """The plain bytes of a group: count, lengths, then the chunks."""
    table = b"".join(map(_MEMBER.pack, (len(members), *map(len, members))))
    return b"".join((table, *members))


def member_row(group: FooterRow, digest: Digest, start: int, length: int) -> FooterRow:
    """The footer row of a chunk in a group, given that of the group's record."""
    place = start | group.raw << 16
    return group._replace(digest=digest, raw=length, kind=KIND_CHUNK, flags=FLAG_MEMBER, dictionary=place)


def group_bytes(lengths: Sequence[int]) -> int:
    """Plain bytes of a group with members of these lengths."""
    return _MEMBER.size * (1 + len(lengths)) + sum(lengths)


def group_starts(lengths: Sequence[int]) -> list[int]:
    """Where in a group each member begins."""
    return list(itertools.accumulate(lengths, initial=_MEMBER.size * (1 + len(lengths))))[:-1]


def parse_group(plain: bytes) -> list[tuple[int, int]]:
    """(start, length) of each member. Raises FormatDamaged."""
    if not _MEMBER.size <= len(plain) <= limits.GROUP_BYTES_MAX:
        raise FormatDamaged(f"a group of {len(plain)} bytes")
    (count,) = _MEMBER.unpack_from(plain)
    if _MEMBER.size * (1 + count) > len(plain):
        raise FormatDamaged("a group's table is truncated")
    lengths = [length for (length,) in _MEMBER.iter_unpack(plain[_MEMBER.size : _MEMBER.size * (1 + count)])]
    if group_bytes(lengths) != len(plain):
        raise FormatDamaged("a group's lengths do not add up")
    return list(zip(group_starts(lengths), lengths, strict=True))


class ChunkList(NamedTuple):
    """The pieces of a large value, in order: (digest, bytes) each. The record's digest is that of the whole value."""

    total: int
    pieces: tuple[tuple[Digest, int], ...]


def encode_chunk_list(pieces: list[tuple[Digest, int]]) -> bytes:
    """magic "LCL1" | count u32 | total u64 | (digest, length u64) each | BLAKE3-256 of all before."""
    body = _LIST_HEAD.pack(b"LCL1", len(pieces), sum(length for _, length in pieces))
    body += b"".join(_LIST_PIECE.pack(*piece) for piece in pieces)
    return body + digest_of(body)


def parse_chunk_list(data: bytes) -> ChunkList:
    """Bytes -> chunk list. Raises FormatDamaged."""
    if len(data) < _LIST_HEAD.size + DIGEST_BYTES:
        raise FormatDamaged("chunk list is truncated")
    body, check = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    magic, count, total = _LIST_HEAD.unpack(body[: _LIST_HEAD.size])
    if magic != b"LCL1" or len(body) != _LIST_HEAD.size + count * _LIST_PIECE.size:
        raise FormatDamaged("chunk list has the wrong magic or length")
    if digest_of(body) != check:
        raise FormatDamaged("chunk list does not match its check")
    pieces = tuple(_LIST_PIECE.iter_unpack(body[_LIST_HEAD.size :]))
    if count > limits.CHUNK_LIST_PIECES_MAX or sum(length for _, length in pieces) != total:
        raise FormatDamaged("chunk list's lengths do not add up")
    return ChunkList(total, pieces)
