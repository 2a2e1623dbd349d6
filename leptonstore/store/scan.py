"""Reads whole packs on all cores: is the structure sound, and does every record decode to what its digest says?

Where a store has several tiers, every copy of a pack is looked at.

Hashing, decompression and file reads release the GIL, so threads are enough. Memory: each thread holds one window of one pack
(CHECK_WINDOW_BYTES, or one larger record) and its footer; at most twice as many packs as threads are under way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, FormatTooNew, NotPermitted, PackDamaged, TierUnavailable
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.footers import positions_of
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
    """What was found of one copy. `why` is empty when header, footer and trailer are sound.

    at: position of its tier, None when no tier has one. sound: names of the records that are whole in it, where it is damaged.
    """

    pack: str
    at: int | None
    why: PackDamaged | FormatTooNew | None = None
    records: int = 0
    bytes_read: int = 0
    corrupt: list[tuple[lpk.FooterRow, ChunkCorrupt]] = field(default_factory=list)
    sound: frozenset[Digest] = frozenset()

    @property
    def damaged(self) -> bool:
        """Whether anything of it is not what was written."""
        return isinstance(self.why, PackDamaged) or bool(self.corrupt)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong with it, as far as it was looked at."""
        return self.why is None and not self.corrupt

    def holds(self, name: Digest) -> bool:
        """Whether a record of the pack is whole in this copy."""
        return self.whole or name in self.sound


@dataclass
class ExaminedPack:
    """All copies of a pack, the nearest first: at least one, which says "missing" when no tier has it, unless one is `silent`.

    lacking: positions of tiers that should keep it and have none, though others do. silent: position -> the error of a tier that
    does not answer, and keeps it or may be the only one that does.
    """

    pack: str
    copies: list[Examined] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)
    silent: dict[int, TierUnavailable] = field(default_factory=dict)

    @property
    def damaged(self) -> list[Examined]:
        """The copies that are damaged or missing."""
        return [copy for copy in self.copies if copy.damaged]

    def whole_in(self, kept: Sequence[int] = ()) -> int | None:
        """Position of a tier that has a whole copy, of those in `kept` if one has; None when there is none."""
        whole = [copy.at for copy in self.copies if copy.whole and copy.at is not None]
        return next((at for at in whole if at in kept), whole[0] if whole else None)


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


def examine(store: Store, pack: str, record: PackRecord, read_data: bool, read: Callable[[int], None]) -> ExaminedPack:
    """Every copy of one pack; `read(bytes)` is told of progress. Any thread.

    Raises TierUnavailable when the store has one tier and that does not answer; NotPermitted.
    """
    found, tiers = ExaminedPack(pack), store.tier
    tiers.forget_packs([pack])  # the files that are there now, not those that were when somebody opened them
    kept = positions_of(store.state, store.placement, pack)
    absent: list[int] = []
    silent: dict[int, TierUnavailable] = {}
    for at in range(len(tiers.tiers)):
        try:
            copy = tiers.ask(at, lambda tier, at=at: _examine_copy(store, pack, at, tier, record, read_data, read))  # type: ignore[misc]
        except (TierUnavailable, NotPermitted) as error:
            if len(tiers.tiers) == 1:
                raise
            named = error if isinstance(error, TierUnavailable) else TierUnavailable(str(error), tiers.tiers[at].url)
            silent[at] = named
            continue
        if isinstance(copy.why, PackDamaged) and copy.why.missing:
            absent.append(at)
        else:
            found.copies.append(copy)
    found.silent = {at: error for at, error in silent.items() if at in kept or not found.copies}
    if found.copies:
        found.lacking = [at for at in absent if at in kept]
    elif not silent:
        found.copies.append(Examined(pack, None, PackDamaged(pack, "its file is missing", missing=True)))
    if not found.copies:
        read(record.bytes)
    return found


def _examine_copy(
    store: Store,
    pack: str,
    at: int,
    tier: PackReader,
    record: PackRecord,
    read_data: bool,
    read: Callable[[int], None],
) -> Examined:
    opened = store.opened_in(tier, pack)
    rows, why = rows_of(tier, opened, store.config.store_id, record)
    found = Examined(pack, at, why, len(rows))
    if isinstance(why, PackDamaged) and why.missing:
        return found
    if not read_data:
        read(record.bytes)
        found.sound = frozenset(row.digest for row in rows) if why is not None else frozenset()
        return found
    windowed = Windowed(tier)
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
    if not found.whole:
        found.sound = frozenset(row.digest for row in rows) - {row.digest for row, _ in found.corrupt}
    return found


def examine_all(
    store: Store, packs: Iterable[tuple[str, PackRecord, bool]], read: Callable[[int], None]
) -> Iterator[ExaminedPack]:
    """Every (pack, record, whether to read its data), examined on all cores, in the order given."""
    threads = len(os.sched_getaffinity(0))
    waiting: deque[Future[ExaminedPack]] = deque()
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
