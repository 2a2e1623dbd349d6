"""What is recorded: imports, commits, deletions, collections, each with the promises that it makes on the way.

A run's store is small in everything, so that a few hundred operations hold several packs of data and of metadata, large values in
pieces, snapshots of the log, and a directory of packs that is there already beside one that is new.
To add a run: write a function of a `Run` and name it in RUNS.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.dataset import Source, delete_ref, write_dataset
from leptonstore.errors import BadInput
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import GcReport, collect, forget

from .disk import OF_THE_LIVING, Disk, Loss, Tree
from .recording import Name, Op, Recorder

SIZES = ChunkSizes(cut_above=24_576, min_size=2_048, avg_size=4_096, max_size=16_384)
ROWS = 300
BLOBS = 5


def table(seed: int, rows: int = ROWS) -> pa.Table:
    """Rows that do not compress; a few values that are chunks of their own, and one that is cut into pieces."""
    rng = np.random.default_rng(seed)
    blobs = [rng.bytes(16_500 + 100 * at) for at in range(BLOBS - 1)] + [rng.bytes(30_000)]
    values = [blobs[at // 7] if at % 7 == 0 and at // 7 < BLOBS else b"" for at in range(rows)]
    columns = {"id": np.arange(rows), "x": rng.normal(size=rows), "blob": pa.array(values, pa.large_binary())}
    return pa.table(columns)


def edited(before: pa.Table, seed: int) -> pa.Table:
    """One column new, the others as before: a commit on top shares chunks with the one below."""
    rng = np.random.default_rng(seed)
    return before.set_column(1, "x", pa.array(rng.normal(size=before.num_rows)))


class NothingInFlight(Exception):
    """A run that was to be disturbed had ended before: two threads write, so the number of operations varies a little."""


@dataclass
class Run:
    """A recorded directory, `place`/disk, and the processes that work on the store in it."""

    place: Path
    recorder: Recorder
    tables: dict[str, pa.Table] = field(default_factory=dict)  # commit -> its rows
    stores: list[Store] = field(default_factory=list)
    ids: random.Random = field(default_factory=random.Random)  # what packs are called
    begin: int = 0  # the operation at which the part begins that is examined

    @property
    def url(self) -> Path:
        """The store's directory."""
        return self.place / "disk" / "store"

    def create(self) -> Store:
        """`lepton init`."""
        store = Store.create(self.url, StoreConfig(chunks=SIZES), self._cache())
        self.recorder.mark("created")
        self.stores.append(store)
        return store

    def open(self) -> Store:
        """Another process: it has an index of its own, and knows nothing of the others' unfinished work."""
        store = Store.open(self.url, self._cache())
        self.stores.append(store)
        return store

    def open_or_create(self) -> Store:
        """What a user does after a crash of unknown extent."""
        try:
            return self.create()
        except BadInput:
            return self.open()

    def _cache(self) -> Path:
        return self.place / f"cache-{len(self.stores)}-{secrets.token_hex(4)}"

    def commit(self, store: Store, name: str, rows: pa.Table) -> str:
        """A version of dataset `name`; acknowledged when this returns."""
        source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {})
        ref = f"dataset/{name}/main"
        self.recorder.mark("moving", ref)
        made = write_dataset(store, name, source, "a version").commit
        self.tables[made] = rows
        self.recorder.mark("moved", (ref, made))
        return made

    def delete(self, store: Store, name: str, commits: list[str]) -> None:
        """Remove a branch; from now on nobody is promised its `commits`."""
        ref = f"dataset/{name}/main"
        self.recorder.mark("moving", ref)
        self.recorder.mark("released", commits)
        delete_ref(store, "dataset", name, "main")
        self.recorder.mark("moved", (ref, None))

    def collect(self, store: Store, repack: bool) -> GcReport:
        """`lepton gc`."""
        return collect(store, repack=repack)

    def forget(self, store: Store, head: str, before: list[str]) -> None:
        """`lepton forget`: from now on nobody is promised the commits `before` one."""
        self.recorder.mark("released", before)
        forget(store, {head})

    def examine_from_here(self) -> None:
        """What came before is another run's business."""
        self.begin = len(self.recorder.ops)


def import_once(run: Run) -> None:
    """A new store, an import."""
    run.commit(run.create(), "a", table(1))


