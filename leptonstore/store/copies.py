"""Where repair finds what this store has lost: another store, or a plain directory with copies of packs.

Nothing that comes from a copy is trusted: every record is checked against its digest before it is used.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    FormatDamaged,
    FormatTooNew,
    NotPermitted,
    PackDamaged,
    TierUnavailable,
)
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.config import DOCUMENT
from leptonstore.store.opened import OpenedPacks
from leptonstore.store.store import Store
from leptonstore.tiers.local import LocalTier, is_same_place
from leptonstore.tiers.open import open_tier
from leptonstore.tiers.roles import PackReader

_PACK = re.compile(r"([0-9a-f]{32})\.pack")
Keys = np.ndarray[Any, Any]
_FOOTERS_KEPT = 8  # of packs that were searched lately


class Found(NamedTuple):
    """A record of a copy: its kind, plain bytes (checked), and the content (data or metadata) of the pack it was in."""

    kind: int
    plain: bytes
    content: int


class Copy(Protocol):
    """A place that may have what is lost."""

    @property
    def packs(self) -> PackReader:
        """The packs that lie here, of whatever store."""

    def find(self, digest: Digest) -> Found | None:
        """The record of a chunk or chunk list, None when it is not there or damaged, too."""

    def opened(self, store: Store) -> OpenedPacks:
        """What decodes packs of `store` that lie here."""

    def close(self) -> None:
        """Let go of files."""


def open_copy(store: Store, url: str | Path) -> Copy:
    """The store at `url`, or the packs below that directory. Raises BadInput when there are none."""
    tier = open_tier(url)
    if is_same_place(tier, store.home):
        raise BadInput(f"{tier.url} is the store that is to be repaired: give another copy")
    if not isinstance(tier, LocalTier):
        return StoreCopy(Store.open(tier.url, unlock=store.secret_source))
    if not tier.root.is_dir():
        raise BadInput(f"{tier.url}: no such directory: give another store, or a directory with copies of packs")
    if (tier.root / DOCUMENT).exists():
        return StoreCopy(Store.open(tier.url, unlock=store.secret_source))
    return FolderCopy(store, tier.root)


class StoreCopy:
    """Another store: a mirror of this one, or one that happens to hold the same data."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.packs = store.tier

    def find(self, digest: Digest) -> Found | None:
        """As Copy.find."""
        place = self._store.locate(digest)
        if place is None:
            return None
        try:
            kind, plain = self._store.record(digest)
            if kind == lpk.KIND_REFERENCE:  # the other store's roots are not ours
                kind, plain = lpk.KIND_CHUNK, self._store.get(digest)
        except (ChunkCorrupt, ChunkMissing, NotPermitted, TierUnavailable):
            return None
        record = self._store.state.packs.get(place.pack)
        return Found(kind, plain, record.content if record else lpk.CONTENT_DATA)

    def opened(self, store: Store) -> OpenedPacks:
        """As Copy.opened."""
        return _opened_for(store, self.packs)

    def close(self) -> None:
        """As Copy.close."""
        self._store.close()


def _opened_for(store: Store, packs: PackReader) -> OpenedPacks:
    return OpenedPacks(packs, store.config.store_id, store.unlocked.keys if store.unlocked else None)


class PackFolder:
    """The packs anywhere below a directory, as a PackReader. Nothing is kept open."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._paths: dict[str, Path] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                if match := _PACK.fullmatch(name):
                    self._paths.setdefault(match[1], Path(folder, name))

    def packs(self) -> Iterator[str]:
        """As PackReader.packs."""
        yield from self._paths

    def pack_bytes(self, pack: str) -> int | None:
        """As PackReader.pack_bytes."""
        path = self._paths.get(pack)
        return path.stat().st_size if path is not None and path.exists() else None

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader.read."""
        path = self._paths.get(pack)
        if path is None:
            raise FileNotFoundError(pack)
        with open(path, "rb") as file:
            return os.pread(file.fileno(), length, offset)


