"""Reads whole packs on all cores: is the structure sound, and does every record decode to what its digest says?

Hashing, decompression and file reads release the GIL, so threads are enough. Memory: each thread holds one window of one pack
(CHECK_WINDOW_BYTES, or one larger record) and its footer; at most twice as many packs as threads are under way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from leptonstore import limits
from leptonstore.errors import ChunkCorrupt, FormatTooNew, PackDamaged
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.log import PackRecord
from leptonstore.store.opened import OpenedPack
from leptonstore.store.store import Store
from leptonstore.tiers.roles import PackReader


class Windowed:
    """A PackReader for one thread that reads ahead: small records in the order of their offsets cost one read together."""

    def __init__(self, tier: PackReader) -> None:
        self._tier = tier
        self._pack, self._start, self._window = "", 0, b""
        self.url, self.pack_bytes, self.packs = tier.url, tier.pack_bytes, tier.packs

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader.read."""
        at = offset - self._start
        if pack != self._pack or at < 0 or at + length > len(self._window):
            try:
                self._window = self._tier.read(pack, offset, max(length, limits.CHECK_WINDOW_BYTES))
            except OSError:  # a bad sector must cost the records on it only
                return self._tier.read(pack, offset, length)
            self._pack, self._start, at = pack, offset, 0
        return self._window[at : at + length]


@dataclass
class Examined:
    """What was found of one pack. `why` is empty when header, footer and trailer are sound."""

    pack: str
    why: PackDamaged | FormatTooNew | None = None
    records: int = 0
    bytes_read: int = 0
    corrupt: list[tuple[lpk.FooterRow, ChunkCorrupt]] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether anything of it is not what was written."""
        return isinstance(self.why, PackDamaged) or bool(self.corrupt)


def rows_of(
    tier: PackReader, opened: OpenedPack, store_id: bytes, record: PackRecord | None
) -> tuple[list[lpk.FooterRow], PackDamaged | FormatTooNew | None]:
    """The records of a pack in the order of their offsets; when its structure is damaged, those still found, and why."""
    try:
        rows = reader.read_footer(tier, opened.id, store_id, record.bytes if record else None)
        return sorted(rows, key=lambda row: row.offset), None
    except (PackDamaged, FormatTooNew) as error:
        return _salvaged(tier, opened), error


def _salvaged(tier: PackReader, opened: OpenedPack) -> list[lpk.FooterRow]:
    try:
        return reader.salvage_rows(tier, opened)
    except OSError:
        return []  # the device does not give it back


def examine(store: Store, pack: str, record: PackRecord, read_data: bool, read: Callable[[int], None]) -> Examined:
    """One pack; `read(bytes)` is told of progress. Any thread."""
    opened = store.opened(pack, anew=True)
    rows, why = rows_of(store.tier, opened, store.config.store_id, record)
    found = Examined(pack, why, len(rows))
    if not read_data:
        read(record.bytes)
        return found
    windowed = Windowed(store.tier)
    done = 0
    for row in rows:
        try:
            reader.read_record(windowed, row, opened, crc=True)
        except ChunkCorrupt as error:
            found.corrupt.append((row, error))
        found.bytes_read += row.share
        if found.bytes_read - done >= limits.CHECK_WINDOW_BYTES:
            read(found.bytes_read - done)
            done = found.bytes_read
    read(max(0, record.bytes - done))
    return found


def examine_all(
    store: Store, packs: Iterable[tuple[str, PackRecord, bool]], read: Callable[[int], None]
) -> Iterator[Examined]:
    """Every (pack, record, whether to read its data), examined on all cores, in the order given."""
    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[Examined]] = deque()
    with ThreadPoolExecutor(threads, "lepton-check") as pool:
        try:
            for pack, record, read_data in packs:
                waiting.append(pool.submit(examine, store, pack, record, read_data, read))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
