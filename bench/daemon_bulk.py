"""Workload bulk: every row of a dataset through a client of the daemon, beside a bare Arrow Flight stream of the same bytes.

131,072 rows of 1,024 int32 below 50,000 (tokens: 512 MiB plain, about 0.6x of that as stored) and a number; and as many with a text of
about 900 bytes. One client, a process of its own, reads all rows. The peer is a Flight server in a process of its own that holds the
table in memory and answers with batches of the same sizes; nothing is stored, looked up, checked or decoded there. Each in turn; medians.

bulk            operation `rows`: the daemon decodes, and sends record batches      contract: >= 0.7x the bare stream
bulk texts      the same of variable width                                           no contract
bulk checked    Dataset.scan: the client asks for pages by digest, checks and decodes each, anew in each pass
bulk near       Dataset.scan on the daemon's own host: pages come out of the hot cache that both share
bulk cold       `rows` of a daemon whose hot cache is empty: it reads packs (in the system's page cache), checks, decompresses

Warm, but for the last: the daemon's hot cache holds the decoded pages.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import ROOT, Figure, in_process, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore
from leptonstore.store.wire.messages import encode
from leptonstore.testing import daemon

ROWS, ROWS_QUICK, TOKENS = 131_072, 8_192, 1_024
TEXT_BYTES = 900
ROUNDS, PASSES = 3, 4
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


def read(url: str, kind: str, how: str, times: int) -> dict[str, Any]:
    """Bytes a second of each pass, and how its batches were cut. how: rows, checked or near."""
    rates: list[float] = []
    rows: list[int] = []
    for _ in range(times):
        with Store.open(url) as store:
            assert isinstance(store, RemoteStore)
            if how == "checked":
                store.without_cache()
            batches = _rows(store, kind) if how == "rows" else Dataset.open(store, kind).scan()
            began, count, rows = time.perf_counter(), 0, []
            for batch in batches:
                count += batch.nbytes
                rows.append(batch.num_rows)
            rates.append(count / (time.perf_counter() - began))
    return {"rates": rates, "bytes": count, "rows": rows}


def _rows(store: RemoteStore, kind: str) -> Iterator[pa.RecordBatch]:
    return store.link.stream(lambda rows: encode("rows", {"dataset": kind, "start": rows}))


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


def bare_read(port: int, times: int) -> dict[str, Any]:
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
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        write(place / "store", ROWS_QUICK if arguments.quick else ROWS)
        return run(place, arguments.quick)


def run(place: Path, quick: bool) -> list[Figure]:
    """The figures, of what `write` has made."""
    rows, rounds = (ROWS_QUICK, 1) if quick else (ROWS, ROUNDS)
    figures: list[Figure] = []
    with daemon.running(place / "store", cache=str(place / "hot"), cache_bytes="2GiB") as served:
        for kind in ("tokens", "texts"):
            cold = in_process(MODULE, "read", served.url, kind, "rows", "1")
            runs: dict[str, list[float]] = defaultdict(list)
            with bare(kind, rows, cold["rows"]) as port:
                for _ in range(rounds):  # in turn: a slow spell of the machine meets all
                    for how in ("rows", "checked", "near") if kind == "tokens" else ("rows",):
                        runs[how] += in_process(MODULE, "read", served.url, kind, how, str(PASSES))["rates"]
                    runs["bare"] += in_process(MODULE, "bare", str(port), str(PASSES))["rates"]
            found = {how: median(rates) / 1e6 for how, rates in runs.items()}
            figures += _figures(kind, {**found, "cold": cold["rates"][0] / 1e6})
    return figures


def _figures(kind: str, found: dict[str, float]) -> Iterator[Figure]:
    peer = ("bare Flight stream", found["bare"])
    if kind == "texts":
        yield Figure("bulk texts", found["rows"], "MB/s", "", *peer)
        return
    yield Figure("bulk", found["rows"], "MB/s", ">= 0.7", *peer)
    for how in ("checked", "near", "cold"):
        yield Figure(f"bulk {how}", found[how], "MB/s", "", *peer)


def main() -> None:
    """What `in_process` runs."""
    pa.array([0])  # its first array imports pandas, where that is installed: 0.3 s
    role, *rest = sys.argv[1:]
    if role == "serve":
        bare_server(rest[0], int(rest[1]), json.loads(rest[2]))
    elif role == "read":
        print(json.dumps(read(rest[0], rest[1], rest[2], int(rest[3]))))
    else:
        print(json.dumps(bare_read(int(rest[0]), int(rest[1]))))


if __name__ == "__main__":
    main()
