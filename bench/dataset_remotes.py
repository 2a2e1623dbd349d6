"""Remotes: what a push sends, and how fast. For bench/dataset.py.

100,000 rows, a text of about 900 bytes of words and three numbers each (about 90 MB), are pushed to a new store on a real S3 server
(SeaweedFS on loopback). Then 1 % of the rows change, in one place or scattered, and that version is pushed: what the object store was
sent in all (packs, log entries, hints) over what it was sent for the first version. Pushed again, nothing travels.

remote_one_place     1,000 rows that stand together                    contract: <= 0.03
remote_scattered     1,000 rows anywhere: each is in a part of a page of 64 KiB, so most parts change. No contract.
remote_resumed       a push that is stopped half-way and made again: bytes sent by both over those of one that is not stopped
remote_rate          the first push into a store in a local directory, plain bytes a second, beside the import of the same rows there
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.harness import Figure, median
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.exchange import push
from leptonstore.store import Store
from leptonstore.store.transfer import TransferReport
from leptonstore.testing import seaweed

ROWS, ROWS_QUICK = 100_000, 20_000
CHANGED_SHARE = 0.01
ROUNDS = 3
REF = "dataset/t/main"


def make_rows(rows: int, seed: int = 0) -> pa.Table:
    """Texts of words, which compress like prose, and numbers."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 11))) for _ in range(20_000)])
    picked = words[np.minimum(rng.zipf(1.2, (rows, 140)), len(words)) - 1]
    text = [" ".join(line) for line in picked]
    numbers = {"x": rng.normal(size=rows), "y": rng.integers(0, 1000, rows), "z": rng.random(rows).astype("f4")}
    return pa.table({"id": np.arange(rows), "text": text, **numbers})


def changed(table: pa.Table, at: np.ndarray) -> pa.Table:
    """The same with other texts and numbers in the rows `at`."""
    other = make_rows(len(at), seed=1)
    columns = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        for row, value in zip(at.tolist(), other[name].to_pylist(), strict=True):
            values[row] = value if name != "id" else row
        columns[name] = pa.array(values, table.schema.field(name).type)
    return pa.table(columns)


def write(store: Store, table: pa.Table) -> None:
    """A version more."""
    batches = table.to_batches(max_chunksize=4096)
    write_dataset(store, "t", Source(table.schema, ("id",), lambda: iter(batches), table.num_rows, {}))


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Callable[[], str]]:
    """A server; yields what makes a new bucket and tells a URL in it. The environment has its keys meanwhile."""
    server = seaweed.start(folder)
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ.update(server.environment())
    try:
        yield lambda: f"s3://{seaweed.make_bucket(server)}/store"
    finally:
        seaweed.stop(server)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def sent(report: TransferReport) -> int:
    """Bytes that went to the object store, all requests counted."""
    return report.requests["destination"].get("bytes_written", 0)


def measure_shares(place: Path, bucket: Callable[[], str], table: pa.Table) -> list[Figure]:
    """What a changed version sends, over the first."""
    rng, count = np.random.default_rng(2), int(table.num_rows * CHANGED_SHARE)
    start = table.num_rows // 3
    edits = {
        "one_place": np.arange(start, start + count),
        "scattered": np.sort(rng.choice(table.num_rows, count, replace=False)),
    }
    figures = []
    for name, at in edits.items():
        url = bucket()
        Store.create(url, cache_dir=place / "cache").close()
        with Store.create(place / name, cache_dir=place / "cache") as local:
            write(local, table)
            with Store.open(url, place / "cache") as remote:
                first = sent(push(local, remote, [REF]).report)
            write(local, changed(table, at))
            with Store.open(url, place / "cache") as remote:
                begin = time.perf_counter()
                second = push(local, remote, [REF]).report
                seconds = time.perf_counter() - begin
                assert push(local, remote, [REF]).report.chunks_sent == 0
        quick = table.num_rows < ROWS
        bound = ("<= 0.05" if quick else "<= 0.03") if name == "one_place" else ""
        figures.append(Figure(f"remote_{name}", sent(second) / first, "of the first", bound))
        figures.append(Figure(f"remote_{name}_s", seconds, "s"))
        figures.append(Figure(f"remote_{name}_requests", _requests(second), "requests"))
    return figures


def _requests(report: TransferReport) -> int:
    return sum(count for kind, count in report.requests["destination"].items() if not kind.startswith("bytes_"))


class _Stopped(Exception):
    pass


def measure_resumed(place: Path, bucket: Callable[[], str], table: pa.Table) -> list[Figure]:
    """A push in two halves."""
    url = bucket()
    Store.create(url, cache_dir=place / "cache").close()
    with Store.create(place / "resumed", cache_dir=place / "cache") as local:
        write(local, table)
        half = sum(pack.bytes for pack in local.state.packs.values()) // 2
        counted = 0

        def stop(report: TransferReport) -> None:
            if report.bytes_sent > half:
                raise _Stopped

        with Store.open(url, place / "cache") as remote:
            with contextlib.suppress(_Stopped):
                push(local, remote, [REF], progress=stop)
            counted += remote.home.counters.to_json()["bytes_written"]  # type: ignore[attr-defined]
        with Store.open(url, place / "other") as remote:
            counted += sent(push(local, remote, [REF]).report)
    return [Figure("remote_resumed", counted / (2 * half), "of the whole", "<= 1.1")]


def measure_rate(place: Path, table: pa.Table, rounds: int) -> list[Figure]:
    """Local directory to local directory, beside the import."""
    pushes, imports = [], []
    for turn in range(rounds):
        with (
            Store.create(place / f"a{turn}", cache_dir=place / "cache") as source,
            Store.create(place / f"b{turn}", cache_dir=place / "cache") as destination,
        ):
            begin = time.perf_counter()
            write(source, table)
            imports.append(table.nbytes / (time.perf_counter() - begin) / 1e6)
            begin = time.perf_counter()
            push(source, destination, [REF])
            pushes.append(table.nbytes / (time.perf_counter() - begin) / 1e6)
    return [Figure("remote_rate", median(pushes), "MB/s", "", "import", median(imports))]


def measure(quick: bool) -> list[Figure]:
    """All of it."""
    table = make_rows(ROWS_QUICK if quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", dir=os.environ.get("LEPTON_BENCH_DIR")) as folder:
        place = Path(folder)
        figures = measure_rate(place, table, 1 if quick else ROUNDS)
        (place / "weed").mkdir()
        with s3_server(place / "weed") as bucket:
            figures += measure_shares(place, bucket, table)
            figures += measure_resumed(place, bucket, table)
    return figures
