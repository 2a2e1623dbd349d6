"""Reading from an object store: a dataset of JPEGs on a real S3 server (SeaweedFS) on loopback, for bench/tiers.py.

read      all images by `Dataset.iter_batches` from a store that was just opened (every value is checked against its digest), beside obstore
          reading the same packs raw (ranges of 8 MiB, eight at a time: faster here than whole packs) and s3fs reading them file by file.
          In turn, medians. Images do not compress, so decompression is not what is timed. The requests of opening count, its time does not.
delayed   the same epoch through a TCP proxy that adds 50 ms to every request, beside the proxy with no delay. Opening is told apart.

Contract: read >= 0.8x obstore and >= 3x s3fs; GETs <= 1.2 x (bytes / 8 MiB) + 20; delayed >= 0.8x.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from bench.harness import Figure, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import image_field
from leptonstore.limits import MIB
from leptonstore.store import Store
from leptonstore.testing import seaweed
from leptonstore.testing.slow_link import slow_link

BYTES, BYTES_QUICK = 1_000_000_000, 60_000_000
ROUNDS = 5
RANGE_BYTES, RAW_THREADS = 8 * MIB, 8
DELAY_S = 0.05
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), image_field("image", "jpeg")])


@dataclass
class Made:
    """The store on S3, where its index is kept, and its packs of images: (path, bytes)."""

    url: str
    cache: Path
    packs: list[tuple[str, int]]

    @property
    def bytes(self) -> int:
        """Of these packs."""
        return sum(size for _, size in self.packs)


def images(total: int) -> Iterator[bytes]:
    """Real JPEGs of about 70 KB and so many bytes in all, no two alike: a comment tells them apart."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(50):
        file = io.BytesIO()
        noise = rng.integers(0, 256, (190, 250, 3), np.uint8)
        Image.fromarray(noise).resize((500, 375)).save(file, "JPEG", quality=60)
        made.append(file.getvalue())
    number = 0
    while total > 0:
        plain = made[number % len(made)]
        image = plain[:2] + b"\xff\xfe\x00\x12" + number.to_bytes(16, "big") + plain[2:]
        yield image
        total -= len(image)
        number += 1


def make(url: str, cache: Path, total: int) -> Made:
    """Write the dataset."""

    def batches() -> Iterator[pa.RecordBatch]:
        values = images(total)
        first = 0
        while some := [value for value, _ in zip(values, range(500), strict=False)]:
            ids = pa.array(range(first, first + len(some)), pa.int64())
            yield pa.RecordBatch.from_arrays([ids, pa.array(some, pa.large_binary())], schema=SCHEMA)
            first += len(some)

    with Store.create(url, cache_dir=cache) as store:
        write_dataset(store, "photos", Source(SCHEMA, ("id",), batches))
        packs = [(f"packs/{pack[:2]}/{pack}.pack", record.bytes) for pack, record in store.state.packs.items()]
    return Made(url, cache, [(path, size) for path, size in packs if size > MIB])


@dataclass
class Epoch:
    """One pass through all images of a store that was opened for it."""

    open_s: float
    seconds: float
    bytes: int
    gets: int

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.bytes / self.seconds / 1e6


def read_store(made: Made) -> Epoch:
    """A whole epoch."""
    begin = time.perf_counter()
    with Store.open(made.url, cache_dir=made.cache) as store:
        dataset = Dataset.open(store, "photos")
        opened, total = time.perf_counter(), 0
        for _, batch in dataset.iter_batches(["image"]):
            total += batch.nbytes
        seconds = time.perf_counter() - opened
        gets = store.home.counters.to_json()["get"]  # type: ignore[attr-defined]
        return Epoch(opened - begin, seconds, total, gets)


def read_raw(made: Made) -> int:
    """obstore, as fast as it goes here."""
    import obstore
    from obstore.store import S3Store

    store = S3Store.from_url(made.url, client_options={"allow_http": True})
    jobs = [
        (path, start, min(RANGE_BYTES, size - start))
        for path, size in made.packs
        for start in range(0, size, RANGE_BYTES)
    ]

    def get(job: tuple[str, int, int]) -> int:
        return len(obstore.get_range(store, job[0], start=job[1], length=job[2]))

    with ThreadPoolExecutor(RAW_THREADS) as pool:
        return sum(pool.map(get, jobs))


def read_s3fs(made: Made) -> int:
    """s3fs, with its default settings."""
    import s3fs

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
    key, secret, endpoint = (os.environ[name] for name in names)
    files = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=endpoint, skip_instance_cache=True)
    total = 0
    for path, _ in made.packs:
        with files.open(f"{made.url.removeprefix('s3://')}/{path}", "rb") as file:
            while data := file.read(RANGE_BYTES):
                total += len(data)
    return total


def rate(read: Callable[[], int]) -> float:
    """MB/s."""
    begin = time.perf_counter()
    total = read()
    return total / (time.perf_counter() - begin) / 1e6


def measure_object(quick: bool) -> list[Figure]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        place = Path(folder)
        (place / "weed").mkdir()
        server = seaweed.start(place / "weed")
        try:
            with _environment(server.environment()):
                made = make(
                    f"s3://{seaweed.make_bucket(server)}/bench", place / "cache", BYTES_QUICK if quick else BYTES
                )
                return [*_read_figures(made, quick), *_delayed_figures(made, server.endpoint, quick)]
        finally:
            seaweed.stop(server)


def _read_figures(made: Made, quick: bool) -> list[Figure]:
    found: dict[str, list[float]] = {"store": [], "raw": [], "s3fs": []}
    for turn in range(1 if quick else ROUNDS):
        epoch = read_store(made)
        found["store"].append(epoch.rate)
        found["raw"].append(rate(lambda: read_raw(made)))
        if turn < 2:
            found["s3fs"].append(rate(lambda: read_s3fs(made)))
    rates = {name: median(values) for name, values in found.items()}
    allowed = 1.2 * made.bytes / RANGE_BYTES + 20
    return [
        Figure("object_read", rates["store"], "MB/s", "" if quick else ">= 0.8", "obstore", rates["raw"]),
        Figure("object_read_s3fs", rates["store"], "MB/s", "" if quick else ">= 3", "s3fs", rates["s3fs"]),
        Figure("object_gets", epoch.gets, "requests", "<= 1", f"{allowed:.0f} allowed", allowed),
    ]


def _delayed_figures(made: Made, endpoint: str, quick: bool) -> list[Figure]:
    found: dict[float, list[Epoch]] = {0.0: [], DELAY_S: []}
    with slow_link(endpoint, 0.0) as near, slow_link(endpoint, DELAY_S) as far:
        for _ in range(1 if quick else ROUNDS):
            for delay, through in ((0.0, near), (DELAY_S, far)):
                with _environment({"AWS_ENDPOINT_URL": through}):
                    found[delay].append(read_store(made))
    plain, delayed = (median(epoch.rate for epoch in found[delay]) for delay in (0.0, DELAY_S))
    opening = median(epoch.open_s for epoch in found[DELAY_S])
    return [
        Figure("object_read_delayed", delayed, "MB/s", "" if quick else ">= 0.8", "without delay", plain),
        Figure("object_open_delayed", opening, "s"),
    ]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
