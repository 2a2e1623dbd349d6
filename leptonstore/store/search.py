"""Searching decoded records for bytes that must not be there any more: the proof of an erasure.

    every tier -> every pack, listed or not -> every record, decoded (of a damaged pack, what is found of it) -> patterns

Dictionaries are searched, and so are nodes, commits and the log. Many patterns are looked for at once: each has an 8-byte anchor, the
rarest that it has among all of them; a hash of 4 bytes is looked up at every offset, the anchor where that fits, the whole pattern where
the anchor does. Memory: a window and a record for each thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leptonstore import limits
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import ChunkCorrupt
from leptonstore.format import framed
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.scan import Windowed, rows_of
from leptonstore.store.store import Store
from leptonstore.tiers.roles import PackReader

_ANCHOR = 8
_AT_A_TIME = 64 * limits.KIB  # offsets that are looked at together: what fits a core's cache


def patterns_of(value: bytes, piece_bytes_min: int) -> Iterator[bytes]:
    """What to search for to find a value, also in pieces of at least so many bytes; nothing when it is too short or too plain."""
    block = min(limits.SEARCH_BLOCK_BYTES, max(limits.SEARCH_BYTES_MIN, piece_bytes_min // 4))
    if len(value) <= block:
        starts: Sequence[int] = [0]
    else:
        starts = [*range(0, len(value) - block, max(1, piece_bytes_min // 2)), len(value) - block]
    for start in starts:
        part = value[start : start + block]
        if len(part) >= limits.SEARCH_BYTES_MIN and len(set(part)) >= limits.SEARCH_DISTINCT_MIN:
            yield part


class Needles:
    """Patterns of at least SEARCH_BYTES_MIN bytes, for `find`. Any thread."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self.patterns = sorted(set(patterns))
        self.longest = max(map(len, self.patterns), default=0)
        step = 1 + sum(map(len, self.patterns)) // limits.SEARCH_WINDOWS_MAX
        seen = Counter(window for pattern in self.patterns for window in set(_windows(pattern, step)))
        self._by_anchor: dict[int, list[tuple[int, int]]] = {}  # anchor -> (offset in the pattern, its number)
        self._first = np.zeros(1 << 16, np.bool_)
        for number, pattern in enumerate(self.patterns):
            at = min(
                range(0, len(pattern) - _ANCHOR + 1, step),
                key=lambda at: (seen[pattern[at : at + _ANCHOR]], -len(set(pattern[at : at + _ANCHOR]))),
            )
            anchor = int.from_bytes(pattern[at : at + _ANCHOR], "little")
            self._by_anchor.setdefault(anchor, []).append((at, number))
            self._first[_hashed(np.array([anchor & 0xFFFFFFFF], np.uint32))] = True
        self._anchors = np.array(sorted(self._by_anchor), np.uint64)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def find(self, data: Buffer) -> set[int]:
        """Numbers of the patterns that are in `data`."""
        if len(data) < _ANCHOR or not self.patterns:
            return set()
        found: set[int] = set()
        view = bytes(data)
        count = len(view) - _ANCHOR + 1
        for first in range(0, count, _AT_A_TIME):
            size = min(_AT_A_TIME, count - first)
            short = np.ndarray((size,), "<u4", view, first, (1,))
            places = np.flatnonzero(self._first[_hashed(short)])
            words = np.ndarray((size,), "<u8", view, first, (1,))[places].astype(np.uint64)
            at = np.minimum(np.searchsorted(self._anchors, words), len(self._anchors) - 1)
            hits = np.flatnonzero(self._anchors[at] == words)
            for place, word in zip((places[hits] + first).tolist(), words[hits].tolist(), strict=True):
                found.update(self._whole_at(view, place, self._by_anchor[word]))
        return found

    def _whole_at(self, view: bytes, place: int, anchored: list[tuple[int, int]]) -> Iterator[int]:
        """The patterns whose anchor stands at `place` and that are there as a whole."""
        for offset, number in anchored:
            if place >= offset and view.startswith(self.patterns[number], place - offset):
                yield number


def _hashed(words: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """16 bits of each 4 bytes, by Fibonacci hashing."""
    return ((words * np.uint32(2_654_435_769)) >> np.uint32(16)).astype(np.uint16)


def _windows(pattern: bytes, step: int) -> Iterator[bytes]:
    for at in range(0, len(pattern) - _ANCHOR + 1, step):
        yield pattern[at : at + _ANCHOR]


class Hit(NamedTuple):
    """A pattern in a record of a pack. `name`: as packs call the record (Store.stored_name)."""

    tier: str
    pack: str
    name: Digest
    kind: int
    pattern: int


@dataclass
class Searched:
    """What was searched. `tiers`: name -> packs. `unreadable`: records that could not be decoded, for people."""

    packs: int = 0
    records: int = 0
    dictionaries: int = 0
    bytes: int = 0  # plain
    patterns: int = 0
    log_entries: int = 0
    tiers: dict[str, int] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    log_hits: list[int] = field(default_factory=list)  # entries of the log, which is never rewritten
    unreadable: list[str] = field(default_factory=list)

    def add(self, other: Searched) -> None:
        """What was searched of another pack."""
        self.packs += other.packs
        self.records += other.records
        self.dictionaries += other.dictionaries
        self.bytes += other.bytes
        self.hits += other.hits
        self.unreadable += other.unreadable


def search(store: Store, needles: Needles, progress: Callable[[str, int, int], None]) -> Searched:
    """Search every record in every tier, and the log. Raises TierUnavailable, NotPermitted or OSError."""
    found = Searched(patterns=len(needles.patterns))
    places = [
        (name, tier, pack)
        for name, tier in zip(store.placement.names, store.tier.tiers, strict=True)
        for pack in sorted(tier.packs())
    ]
    for name in store.placement.names:
        found.tiers[name] = sum(1 for place in places if place[0] == name)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lepton-search") as pool:
        for done, part in enumerate(pool.map(lambda place: _search_pack(store, needles, *place), places), 1):
            found.add(part)
            progress("search", done, len(places))
    for body in store.history():
        found.log_entries += 1
        if needles.find(framed.canonical_json(body)):
            found.log_hits.append(int(body["sequence"]))
    return found


def _search_pack(store: Store, needles: Needles, name: str, tier: PackReader, pack: str) -> Searched:
    opened = store.opened_in(tier, pack)
    rows, why = rows_of(tier, opened, store.config.store_id, None)
    found = Searched(1)
    if why is not None:
        found.unreadable.append(f"pack {pack} of tier {name}: {why}")
    windowed = Windowed(tier)
    for row in rows:
        try:
            kind, plain = reader.read_record(windowed, row, opened)
        except ChunkCorrupt as error:
            found.unreadable.append(f"tier {name}: {error}")
            continue
        found.records += 1
        found.dictionaries += kind == lpk.KIND_DICTIONARY
        found.bytes += len(plain)
        found.hits += [Hit(name, pack, row.digest, kind, number) for number in needles.find(plain)]
    return found


def search_files(folder: Path, needles: Needles, ending: str) -> list[str]:
    """Names of the files in `folder` that hold a pattern as it is: segments of a hot cache."""
    window, found = 16 * limits.MIB, []
    for path in sorted(folder.glob(f"*{ending}")):
        with open(path, "rb") as file:
            kept = b""
            while data := file.read(window):
                if needles.find(kept + data):
                    found.append(path.name)
                    break
                kept = data[-needles.longest :]
    return found
