"""The hot cache with what reads through it: datasets of a real store, DataLoaders, a tier that counts what it gives. For bench.cache."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from bench.harness import ROOT, Figure, median
from leptonstore.cache import HotCache
from leptonstore.cache.chunks import CachedChunks
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from leptonstore.tiers.local import LocalTier

VALUE_BYTES, VALUE_ROWS, VALUE_BATCH = 50_000, 100, 64
EPOCHS = 4


class CountingTier(LocalTier):
    """A directory that counts the bytes of packs that were read from it."""

    given = 0  # bytes

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """Counted."""
        data = super().read(pack, offset, length)
        self.given += len(data)
        return data

    def read_once(self, pack: str, offset: int, length: int) -> Any:
        """Counted."""
        data = super().read_once(pack, offset, length)
        self.given += len(data)
        return data


def counted(store: Store) -> CountingTier:
    """What is read of the store's packs is counted from now on."""
    assert isinstance(store.home, LocalTier)
    tier = CountingTier(store.home.root)
    store.tier.use([tier])
    return tier


def make(store: Store, name: str, rows: int, size: int) -> Dataset:
    """Random bytes, `size` in each row."""
    schema = pa.schema([pa.field("id", pa.int64(), False), pa.field("value", pa.binary(), False)])

    def batches() -> Iterator[pa.RecordBatch]:
        rng = np.random.default_rng(0)
        for first in range(0, rows, 1_000):
            ids = np.arange(first, min(first + 1_000, rows))
            values = pa.array([rng.bytes(size) for _ in ids], pa.binary())
            yield pa.RecordBatch.from_arrays([pa.array(ids), values], schema=schema)

    return write_dataset(store, name, Source(schema, ("id",), batches, rows, {}))


