"""What each version takes: bytes that only it needs, bytes that it shares, and bytes that no version needs.

    1 every version is given a bit; every tree node a set of such bits: the versions that reach it. Only inner nodes are read for that.
    2 every row group is read once, whatever number of versions share it; each chunk below is written down as
      (name, the row group's set, pack, stored bytes, plain bytes)
    3 the notes are sorted by name, part by part; a chunk belongs to the union of its sets

Memory grows with row groups (about 200 bytes each: 50 MB for 10^9 rows) and with the different sets of versions, not with chunks:
the notes lie in temporary files beyond SPILL_BYTES.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leptonstore import limits
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkMissing, Damaged, FormatTooNew
from leptonstore.format import pack as lpk
from leptonstore.format.node import RowGroup, parse_node
from leptonstore.store.store import Store
from leptonstore.store.stored import Stored
from leptonstore.store.versions import Version, all_versions
from leptonstore.store.walk import Reached, walk, walk_group, walk_one

_PARTS = 64  # that the notes are divided into; one of them is in memory at a time
_NOTE = np.dtype(
    [("name", "<u8"), ("more", "<u8"), ("set", "<u4"), ("pack", "<u4"), ("stored", "<u8"), ("plain", "<u8")]
)


class Placed(NamedTuple):
    """A chunk that a version reaches, what is known of it, and what it takes with its header and footer row."""

    reached: Reached
    fact: Stored
    stored: int


def placed(reached: Iterable[Reached]) -> Iterator[Placed]:
    """The chunks of a walk with what they take. Raises the walk's errors; chunks that are not published yet are passed over."""
    for one in reached:
        if one.error is not None:
            raise one.error
        if one.fact is not None:
            yield Placed(one, one.fact, one.fact.stored)


def placed_once(store: Store, commits: Iterable[str]) -> Iterator[Placed]:
    """Every chunk that some versions reach, each once. Memory grows with the chunks."""
    seen: set[Digest] = set()
    counted: set[Digest] = set()  # commits and pieces, which `walk` does not remember
    for commit in commits:
        for one in placed(walk(store, commit, seen)):
            if one.reached.digest not in counted:
                if one.reached.what in ("commit", "piece"):
                    counted.add(one.reached.digest)
                yield one


@dataclass
class VersionUsage:
    """Bytes of one version. `logical` is plain; `stored` is what its chunks take; of those only it needs `unique`."""

    label: str
    commit: str
    rows: int
    logical: int
    stored: int = 0
    unique: int = 0

    @property
    def shared(self) -> int:
        """Stored bytes that other versions need, too."""
        return self.stored - self.unique

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "shared": self.shared}


@dataclass
class NameUsage:
    """All versions of one dataset, checkpoint or model together: `unique` is what would be free without it."""

    name: str
    logical: int = 0
    stored: int = 0
    unique: int = 0
    versions: list[VersionUsage] = field(default_factory=list)

    @property
    def shared(self) -> int:
        """Stored bytes that other names need, too."""
        return self.stored - self.unique

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "shared": self.shared, "versions": [version.to_json() for version in self.versions]}


@dataclass
class Usage:
    """A store's bytes. pack_bytes = live_bytes + garbage_bytes + the packs' own headers (208 bytes each), nearly: footers are
    compressed, so that what one row of them takes is an average.

    plain_bytes: of what is in use, each chunk once: what deduplication leaves, and compression makes live_bytes of.
    garbage_bytes: records that no version needs, records that are there twice, and dictionaries; free_bytes: whole packs
    of nothing else, and files that the log does not list, which `gc` frees without writing anything.
    """

    names: list[NameUsage] = field(default_factory=list)
    packs: int = 0
    pack_bytes: int = 0
    live_bytes: int = 0
    plain_bytes: int = 0
    garbage_bytes: int = 0
    free_bytes: int = 0
    unlisted_packs: int = 0
    unlisted_bytes: int = 0
    quota_bytes: int | None = None
    missing: int = 0  # chunks that could not be found or read: `lepton check`

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**vars(self), "names": [name.to_json() for name in self.names]}


