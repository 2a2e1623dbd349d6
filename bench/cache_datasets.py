"""The hot cache with what reads through it: datasets of a real store, DataLoaders, a tier that counts what it gives. For bench.cache."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from bench.harness import ROOT, Figure, median
from leptonstore.cache import HotCache
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from leptonstore.tiers.local import LocalTier

VALUE_BYTES, VALUE_ROWS, VALUE_BATCH = 50_000, 100, 64
PAGE_BATCH = 256
FULL_PART = 0.05  # of an epoch of small rows in a full shuffle: it fetches ten times the data
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


def fetched(
    store: Store,
    dataset: Dataset,
    data: int,
    loading: Callable[[Dataset], Iterable[Any]],
    planned: bool,
    part: float = 1,
) -> tuple[float, float]:
    """(share of `data` bytes that the tier gives per epoch from the second on, seconds of an epoch), with a cache of half of it.

    part: of an epoch that `loading` reads, where that is enough to know.
    """
    from loaders.source import ColumnSource

    tier, first, seconds = counted(store), 0, []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, mock.patch.object(ColumnSource, "plans", planned):
        loader = loading(dataset.cached(f"{place}/cache", data // 2))
        for _ in range(EPOCHS):
            start = time.perf_counter()
            assert sum(len(batch["value"]) for batch in loader) >= int(len(dataset) * part) - PAGE_BATCH
            seconds.append(time.perf_counter() - start)
            first = first or tier.given
    return (tier.given - first) / (EPOCHS - 1) / data / part, median(seconds[1:]) / part


def value_figures(rows: int) -> Iterator[Figure]:
    """A DataLoader, fully shuffled, over values of twice the cache."""
    from loaders import DataLoader

    def loading(dataset: Dataset) -> Iterable[Any]:
        return DataLoader(dataset, VALUE_BATCH, shuffle=True, columns=["value"])

    data = rows * VALUE_BYTES
    with tempfile.TemporaryDirectory() as folder, Store.create(f"{folder}/store") as store:
        dataset = make(store, "values", rows, VALUE_BYTES)
        share, seconds = fetched(store, dataset, data, loading, True)
        lru_share, lru_seconds = fetched(store, dataset, data, loading, False)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            loader = loading(dataset.cached(f"{place}/cache", 2 * data))
            for _ in range(3):
                start = time.perf_counter()
                assert sum(len(batch["value"]) for batch in loader) == rows
                hits = time.perf_counter() - start
        plain = loading(dataset)
        start = time.perf_counter()
        assert sum(len(batch["value"]) for batch in plain) == rows
        uncached = time.perf_counter() - start
    yield Figure("dataset, values: fetched per epoch", share, "of dataset", "<= 0.55")
    yield Figure("dataset, values: fetched, LRU", lru_share, "of dataset")
    yield Figure("dataset, values: epoch", seconds, "s", "", "LRU", lru_seconds)
    yield Figure("dataset, values: epoch of hits", hits, "s", "", "no cache, packs in the page cache", uncached)


def page_figures(rows: int, row_bytes: int, order: Any) -> Iterator[Figure]:
    """A DataLoader over small rows, whose pages are twice the cache: shuffled block by block in `order`, and fully."""
    from loaders import DataLoader
    from loaders.orders import FullOrder

    with tempfile.TemporaryDirectory() as folder, Store.create(f"{folder}/store") as store:
        dataset = make(store, "rows", rows, row_bytes)
        leaves = dataset.leaves
        data = sum(part.page_bytes for at in range(len(leaves.digests)) for part in leaves.group(at).columns[1])

        def share(order: Any, planned: bool, part: float = 1.0) -> tuple[float, float]:
            def loading(dataset: Dataset) -> Iterable[Any]:
                return DataLoader(dataset, PAGE_BATCH, order=order, columns=["value"], limit_batches=part)

            return fetched(store, dataset, data, loading, planned, part)

        ours, seconds = share(order, True)
        lru, lru_seconds = share(order, False)
        full, full_seconds = share(FullOrder(True), True, FULL_PART)
    yield Figure("dataset, pages, block-wise: fetched per epoch", ours, "of dataset", "<= 0.55")
    yield Figure("dataset, pages, block-wise: fetched, LRU", lru, "of dataset")
    yield Figure("dataset, pages, full shuffle: fetched per epoch", full, "of dataset")
    yield Figure("dataset, pages, block-wise: epoch", seconds, "s", "", "LRU", lru_seconds)
    yield Figure("dataset, pages, full shuffle: epoch", full_seconds, "s", "", "block-wise", seconds)


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
    # What a process needs anyway is more than a quarter of a small cache.
    yield Figure("dataset: own memory of one", own, "bytes", "<= 0.25" if files > 200e6 else "", "cache", files)
    yield Figure("dataset: puts of all", stats["puts"], "values", "<= 1.05", "values", stats["values"])


def tell(running: list[subprocess.Popen[str]]) -> None:
    """Let each go on."""
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