def commit_on_top(run: Run) -> None:
    """A second version over shared chunks, a third by another process, and the same rows under another name."""
    store = run.create()
    run.commit(store, "a", table(1))
    run.examine_from_here()
    run.commit(store, "a", edited(table(1), 2))
    other = run.open()
    run.commit(other, "a", edited(table(1), 3))
    run.commit(other, "b", table(1))


def delete_a_branch(run: Run) -> None:
    """A branch removed, and work that goes on over its chunks."""
    store = run.create()
    kept = run.commit(store, "a", table(1))
    run.commit(store, "b", table(2))
    run.examine_from_here()
    run.delete(store, "b", [commit for commit in run.tables if commit != kept])
    run.commit(store, "b", table(2))


def collect_garbage(run: Run) -> None:
    """A branch removed and a history forgotten, packs that are garbage as a whole deleted; an import that needs some of it again."""
    store = run.create()
    first = run.commit(store, "a", table(1))
    second = run.commit(store, "a", table(2))
    dropped = run.commit(store, "b", table(3))
    run.examine_from_here()
    run.delete(store, "b", [dropped])
    run.forget(store, second, [first])
    report = run.collect(run.open(), repack=False)
    if not report.packs_removed or report.repacked:
        raise AssertionError(f"the collection was to remove packs: {report}")
    run.commit(store, "c", table(3))


def collect_with_repack(run: Run) -> None:
    """Packs of which a little is needed: that is copied, then they go."""
    store = run.create()
    dropped = run.commit(store, "b", table(3))
    run.commit(store, "a", edited(table(3).slice(0, 7), 4))  # one of the large values
    run.examine_from_here()
    run.delete(store, "b", [dropped])
    report = run.collect(store, repack=True)
    if not report.packs_removed or not report.repacked:
        raise AssertionError(f"the collection was to repack: {report}")
    run.commit(store, "a", table(5))


RUNS: dict[str, Callable[[Run], None]] = {
    "import": import_once,
    "commit": commit_on_top,
    "delete": delete_a_branch,
    "gc": collect_garbage,
    "repack": collect_with_repack,
}


@dataclass(frozen=True)
class Recording:
    """A run that ended: what it did, and the rows of every commit that it tried to make."""

    ops: list[Op]
    tables: dict[str, pa.Table]
    begin: int
    starts: list[int]  # for each call, where in `ops` its operation stands

    def calls_after_names(self) -> list[int]:
        """The calls that follow a new name (a hint's left out): a process that dies there leaves the name, but not for sure."""
        passing = {op.child for op in self.ops if isinstance(op, Name) and op.is_folder and op.name in OF_THE_LIVING}
        found = []
        for call, (before, at) in enumerate(pairwise(self.starts), 1):
            op = self.ops[before]
            made = isinstance(op, Name) and op.child is not None and op.origin is None
            if made and op.folder not in passing and at >= self.begin:
                found.append(call)
        return found


@contextmanager
def small_store(rng: random.Random) -> Iterator[None]:
    """Small packs, frequent snapshots, one writing thread, and ids that are the same in each run of the tests."""
    real = (secrets.token_bytes, secrets.token_hex)
    small = {"PACK_BYTES_MAX": 40_960, "LOG_SNAPSHOT_EVERY": 2, "GC_SMALL_PACK_BYTES": 8_192, "GC_SMALL_PACKS_MIN": 3}
    usual = {name: getattr(limits, name) for name in small}
    affinity = os.sched_getaffinity

    def token_bytes(count: int = 32) -> bytes:
        return rng.choice((b"\xaa", b"\xbb")) + rng.randbytes(count - 1)  # two directories of packs

    secrets.token_bytes, secrets.token_hex = token_bytes, lambda count=32: rng.randbytes(count).hex()
    vars(limits).update(small)
    os.sched_getaffinity = lambda pid: {0}
    try:
        yield
    finally:
        secrets.token_bytes, secrets.token_hex = real
        vars(limits).update(usual)
        os.sched_getaffinity = affinity