class _Notes:
    """Rows of _NOTE, divided by name; in memory up to SPILL_BYTES, then in files of a temporary directory."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._parts = [bytearray() for _ in range(_PARTS)]
        self._bytes = 0

    def add(self, name: Digest, owners: int, pack: int, stored: int, plain: int) -> None:
        numbers = ((owners, 4), (pack, 4), (stored, 8), (plain, 8))
        self._parts[name[16] % _PARTS] += name[:16] + b"".join(one.to_bytes(size, "little") for one, size in numbers)
        self._bytes += _NOTE.itemsize
        if self._bytes >= limits.SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        for number, part in enumerate(self._parts):
            with open(self._folder / str(number), "ab") as file:
                file.write(part)
            part.clear()
        self._bytes = 0

    def parts(self) -> Iterator[np.ndarray[Any, Any]]:
        """Each part, sorted by name and set, without repeats."""
        for number, part in enumerate(self._parts):
            path = self._folder / str(number)
            notes = np.frombuffer((path.read_bytes() if path.exists() else b"") + bytes(part), _NOTE)
            notes = notes[np.lexsort((notes["set"], notes["more"], notes["name"]))]
            if len(notes):
                keys = np.stack([notes["name"], notes["more"], notes["set"].astype(np.uint64)])
                notes = notes[np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))]
            yield notes


class _Sets:
    """Sets of versions as bit masks, each different one kept once and numbered."""

    def __init__(self) -> None:
        self.masks: list[int] = []
        self._numbers: dict[int, int] = {}

    def number(self, mask: int) -> int:
        if mask not in self._numbers:
            self._numbers[mask] = len(self.masks)
            self.masks.append(mask)
        return self._numbers[mask]


class _Count:
    """One run of `measure`."""

    def __init__(self, store: Store, folder: str) -> None:
        self.store = store
        self.versions = all_versions(store)
        self.sets = _Sets()
        self.notes = _Notes(folder)
        self.pack_ids = sorted(store.state.packs)
        self._ordinals = {pack: ordinal for ordinal, pack in enumerate(self.pack_ids)}
        self.missing = 0
        # Node -> (set of versions, one commit that reaches it, whether it is known to be a row group).
        self._nodes: dict[Digest, tuple[int, int, bool]] = {}

    def run(self) -> None:
        for number, version in enumerate(self.versions):
            if version.object is None:
                self.missing += 1
                continue
            self._note_all(walk_one(self.store, parse_hex(version.commit)), 1 << number)
            if version.object.root is not None:
                self._mark(version.object.root, number)
        for digest, (mask, number, is_group) in self._nodes.items():
            commit = self.versions[number].object
            if is_group and commit is not None:
                self._note_all(walk_group(self.store, commit, digest), mask)
            else:
                self._note_all(walk_one(self.store, digest), mask)

    def _mark(self, root: Digest, number: int) -> None:
        """Add a version to the sets of every node of its tree."""
        stack = [(root, False)]
        while stack:
            digest, is_group = stack.pop()
            mask, first, known = self._nodes.get(digest, (0, number, is_group))
            if mask >> number & 1:
                continue
            children = [] if known or is_group else self._children(digest)
            self._nodes[digest] = (mask | 1 << number, first, known or is_group or not children)
            stack += children

    def _children(self, digest: Digest) -> list[tuple[Digest, bool]]:
        """Of an inner node, with whether they are row groups; none when it is a row group, or cannot be read."""
        try:
            node = parse_node(self.store.get(digest))
        except (Damaged, ChunkMissing, FormatTooNew):
            return []
        return [] if isinstance(node, RowGroup) else [(child.digest, node.level == 1) for child in node.children]

    def _note_all(self, walked: Iterable[Reached], mask: int) -> None:
        owners = self.sets.number(mask)
        for one in placed(self._found(walked)):
            place = self.store.locate(one.reached.digest)
            if place is not None and place.pack in self._ordinals:
                self.notes.add(place.row.digest, owners, self._ordinals[place.pack], one.stored, one.fact.plain or 0)
            else:
                self.missing += 1

    def _found(self, walked: Iterable[Reached]) -> Iterator[Reached]:
        """Without what cannot be had, which is counted."""
        for reached in walked:
            if reached.error is None:
                yield reached
            else:
                self.missing += 1

    def add_up(self) -> tuple[dict[int, int], np.ndarray[Any, Any], int]:
        """(stored bytes by set of versions, live bytes by pack, plain bytes of all chunks)."""
        by_mask: dict[int, int] = defaultdict(int)
        plain = 0
        live = np.zeros(len(self.pack_ids), np.int64)
        for notes in self.notes.parts():
            if not len(notes):
                continue
            starts = np.append(True, (np.diff(notes["name"]) != 0) | (np.diff(notes["more"]) != 0)).nonzero()[0]
            counts = np.diff(np.append(starts, len(notes)))
            np.add.at(live, notes["pack"][starts], notes["stored"][starts].astype(np.int64))
            plain += int(notes["plain"][starts].sum())
            single = starts[counts == 1]
            sums = np.zeros(len(self.sets.masks), np.int64)
            np.add.at(sums, notes["set"][single], notes["stored"][single].astype(np.int64))
            for number in sums.nonzero()[0].tolist():
                by_mask[self.sets.masks[number]] += int(sums[number])
            for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
                mask = 0
                for number in notes["set"][start : start + count].tolist():
                    mask |= self.sets.masks[number]
                by_mask[mask] += int(notes["stored"][start])
        return by_mask, live, plain


def measure(store: Store) -> Usage:
    """Add up `store` as of now. Damage is counted in `missing`, and what lies behind it is left out."""
    store.refresh()
    with tempfile.TemporaryDirectory(prefix="lepton-du-") as folder:
        count = _Count(store, folder)
        count.run()
        by_mask, live, plain = count.add_up()
    usage = Usage(names=_names(count.versions, by_mask), missing=count.missing, plain_bytes=plain)
    quota = store.state.settings.get("quota_bytes")
    usage.quota_bytes = quota if isinstance(quota, int) else None
    sizes = np.array([store.state.packs[pack].bytes for pack in count.pack_ids], np.int64)
    usage.packs, usage.pack_bytes, usage.live_bytes = len(sizes), int(sizes.sum()), int(live.sum())
    usage.garbage_bytes = max(0, usage.pack_bytes - usage.live_bytes - len(sizes) * lpk.OVERHEAD_BYTES)
    for pack in store.tier.packs():
        if pack not in store.state.packs:
            usage.unlisted_packs += 1
            usage.unlisted_bytes += store.tier.pack_bytes(pack) or 0
    usage.free_bytes = int(sizes[live == 0].sum()) + usage.unlisted_bytes
    return usage


def _names(versions: list[Version], by_mask: dict[int, int]) -> list[NameUsage]:
    """By unique bytes, largest first; versions in the order of `all_versions`."""
    out: dict[str, NameUsage] = {}
    of_name: dict[str, int] = defaultdict(int)
    for number, version in enumerate(versions):
        commit = version.object
        usage = VersionUsage(
            version.label, version.commit, commit.rows if commit else 0, commit.plain_bytes if commit else 0
        )
        for mask, stored in by_mask.items():
            if mask >> number & 1:
                usage.stored += stored
                usage.unique += stored if mask == 1 << number else 0
        name = out.setdefault(version.name, NameUsage(version.name))
        name.versions.append(usage)
        name.logical += usage.logical
        of_name[version.name] |= 1 << number
    for name in out.values():
        mine = of_name[name.name]
        name.stored = sum(stored for mask, stored in by_mask.items() if mask & mine)
        name.unique = sum(stored for mask, stored in by_mask.items() if mask & mine and not mask & ~mine)
    return sorted(out.values(), key=lambda name: (-name.unique, -name.stored, name.name))


def among(store: Store, commits: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Some versions, compared with each other alone: commit -> (stored bytes, of those what none of the others needs).

    Reads their trees and nothing else of the store; memory grows with their chunks. Raises ChunkMissing or ChunkCorrupt.
    """
    chunks = {
        commit: {one.reached.digest: one.stored for one in placed_once(store, [commit])}
        for commit in dict.fromkeys(commits)
    }
    needed: dict[Digest, int] = defaultdict(int)
    for found in chunks.values():
        for digest in found:
            needed[digest] += 1
    return {
        commit: (sum(found.values()), sum(size for digest, size in found.items() if needed[digest] == 1))
        for commit, found in chunks.items()
    }