def value_figures(rows: int) -> Iterator[Figure]:
    """A DataLoader, fully shuffled, over values of twice the cache."""
    from loaders import DataLoader
    from loaders.source import ColumnSource

    data = rows * VALUE_BYTES
    with tempfile.TemporaryDirectory() as folder, Store.create(f"{folder}/store") as store:
        dataset = make(store, "values", rows, VALUE_BYTES)
        shares, times = {}, {}
        for planned in (True, False):
            with (
                tempfile.TemporaryDirectory(dir="/dev/shm") as place,
                mock.patch.object(ColumnSource, "plans", planned),
            ):
                tier = counted(store)
                loader = DataLoader(
                    dataset.cached(f"{place}/cache", data // 2), VALUE_BATCH, shuffle=True, columns=["value"]
                )
                first, seconds = 0, []
                for _ in range(EPOCHS):
                    start = time.perf_counter()
                    assert sum(len(batch["value"]) for batch in loader) == rows
                    seconds.append(time.perf_counter() - start)
                    first = first or tier.given
                shares[planned] = (tier.given - first) / (EPOCHS - 1) / data
                times[planned] = median(seconds[1:])
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            loader = DataLoader(
                dataset.cached(f"{place}/cache", 2 * data), VALUE_BATCH, shuffle=True, columns=["value"]
            )
            for _ in range(3):
                start = time.perf_counter()
                assert sum(len(batch["value"]) for batch in loader) == rows
                hits = time.perf_counter() - start
        plain = DataLoader(dataset, VALUE_BATCH, shuffle=True, columns=["value"])
        start = time.perf_counter()
        assert sum(len(batch["value"]) for batch in plain) == rows
        uncached = time.perf_counter() - start
    yield Figure("dataset, values: fetched per epoch", shares[True], "of dataset", "<= 0.55")
    yield Figure("dataset, values: fetched, LRU", shares[False], "of dataset")
    yield Figure("dataset, values: epoch", times[True], "s", "", "LRU", times[False])
    yield Figure("dataset, values: epoch of hits", hits, "s", "", "no cache, packs in the page cache", uncached)


def page_figures(rows: int, row_bytes: int, batches_of: Any) -> Iterator[Figure]:
    """Pages of a real store, in the order of block-wise shuffled rows. (The loader has no such order yet: it is simulated.)"""
    with tempfile.TemporaryDirectory() as folder, Store.create(f"{folder}/store") as store:
        dataset = make(store, "rows", rows, row_bytes)
        leaves = dataset.leaves
        parts = [part for at in range(len(leaves.digests)) for part in leaves.group(at).columns[1]]
        digests = [part.digest for part in parts]
        keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        data = sum(part.page_bytes for part in parts)
        shares = {}
        for planned in (True, False):
            tier = counted(store)
            with (
                tempfile.TemporaryDirectory(dir="/dev/shm") as place,
                HotCache(f"{place}/cache", data // 2) as cache,
            ):
                chunks, first = CachedChunks(store, cache), 0
                upcoming = list(batches_of(len(parts), 0))
                if planned:
                    cache.plan(keys[np.concatenate(upcoming)])
                for epoch in range(EPOCHS):
                    current, upcoming = upcoming, list(batches_of(len(parts), epoch + 1))
                    if planned:
                        cache.plan(keys[np.concatenate(upcoming)])
                    for batch in current:
                        for _ in chunks.get_many([digests[page] for page in batch.tolist()]):
                            pass
                    first = first or tier.given
            shares[planned] = (tier.given - first) / (EPOCHS - 1) / data
    yield Figure("dataset, pages: fetched per epoch", shares[True], "of dataset", "<= 0.55")
    yield Figure("dataset, pages: fetched, LRU", shares[False], "of dataset")


# -- several processes ----------------------------------------------------------------------------------------------------


def memory() -> dict[str, int]:
    """Bytes of this process: its share of shared memory, and what is its own."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    fields = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines)}
    return {"shared": fields["Pss_Shmem"], "own": fields["Pss_Anon"]}


def reader(url: str, place: str) -> None:
    """Read every row through the cache, twice, and tell what that takes of memory, while the others do, too."""
    with Store.open(url) as store:
        dataset = Dataset.open(store, "values").cached(place)
        before, seen = memory(), 0
        for epoch in range(2):
            rows = np.random.default_rng(epoch).permutation(len(dataset))
            for at in range(0, len(rows), VALUE_ROWS):
                seen += dataset.take(rows[at : at + VALUE_ROWS], ["value"]).num_rows
        print("ready", seen, flush=True)
        sys.stdin.readline()
        after = memory()
        print(json.dumps({name: after[name] - before[name] for name in after}), flush=True)
        sys.stdin.readline()


def shared_figures(rows: int, processes: int) -> Iterator[Figure]:
    """What processes hold that read the same dataset through one cache, which has room for it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as place,
        Store.create(f"{folder}/store") as store,
    ):
        make(store, "values", rows, VALUE_BYTES)
        with HotCache(f"{place}/cache", int(rows * VALUE_BYTES * 1.5)) as cache:
            command = [sys.executable, "-m", "bench.cache", "--reader", store.url, "--worker", f"{place}/cache"]
            running = [
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            answers = [process.stdout.readline().split() for process in running if process.stdout]
            assert all(answer == ["ready", str(2 * rows)] for answer in answers), answers
            tell(running)
            found = [json.loads(process.stdout.readline()) for process in running if process.stdout]
            stats = cache.stats()
            tell(running)
            for process in running:
                process.wait(60)
    files = stats["linked_bytes"] + stats["pinned_bytes"] + stats["index_bytes"]
    pss = sum(each["shared"] for each in found)
    own = max(each["own"] for each in found)
    yield Figure(f"dataset: shared pss of {processes}", pss, "bytes", "<= 1.05", "cache", files)
    yield Figure("dataset: own memory of one", own, "bytes", "<= 0.25", "cache", files)
    yield Figure("dataset: puts of all", stats["puts"], "values", "<= 1.05", "values", stats["values"])


def tell(running: list[subprocess.Popen[str]]) -> None:
    """Let each go on."""
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
