"""What bench/scaling.py measures: each function runs the real code at three sizes or more, and returns its points.

{"form": "line" | "power", "unit": of a value, "per": of what a size is a number, "points": [[size, value], …]}
"""

from __future__ import annotations

import contextlib
import gc
import socket
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench import index as bench_index
from leptonstore.cache.hot import HotCache
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.tree import Leaves, put_levels
from leptonstore.digest import Digest
from leptonstore.format import pack
from leptonstore.format.node import Child, RowGroup
from leptonstore.limits import GC_KEY_BYTES, ROW_GROUP_ROWS_AVG, VALUE_INLINE_BYTES_MAX
from leptonstore.store import Store
from leptonstore.store.gc import collect
from leptonstore.store.log import Log, LogState, PackRecord, Proposal
from leptonstore.store.runs import SortedRuns
from leptonstore.testing import daemon
from leptonstore.tiers.open import open_tier
from loaders.chain import EMPTY, key_of, next_head
from loaders.order import Order

Points = list[tuple[float, float]]
ENTRY_PACKS = 20_000  # of one log entry here: 100 bytes each, and LOG_ENTRY_BYTES_MAX is 4 MiB


def found(form: str, unit: str, per: str, points: Points) -> dict[str, Any]:
    """As above."""
    return {"form": form, "unit": unit, "per": per, "points": points}


def cpu_s(work: Callable[[], object], tries: int = 3) -> float:
    """The least processor time of some tries."""
    took = []
    for _ in range(tries):
        gc.collect()
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return min(took)


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory that goes."""
    with tempfile.TemporaryDirectory(prefix="lepton-scaling-") as folder:
        yield Path(folder)


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    return iter(table.to_batches(65_536))


# -- the index ---------------------------------------------------------------------------------------------------------

INDEX_PACKS = (30, 100, 300)


def index_bytes() -> dict[str, Any]:
    """Bytes of a host's index after it was filled."""
    points: Points = []
    for packs in INDEX_PACKS:
        with place() as folder:
            told = bench_index.fill(folder, packs)
        points.append((packs * bench_index.ROWS_PER_PACK, told["file_mb"] * 1e6))
    return found("line", "bytes of the index", "chunk", points)


def index_fill() -> dict[str, Any]:
    """Processor time of filling an empty index from footers."""
    points: Points = []
    for packs in INDEX_PACKS:
        with place() as folder:
            points.append((packs * bench_index.ROWS_PER_PACK, cpu_s(partial(bench_index.fill, folder, packs), 1)))
    return found("line", "s to fill the index", "chunk", points)


def index_look_up() -> dict[str, Any]:
    """Processor time of a look-up, of many at a time, and so of asking whether a chunk is there already."""
    points: Points = []
    for packs in INDEX_PACKS:
        with place() as folder:
            bench_index.fill(folder, packs)
            points.append((packs * bench_index.ROWS_PER_PACK, 1 / bench_index.look(folder, packs)["many_cpu"]))
    return found("power", "s a look-up", "chunk", points)


def index_publish() -> dict[str, Any]:
    """Seconds to bring the index to a log that has a pack more."""
    points: Points = []
    for packs in (10_000, 30_000, 100_000):
        with place() as folder:
            # Footers without rows: what is compared is lists of packs.
            index = bench_index.Index(bench_index.STORE_ID, "bench", folder)
            empty = np.zeros(0, bench_index.FOOTER)

            def sync(state: LogState, index: bench_index.Index = index, rows: Any = empty) -> None:
                index.sync(
                    state, lambda sequence: bench_index.digest_of(f"entry {sequence}".encode()), lambda name: rows
                )

            sync(bench_index.state_of(packs))
            states = [bench_index.state_of(packs, sequence=at, more=at) for at in range(2, 5)]
            took = []
            for state in states:
                begun = time.process_time()
                sync(state)
                took.append(time.process_time() - begun)
            index.close()
            points.append((packs, min(took)))
    return found("line", "s a publish", "listed pack", points)


# -- the log -----------------------------------------------------------------------------------------------------------


