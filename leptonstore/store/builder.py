"""A pack being written: records go in, and can be read back before the pack is sealed.

Not for use by several threads at once; the store locks around it.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Sequence

from leptonstore import limits
from leptonstore.codec import Dictionary, Encoded, encode
from leptonstore.crypto import TAG_BYTES, StoreKeys
from leptonstore.digest import Digest
from leptonstore.errors import FormatDamaged
from leptonstore.format import pack as lpk
from leptonstore.format.reference import parse_reference
from leptonstore.store.index_rows import footer_array
from leptonstore.store.log import PackRecord
from leptonstore.tiers.roles import PackWriter


class PackBuilder:
    """One open pack of one content (data or metadata)."""

    def __init__(
        self, tier: PackWriter, store_id: bytes, content: int, keys: StoreKeys | None = None, epoch: int = 0
    ) -> None:
        """With `keys`, payloads are sealed and digests named as those say. epoch: in which all that comes in was put."""
        identity, salt = secrets.token_bytes(16), secrets.token_bytes(32)
        self.cipher = None if keys is None else keys.pack(salt, identity)
        self._tag = 0 if keys is None else TAG_BYTES  # bytes that a seal adds
        features = 0 if keys is None else lpk.FEATURE_ENCRYPTED
        self.id, self.content = identity.hex(), content
        self.rows: dict[Digest, lpk.FooterRow] = {}  # plain digest -> row, of chunks and chunk lists
        self._dictionaries: dict[Digest, tuple[lpk.FooterRow, Dictionary]] = {}  # in the order of their ordinals
        self.group: tuple[int, bytes] | None = None  # as in store/opened.py
        self._header = lpk.PackHeader(content, store_id, identity, salt, epoch, features).encode()
        self._offset = len(self._header)
        self._sink = tier.create_pack(self.id)
        try:
            self._sink.write(self._header)
        except BaseException:
            self._sink.abort()  # nobody else knows of it yet
            raise

    def fits(self, encoded: Encoded, members: int = 1) -> bool:
        """Whether a record of so many chunks still fits, with its dictionary if that is not here yet."""
        records, taken = 1, len(encoded.payload)
        if encoded.dictionary is not None and encoded.dictionary.digest not in self._dictionaries:
            records, taken = 2, taken + len(encoded.dictionary.data)
        rows = len(self.rows) + len(self._dictionaries) + records + members
        end = self._offset + records * (lpk.RECORD_HEADER_BYTES + self._tag) + taken + rows * lpk.FOOTER_ROW_BYTES
        return end + lpk.TRAILER_BYTES <= limits.PACK_BYTES_MAX

    def add(self, digest: Digest, kind: int, encoded: Encoded, payload_crc: int) -> int:
        """Append a record, after its dictionary; returns the bytes that this takes. Raises StoreFull.

        payload_crc: of the payload as it is; without meaning in an encrypted pack, where it is that of the sealed one.
        """
        start, ordinal = self._offset, lpk.DICTIONARY_NONE
        if encoded.dictionary is not None:
            ordinal = self._ordinal(encoded.dictionary)
        elif kind == lpk.KIND_REFERENCE:
            ordinal = parse_reference(bytes(encoded.payload)).length
        self.rows[digest] = self._append(digest, kind, encoded, payload_crc, ordinal)
        return self._offset - start

    def add_group(self, members: Sequence[tuple[Digest, int]], plain_digest: Digest, encoded: Encoded, crc: int) -> int:
        """Append a group of chunks, of which the digest and length of each is given; as `add`. Raises StoreFull."""
        start, ordinal = self._offset, lpk.DICTIONARY_NONE
        if encoded.dictionary is not None:
            ordinal = self._ordinal(encoded.dictionary)
        record = self._append(plain_digest, lpk.KIND_GROUP, encoded, crc, ordinal)
        lengths = [length for _, length in members]
        for (digest, length), at in zip(members, lpk.group_starts(lengths), strict=True):
            name = digest if self.cipher is None else self.cipher.name(digest)
            self.rows[digest] = lpk.member_row(record, name, at, length)
        return self._offset - start

    def _ordinal(self, dictionary: Dictionary) -> int:
        """Of a dictionary in this pack, which is added when it is not here yet."""
        held = self._dictionaries.get(dictionary.digest)
        if held is None:
            encoded = encode(dictionary.data)
            row = self._append(
                dictionary.digest, lpk.KIND_DICTIONARY, encoded, zlib.crc32(encoded.payload), len(self._dictionaries)
            )
            held = self._dictionaries[dictionary.digest] = (row, dictionary)
        return held[0].dictionary

    def _append(self, digest: Digest, kind: int, encoded: Encoded, payload_crc: int, ordinal: int) -> lpk.FooterRow:
        stored, payload = len(encoded.payload) + self._tag, encoded.payload
        name = digest if self.cipher is None else self.cipher.name(digest)
        header = lpk.RecordHeader(kind, encoded.codec, 0, encoded.plane_width, ordinal, stored, encoded.raw, name)
        row = lpk.FooterRow(name, self._offset, stored, encoded.raw, *header[:4], ordinal)
        if self.cipher is not None:
            payload = self.cipher.seal(header, self._offset, payload)
            payload_crc = zlib.crc32(payload)
            self._offset = row.end  # before the write, which may fail half-way: an offset is sealed once only
        self._sink.write(lpk.encode_record(header, payload_crc), payload)
        self._offset = row.end
        return row

    def has_dictionary(self, dictionary: Dictionary) -> bool:
        """Whether records can use it at no further cost. Any thread."""
        return dictionary.digest in self._dictionaries

    def dictionary(self, ordinal: int) -> Dictionary:
        """The dictionary that a record of this pack names. Any thread. Raises FormatDamaged."""
        held = list(self._dictionaries.values())
        if ordinal >= len(held):
            raise FormatDamaged(f"it names dictionary {ordinal}, which is not in its pack")
        return held[ordinal][1]

    def read(self, row: lpk.FooterRow) -> bytes:
        """The bytes of a record, header included."""
        return self._sink.read(row.offset, row.end - row.offset)

    def seal(self) -> PackRecord:
        """Footer, trailer, then durable and visible. Reads back the end first, so that our own corruption is not published."""
        rows = [*self.rows.values(), *(row for row, _ in self._dictionaries.values())]
        end = lpk.encode_end(self._header, rows, self._offset)
        self._sink.write(end)
        size = self._offset + len(end)
        footer_bytes = len(end) - lpk.TRAILER_BYTES
        written = self._sink.read(self._offset, len(end))
        header = self._sink.read(0, lpk.HEADER_BYTES)
        if len(footer_array(header, written[:footer_bytes], written[footer_bytes:], size)) != len(rows):
            raise FormatDamaged(f"pack {self.id} did not read back as it was written: check the device")
        self._sink.seal()
        return PackRecord(size, self.content)

    def abort(self) -> None:
        """Forget it."""
        self._sink.abort()