def record(
    work: Callable[[Run], None],
    place: Path,
    fault: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    seed: int = 0,
) -> Recording:
    """Run `work` in `place`, which is new, and see to it that nothing was done behind the recorder's back.

    `fault` breaks something on purpose while it runs.
    """
    (place / "disk").mkdir(parents=True)
    run = Run(place, Recorder(place / "disk"), ids=random.Random(seed))
    with small_store(run.ids), run.recorder.installed(), fault():
        work(run)
        for store in run.stores:
            store.close()
    ops = run.recorder.ops
    everything = Loss(frozenset(range(len(ops))))
    recorded, real = Disk(ops).tree(len(ops), everything), tree_of(place / "disk")
    if recorded != real:
        different = sorted(path for path in recorded.keys() | real.keys() if recorded.get(path) != real.get(path))
        raise AssertionError(f"written behind the recorder's back: {different}")
    return Recording(ops, run.tables, run.begin, run.recorder.starts)


def killed_at(call: int, first: Callable[[Run], None], then: Callable[[Run], None]) -> Callable[[Run], None]:
    """A run in which a process that does `first` is killed before its n-th operation, and another one does `then`."""

    def die(run: Run, now: int) -> None:
        if now == call:
            # What is written here may have the number of a descriptor that the recorder knows: packs that are open close when they like.
            run.recorder.at_once = lambda now: None
            (run.place / "dead").write_bytes(pickle.dumps((run.recorder.state(), run.tables)))
            os.kill(os.getpid(), signal.SIGKILL)

    def work(run: Run) -> None:
        child = os.fork()
        if child == 0:
            run.recorder.at_once = lambda now: die(run, now)
            try:
                first(run)
            finally:
                os._exit(1)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            raise NothingInFlight(f"the run had ended before operation {call}")
        state, run.tables = pickle.loads((run.place / "dead").read_bytes())  # noqa: S301 (our own child wrote it)
        run.recorder.resume(state)
        run.ids.seed(call)  # what comes now is not called like what the dead one made
        then(run)

    return work


def interrupted_at(call: int, first: Callable[[Run], None], between: Callable[[Run], None]) -> Callable[[Run], None]:
    """A run in which another process does all of `between` right before the n-th operation of `first`."""

    def work(run: Run) -> None:
        def before(now: int) -> None:
            if now == call and not done:
                done.append(now)
                between(run)

        done: list[int] = []
        run.recorder.before = before
        first(run)
        if not done:
            raise NothingInFlight(f"the run had ended before operation {call}")

    return work


def import_again(run: Run) -> None:
    """After a crash of unknown extent: the same import again, on the same directory."""
    run.examine_from_here()
    run.commit(run.open_or_create(), "a", table(1))


def collect_again(run: Run) -> None:
    """After a killed collection (or one that is going on): another one, and an import that needs what it removes."""
    run.examine_from_here()
    store = run.open()
    run.collect(store, repack=True)
    run.commit(store, "d", table(3))


def import_beside(run: Run) -> None:
    """What another process does at the same time."""
    run.commit(run.open(), "d", table(2))
    run.examine_from_here()


@dataclass(frozen=True)
class Disturbed:
    """A run in which one process is killed or overtaken at an operation of `first`; from `skip` on, as there is a store by then."""

    how: Callable[[int, Callable[[Run], None], Callable[[Run], None]], Callable[[Run], None]]
    first: Callable[[Run], None]
    then: Callable[[Run], None]
    skip: int = 0
    every: int = 1  # the tests take one of so many operations

    def at(self, call: int) -> Callable[[Run], None]:
        """The run."""
        return self.how(call, self.first, self.then)


DISTURBED_RUNS = {
    "import killed": Disturbed(killed_at, import_once, import_again, every=2),
    "import overtaken": Disturbed(interrupted_at, import_once, import_beside, skip=16, every=2),
    "gc killed": Disturbed(killed_at, collect_garbage, collect_again, every=6),
    "gc overtaken": Disturbed(interrupted_at, collect_garbage, import_beside, every=6),
}


def tree_of(folder: Path) -> Tree:
    """A real directory, as `Disk.tree` gives it."""
    out: Tree = {}
    for path in folder.rglob("*"):
        out[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return out


def write_tree(tree: Tree, folder: Path) -> None:
    """What `tree_of` read, in a new folder."""
    folder.mkdir(parents=True)
    for path, data in tree.items():
        target = folder / path
        if data is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
