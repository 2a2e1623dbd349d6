"""Workload remote: one shuffled epoch of 50 KB values out of a bucket (a real S3 server, SeaweedFS, on loopback), nothing cached before.

Every library stores the same values (random bytes, so that compression is out of the question) in its own format, in packs, shards or
chunks of 64 MiB, reads them in batches of 64 with two workers or threads, and shuffles within a window of 2,048 rows. The peers' local
cache may have all of the data (with less, mosaicml-streaming thrashed or failed here); ours holds two windows in memory and needs no disk.
Each in a new process; imports do not count, opening does. In turn, medians.

Contract: >= 3x mosaicml-streaming and >= 3x litdata.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench import harness
from bench.harness import Figure, in_process, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from leptonstore.testing import seaweed

ROWS, ROWS_QUICK = 20_480, 4_096
VALUE_BYTES = 50_000
BATCH, WORKERS, WINDOW, BLOCK_ROWS = 64, 2, 2_048, 512
WINDOW_QUICK, BLOCK_ROWS_QUICK = 512, 128
ROUNDS = 3
PEERS = {"mosaicml": "mosaicml-streaming", "litdata": "litdata"}


def arrays(folder: Path, rows: int) -> Path:
    """The data for the peers."""
    rng = np.random.default_rng(0)
    np.savez(folder / "values.npz", values=rng.integers(0, 256, (rows, VALUE_BYTES), np.uint8), labels=np.arange(rows))
    return folder / "values.npz"


def store_values(url: str, cache: Path, data: Path) -> None:
    """The same values as a dataset."""
    found = np.load(data)
    values, labels = found["values"], found["labels"]
    schema = pa.schema([pa.field("label", pa.int64(), False), pa.field("value", pa.large_binary(), False)])

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, len(labels), 512):
            some = slice(first, first + 512)
            columns = [pa.array(labels[some]), pa.array([row.tobytes() for row in values[some]], pa.large_binary())]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    with Store.create(url, cache_dir=cache) as store:
        write_dataset(store, "values", Source(schema, ("label",), batches))


def upload(folder: Path, bucket: str, prefix: str) -> None:
    """The files of a folder."""
    from obstore.store import from_url

    target = from_url(f"s3://{bucket}/{prefix}", client_options={"allow_http": True})
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.put(str(path.relative_to(folder)), path)


def ours(url: str, cache: Path, window: int, block_rows: int) -> dict[str, float]:
    """One epoch, in a process of its own."""
    from loaders import DataLoader
    from loaders.orders import BlockShuffle

    began = time.perf_counter()
    with Store.open(url, cache_dir=cache) as store:
        dataset = Dataset.open(store, "values")
        order = BlockShuffle(block_rows, window // block_rows)
        loader = DataLoader(dataset, BATCH, order=order, num_workers=WORKERS)
        rows, first = 0, 0.0
        for batch in loader:
            rows += len(batch["label"])
            first = first or time.perf_counter() - began
        seconds = time.perf_counter() - began
        counters = store.home.counters.to_json()  # type: ignore[attr-defined]
    assert rows == len(dataset)
    return {"samples_per_s": rows / seconds, "rows": rows, "first_s": first, "bytes": counters["bytes_read"]}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures; without the peers where --quick asks for that."""
    rows = ROWS_QUICK if arguments.quick else ROWS
    window, block_rows = (WINDOW_QUICK, BLOCK_ROWS_QUICK) if arguments.quick else (WINDOW, BLOCK_ROWS)
    sizes = [window, block_rows]
    peers = [] if arguments.quick else list(PEERS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "server").mkdir()
        server = seaweed.start(place / "server")
        try:
            os.environ.update(server.environment())
            bucket = seaweed.make_bucket(server)
            data = arrays(place, rows)
            store_values(f"s3://{bucket}/store", place / "written", data)
            for name in peers:
                harness.run_peer(f"read_{name}", ["write", str(data), str(place / name)], name == "mosaicml")
                upload(place / name, bucket, name)
            runs: dict[str, list[dict[str, float]]] = {"ours": [], **{name: [] for name in peers}}
            for turn in range(1 if arguments.quick else ROUNDS):
                told = [str(place / f"cache{turn}"), *map(str, sizes)]
                runs["ours"].append(in_process("bench.loader_remote", f"s3://{bucket}/store", *told))
                for name in peers:
                    asked = [
                        "remote", f"s3://{bucket}/{name}", str(place / f"{name}{turn}"), server.endpoint,
                        str(WINDOW), str(2 * rows * VALUE_BYTES),
                    ]  # fmt: skip
                    runs[name].append(harness.run_peer(f"read_{name}", asked, name == "mosaicml"))
                    assert runs[name][-1]["rows"] == rows
        finally:
            seaweed.stop(server)
    rate = median(run["samples_per_s"] for run in runs["ours"])
    figures = [
        Figure("remote", rate, "rows/s"),
        Figure("remote first batch", median(run["first_s"] for run in runs["ours"]), "s"),
        Figure("remote bytes read", median(run["bytes"] for run in runs["ours"]) / rows / VALUE_BYTES, "of the data"),
    ]
    for name in peers:
        peer = median(run["samples_per_s"] for run in runs[name])
        figures.append(Figure(f"remote vs {name}", rate, "rows/s", ">= 3", f"{PEERS[name]} from S3", peer))
    return figures


if __name__ == "__main__":
    import loaders.dataloader  # noqa: F401  (imports are not what is timed)

    pa.array([0])  # nor is pandas, which pyarrow imports for its first array

    print(json.dumps(ours(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
