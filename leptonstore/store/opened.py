"""What is needed to decode the records of a pack besides their bytes: its dictionaries, and its cipher.

A record names a dictionary by ordinal; each dictionary record carries its own ordinal, so that one that is lost does not
shift the others. They are read when the first record asks: the footer's rows of that kind (or, when the footer is damaged, the
records that a walk still finds), then the dictionary, checked against its digest. Packs that hold the same dictionary share it in memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from leptonstore import limits
from leptonstore.codec import Dictionary
from leptonstore.crypto import PackCipher, StoreKeys
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, FormatDamaged, PackDamaged
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.tiers.roles import PackReader

_PREPARED_BYTES = 384 * limits.KIB  # what zstd keeps for a dictionary and two threads, about


class OpenedPack:
    """One pack, for `reader.read_record`. Nothing is read before it is needed. Any thread."""

    def __init__(self, owner: OpenedPacks, pack: str) -> None:
        self.id = pack
        self.group: tuple[int, bytes] | None = None  # (offset, plain bytes) of the group that was decoded last
        self._owner = owner
        self._rows: dict[int, lpk.FooterRow] | None = None
        self._cipher: PackCipher | None = None

    @property
    def cipher(self) -> PackCipher | None:
        """What opens its payloads, made from its header; None when the store is not encrypted. Raises FormatDamaged."""
        if self._cipher is None:
            self._cipher = self._owner.cipher(self.id)
        return self._cipher

    def dictionary(self, ordinal: int) -> Dictionary:
        """Raises FormatDamaged when the pack has none of that ordinal, or a damaged one."""
        if self._rows is None:
            rows = self._owner.dictionary_rows(self.id)
            self._rows = {row.dictionary: row for row in rows}
        row = self._rows.get(ordinal)
        if row is None:
            raise FormatDamaged(f"it names dictionary {ordinal}, which is not in its pack")
        return self._owner.dictionary(self, ordinal, row)


class OpenedPacks:
    """The packs that were read from lately, and their dictionaries; memory is bounded. Any thread."""

    def __init__(self, tier: PackReader, store_id: bytes, keys: StoreKeys | None = None) -> None:
        self._tier, self._store_id, self._keys = tier, store_id, keys
        self._lock = threading.Lock()
        self._packs: OrderedDict[str, OpenedPack] = OrderedDict()
        self._dictionaries: OrderedDict[Digest, Dictionary] = OrderedDict()
        self._bytes = 0

    def get(self, pack: str) -> OpenedPack:
        """The pack `pack`; it need not exist before it is read."""
        with self._lock:
            opened = self._packs.get(pack)
            if opened is None:
                opened = self._packs[pack] = OpenedPack(self, pack)
                if len(self._packs) > limits.OPENED_PACKS_MAX:
                    self._packs.popitem(last=False)
            else:
                self._packs.move_to_end(pack)
            return opened

    def forget(self, packs: Iterable[str]) -> None:
        """These are gone."""
        with self._lock:
            for pack in packs:
                self._packs.pop(pack, None)

    def cipher(self, pack: str) -> PackCipher | None:
        """Raises FormatDamaged when the header cannot be read: without its salt nothing of the pack can be opened."""
        if self._keys is None:
            return None
        try:
            header = lpk.parse_header(self._tier.read(pack, 0, lpk.HEADER_BYTES))
        except OSError as error:
            raise FormatDamaged(f"its pack cannot be read ({error.strerror})") from None
        if not header.encrypted or header.store_id != self._store_id or header.pack_id.hex() != pack:
            raise FormatDamaged("its pack is not one that this encrypted store has written")
        return self._keys.pack(header.salt, header.pack_id)

    def dictionary_rows(self, pack: str) -> list[lpk.FooterRow]:
        """Where a pack's dictionaries are. Raises FormatDamaged when it cannot be read at all."""
        try:
            return reader.read_footer(self._tier, pack, self._store_id, kind=lpk.KIND_DICTIONARY)
        except PackDamaged:
            try:
                _, rows = reader.walk_records(self._tier, pack)
            except OSError as error:
                raise FormatDamaged(f"its pack cannot be searched for dictionaries ({error.strerror})") from None
        return [row for row in rows if row.kind == lpk.KIND_DICTIONARY]

    def dictionary(self, opened: OpenedPack, ordinal: int, row: lpk.FooterRow) -> Dictionary:
        """The dictionary at `row`, from memory or from the pack. Raises FormatDamaged."""
        with self._lock:
            found = self._dictionaries.get(row.digest)
            if found is not None:
                self._dictionaries.move_to_end(row.digest)
                return found
        made = self._read(opened, ordinal, row)
        with self._lock:
            if row.digest not in self._dictionaries:
                self._dictionaries[row.digest] = made
                self._bytes += len(made.data) + _PREPARED_BYTES
                while self._bytes > limits.DICTIONARY_CACHE_BYTES and len(self._dictionaries) > 1:
                    _, gone = self._dictionaries.popitem(last=False)
                    self._bytes -= len(gone.data) + _PREPARED_BYTES
            return self._dictionaries[row.digest]

    def _read(self, opened: OpenedPack, ordinal: int, row: lpk.FooterRow) -> Dictionary:
        if row.raw > limits.DICTIONARY_BYTES_MAX:
            raise FormatDamaged(f"its dictionary {ordinal} says {row.raw} bytes: over {limits.DICTIONARY_BYTES_MAX}")
        try:
            _, data = reader.read_record(self._tier, row, opened)
        except ChunkCorrupt as error:
            raise FormatDamaged(f"its dictionary {ordinal} is damaged: {error.why}") from None
        return Dictionary(data, row.digest)
