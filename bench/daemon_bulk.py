"""Workload bulk: every row of a dataset through a client of the daemon, beside a bare Arrow Flight stream of the same bytes.

131,072 rows of 1,024 int32 below 50,000 (tokens: 512 MiB plain, about 0.5x as stored) and a number. One client process reads all of them
with `Dataset.scan`. The peer is a Flight server in a process of its own that holds the table in memory and answers
with the batches that the daemon sends, to the same kind of client; nothing is stored, looked up, checked or decoded there.

bulk          warm: the daemon's hot cache holds the decoded pages, which an earlier read has put there; contract: >= 0.7x the bare stream
bulk values   the same of rows with a text of about 900 bytes (variable width)                           no contract
bulk cold     a daemon just started, with an empty hot cache: it reads, checks and decompresses; files in the system's page cache
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.harness import ROOT, Figure, in_process, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from leptonstore.testing import daemon

ROWS, ROWS_QUICK, TOKENS = 131_072, 8_192, 1_024
TEXT_BYTES = 900
ROUNDS = 5
MODULE = "bench.daemon_bulk"


def table_of(kind: str, rows: int) -> pa.Table:
    """Tokens, or texts."""
    rng = np.random.default_rng(0)
    ids = pa.array(np.arange(rows))
    if kind == "tokens":
        values = pa.array(rng.integers(0, 50_000, rows * TOKENS, dtype=np.int32))
        return pa.table({"id": ids, "tokens": pa.FixedSizeListArray.from_arrays(values, TOKENS)})
    letters = rng.choice(np.frombuffer(b"etaoinshrdlu cmfwyp", np.uint8), rows * TEXT_BYTES * 2)
    ends = np.cumsum(rng.integers(TEXT_BYTES // 2, TEXT_BYTES * 3 // 2, rows))
    offsets = np.concatenate(([0], ends)).astype(np.int64)
    text = pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters[: ends[-1]].copy()))
    return pa.table({"id": ids, "text": text})


def write(place: Path, rows: int) -> None:
    """A store with both."""
    with Store.create(place) as store:
        for kind in ("tokens", "texts"):
            table = table_of(kind, rows)
            batches = functools.partial(iter, table.to_batches(max_chunksize=4_096))
            write_dataset(store, kind, Source(table.schema, ("id",), batches, rows, {}))


# -- in processes of their own -----------------------------------------------------------------------------------------


def read(url: str, kind: str, times: int) -> dict[str, object]:
    """Bytes a second of each pass, and how its batches were cut."""
    with Store.open(url) as store:
        dataset = Dataset.open(store, kind)
        rates: list[float] = []
        rows: list[int] = []
        for _ in range(times):
            began, count = time.perf_counter(), 0
            rows = []
            for batch in dataset.scan():
                count += batch.nbytes
                rows.append(batch.num_rows)
            rates.append(count / (time.perf_counter() - began))
        assert sum(rows) == len(dataset)
    return {"rates": rates, "bytes": count, "rows": rows}


def bare_server(kind: str, rows: int, cuts: list[int]) -> None:
    """Answers every ticket with the table, cut as told."""
    from pyarrow import flight

    table, batches, at = table_of(kind, rows), [], 0
    for count in cuts:
        batches += table.slice(at, count).combine_chunks().to_batches()
        at += count
    table = pa.Table.from_batches(batches)

    class Server(flight.FlightServerBase):
        def do_get(self, context: object, ticket: object) -> flight.FlightDataStream:
            return flight.RecordBatchStream(table)

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    server.serve()


def bare_read(port: int, times: int) -> dict[str, object]:
    """As `read`."""
    from pyarrow import flight

    client, rates = flight.FlightClient(f"grpc://127.0.0.1:{port}"), []
    for _ in range(times):
        began, count = time.perf_counter(), 0
        for chunk in client.do_get(flight.Ticket(b"all")):
            count += chunk.data.nbytes
        rates.append(count / (time.perf_counter() - began))
    return {"rates": rates, "bytes": count}


@contextmanager
def bare(kind: str, rows: int, cuts: list[int]) -> Iterator[int]:
    """The port of a bare server."""
    command = [sys.executable, "-m", MODULE, "serve", kind, str(rows), json.dumps(cuts)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract of the module."""
    rows, rounds = (ROWS_QUICK, 2) if arguments.quick else (ROWS, ROUNDS)
    figures = []
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        write(place / "store", rows)
        with daemon.running(place / "store", cache=str(place / "hot"), cache_bytes="2GiB") as served:
            for kind, name, bound in (("tokens", "bulk", ">= 0.7"), ("texts", "bulk values", "")):
                cold = in_process(MODULE, "read", served.url, kind, "1")
                with bare(kind, rows, cold["rows"]) as port:
                    ours, peer = [], []
                    for _ in range(rounds):  # in turn: a slow spell of the machine meets both
                        ours.append(max(in_process(MODULE, "read", served.url, kind, "3")["rates"]) / 1e6)
                        peer.append(max(in_process(MODULE, "bare", str(port), "3")["rates"]) / 1e6)
                figures.append(Figure(name, median(ours), "MB/s", bound, "bare Flight stream", median(peer)))
                figures.append(
                    Figure(f"{name}, cold", cold["rates"][0] / 1e6, "MB/s", "", "bare Flight stream", median(peer))
                )
    return figures


def main() -> None:
    """What `in_process` runs."""
    pa.array([0])  # its first array imports pandas, where that is installed: 0.3 s
    role, *rest = sys.argv[1:]
    if role == "serve":
        bare_server(rest[0], int(rest[1]), json.loads(rest[2]))
    elif role == "read":
        print(json.dumps(read(rest[0], rest[1], int(rest[2]))))
    else:
        print(json.dumps(bare_read(int(rest[0]), int(rest[1]))))


if __name__ == "__main__":
    main()
