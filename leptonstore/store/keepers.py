"""Which pack keeps each chunk that is needed: the sorted keys of what is reached, joined with the packs' footers.

Footers are the truth (the index is a cache of them), and one is at most some MiB, so memory does not grow with the store. Where
several packs hold a chunk, one of them keeps it: one that is not condemned before one that is, a whole one before a damaged one,
one that this collection did not copy from, then the one with the larger live share, the larger one, the smaller id. So all
collections choose alike where they can, and repacked chunks are kept by their new packs. A reference is kept only where no pack has the
chunk itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from leptonstore import limits
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow
from leptonstore.store import index_rows, reader
from leptonstore.store.log import PackRecord
from leptonstore.store.runs import Keys, SortedRuns, positions, scratch_array
from leptonstore.store.store import Store

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class PackRows(NamedTuple):
    """A pack's chunks: keys, and the bytes that each takes."""

    keys: Keys
    sizes: Numbers
    lists: Numbers  # which are chunk lists
    references: Numbers  # which are references
    rows: list[FooterRow]


@dataclass
class Keepers:
    """`kept` and `held`: bytes of the chunks that a pack keeps, and of all its chunks. `numbers`: pack -> its number in `keeper`."""

    keys: Keys
    keeper: Numbers
    numbers: dict[str, int]
    kept: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    missing: int = 0

    def rows_kept(self, store: Store, pack: str) -> list[FooterRow]:
        """The records that `pack` keeps, in the order of their offsets."""
        found = pack_rows(store, pack)
        at, hit = positions(self.keys, found.keys)
        hit &= np.asarray(self.keeper[at] == self.numbers[pack]) if len(self.keys) else False
        return sorted((found.rows[n] for n in np.flatnonzero(hit).tolist()), key=lambda row: row.offset)


def pack_rows(store: Store, pack: str) -> PackRows:
    """From the footer; of a damaged pack, the records that are still found."""
    try:
        rows = [row for row in store._footer_rows(pack) if row.kind != lpk.KIND_DICTIONARY]
    except OSError as error:
        store.damaged_packs[pack] = f"it cannot be read ({error.strerror})"
        rows = []
    array = index_rows.array_of(rows)
    digests = np.ascontiguousarray(array["digest"]).view(np.uint8).reshape(-1, 32)
    keys = np.ascontiguousarray(digests[:, : limits.GC_KEY_BYTES]).view(f"S{limits.GC_KEY_BYTES}").reshape(-1)
    sizes = np.array([row.share for row in rows], np.int64)
    kinds = array["kind"]
    return PackRows(keys, sizes, kinds == lpk.KIND_CHUNK_LIST, kinds == lpk.KIND_REFERENCE, rows)


def pieces_of(store: Store, packs: dict[str, PackRecord], keys: Keys, folder: Path) -> Keys:
    """`keys`, and those of the pieces of every chunk list that is among them. Raises ChunkCorrupt."""
    runs = SortedRuns(limits.GC_KEY_BYTES, folder)
    runs.add_sorted(keys)
    for pack in packs:
        found = pack_rows(store, pack)
        if not found.lists.any():
            continue
        for number in np.flatnonzero(found.lists & positions(keys, found.keys)[1]).tolist():
            _, data = reader.read_record(store.tier, found.rows[number], store.opened(pack))
            for piece, _ in lpk.parse_chunk_list(data).pieces:
                runs.add(store.stored_name(piece)[: limits.GC_KEY_BYTES])
    return runs.finish()


def choose_keepers(
    store: Store,
    packs: dict[str, PackRecord],
    condemned: Container[str],
    retiring: Container[str],
    keys: Keys,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> Keepers:
    """The keeper of each of `keys` among `packs`. retiring: packs whose live chunks were copied into others."""
    share: dict[str, float] = {}
    damaged = set()
    for done, pack in enumerate(packs):
        progress("compare", done, 2 * len(packs))
        found = pack_rows(store, pack)
        live = found.sizes[positions(keys, found.keys)[1]].sum()
        share[pack] = float(live) / max(1, int(found.sizes.sum()))
        if pack in store.damaged_packs:
            damaged.add(pack)

    def rank(pack: str) -> tuple[bool, bool, bool, float, int, str]:
        return pack in condemned, pack in damaged, pack in retiring, -share[pack], -packs[pack].bytes, pack

    order = sorted(packs, key=rank)
    keepers = Keepers(keys, scratch_array(len(keys), np.int32, folder), {}, damaged=damaged)
    referring: list[str] = []
    for number, pack in enumerate(order, 1):
        progress("compare", len(packs) + number, 2 * len(packs))
        found = pack_rows(store, pack)
        keepers.numbers[pack] = number
        if found.references.any():
            referring.append(pack)
        keepers.kept[pack], keepers.held[pack] = 0, int(found.sizes.sum())
        _keep(keepers, pack, found, ~found.references)
    for pack in referring:
        found = pack_rows(store, pack)
        _keep(keepers, pack, found, found.references)
    keepers.missing = len(keys) - int(np.count_nonzero(keepers.keeper))
    return keepers


def _keep(keepers: Keepers, pack: str, found: PackRows, wanted: Numbers) -> None:
    """Have `pack` keep those of its `wanted` rows that are needed and that no pack keeps yet."""
    at, hit = positions(keepers.keys, found.keys)
    hit = hit & wanted
    at, sizes = at[hit], found.sizes[hit]
    free = np.asarray(keepers.keeper[at] == 0)
    keepers.keeper[at[free]] = keepers.numbers[pack]
    keepers.kept[pack] += int(sizes[free].sum())
