"""Reads the structure of packs: header, footer, records. Every byte is checked before it is believed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

from leptonstore import codec, limits
from leptonstore.crypto import PackCipher
from leptonstore.digest import Buffer, digest_of
from leptonstore.errors import ChunkCorrupt, FormatDamaged, FormatTooNew, PackDamaged
from leptonstore.format import pack as lpk
from leptonstore.format.reference import parse_reference
from leptonstore.store.index_rows import Rows, footer_array
from leptonstore.tiers.roles import ManyReader, PackReader, PackStreamer

_BY_CRC = (lpk.KIND_CHUNK_LIST, lpk.KIND_REFERENCE)  # their digest is not that of their own bytes
_T = TypeVar("_T")
_Bytes = TypeVar("_Bytes", bound=Buffer)


class Opened(Protocol):
    """A pack, with what its records need in order to be decoded: store/opened.py, or a pack being written."""

    id: str
    group: tuple[int, bytes] | None  # (offset, plain bytes) of the group that was decoded last

    @property
    def cipher(self) -> PackCipher | None:
        """What opens its payloads, None when the store is not encrypted. Raises FormatDamaged."""

    def dictionary(self, ordinal: int) -> codec.Dictionary:
        """Raises FormatDamaged."""


def read_footer(
    tier: PackReader, pack: str, store_id: bytes, expected_bytes: int | None = None, kind: int | None = None
) -> list[lpk.FooterRow]:
    """All rows of a pack, or those of one kind. Raises PackDamaged (missing, truncated, altered, from another store) or
    FormatTooNew."""
    return _read_footer(tier, pack, store_id, expected_bytes, functools.partial(lpk.parse_footer, kind=kind))


def read_footer_array(tier: PackReader, pack: str, store_id: bytes) -> Rows:
    """`read_footer` of all rows, as one array: for those who read the footers of many packs."""
    return _read_footer(tier, pack, store_id, None, footer_array)


def _read_footer(
    tier: PackReader,
    pack: str,
    store_id: bytes,
    expected_bytes: int | None,
    parse: Callable[[bytes, bytes, bytes, int], _T],
) -> _T:
    try:
        size = tier.pack_bytes(pack)
        if size is None:
            raise PackDamaged(pack, "its file is missing", missing=True)
        if expected_bytes is not None and size != expected_bytes:
            raise PackDamaged(pack, f"it has {size} bytes where the log says {expected_bytes}")
        if size < lpk.OVERHEAD_BYTES:
            raise PackDamaged(pack, f"it is truncated to {size} bytes")
        head, tail = _both_ends(tier, pack, size)
        header = lpk.parse_header(head)
        if header.store_id != store_id or header.pack_id.hex() != pack:
            raise PackDamaged(pack, "it belongs to another store or carries another id")
        trailer = tail[-lpk.TRAILER_BYTES :]
        where = lpk.parse_trailer(trailer, size)
        start = where.footer_offset - (size - len(tail))
        footer = tail[start : start + where.footer_bytes]
        if start < 0:  # it is longer than what was read of the end
            footer = tier.read(pack, where.footer_offset, where.footer_bytes)
        return parse(head, footer, trailer, size)
    except FormatDamaged as error:
        raise PackDamaged(pack, str(error)) from None
    except OSError as error:
        raise PackDamaged(pack, f"it cannot be read ({error.strerror})") from None


def _both_ends(tier: PackReader, pack: str, size: int) -> tuple[bytes, bytes]:
    """Header, and trailer with what stands before it: the footer, if it is short. At once where a request takes long."""
    if not isinstance(tier, ManyReader):
        tail_bytes = lpk.TRAILER_BYTES
        return tier.read(pack, 0, lpk.HEADER_BYTES), tier.read(pack, size - tail_bytes, tail_bytes)
    tail_bytes = min(size, limits.FOOTER_TAIL_BYTES)
    head, tail = tier.read_many([(pack, 0, lpk.HEADER_BYTES), (pack, size - tail_bytes, tail_bytes)])
    return bytes(head), bytes(tail)


def walk_records(tier: PackReader, pack: str) -> tuple[bytes, list[lpk.FooterRow]]:
    """All bytes of a pack, and its records that are whole, found without its footer. Raises OSError."""
    size = tier.pack_bytes(pack)
    data = b"" if size is None else tier.read(pack, 0, min(size, limits.PACK_BYTES_MAX))
    return data, list(lpk.salvage(data))


def salvage_rows(tier: PackReader, opened: Opened) -> list[lpk.FooterRow]:
    """The chunks of a damaged pack that are still whole, found without its footer. Raises OSError."""
    data, records = walk_records(tier, opened.id)
    rows = []
    for record in records:
        if record.kind != lpk.KIND_GROUP:
            rows.append(record)
            continue
        try:
            rows += _member_rows(data[record.offset : record.end], record, opened)
        except (FormatDamaged, FormatTooNew):
            continue  # its dictionary is lost, or its key
    return rows


def _member_rows(data: bytes, record: lpk.FooterRow, opened: Opened) -> list[lpk.FooterRow]:
    """The rows that the footer had for a group."""
    plain = _group(data, record, opened)
    cipher, rows = opened.cipher, []
    for start, length in lpk.parse_group(plain):
        digest = digest_of(plain[start : start + length])
        name = digest if cipher is None else cipher.name(digest)
        rows.append(lpk.member_row(record, name, start, length))
    return rows


def decode_record(data: Buffer, row: lpk.FooterRow, opened: Opened, crc: bool = False) -> tuple[int, bytes]:
    """(kind, plain bytes) of the record at `row`, whose bytes are `data`. Raises ChunkCorrupt.

    The digest of a chunk and of a dictionary is checked here; a chunk list has a check of its own, and what a reference leads to is
    checked when that is read (store/references.py). crc: check the CRC of these too, for
    those who look for damage: the digest says that the plain bytes are right, the CRC that each byte of the record is.
    """
    try:
        if row.is_member:
            group = _group(data, row, opened)
            plain = _member(group, row, opened)
            opened.group = row.offset, group  # only now: another tier's copy is not read where a damaged one is kept
            return row.kind, plain
        header, payload = _open_record(data, row, opened, crc or row.kind in _BY_CRC)
        plain = codec.decode(header.codec, payload, header.raw, header.plane_width, _dictionary_of(header, opened))
        if header.kind == lpk.KIND_CHUNK_LIST:
            lpk.parse_chunk_list(plain)
        elif header.kind == lpk.KIND_REFERENCE:
            if parse_reference(plain).length != row.plain:
                raise FormatDamaged("a reference is not to as many bytes as its row says")
        else:
            _require_digest(plain, row, opened)
    except (FormatDamaged, FormatTooNew) as error:
        raise ChunkCorrupt(row.digest.hex(), opened.id, str(error)) from None
    return header.kind, plain


def decode_chunk_into(data: Buffer, row: lpk.FooterRow, opened: Opened, out: memoryview, check: bool = True) -> None:
    """Decode a chunk into memory that is exactly as long as its plain bytes. check: its digest, else its CRC. Raises ChunkCorrupt."""
    try:
        if check and _copied(data, row, opened, out):
            return
        if row.is_member:
            out[:] = _member(_group(data, row, opened), row, opened)
            return
        header, payload = _open_record(data, row, opened, crc=not check)
        if header.kind != lpk.KIND_CHUNK or header.raw != len(out):
            raise FormatDamaged(f"it has kind {header.kind} and {header.raw} bytes where a chunk of {len(out)} belongs")
        codec.decode_into(header.codec, payload, out, header.plane_width, _dictionary_of(header, opened))
        if check:
            _require_digest(out, row, opened)
    except (FormatDamaged, FormatTooNew) as error:
        raise ChunkCorrupt(row.digest.hex(), opened.id, str(error)) from None


def _copied(data: Buffer, row: lpk.FooterRow, opened: Opened, out: memoryview) -> bool:
    """The plain case (a raw record in the clear, just as its row says) in a third of the time: whether it is one and is in `out`, whole.

    Of images at memory speed this is most of what is left beside hashing.
    """
    size = len(out)
    plain = row.codec == codec.CODEC_RAW and row.stored == size and len(data) == lpk.RECORD_HEADER_BYTES + size
    if not plain or opened.cipher is not None or data[: lpk.HEAD_BYTES] != lpk.head_of_row(row):
        return False
    out[:] = data[lpk.RECORD_HEADER_BYTES :]
    return row.kind == lpk.KIND_CHUNK and digest_of(out) == row.digest


def _open_record(data: Buffer, row: lpk.FooterRow, opened: Opened, crc: bool = True) -> tuple[lpk.RecordHeader, Buffer]:
    header, payload = lpk.parse_record(data, crc)
    if not row.is_member and (header.digest != row.digest or header.kind != row.kind):
        raise FormatDamaged("the record there has another digest or kind")
    if row.is_member and header.kind != lpk.KIND_GROUP:
        raise FormatDamaged("the record there is no group")
    cipher = opened.cipher
    return header, payload if cipher is None else cipher.open(header, row.offset, payload)


def _group(data: Buffer, row: lpk.FooterRow, opened: Opened) -> bytes:
    """The plain bytes of a group, given the row of a member or of the record. Its digest is left to those of the members.

    Its CRC is checked: it is kept for the next members, which have no other check of it.
    """
    header, payload = _open_record(data, row, opened)
    if header.raw > limits.GROUP_BYTES_MAX or header.raw != row.unpacked:
        raise FormatDamaged(f"a group of {header.raw} bytes where the footer says {row.unpacked}")
    return codec.decode(header.codec, payload, header.raw, header.plane_width, _dictionary_of(header, opened))


def _member(group: bytes, row: lpk.FooterRow, opened: Opened) -> bytes:
    """One chunk of a group. Raises FormatDamaged."""
    chunk = group[row.start : row.start + row.raw]
    _require_digest(chunk, row, opened)
    return chunk


def _require_digest(plain: Buffer, row: lpk.FooterRow, opened: Opened) -> None:
    digest = digest_of(plain)
    if (digest if opened.cipher is None else opened.cipher.name(digest)) != row.digest:
        raise FormatDamaged("its bytes do not match its digest")


def _dictionary_of(header: lpk.RecordHeader, opened: Opened) -> codec.Dictionary | None:
    """A dictionary record names itself: it is decoded without one."""
    if header.dictionary == lpk.DICTIONARY_NONE or header.kind in (lpk.KIND_DICTIONARY, lpk.KIND_REFERENCE):
        return None
    return opened.dictionary(header.dictionary)


def read_record(tier: PackReader, row: lpk.FooterRow, opened: Opened, crc: bool = False) -> tuple[int, bytes]:
    """(kind, plain bytes) of the record at `row` of that pack; `crc` as in `decode_record`.

    Raises ChunkCorrupt, also when the file is missing or short.
    """
    group = opened.group
    if row.is_member and group is not None and group[0] == row.offset:
        try:
            return row.kind, _member(group[1], row, opened)
        except FormatDamaged:
            opened.group = None  # it may be of a copy that is passed over by now
    return decode_record(_record_bytes(tier.read, row, opened), row, opened, crc)


def read_chunk_into(
    tier: PackStreamer, row: lpk.FooterRow, opened: Opened, out: memoryview, check: bool = True
) -> None:
    """`read_record` of a chunk that is read once, into memory that is exactly as long; `check` as in `decode_chunk_into`."""
    decode_chunk_into(_record_bytes(tier.read_once, row, opened), row, opened, out, check)


def _record_bytes(read: Callable[[str, int, int], _Bytes], row: lpk.FooterRow, opened: Opened) -> _Bytes:
    length = row.end - row.offset
    try:
        data = read(opened.id, row.offset, length)
    except FileNotFoundError:
        raise ChunkCorrupt(row.digest.hex(), opened.id, "the pack's file is missing") from None
    except OSError as error:
        raise ChunkCorrupt(row.digest.hex(), opened.id, f"the pack cannot be read ({error.strerror})") from None
    if len(data) != length:
        raise ChunkCorrupt(row.digest.hex(), opened.id, "the pack is truncated before its end")
    return data