def _log_of(folder: Path, packs: int, entries: int) -> tuple[Log, LogState]:
    """A log that lists so many packs in so many entries."""
    Store.create(folder / "store").close()
    log, state = Log(open_tier(str(folder / "store")), "bench"), LogState()
    names = iter(bench_index.pack_name(number) for number in range(packs))
    share = -(-packs // entries)
    for first in range(0, packs, share):
        added = {next(names): PackRecord(1 << 26, pack.CONTENT_DATA) for _ in range(min(share, packs - first))}
        log.append(state, partial(_adding, added))
    return log, state


def _adding(packs: dict[str, PackRecord], _: LogState) -> Proposal:
    return Proposal("bench", packs_added=packs)


def _snapshots(measure: Callable[[Path, Log], float]) -> Points:
    points: Points = []
    for packs in (2_000, 20_000, 200_000):
        with place() as folder:
            log, state = _log_of(folder, packs, -(-packs // ENTRY_PACKS))
            log.checkpoint(state, entries=0, kept=1)
            points.append((packs, measure(folder, log)))
    return points


def open_seconds() -> dict[str, Any]:
    """Processor time of replaying a log from its snapshot."""
    return found("line", "s to open", "listed pack", _snapshots(lambda _, log: cpu_s(log.load)))


def open_memory() -> dict[str, Any]:
    """What the state of the log takes in a process: its list of packs."""

    def memory(_: Path, log: Log) -> float:
        gc.collect()
        tracemalloc.start()
        state = log.load()
        held, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return float(held) if state.packs else 0.0

    return found("line", "bytes in memory", "listed pack", _snapshots(memory))


def snapshot_bytes() -> dict[str, Any]:
    """A snapshot of the log, which whoever opens the store reads."""

    def size(folder: Path, _: Log) -> float:
        return float(sum(path.stat().st_size for path in (folder / "store" / "snapshots").iterdir()))

    return found("line", "bytes of a snapshot", "listed pack", _snapshots(size))


def open_entries() -> dict[str, Any]:
    """Processor time of opening, by the entries since the last snapshot (fewer than LOG_SNAPSHOT_EVERY)."""
    points: Points = []
    for entries in (50, 200, 800):
        with place() as folder:
            log, _ = _log_of(folder, entries, entries)
            points.append((entries, cpu_s(log.load)))
    return found("line", "s to open", "entry since the snapshot", points)


# -- garbage collection ------------------------------------------------------------------------------------------------


def _garbage(folder: Path, chunks: int) -> Store:
    """A store of as many chunks: values just too long for a page, which compress to nothing."""
    store = Store.create(folder / "store", cache_dir=folder / "cache")
    schema = pa.schema([pa.field("id", pa.int64(), False), pa.field("value", pa.large_binary(), False)])

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, chunks, 1_000):
            ids = range(first, min(chunks, first + 1_000))
            values = [number.to_bytes(8, "little").ljust(VALUE_INLINE_BYTES_MAX + 1, b"\0") for number in ids]
            yield pa.record_batch([pa.array(ids, pa.int64()), pa.array(values, pa.large_binary())], schema=schema)

    write_dataset(store, "values", Source(schema, ("id",), batches))
    return store


def gc_seconds() -> dict[str, Any]:
    """Processor time of a collection that finds nothing to do: it reads every footer and marks every chunk."""
    points: Points = []
    for chunks in (3_000, 9_000, 27_000):
        with place() as folder, _garbage(folder, chunks) as store:
            points.append((chunks, cpu_s(partial(collect, store, dry_run=True), 2)))
    return found("line", "s of a collection", "chunk", points)


def gc_memory() -> dict[str, Any]:
    """Anonymous memory above what there was, while keys of chunks are collected, sorted and merged."""
    points: Points = []
    before = bench_index.private_mb()  # once: what one size leaves with the allocator, the next one uses
    for chunks in (4_000_000, 8_000_000, 16_000_000):
        with place() as folder:

            def mark(folder: Path = folder, chunks: int = chunks) -> None:
                runs, rng = SortedRuns(GC_KEY_BYTES, folder), np.random.default_rng(0)
                for first in range(0, chunks, 100_000):
                    count = min(100_000, chunks - first)
                    runs.add_block(np.frombuffer(rng.bytes(GC_KEY_BYTES * count), f"S{GC_KEY_BYTES}"))
                runs.finish()

            _, peak = bench_index.peak_of(mark)
            points.append((chunks, (peak - before) * 1e6))
    return found("power", "bytes in memory", "chunk", points)


# -- versions ----------------------------------------------------------------------------------------------------------


def commit_seconds() -> dict[str, Any]:
    """Processor time of a version that has one row more than the one before it: the row group, the nodes above it, a log entry."""
    points: Points = []
    for rows in (10_000, 60_000, 360_000):
        with place() as folder, Store.create(folder / "store", cache_dir=folder / "cache") as store:
            table = pa.table({"id": np.arange(rows), "x": np.random.default_rng(0).normal(size=rows)})
            ds: Dataset = write_dataset(store, "rows", Source(table.schema, ("id",), partial(_batches, table), rows))
            took = []
            for number in range(6):
                more = pa.table({"id": np.array([rows + number]), "x": np.array([0.5])})
                begun = time.process_time()
                ds = ds.append(more)
                took.append(time.process_time() - begun)
            points.append((rows, min(took)))
    return found("power", "s a commit", "row", points)


def _tree(store: Store, groups: int) -> tuple[Digest, int]:
    names = np.random.default_rng(0).bytes(32 * groups)
    children = [Child(Digest(names[32 * at : 32 * at + 32]), ROW_GROUP_ROWS_AVG, 1 << 20) for at in range(groups)]
    tree = put_levels(store, children)
    assert tree.root is not None
    store.flush()
    return tree.root, tree.rows


TREE_GROUPS = (1_000, 20_000, 333_334)  # the last: 10^9 rows


def tree_levels() -> dict[str, Any]:
    """Levels of nodes above row groups: what a search reads, and an edit writes."""
    points: Points = []
    for groups in TREE_GROUPS:
        with place() as folder, Store.create(folder / "store", cache_dir=folder / "cache") as store:
            root, rows = _tree(store, groups)
            top = Leaves(store, root, rows)._root_node()
            points.append((rows, 0.0 if isinstance(top, RowGroup) else float(top.level)))
    return found("power", "levels", "row", points)


def tree_search() -> dict[str, Any]:
    """Processor time of finding the row group of a random row, with the nodes in memory."""
    points: Points = []
    for groups in TREE_GROUPS:
        with place() as folder, Store.create(folder / "store", cache_dir=folder / "cache") as store:
            root, rows = _tree(store, groups)
            leaves, wanted = Leaves(store, root, rows), np.random.default_rng(1).integers(rows, size=5_000).tolist()

            def search(leaves: Leaves = leaves, wanted: Sequence[int] = wanted) -> None:
                for row in wanted:
                    leaves.find(row)

            points.append((rows, cpu_s(search) / len(wanted)))
    return found("power", "s a search", "row", points)


# -- loaders -----------------------------------------------------------------------------------------------------------

ORDER_ROWS = (10**6, 10**9, 10**12)


def order_batch() -> dict[str, Any]:
    """Processor time of a position of a full shuffle, 65,536 together, in the middle of the epoch."""
    points: Points = []
    for rows in ORDER_ROWS:
        order, first = Order(rows, seed=1), rows // 2
        points.append((rows, cpu_s(partial(order.rows_at, first, first + 65_536), 9) / 65_536))
    return found("power", "s a position", "row", points)


def order_seek() -> dict[str, Any]:
    """Processor time of making the order of an epoch, and of one batch of 256 rows anywhere in it."""
    points: Points = []
    for rows in ORDER_ROWS:

        def seek(rows: int = rows) -> None:
            for at in range(200):
                first = rows // 201 * at
                Order(rows, seed=1, epoch=at).rows_at(first, first + 256)

        points.append((rows, cpu_s(seek, 5) / 200))
    return found("power", "s a seek", "row", points)


def cache_plan() -> dict[str, Any]:
    """Processor time of telling the hot cache what will be read."""
    points: Points = []
    for keys in (30_000, 300_000, 3_000_000):
        with place() as folder, HotCache(folder / "cache", 64 << 20) as cache:
            told = np.frombuffer(np.random.default_rng(0).bytes(32 * keys), np.uint8).reshape(-1, 32)
            points.append((keys, cpu_s(partial(cache.plan, told, restart=True))))
    return found("line", "s of a plan", "key", points)


def receipt_step() -> dict[str, Any]:
    """Processor time of a step's link of the chain: each rank hashes the rows of all."""
    points: Points = []
    key = key_of(0, "bench")
    for rows in (4_096, 65_536, 1_048_576):
        some = np.arange(rows, dtype=np.int64)

        def step(some: np.ndarray = some) -> None:
            for _ in range(20):
                next_head(EMPTY, key, 0, some)

        points.append((rows, cpu_s(step, 5) / 20))
    return found("line", "s a step", "row of the global batch", points)


# -- the daemon --------------------------------------------------------------------------------------------------------


SERVED_ROWS = 1_000


def _resident(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.split("\n") if line.startswith("VmRSS:")).split()[1]) * 1024.0


@contextlib.contextmanager
def _served() -> Iterator[daemon.Served]:
    with place() as folder:
        with Store.create(folder / "store", cache_dir=folder / "cache") as store:
            table = pa.table({"id": np.arange(SERVED_ROWS)})
            write_dataset(store, "rows", Source(table.schema, ("id",), partial(_batches, table), SERVED_ROWS))
        with daemon.running(folder / "store", anonymous="read", cache_bytes=0) as served:
            yield served


def connections_http() -> dict[str, Any]:
    """Resident memory of a daemon, by open HTTP connections, each of which was answered once and is kept alive."""
    points: Points = []
    with _served() as served, contextlib.ExitStack() as stack:
        port, held = int(served.told["http_port"]), 0
        for count in (50, 200, 800):
            for _ in range(count - held):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if not one.recv(65_536).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError("the daemon does not answer")
            held = count
            points.append((count, _resident(served.pid)))
    return found("line", "bytes resident", "connection", points)


def connections_flight() -> dict[str, Any]:
    """The same, by clients of the data plane, each of which has opened the store and a dataset."""
    points: Points = []
    clients: list[Store] = []
    with _served() as served:
        for count in (10, 40, 120):
            while len(clients) < count:
                clients.append(Store.open(served.url))
                if len(Dataset.open(clients[-1], "rows")) != SERVED_ROWS:
                    raise RuntimeError("the daemon serves something else")
            points.append((count, _resident(served.pid)))
        for client in clients:
            client.close()
    return found("line", "bytes resident", "connection", points)


MEASURES: dict[str, Callable[[], dict[str, Any]]] = {
    one.__name__: one
    for one in (
        index_bytes, index_fill, index_look_up, index_publish, open_seconds, open_memory, snapshot_bytes, open_entries, gc_seconds,
        gc_memory, commit_seconds, tree_levels, tree_search, order_batch, order_seek, cache_plan, receipt_step, connections_http,
        connections_flight,
    )
}  # fmt: skip
