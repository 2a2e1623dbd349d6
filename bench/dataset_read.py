"""Reading a version in place: single rows, opening, filters, whole tables, and Parquet that is nowhere stored. For bench/dataset.py.

1,000,000 rows (50,000 with --quick, without the bounds that are meant for the full size): an integer, a float, a label and a text of about
100 bytes. Opening is in a process that has the store open already; a row is one of 20,000 at random, each read once before ("cached") or
never ("first"). Pages are counted, not timed. The peer of a whole table is pyarrow reading the same rows from a zstd Parquet file, both
from the page cache; that of `pandas.read_parquet` on lepton:// the same call on that file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.harness import Figure, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.optional import require_module
from leptonstore.store import Store

RUNS = 5


def _table(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    words = np.array(["lepton", "quark", "gluon", "photon", "boson", "muon", "neutrino", "electron"])
    texts = [" ".join(chosen) for chosen in words[rng.integers(0, len(words), (rows, 14))].tolist()]
    return pa.table(
        {
            "id": pa.array(np.arange(rows)),
            "x": pa.array(rng.normal(size=rows).astype(np.float32)),
            "label": pa.array(rng.integers(0, 10, rows), pa.uint8()),
            "text": pa.array(texts),
        }
    )


def _seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _rows(store: Store, count: int) -> list[Figure]:
    ds = Dataset.open(store, "d")
    chosen = np.random.default_rng(1).permutation(len(ds))[:count].tolist()

    def read() -> None:
        for row in chosen:
            ds[row]

    first = _seconds(read, 1) / count * 1e6
    cached = _seconds(read) / count * 1e6
    batches = [chosen[at : at + 256] for at in range(0, count, 256)]
    gathered = _seconds(lambda: [ds.__getitems__(batch) for batch in batches]) / count * 1e6
    return [
        Figure("row_random_cached", cached, "us", "< 100"),
        Figure("row_random_first", first, "us"),
        Figure("row_in_batch_of_256", gathered, "us"),
    ]


def _opening(store: Store) -> list[Figure]:
    seconds = _seconds(lambda: len(Dataset.open(store, "d")), 21)
    row = _seconds(lambda: Dataset.open(store, "d")[len(Dataset.open(store, "d")) // 2], 21)
    return [Figure("open_version", seconds * 1e3, "ms", "< 50"), Figure("open_and_read_a_row", row * 1e3, "ms", "< 50")]


def _filters(store: Store) -> list[Figure]:
    ds = Dataset.open(store, "d")
    groups = ds.pages.groups(list(ds.leaves.spans()))
    pages = sum(len(parts) for group in groups for parts in group.columns)
    middle = len(ds) // 2
    found = ds.to_arrow(filter=(pc.field("id") >= middle) & (pc.field("id") < middle + 10))
    assert found.num_rows == 10
    read = ds.pages.reads
    seconds = _seconds(lambda: ds.count(pc.field("x") > 3))
    return [
        Figure("filter_pages_share", read / pages, "of pages", "< 0.02" if len(ds) >= 1_000_000 else ""),
        Figure("filter_pages_read", read, f"of {pages}"),
        Figure("filter_cached", seconds * 1e3, "ms"),
    ]


def _whole(store: Store, parquet: Path) -> list[Figure]:
    peer = _seconds(lambda: pq.read_table(parquet))
    whole = _seconds(lambda: Dataset.open(store, "d").to_arrow())
    one = _seconds(lambda: Dataset.open(store, "d").to_arrow(["label"]))
    peer_one = _seconds(lambda: pq.read_table(parquet, columns=["label"]))
    return [
        Figure("to_arrow", whole * 1e3, "ms", peer="pyarrow Parquet", peer_value=peer * 1e3),
        Figure("to_arrow_one_column", one * 1e3, "ms", peer="pyarrow Parquet", peer_value=peer_one * 1e3),
    ]


def _parquet_in_place(store: Store, parquet: Path) -> list[Figure]:
    pandas = require_module("this benchmark", "pandas", "pandas")
    from leptonstore.dataset.filesystem import LeptonFileSystem

    def read(columns: list[str] | None) -> object:
        LeptonFileSystem.clear_instance_cache()
        return pandas.read_parquet("lepton://d", storage_options={"store": store.url}, columns=columns)

    figures = []
    for name, columns in (("pandas_lepton", None), ("pandas_lepton_one_column", ["label"])):
        peer = _seconds(lambda columns=columns: pandas.read_parquet(parquet, columns=columns), 3)  # type: ignore[misc]
        ours = _seconds(lambda columns=columns: read(columns), 3)  # type: ignore[misc]
        figures.append(Figure(name, ours * 1e3, "ms", peer="pandas Parquet", peer_value=peer * 1e3))
    return figures


def measure(quick: bool) -> list[Figure]:
    """All figures."""
    rows = 50_000 if quick else 1_000_000
    table = _table(rows)
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        parquet = Path(folder) / "t.parquet"
        pq.write_table(table, parquet, compression="zstd")
        with Store.create(Path(folder) / "store", cache_dir=Path(folder) / "cache") as made:
            source = Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=50_000)), rows)
            write_dataset(made, "d", source)
        with Store.open(Path(folder) / "store", cache_dir=Path(folder) / "cache") as store:
            figures = [*_opening(store), *_rows(store, min(rows // 5, 20_000)), *_filters(store)]
            return [*figures, *_whole(store, parquet), *_parquet_in_place(store, parquet)]
