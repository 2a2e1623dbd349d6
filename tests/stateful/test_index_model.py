"""The index against a dict: packs with overlapping digests come and go, additions fail half-way, others read and change it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow
from leptonstore.store.index import Index, Place
from leptonstore.store.log import LogState, PackRecord

# Digests that share their first 8 bytes, that end in zeros, and ordinary ones.
UNIVERSE = [
    *(b"same pre" + bytes([n]) * 24 for n in range(6)),
    *(bytes([n]) + bytes(31) for n in range(6)),
    *(digest_of(bytes([n])) for n in range(12)),
]
SMALL = {
    "INDEX_BATCH_ROWS": 9,
    "INDEX_COMMIT_ROWS": 4,
    "INDEX_ITEMS_BATCH": 3,
    "INDEX_GET_BATCH": 5,
    "INDEX_PACK_NAMES_MAX": 2,
}


class Interrupted(Exception):
    """What a store's footers may raise."""


@contextmanager
def small_limits() -> Iterator[None]:
    """So few rows to a batch that every path is taken."""
    before = {name: getattr(limits, name) for name in SMALL}
    try:
        for name, value in SMALL.items():
            setattr(limits, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(limits, name, value)


class IndexAgainstModel(RuleBasedStateMachine):
    """`packs` is the truth: what the log lists and what each pack's footer says."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = small_limits()
        self.limits.__enter__()
        self.folder = Path(tempfile.mkdtemp())
        self.index = Index(bytes(16), "model", self.folder)
        self.state = LogState()
        self.packs: dict[str, list[FooterRow]] = {}
        self.made = 0

    def teardown(self) -> None:
        self.index.close()
        self.limits.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self, pack: str) -> list[FooterRow]:
        return self.packs[pack]

    def entry_digest(self, sequence: int) -> bytes | None:
        return digest_of(str(sequence).encode()) if sequence <= self.state.sequence else None

    def advance(self) -> None:
        self.state.sequence += 1
        self.state.head = digest_of(str(self.state.sequence).encode())
        self.state.packs = dict.fromkeys(self.packs, PackRecord(0, 1))

    @rule(packs=st.lists(st.lists(st.sampled_from(UNIVERSE), max_size=14), max_size=4), gone=st.data())
    def change(self, packs: list[list[bytes]], gone: st.DataObject) -> None:
        """One log entry: some packs go, some come."""
        for pack in gone.draw(st.lists(st.sampled_from(sorted(self.packs)), unique=True)) if self.packs else ():
            del self.packs[pack]
        for digests in packs:
            self.made += 1
            rows = [
                FooterRow(digest, 128 + at, self.made, at, lpk.KIND_CHUNK, lpk.CODEC_RAW, 0, 0, lpk.DICTIONARY_NONE)
                for at, digest in enumerate(digests)
            ]
            self.packs[digest_of(str(self.made).encode())[:16].hex()] = rows
        self.advance()

    @rule(footers=st.integers(0, 3))
    def fail_half_way(self, footers: int) -> None:
        """Reading a footer fails: what was added before stays, incomplete."""
        left = [footers]

        def read(pack: str) -> list[FooterRow]:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted
            return self.packs[pack]

        try:
            self.index.sync(self.state, self.entry_digest, read)
        except Interrupted:
            assert self.index.applied() != (self.state.sequence, self.state.head)

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index(bytes(16), "model", self.folder)

    @rule()
    def delete(self) -> None:
        """Somebody empties the cache directory while the index is open."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule()
    def another_history(self) -> None:
        """The store is replaced by one whose log differs: `entry_digest` tells it."""
        self.index.sync(LogState(self.state.sequence + 1, bytes(32), {}, {}), lambda _: None, self.rows)

    @rule()
    def sync_and_compare(self) -> None:
        self.index.sync(self.state, self.entry_digest, self.rows)
        places: dict[bytes, set[Place]] = {digest: set() for digest in UNIVERSE}
        for pack, rows in self.packs.items():
            for row in sorted(rows, reverse=True):  # of equal digests in one pack, one place is enough
                places[row.digest] = {place for place in places[row.digest] if place.pack != pack} | {Place(pack, row)}
        main = {}
        for digest, place in zip(UNIVERSE, self.index.get_many(UNIVERSE), strict=True):
            found = self.index.places(digest)
            assert {(p.pack, p.row.stored) for p in found} == {(p.pack, p.row.stored) for p in places[digest]}
            assert len(found) == len(places[digest])
            assert all(p.row in self.packs[p.pack] for p in found)
            assert self.index.get(digest) == place == (found[0] if found else None)
            assert self.index.has(digest) == bool(found)
            if place is not None:
                main[digest] = (digest, place.pack, place.row.share)
        assert list(self.index.items()) == [main[digest] for digest in sorted(main)]
        others = [(p.row.digest, p.pack) for d in sorted(main) for p in self.index.places(d)[1:]]
        assert [(item.digest, item.pack) for item in self.index.copies()] == others

    @invariant()
    def what_is_there_can_be_read(self) -> None:
        assert all(place is None or place.row.digest in UNIVERSE for place in self.index.get_many(UNIVERSE))


IndexAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestIndexAgainstModel = IndexAgainstModel.TestCase
