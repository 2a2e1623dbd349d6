"""A pack being written: records go in, and can be read back before the pack is sealed.

Not for use by several threads at once; the store locks around it.
"""

from __future__ import annotations

import secrets

from leptonstore import limits
from leptonstore.codec import Encoded
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format import pack as lpk
from leptonstore.store.log import PackRecord
from leptonstore.tiers.roles import PackWriter


class PackBuilder:
    """One open pack of one content (data or metadata)."""

    def __init__(self, tier: PackWriter, store_id: bytes, content: int) -> None:
        identity = secrets.token_bytes(16)
        self.id, self.content = identity.hex(), content
        self.rows: dict[Digest, lpk.FooterRow] = {}
        self._header = lpk.PackHeader(content, store_id, identity, secrets.token_bytes(32)).encode()
        self._offset = len(self._header)
        self._sink = tier.create_pack(self.id)
        self._sink.write(self._header)

    def fits(self, stored: int) -> bool:
        """Whether a record with a payload of `stored` bytes still fits."""
        row = lpk.RECORD_HEADER_BYTES + stored + lpk.FOOTER_ROW_BYTES
        end = self._offset + len(self.rows) * lpk.FOOTER_ROW_BYTES + row + lpk.TRAILER_BYTES
        return end <= limits.PACK_BYTES_MAX

    def add(self, digest: Digest, kind: int, encoded: Encoded, payload_crc: int) -> int:
        """Append a record; returns the bytes that it takes. Raises StoreFull."""
        stored = len(encoded.payload)
        header = lpk.RecordHeader(
            kind, encoded.codec, 0, encoded.plane_width, lpk.DICTIONARY_NONE, stored, encoded.raw, digest
        )
        row = lpk.FooterRow(digest, self._offset, stored, encoded.raw, *header[:4], lpk.DICTIONARY_NONE)
        self._sink.write(lpk.encode_record(header, payload_crc), encoded.payload)
        self._offset = row.end
        self.rows[digest] = row
        return row.end - row.offset

    def read(self, row: lpk.FooterRow) -> bytes:
        """The bytes of a record, header included."""
        return self._sink.read(row.offset, row.end - row.offset)

    def seal(self) -> PackRecord:
        """Footer, trailer, then durable and visible. Reads back the end first, so that our own corruption is not published."""
        rows = list(self.rows.values())
        end = lpk.encode_end(self._header, rows, self._offset)
        self._sink.write(end)
        size = self._offset + len(end)
        footer_bytes = len(rows) * lpk.FOOTER_ROW_BYTES
        written = self._sink.read(self._offset, len(end))
        header = self._sink.read(0, lpk.HEADER_BYTES)
        if len(lpk.parse_footer(header, written[:footer_bytes], written[footer_bytes:], size)) != len(rows):
            raise FormatDamaged(f"pack {self.id} did not read back as it was written: check the device")
        self._sink.seal()
        return PackRecord(size, self.content)

    def abort(self) -> None:
        """Forget it."""
        self._sink.abort()
