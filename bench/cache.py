"""The hot cache: what epochs over twice its size fetch, what four processes hold, what a hit costs.

python -m bench.cache [--quick] [--json] [--folder /dev/shm]

- A dataset of twice the cache, each epoch in a new order that the plan says one epoch ahead. The tier is simulated, and counts. No policy
  can fetch less than half: what is not there when an epoch begins has its one use as a miss. LRU is the same code without the plan.
- 784-byte rows in pages of 64 KiB, in the order of `loaders.orders.BlockShuffle`: a batch asks for each of its pages.
- The same with datasets of a real store on the disk behind the cache, whose tier counts the bytes that it gives: values by a DataLoader,
  fully shuffled; small rows by a DataLoader, block-wise, and fully shuffled beside it.
- Four processes read the same cache to the end, and the same dataset through one; memory is what the system says of them (Pss: a page
  shared by four counts a quarter).
- A hit is a get and its release, every value in random order; a dict of bytes, and a file in the page cache, beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bench import cache_datasets
from bench.cache_datasets import tell
from bench.harness import ROOT, Figure, main, median, parser
from leptonstore.cache import HotCache
from leptonstore.digest import digest_of
from loaders.orders import BlockShuffle

VALUE_BYTES = 50_000
ROW_BYTES, PAGE_BYTES = 784, 64 << 10
PAGE_ROWS = PAGE_BYTES // ROW_BYTES
BATCH_ROWS = 256
BLOCKS = BlockShuffle(block_rows=2_048, window_blocks=16)  # a window of 26 MB
EPOCHS = 4
PROCESSES = 4


class Tier:
    """Makes the value of a number, and counts what it gave."""

    def __init__(self, size: int) -> None:
        self.noise = np.random.default_rng(0).bytes(size)
        self.bytes = 0

    def value(self, number: int) -> bytes:
        """The number, then noise."""
        return number.to_bytes(8, "little") + self.noise[8:]

    def fetch(self, number: int) -> bytes:
        """`value`, counted."""
        self.bytes += len(self.noise)
        return self.value(number)


def keys_of(count: int) -> np.ndarray:
    """One key for each number."""
    joined = b"".join(digest_of(b"%d" % number) for number in range(count))
    return np.frombuffer(joined, np.uint8).reshape(count, 32)


def value_epoch(count: int, epoch: int) -> np.ndarray:
    """Fully shuffled."""
    return np.random.default_rng(epoch).permutation(count)


def page_epoch(pages: int, epoch: int) -> np.ndarray:
    """The pages that the batches of an epoch ask for, one batch after another."""
    rows = BLOCKS.bind(SimpleNamespace(rows=pages * PAGE_ROWS)).epoch(0, epoch).rows_at(0, pages * PAGE_ROWS)
    return np.concatenate(
        [np.unique(rows[start : start + BATCH_ROWS] // PAGE_ROWS) for start in range(0, len(rows), BATCH_ROWS)]
    )


def fetched_share(
    folder: Path, count: int, size: int, order: Callable[[int, int], np.ndarray], planned: bool
) -> tuple[float, float]:
    """(share of the dataset's bytes that an epoch fetches from the second on, seconds per epoch)."""
    tier, keys = Tier(size), keys_of(count)
    names = [row.tobytes() for row in keys]
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as place, HotCache(Path(place) / "cache", count * size // 2) as cache:
        upcoming = order(count, 0)
        if planned:
            cache.plan(keys[upcoming])
        first = 0
        for epoch in range(EPOCHS):
            current, upcoming = upcoming, order(count, epoch + 1)
            if planned:
                cache.plan(keys[upcoming])
            start = time.perf_counter()
            for number in current.tolist():
                data = cache.get_or_put(names[number], lambda n=number: tier.fetch(n)).data  # type: ignore[misc]
                assert data[:8] == number.to_bytes(8, "little")
            seconds.append(time.perf_counter() - start)
            first = first or tier.bytes
        stats = cache.stats()
        held = stats["linked_bytes"] + stats["pinned_bytes"] + stats["index_bytes"]
        assert held <= stats["budget_bytes"], stats
    return (tier.bytes - first) / ((EPOCHS - 1) * count * size), median(seconds[1:])


# -- several processes ----------------------------------------------------------------------------------------------------


def worker(folder: Path, count: int) -> None:
    """Read all of the cache, tell how much shared memory that is, and keep it until told to go."""
    with HotCache(folder) as cache:
        views = [cache.get(row.tobytes()) for row in keys_of(count)]
        touched = sum(int(np.frombuffer(view.data, np.uint8)[::4096].sum()) for view in views if view is not None)
        print("ready", sum(view is not None for view in views), touched, flush=True)
        sys.stdin.readline()
        print(json.dumps(shared_memory()), flush=True)
        sys.stdin.readline()


def shared_memory() -> dict[str, int]:
    """Bytes of this process's shared mappings: resident, and its share of them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    pss = fields.get("Pss_Shmem", fields["Pss"])
    return {"pss": int(pss.split()[0]) * 1024, "rss": int(fields["Rss"].split()[0]) * 1024}


def shared_figures(folder: Path, count: int) -> Iterator[Figure]:
    """What four processes hold that all look at the whole cache."""
    tier = Tier(VALUE_BYTES)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "cache"
        with HotCache(path, int(count * VALUE_BYTES * 1.2)) as cache:
            for number, row in enumerate(keys_of(count)):
                cache.put(row.tobytes(), tier.value(number))
            stats = cache.stats()
        files = sum(entry.stat().st_blocks * 512 for entry in os.scandir(path) if entry.name.endswith(".seg"))
        command = [sys.executable, "-m", "bench.cache", "--worker", str(path), "--count", str(count)]
        running = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        found = [process.stdout.readline().split() for process in running if process.stdout]
        assert all(line[:2] == ["ready", str(stats["values"])] for line in found), found
        tell(running)
        memory = [json.loads(process.stdout.readline()) for process in running if process.stdout]
        tell(running)
        for process in running:
            process.wait(60)
    budget = stats["budget_bytes"]
    yield Figure("files of budget", files + stats["index_bytes"], "bytes", "<= 1.0", "budget", budget)
    pss = sum(each["pss"] for each in memory)
    yield Figure(f"pss of {PROCESSES} processes", pss, "bytes", "<= 1.05", "files", files + stats["index_bytes"])


# -- a hit ------------------------------------------------------------------------------------------------------------------


def hit_figures(folder: Path, count: int) -> Iterator[Figure]:
    """Latency without looking at the bytes, and throughput with a copy of them."""
    tier, keys = Tier(VALUE_BYTES), [row.tobytes() for row in keys_of(count)]
    values = {key: tier.value(number) for number, key in enumerate(keys)}
    target = np.empty(VALUE_BYTES, np.uint8)

    def copy(data: bytes | memoryview) -> None:
        target[:] = np.frombuffer(data, np.uint8)

    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        tempfile.TemporaryDirectory() as disk,
        HotCache(Path(place) / "cache", int(count * VALUE_BYTES * 1.2)) as cache,
    ):
        paths = {}
        for number, key in enumerate(keys):
            cache.put(key, values[key])
            paths[key] = f"{disk}/{number}"
            Path(paths[key]).write_bytes(values[key])

        def hit(key: bytes) -> memoryview:
            found = cache.get(key)
            assert found is not None
            return found.data

        def read(key: bytes) -> bytes:
            with open(paths[key], "rb", buffering=0) as file:
                return file.read()

        first = seconds_each(keys, hit, 1)  # with the check
        ways = {"cache": hit, "dict": values.__getitem__, "file": read}
        latency = {name: seconds_each(keys, way, 5) for name, way in ways.items()}
        rate = {
            name: VALUE_BYTES / seconds_each(keys, lambda key, way=way: copy(way(key)), 5)  # type: ignore[misc]
            for name, way in ways.items()
        }
        pins = [hit(key) for key in keys]
        pinned = seconds_each(keys, hit, 5)
        del pins
    yield Figure("hit", latency["cache"] * 1e6, "us", "<= 1.0", "a file in the page cache", latency["file"] * 1e6)
    yield Figure("hit beside dict", latency["cache"] * 1e6, "us", "", "dict", latency["dict"] * 1e6)
    yield Figure("hit, segment pinned", pinned * 1e6, "us", "", "a file in the page cache", latency["file"] * 1e6)
    yield Figure("first hit, with check", first * 1e6, "us", "", "a file in the page cache", latency["file"] * 1e6)
    yield Figure("hit and copy", rate["cache"] / 1e9, "GB/s", "", "a file in the page cache", rate["file"] / 1e9)
    yield Figure("hit and copy beside dict", rate["cache"] / 1e9, "GB/s", "", "dict", rate["dict"] / 1e9)


def seconds_each(keys: list[bytes], work: Callable[[bytes], object], runs: int) -> float:
    """Median over runs of the time for one key, keys in random order."""
    order = random.Random(0).sample(keys, len(keys))
    out = []
    for _ in range(runs):
        start = time.perf_counter()
        for key in order:
            work(key)
        out.append((time.perf_counter() - start) / len(order))
    return median(out)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """All figures."""
    folder = Path(arguments.folder)
    values = 2_000 if arguments.quick else 10_000
    pages = 2_048 if arguments.quick else 6_144
    figures = []
    for name, count, size, order in (
        ("values", values, VALUE_BYTES, value_epoch),
        ("pages", pages, PAGE_ROWS * ROW_BYTES, page_epoch),
    ):
        planned, seconds = fetched_share(folder, count, size, order, True)
        lru, lru_seconds = fetched_share(folder, count, size, order, False)
        figures += [
            Figure(f"{name}: fetched per epoch", planned, "of dataset", "<= 0.55"),
            Figure(f"{name}: fetched, LRU", lru, "of dataset"),
            Figure(f"{name}: epoch", seconds, "s", "", "LRU", lru_seconds),
        ]
    figures += cache_datasets.value_figures(values)
    figures += cache_datasets.page_figures(pages * PAGE_ROWS, ROW_BYTES, BLOCKS)
    figures += cache_datasets.shared_figures(values // 2, PROCESSES)
    figures += shared_figures(folder, values // 4)
    figures += hit_figures(folder, min(values, 2_000))
    return figures


if __name__ == "__main__":
    made = parser("cache", __doc__.split("\n")[0])
    made.add_argument("--folder", default="/dev/shm", help="where the caches are made (default: /dev/shm)")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    made.add_argument("--reader", help=argparse.SUPPRESS)
    made.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.reader:
        cache_datasets.reader(given.reader, given.worker)
    elif given.worker:
        worker(Path(given.worker), given.count)
    else:
        main("cache", given, measure)
