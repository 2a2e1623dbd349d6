"""Workload chunks: 64 clients of one daemon, each asking for one random chunk of 256 KiB after another.

2,048 values of 256 KiB of noise (512 MiB; a value of that size is one chunk) are a table's. The clients are 64 threads in 4 processes of
16, each with a store object, and so connections, of its own; an answer is checked against its digest by the client, as always. They
start together and ask for SECONDS; the first of each is not counted.

chunks        answers a second, and MB/s, of all clients together
chunks p99    beside the median                                  contract: <= 10x
chunks wrong  errors, and answers that are not the bytes asked for     contract: == 0
chunks none   clients that had fewer than half of what the median client had: nobody is starved      contract: == 0

Warm: the daemon's hot cache holds all of it. The clients read around the hot cache, as those of another machine do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import ROOT, Figure
from leptonstore.dataset import Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore
from leptonstore.testing import daemon

CHUNK_BYTES = 256 << 10
CHUNKS, CHUNKS_QUICK = 2_048, 128
CLIENTS, PROCESSES = 64, 4
SECONDS, SECONDS_QUICK = 12.0, 2.0
MODULE = "bench.daemon_chunks"


def write(place: Path, chunks: int) -> None:
    """A store with the values, and a file of their digests."""
    rng = np.random.default_rng(0)
    digests: list[str] = []
    schema = pa.schema([pa.field("id", pa.int64(), False), pa.field("value", pa.large_binary())])

    def batches() -> Any:
        for first in range(0, chunks, 64):
            values = [rng.bytes(CHUNK_BYTES) for _ in range(first, min(first + 64, chunks))]
            digests.extend(digest_of(value).hex() for value in values)
            ids = pa.array(range(first, first + len(values)))
            yield pa.RecordBatch.from_arrays([ids, pa.array(values, pa.large_binary())], schema=schema)

    with Store.create(place / "store") as store:
        write_dataset(store, "values", Source(schema, ("id",), batches, chunks, {}))
    (place / "digests").write_text("\n".join(digests))


def clients(url: str, file: str, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """`count` threads of this process. Starts when a line comes in."""
    digests = [bytes.fromhex(line) for line in Path(file).read_text().split()]
    waits: list[list[float]] = [[] for _ in range(count)]
    wrong: list[str] = []
    begin = threading.Event()
    ready = threading.Barrier(count + 1)

    def ask(which: int) -> None:
        rng = np.random.default_rng([seed, which])
        try:
            with Store.open(url) as store:
                assert isinstance(store, RemoteStore)
                store.without_cache()
                store.get(digests[0])
                ready.wait(120)
                begin.wait()
                until = time.perf_counter() + seconds
                while (began := time.perf_counter()) < until:
                    digest = digests[int(rng.integers(len(digests)))]
                    data = store.get(digest)
                    waits[which].append(time.perf_counter() - began)
                    if len(data) != CHUNK_BYTES or digest_of(data) != digest:
                        wrong.append("other bytes")
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
            ready.abort()

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(count)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):  # what went wrong is in `wrong`
        ready.wait(120)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    begin.set()
    for thread in threads:
        thread.join()
    return {"waits": waits, "wrong": wrong, "seconds": time.perf_counter() - began}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    with tempfile.TemporaryDirectory() as made:
        write(Path(made), CHUNKS_QUICK if arguments.quick else CHUNKS)
        return run(Path(made), arguments.quick)


def run(place: Path, quick: bool) -> list[Figure]:
    """The figures, of what `write` has made."""
    seconds = SECONDS_QUICK if quick else SECONDS
    with daemon.running(place / "store", cache=str(place / "hot"), cache_bytes="1GiB") as served:
        asked = [served.url, str(place / "digests"), str(CLIENTS // PROCESSES)]
        commands = [[sys.executable, "-m", MODULE, *asked, str(seconds), str(seed)] for seed in range(PROCESSES)]
        pipe = subprocess.PIPE
        running = [subprocess.Popen(one, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for one in commands]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "ready\n", "a client did not start"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.communicate()[0].strip().split("\n")[-1]) for process in running]
    waits = [one for told in found for one in told["waits"]]
    wrong = [text for told in found for text in told["wrong"]]
    for text in wrong[:3]:
        print(f"bench.daemon: {text}", file=sys.stderr)
    every = np.array([wait for one in waits for wait in one[1:]])
    counts = np.array([len(one) for one in waits])
    took = max(told["seconds"] for told in found)
    p50, p99 = np.quantile(every, (0.5, 0.99)) * 1e3
    return [
        Figure("chunks", len(every) / took, "chunks/s"),
        Figure("chunks bytes", len(every) / took * CHUNK_BYTES / 1e6, "MB/s"),
        Figure("chunks p99", float(p99), "ms", "<= 10", "p50", float(p50)),
        Figure("chunks longest", float(every.max() * 1e3), "ms"),
        Figure("chunks wrong", len(wrong), "answers", "== 0"),
        Figure("chunks none", int((counts < np.median(counts) / 2).sum()), "clients", "== 0"),
    ]


if __name__ == "__main__":
    print(json.dumps(clients(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))))
