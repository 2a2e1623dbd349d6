"""`lepton repair`: save what damaged packs still hold, fetch what they lost from copies, and say what is lost for good.

    1 examine every pack, every byte of every copy in every tier
    2 a copy that is damaged or missing where another tier that the log counts on has a whole one is replaced by that (copy_pack)
    3 each whole record of any other damaged or missing pack, in whatever tier or in a copy of that pack, is written again; one log
      entry lists the new packs and removes the damaged ones
    4 every version is walked; what is missing is taken from a copy, by digest, in whatever pack or pieces it lies there
    5 what is still missing is reported by version, rows and column

A pack of which no tier that the log counts on has a whole copy is never mended under its own id, even when `--from` has it whole: an
index anywhere may have been filled from the damaged file, and only the log tells all of them. (Where a tier has a whole copy, indexes are
filled from that; decision 18.)

Invariants:
- A damaged file is moved to damaged/ (deleted only from tiers that have no such place), and only after what it held is durable and
  listed elsewhere: in new packs, or in a tier that the log counts on, which this run has read in full.
- Each step leaves a store that is no worse: interrupted anywhere and run again, repair goes on where it was.
- What comes from a copy is checked against the digest that this store asks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.digest import Digest, digest_of_parts
from leptonstore.errors import ChunkCorrupt, ChunkMissing, Conflict, Damaged, FormatTooNew, NotPermitted
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.copies import Copy
from leptonstore.store.footers import positions_of
from leptonstore.store.log import PackRecord
from leptonstore.store.lost import Lost, find_lost
from leptonstore.store.mend import Mending
from leptonstore.store.opened import OpenedPack
from leptonstore.store.placement import Placement, places_of
from leptonstore.store.scan import Examined, ExaminedPack, Windowed, examine_all, rows_of
from leptonstore.store.store import Store
from leptonstore.tiers.moving import copy_pack
from leptonstore.tiers.roles import PackPruner, PackReader


@dataclass
class PackRepair:
    """What became of one damaged pack. Its records are in other packs now, and its file in damaged/."""

    pack: str
    why: str
    saved: int = 0  # chunks that were whole in it
    copied: int = 0  # further ones that a copy of the pack had
    lost: int | None = None  # chunks that are in neither; None when no footer tells what there was


@dataclass
class CopyRepair:
    """One damaged or missing copy of a pack, in tier `tier`, that was replaced by the whole one in tier `source` (extra: removed;
    that tier need not have one)."""

    pack: str
    tier: str
    source: str
    why: str
    extra: bool


@dataclass
class RepairReport:
    """What repair found and did; with dry_run what it would do. `lost` is what no copy has."""

    dry_run: bool = False
    packs: int = 0
    replaced: list[CopyRepair] = field(default_factory=list)
    repaired: list[PackRepair] = field(default_factory=list)
    fetched: int = 0  # chunks that came from elsewhere in a copy
    fetched_bytes: int = 0  # plain
    lost: list[Lost] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every version can be read in full (or could be, with dry_run)."""
        return not self.lost

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        lists = {
            "replaced": [vars(one) for one in self.replaced],
            "repaired": [vars(one) for one in self.repaired],
            "lost": [one.to_json() for one in self.lost],
        }
        return {**vars(self), **lists, "whole": self.whole}


