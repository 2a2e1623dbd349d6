"""Versions travel between two real stores in random schedules: whatever happens meanwhile, every ref of both reads back in full.

Commits, pushes, pulls, removed refs, forgotten history and collections in any order, and while a transfer runs: between any two of its
chunks a collection of the destination or of the source goes on by a step (also one that does not heed what live writers ask for). The
two stores cut values differently; in some schedules one is encrypted. A model says which refs may move.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.exchange import is_tracking, pull, push
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.refs import delete_ref
from leptonstore.errors import CommitExpired, Conflict
from leptonstore.store import Store, check_store
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import Collector, collect
from leptonstore.store.keys import KeyFile
from leptonstore.store.reach import Reach
from leptonstore.store.transfer import TransferReport

SEEDS = range(5)
STEPS = 28
NAMES = ("x", "y")
CHUNKS = (
    ChunkSizes(cut_above=64 << 10, min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10),
    ChunkSizes(cut_above=32 << 10, min_size=2 << 10, avg_size=8 << 10, max_size=32 << 10),
)
SECRET = KeyFile(bytes(range(64)))
SCHEMA = pa.schema([("id", pa.int64()), ("data", pa.binary())])


class Schedule:
    """Two stores, what was acknowledged about them, and what happened."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random, self.folder = random.Random(seed), folder
        self.secret = SECRET if seed % 3 == 2 else None
        folder.mkdir()
        for side in (0, 1):
            unlock = self.secret if side else None
            Store.create(folder / f"store-{side}", StoreConfig(chunks=CHUNKS[side]), folder / "made", unlock).close()
        self.opened = 0
        self.stores = [self.open(0), self.open(1)]  # long-lived
        self.rows: dict[str, pa.Table] = {}  # commit -> its rows
        self.refs: list[dict[str, str]] = [{}, {}]
        self.lines: dict[str, tuple[str, ...]] = {}  # commit -> what came before it, by parents
        self.forgot = False
        self.happened: Counter[str] = Counter()

    def open(self, side: int) -> Store:
        """As on another host, now and then on one that has never seen the store: with an index of its own."""
        self.opened += 1
        host = self.opened if self.opened % 8 == 0 else "other"
        return Store.open(self.folder / f"store-{side}", self.folder / f"cache-{host}", self.secret if side else None)

    # -- steps ---------------------------------------------------------------------------------------------------

    def commits(self) -> None:
        side, name = self.random.randrange(2), self.random.choice(NAMES)
        store, ref = self.stores[side], f"dataset/{name}/main"
        head = self.refs[side].get(ref)
        values = self.rows[head]["data"].to_pylist() if head else [self.random.randbytes(40) for _ in range(40)]
        at = self.random.randrange(len(values))
        size = self.random.choice((40, 40, 20_000, 150_000))
        old = values[at]
        # Sometimes in the middle of what was there, so that most pieces stay.
        values[at] = (
            old[:70_000] + self.random.randbytes(99) + old[70_000:] if len(old) > 1e5 else self.random.randbytes(size)
        )
        table = pa.table({"id": range(len(values)), "data": values}, SCHEMA)
        source = Source(SCHEMA, ("id",), lambda: iter(table.to_batches()), table.num_rows, {})
        made = write_dataset(store, name, source, str(self.random.random())).commit
        self.rows[made] = table
        self.lines[made] = (made, *self.lines.get(head or "", ()))
        self.refs[side][ref] = made
        self.happened["committed"] += 1

    def transfers(self) -> None:
        side = self.random.randrange(2)
        source, destination = self.stores[side], self.stores[1 - side]
        theirs = self.refs[1 - side]
        if not self.refs[side]:
            return
        refs = self.random.sample(sorted(self.refs[side]), self.random.randint(1, len(self.refs[side])))
        old = {ref: theirs.get(ref) for ref in refs}
        new = {ref: self.refs[side][ref] for ref in refs}
        force = self.random.random() < 0.3
        depth = self.random.choice((None, None, None, 1, 2))
        moved = self.random.random() < 0.5
        if moved:  # the two ends are long-lived objects, or ones that have not seen what came since
            source, destination = self.open(side), self.open(1 - side)
        try:
            if self.random.random() < 0.5:
                done = push(source, destination, refs, force, depth=depth, progress=self.meddle(side, refs))
                theirs.update(new)
                self.happened["forced" if force else "pushed"] += 1
            else:
                done = pull(destination, source, refs, depth=depth, progress=self.meddle(side, refs))
                for move in done.moves:
                    if move.moves:
                        theirs[move.ref] = move.new
                    if move.ref in done.kept:
                        theirs[done.kept[move.ref]] = move.new
                for ref in [ref for ref in theirs if ref not in destination.state.refs]:
                    assert "/origin-" in ref and ref.replace("origin-", "", 1) in refs, (
                        "only what was merged is taken away"
                    )
                    del theirs[ref]
                self.happened["kept" if done.kept else "pulled"] += 1
                force = False
            if not force and not self.forgot:
                for ref in {move.ref for move in done.moves}:
                    assert self.may_move(old[ref], new[ref]) == (theirs[ref] == new[ref])
        except CommitExpired:
            self.happened["expired"] += 1
        except Conflict:
            self.happened["refused"] += 1
            if not self.forgot:
                assert any(not self.may_move(old[ref], new[ref]) for ref in refs), "all could move"
        finally:
            if moved:
                source.close()
                destination.close()

    def may_move(self, old: str | None, new: str) -> bool:
        return old is None or old in self.lines[new]

    def meddle(self, side: int, busy: list[str]) -> Callable[[TransferReport], None]:
        """What goes on between two chunks of a transfer from `side`."""
        if self.random.random() < 0.3:
            return lambda report: None
        if self.random.random() < 0.3:
            return self.meddle_at_once(self.random.choice((side, 1 - side, 1 - side)), busy)
        end = self.random.choice((side, 1 - side, 1 - side))
        steps = Collector(self.open(end), heed_claims=self.random.random() < 0.5).steps()
        pace = self.random.choice((0.1, 0.5, 1.0))

        def step(report: TransferReport) -> None:
            if self.random.random() < pace:
                self.happened["collected meanwhile"] += 1
                next(steps, None)

        return step

    def meddle_at_once(self, end: int, busy: list[str]) -> Callable[[TransferReport], None]:
        """Somebody removes another ref, and what only that needed, although live writers may ask for it."""
        others = sorted(self.refs[end].keys() - set(busy))
        at, done = self.random.randint(1, 12), []

        def step(report: TransferReport) -> None:
            if report.chunks_sent + report.chunks_present >= at and not done:
                done.append(True)
                with self.open(end) as mine:
                    for ref in self.random.sample(others, min(1, len(others))):
                        if not is_tracking(mine.state.refs[ref]):
                            delete_ref(mine, *ref.split("/"))
                            del self.refs[end][ref]
                            self.happened["removed meanwhile"] += 1
                    Collector(mine, heed_claims=False).run()

        return step

    def removes(self) -> None:
        side = self.random.randrange(2)
        if self.refs[side]:
            ref = self.random.choice(sorted(self.refs[side]))
            self.stores[side].refresh()
            delete_ref(self.stores[side], *ref.split("/"))
            del self.refs[side][ref]

    def forgets(self) -> None:
        side = self.random.randrange(2)
        if self.refs[side]:
            _, name, branch = self.random.choice(sorted(self.refs[side])).split("/")
            self.stores[side].refresh()
            forget_all_but(self.stores[side], "dataset", f"{name}@{branch}", self.random.randint(1, 2))
            self.forgot = True

    def collects(self) -> None:
        with self.open(self.random.randrange(2)) as mine:
            self.happened["removed packs"] += collect(mine).packs_removed

    def step(self) -> None:
        steps = [(6, self.commits), (8, self.transfers), (1, self.removes), (2, self.collects)]
        if self.random.random() < 0.05:
            self.forgets()
        self.random.choices([do for _, do in steps], [weight for weight, _ in steps])[0]()
        self.check()

    def check(self) -> None:
        """As somebody who has just opened the stores sees them."""
        for side in (0, 1):
            with self.open(side) as store:

                def read(digest: bytes, store: Store = store) -> None:
                    store.get(digest)

                assert {ref: record.commit for ref, record in store.state.refs.items()} == self.refs[side]
                for ref, commit in self.refs[side].items():
                    name, branch = ref.split("/")[1:]
                    assert Dataset(store, name, branch, commit).to_arrow().equals(self.rows[commit])
                Reach(store, read).walk(self.refs[side].values(), store.state.forgotten)


def test_every_ref_of_both_stores_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 65_536)
    happened: Counter[str] = Counter()
    for seed in SEEDS:
        schedule = Schedule(tmp_path / str(seed), seed)
        # Which end is read for what both have: in some schedules as if the first store were on a bucket.
        is_local = property(lambda store, far=seed % 2: not far or store.url.endswith("store-1"))
        monkeypatch.setattr(Store, "is_local", is_local)
        try:
            for _ in range(STEPS):
                schedule.step()
            for side in (0, 1):
                with schedule.open(side) as store:
                    collect(store)
                    report = check_store(store, read_data=True)
                    assert report.clean, report.problems
            schedule.check()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        happened += schedule.happened
    for what in ("pushed", "forced", "pulled", "kept", "refused", "collected meanwhile", "removed packs"):
        assert happened[what], happened
