"""Reads the structure of packs: header, footer, records. Every byte is checked before it is believed."""

from __future__ import annotations

from leptonstore import codec
from leptonstore.digest import Digest, digest_of
from leptonstore.errors import ChunkCorrupt, FormatDamaged, FormatTooNew, PackDamaged
from leptonstore.format import pack as lpk
from leptonstore.tiers.roles import PackReader


def read_footer(tier: PackReader, pack: str, store_id: bytes, expected_bytes: int | None = None) -> list[lpk.FooterRow]:
    """All rows of a pack. Raises PackDamaged (missing, truncated, altered, from another store) or FormatTooNew."""
    try:
        size = tier.pack_bytes(pack)
        if size is None:
            raise PackDamaged(pack, "its file is missing")
        if expected_bytes is not None and size != expected_bytes:
            raise PackDamaged(pack, f"it has {size} bytes where the log says {expected_bytes}")
        if size < lpk.OVERHEAD_BYTES:
            raise PackDamaged(pack, f"it is truncated to {size} bytes")
        head = tier.read(pack, 0, lpk.HEADER_BYTES)
        header = lpk.parse_header(head)
        if header.store_id != store_id or header.pack_id.hex() != pack:
            raise PackDamaged(pack, "it belongs to another store or carries another id")
        trailer = tier.read(pack, size - lpk.TRAILER_BYTES, lpk.TRAILER_BYTES)
        where = lpk.parse_trailer(trailer, size)
        footer = tier.read(pack, where.footer_offset, where.footer_bytes)
        return lpk.parse_footer(head, footer, trailer, size)
    except FormatDamaged as error:
        raise PackDamaged(pack, str(error)) from None
    except OSError as error:
        raise PackDamaged(pack, f"it cannot be read ({error.strerror})") from None


def salvage_rows(tier: PackReader, pack: str) -> list[lpk.FooterRow]:
    """The records of a damaged pack that are still whole, found without its footer."""
    size = tier.pack_bytes(pack)
    return [] if size is None else list(lpk.salvage(tier.read(pack, 0, size)))


def decode_record(data: bytes, digest: Digest, pack: str) -> tuple[int, bytes]:
    """(kind, plain bytes) of one record. Raises ChunkCorrupt. A chunk's digest is checked here, a chunk list's by its own check."""
    try:
        header, payload = lpk.parse_record(data)
        if header.digest != digest:
            raise FormatDamaged("the record there has another digest")
        plain = codec.decode(header.codec, payload, header.raw)
        if header.kind == lpk.KIND_CHUNK and digest_of(plain) != digest:
            raise FormatDamaged("its bytes do not match its digest")
        if header.kind == lpk.KIND_CHUNK_LIST:
            lpk.parse_chunk_list(plain)
    except (FormatDamaged, FormatTooNew) as error:
        raise ChunkCorrupt(digest.hex(), pack, str(error)) from None
    return header.kind, plain


def read_record(tier: PackReader, pack: str, row: lpk.FooterRow) -> tuple[int, bytes]:
    """(kind, plain bytes) of the record at `row`. Raises ChunkCorrupt, also when the file is missing or short."""
    length = row.end - row.offset
    try:
        data = tier.read(pack, row.offset, length)
    except FileNotFoundError:
        raise ChunkCorrupt(row.digest.hex(), pack, "the pack's file is missing") from None
    except OSError as error:
        raise ChunkCorrupt(row.digest.hex(), pack, f"the pack cannot be read ({error.strerror})") from None
    if len(data) != length:
        raise ChunkCorrupt(row.digest.hex(), pack, "the pack is truncated before its end")
    return decode_record(data, row.digest, pack)