def repair_store(
    store: Store,
    copies: Sequence[Copy] = (),
    dry_run: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RepairReport:
    """Make `store` as whole as it can be. `progress(done bytes, all bytes)` of reading it, from several threads.

    force: go on although most packs' files are missing (otherwise Damaged: a file system may not be mounted). Raises StoreFull,
    NotPermitted, Conflict (garbage collection ran meanwhile: run it again), FormatTooNew, TierUnavailable (what a tier has that does not
    answer is neither damaged nor lost, so nothing is judged then).
    """
    store.refresh()
    base = store.state.gc_sequence
    report = RepairReport(dry_run)
    damaged: list[Examined] = []
    placement = store.placement
    for pack in _examine(store, report, progress):
        if not replace_copies(store, pack, placement, report):
            damaged += pack.damaged[:1]
    _require_mounted(store, damaged, copies, report.packs, force)
    mending = Mending(store, list(copies), dry_run)
    if dry_run:
        mending.damaged = {found.pack for found in damaged}
    else:
        # So that what is put again is written again.
        store.damaged_packs.update({found.pack: _why(found) for found in damaged})
    for batch in _batches(store, damaged):
        for found in batch:
            report.repaired.append(_salvage(store, found, copies, mending))
        if not dry_run:
            store.replace_packs("repair", {found.pack for found in batch}, base)
            base = store.state.gc_sequence
            for found in batch:
                for tier in store.tier.tiers:
                    # It is listed no more: in a tier that can only be read it may stay.
                    with contextlib.suppress(*(() if tier is store.home else (NotPermitted,))):
                        _set_aside(tier, found.pack)
    store.reindex()  # it may have been filled from a damaged file that somebody has replaced since
    report.lost = find_lost(mending)
    if not dry_run:
        store.flush()
    report.fetched, report.fetched_bytes = mending.fetched, mending.fetched_bytes
    return report


def _examine(store: Store, report: RepairReport, progress: Callable[[int, int], None]) -> list[ExaminedPack]:
    """The packs of which a copy is damaged or missing."""
    listed = sorted(store.state.packs.items())
    total, done = sum(record.bytes * len(places_of(store.state, pack)) for pack, record in listed), 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    damaged = []
    for found in examine_all(store, ((pack, record, True) for pack, record in listed), read):
        for copy in found.copies:
            if isinstance(copy.why, FormatTooNew):
                raise copy.why
        for error in found.silent.values():
            raise error
        report.packs += 1
        if found.damaged or found.lacking:
            damaged.append(found)
    return damaged


def replace_copies(store: Store, found: ExaminedPack, placement: Placement, report: RepairReport) -> bool:
    """Replace what is damaged or missing of a pack by the whole copy of a tier that the log counts on; False when there is none.

    The whole copy has just been read in full. It is counted on, so nobody deletes it while the damaged one is away; an interruption
    leaves a copy too few, which the next run brings. Copies that the log does not count on are only removed. Raises Conflict when
    the tiers are no longer those of `placement`, whose positions were examined.
    """
    store.refresh()
    if store.placement.tiers != placement.tiers:
        raise Conflict("the store's tiers were changed while this ran: run the command again")
    if found.pack not in store.state.packs:
        return True  # garbage collection removed it meanwhile
    kept = positions_of(store.state, store.placement, found.pack)
    whole, names = found.whole_in(kept), store.placement.names
    if whole is None or (whole not in kept and found.damaged):
        return False
    source = store.tier.tiers[whole]
    if source.pack_bytes(found.pack) != store.state.packs[found.pack].bytes:
        return False  # somebody moved it meanwhile
    for copy in found.damaged:
        if copy.at is None:
            continue
        extra = copy.at not in kept
        report.replaced.append(CopyRepair(found.pack, names[copy.at], names[whole], _why(copy), extra))
        if not report.dry_run:
            _set_aside(store.tier.tiers[copy.at], found.pack)
            if not extra:
                _bring(source, store.tier.tiers[copy.at], found.pack)
    for at in found.lacking:
        report.replaced.append(CopyRepair(found.pack, names[at], names[whole], "its file is missing", False))
        if not report.dry_run:
            _bring(source, store.tier.tiers[at], found.pack)
    return True


def _bring(source: PackReader, target: PackReader, pack: str) -> None:
    if not isinstance(target, PackPruner):
        raise NotPermitted(
            f"{target.url} can only be read: pack {pack} cannot be replaced there by the copy in {source.url}"
        )
    copy_pack(source, target, pack)


def _set_aside(tier: PackReader, pack: str) -> None:
    """Take a damaged file out of use."""
    if hasattr(tier, "set_aside"):
        tier.set_aside(pack)
    elif isinstance(tier, PackPruner):
        tier.delete_pack(pack)


def _why(found: Examined) -> str:
    if found.why is not None:
        return getattr(found.why, "why", str(found.why))
    return f"{len(found.corrupt)} of {found.records} records are corrupt"


def _require_mounted(store: Store, damaged: list[Examined], copies: Sequence[Copy], packs: int, force: bool) -> None:
    """Raise Damaged when most packs are gone here and in the copies: nobody should drop them from the log by mistake."""
    missing = 0
    for found in damaged:
        size = store.state.packs[found.pack].bytes
        here = store.tier.pack_bytes(found.pack) is not None
        missing += not here and all(copy.packs.pack_bytes(found.pack) != size for copy in copies)
    if missing * 2 > packs and not force:
        raise Damaged(
            f"the files of {missing} of {packs} packs of {store.url} are missing: is the file system with packs/ mounted? "
            "Give a copy with --from, or go on with what is left with --force; nothing was changed"
        )


def _batches(store: Store, left: list[Examined]) -> list[list[Examined]]:
    """Damaged packs that are published together: as much as makes one new pack."""
    batches: list[list[Examined]] = []
    room = 0
    for found in left:
        size = store.state.packs[found.pack].bytes
        if size > room:
            batches.append([])
            room = limits.PACK_BYTES_MAX
        batches[-1].append(found)
        room -= size
    return batches


def _salvage(store: Store, found: Examined, copies: Sequence[Copy], mending: Mending) -> PackRepair:
    """Put every whole record of a damaged pack again, from its own file and from copies of it."""
    record = store.state.packs[found.pack]
    done = PackRepair(found.pack, _why(found))
    saved: set[Digest] = set()
    named: set[Digest] | None = None
    for tier in store.tier.tiers:
        if tier.pack_bytes(found.pack) is not None:
            opened = store.opened_in(tier, found.pack)
            named = _put_whole(store, tier, opened, record, saved, mending) or named
    done.saved = len(saved)
    for copy in copies:
        if copy.packs.pack_bytes(found.pack) is not None:
            opened = copy.opened(store).get(found.pack)
            named = _put_whole(store, copy.packs, opened, record, saved, mending) or named
    done.copied = len(saved) - done.saved
    done.lost = None if named is None else len(named - saved)
    return done


def _put_whole(
    store: Store, packs: PackReader, opened: OpenedPack, record: PackRecord, saved: set[Digest], mending: Mending
) -> set[Digest] | None:
    """Put the whole records of one file that are not in `saved` yet, and note them there.

    Returns the names of all records that its footer tells; None when that is damaged.
    """
    rows, why = rows_of(packs, opened, store.config.store_id, record)
    windowed = Windowed(packs)
    for row in rows:
        if row.kind == lpk.KIND_DICTIONARY or row.digest in saved:
            continue  # new packs have dictionaries of their own
        try:
            kind, plain = reader.read_record(windowed, row, opened, crc=True)
        except ChunkCorrupt:
            continue
        saved.add(row.digest)
        if mending.dry_run:
            mending.salvaged.add(row.digest)
        else:
            _put_again(store, row, kind, plain, record.content)
    return {row.digest for row in rows if row.kind != lpk.KIND_DICTIONARY} if why is None else None


def _put_again(store: Store, row: lpk.FooterRow, kind: int, plain: bytes, content: int) -> None:
    if kind == lpk.KIND_CHUNK:
        store.put_piece(plain, content, plane_width=row.plane_width)
        return
    if kind == lpk.KIND_REFERENCE:
        store._writer.add(row.digest, kind, plain, content, here=True)
        return
    pieces = list(lpk.parse_chunk_list(plain).pieces)
    digest: Digest | None = row.digest
    if store.config.encryption is not None:  # its name is keyed: only the value tells its digest
        digest = _digest_of_pieces(store, pieces)
    if digest is not None:
        store.put_chunk_list(digest, pieces, content)


def _digest_of_pieces(store: Store, pieces: list[tuple[Digest, int]]) -> Digest | None:
    """The digest of a large value; None when a piece is lost, and the value with it (unless a copy has both)."""
    try:
        return digest_of_parts(store.record(piece)[1] for piece, _ in pieces)
    except (ChunkCorrupt, ChunkMissing):
        return None
