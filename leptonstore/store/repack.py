"""Copies what is live out of packs that are mostly garbage, and out of many small ones, into new packs.

The old packs keep nothing then, and go the way of all garbage (store/gc.py). Every record is checked against its digest before it is
copied. Payloads are copied as they are; what is in a group, uses a dictionary or is encrypted is decoded and written anew.
"""

from __future__ import annotations

from collections.abc import Container

from leptonstore import limits
from leptonstore.codec import Encoded
from leptonstore.digest import Digest, digest_of, digest_of_parts
from leptonstore.errors import ChunkCorrupt
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow
from leptonstore.store import reader
from leptonstore.store.dictionaries import Record, Shelf
from leptonstore.store.keepers import Keepers
from leptonstore.store.log import PackRecord
from leptonstore.store.store import Store


def plan_repack(
    packs: dict[str, PackRecord],
    keepers: Keepers,
    untouched: Container[str],
    wanted: Container[str] = (),
    share: float = limits.GC_REPACK_SHARE,
) -> list[str]:
    """The packs worth copying (of which less than `share` is needed), and those `wanted`, in a fixed order.

    Not those that keep nothing, are damaged, or `untouched`.
    """
    plan = set()
    small: dict[int, list[str]] = {}
    for pack, record in packs.items():
        if pack in untouched or pack in keepers.damaged or not keepers.kept[pack]:
            continue
        if pack in wanted or keepers.kept[pack] < share * keepers.held[pack]:
            plan.add(pack)
        if record.bytes < limits.GC_SMALL_PACK_BYTES:
            small.setdefault(record.content, []).append(pack)
    for same in small.values():
        if len(same) >= limits.GC_SMALL_PACKS_MIN:
            plan.update(same)
    return sorted(plan, key=lambda pack: (packs[pack].content, pack))


def repack(store: Store, pack: str, content: int, keepers: Keepers) -> int:
    """Copy what `pack` keeps; returns the bytes of these records. What is corrupt stays where it is. Raises StoreFull."""
    copied, shelf, opened = 0, Shelf(), store.opened(pack)
    for row in keepers.rows_kept(store, pack):
        try:
            kind, plain = reader.read_record(store.tier, row, opened)
            digest = _digest(store, row, kind, plain)
        except ChunkCorrupt:
            continue
        record = Record(digest, kind, plain, row.plane_width)
        copied += row.share
        if not row.is_member and row.dictionary == lpk.DICTIONARY_NONE and opened.cipher is None:
            _, payload = lpk.parse_record(store.tier.read(pack, row.offset, row.end - row.offset))
            store._writer.copy([record], content, Encoded(row.codec, bytes(payload), row.raw, row.plane_width))
        elif batch := shelf.add(record):
            store._writer.copy(batch, content)
    if batch := shelf.take():
        store._writer.copy(batch, content)
    return copied


def _digest(store: Store, row: FooterRow, kind: int, plain: bytes) -> Digest:
    """The digest of a record's value. Footers of an encrypted store do not tell it, but what is inside does."""
    if store.stored_name(row.digest) == row.digest:
        return row.digest
    if kind == lpk.KIND_CHUNK:
        return digest_of(plain)
    return digest_of_parts(store.get(piece) for piece, _ in lpk.parse_chunk_list(plain).pieces)