class FolderCopy:
    """Copies of packs, of this store or of others that are not encrypted. Memory: 12 bytes a record."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self.packs = PackFolder(root)
        self._ids = list(self.packs.packs())
        if not self._ids:
            raise BadInput(f"{root} is neither a store nor has packs below it: give another copy")
        self._opened: dict[bytes, OpenedPacks] = {}
        self._footers: OrderedDict[str, dict[Digest, lpk.FooterRow]] = OrderedDict()
        self._names, self._holders = self._catalogue()

    def _catalogue(self) -> tuple[Keys, Keys]:
        """First 8 bytes of every record's name, sorted, and which pack has it."""
        names, holders = [], []
        for ordinal, pack in enumerate(self._ids):
            rows = self._rows(pack)
            joined = b"".join(name[:8] for name in rows)
            names.append(np.frombuffer(joined, np.uint64))
            holders.append(np.full(len(rows), ordinal, np.uint32))
        flat, holder = np.concatenate(names), np.concatenate(holders)
        order = np.argsort(flat, kind="stable")
        return flat[order], holder[order]

    def _rows(self, pack: str) -> dict[Digest, lpk.FooterRow]:
        """The records of a pack by name, kept for a few packs."""
        rows = self._footers.get(pack)
        if rows is None:
            try:
                found = reader.read_footer(self.packs, pack, self._store_of(pack))
            except (PackDamaged, FormatTooNew):
                found = self._salvage(pack)
            rows = self._footers[pack] = {row.digest: row for row in found if row.kind != lpk.KIND_DICTIONARY}
            if len(self._footers) > _FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return rows

    def _salvage(self, pack: str) -> list[lpk.FooterRow]:
        try:
            return reader.salvage_rows(self.packs, self._opened_of(pack).get(pack))
        except OSError:
            return []

    def _header(self, pack: str) -> lpk.PackHeader | None:
        try:
            return lpk.parse_header(self.packs.read(pack, 0, lpk.HEADER_BYTES))
        except (FormatDamaged, FormatTooNew, OSError):
            return None

    def _store_of(self, pack: str) -> bytes:
        header = self._header(pack)
        return self._store.config.store_id if header is None else header.store_id

    def find(self, digest: Digest) -> Found | None:
        """As Copy.find."""
        for name in {self._store.stored_name(digest), digest}:
            key = np.frombuffer(name[:8], np.uint64)[0]
            first, end = np.searchsorted(self._names, key, "left"), np.searchsorted(self._names, key, "right")
            for ordinal in sorted(set(self._holders[first:end].tolist())):
                found = self._record(self._ids[ordinal], name)
                if found is not None:
                    return found
        return None

    def _record(self, pack: str, name: Digest) -> Found | None:
        row = self._rows(pack).get(name)
        header = self._header(pack)
        if row is None or row.kind == lpk.KIND_REFERENCE:
            return None
        try:
            kind, plain = reader.read_record(self.packs, row, self._opened_of(pack).get(pack))
        except (ChunkCorrupt, FormatDamaged):
            return None
        return Found(kind, plain, header.content if header else lpk.CONTENT_DATA)

    def _opened_of(self, pack: str) -> OpenedPacks:
        owner = self._store_of(pack)
        if owner not in self._opened:
            ours = owner == self._store.config.store_id
            self._opened[owner] = _opened_for(self._store, self.packs) if ours else OpenedPacks(self.packs, owner)
        return self._opened[owner]

    def opened(self, store: Store) -> OpenedPacks:
        """As Copy.opened."""
        return _opened_for(store, self.packs)

    def close(self) -> None:
        """As Copy.close."""


def find_piece(copies: list[Copy], parent: Digest, offset: int, length: int) -> Found | None:
    """A piece of the value `parent`, cut out of that value where a copy has it, whole or in other pieces."""
    for copy in copies:
        whole = copy.find(parent)
        if whole is None:
            continue
        if whole.kind == lpk.KIND_CHUNK:
            return Found(lpk.KIND_CHUNK, whole.plain[offset : offset + length], whole.content)
        out, at = bytearray(), 0
        for piece, size in lpk.parse_chunk_list(whole.plain).pieces:
            if at + size > offset and at < offset + length and size <= limits.CHUNK_BYTES_MAX:
                part = copy.find(piece)
                if part is None or len(part.plain) != size:
                    break
                out += part.plain[max(0, offset - at) : offset + length - at]
            at += size
        if len(out) == length:
            return Found(lpk.KIND_CHUNK, bytes(out), whole.content)
    return None
