"""History of a dataset of 1,000,000 rows: opening a version, comparing two, merging. Part of `python -m bench.dataset`.

Times are medians of several runs in a process that has the store open and its files in the page cache; each comparison begins with
nothing read, also no commit. With 100 changed rows it reads about 80 row groups of 330 in each version, and of these the changed column.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.harness import Figure, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.integrate import merge
from leptonstore.store import Store

ROWS = 1_000_000
CHANGED = 100
_RUNS = 7


def _batches(rows: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    for first in range(0, rows, 50_000):
        ids = np.arange(first, min(first + 50_000, rows))
        yield pa.record_batch(
            {
                "id": ids * 10,
                "score": rng.normal(size=len(ids)),
                "label": rng.integers(0, 9, len(ids)).astype(np.uint8),
                "text": [f"row {one} of class {one * 7919 % 1_000}" for one in ids.tolist()],
            }
        )


def _milliseconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return median(times)


def _open(store: Store, spec: str) -> int:
    return len(Dataset.open(store, spec).leaves.starts)


def measure(quick: bool) -> list[Figure]:
    """Make the versions and compare them. Bounds are those of 1,000,000 rows, also where `quick` takes fewer."""
    rows = ROWS // 10 if quick else ROWS
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "store") as store:
        schema = next(_batches(1)).schema
        base = write_dataset(store, "d", Source(schema, ("id",), lambda: _batches(rows), rows, keyed=True))
        base.branch("side")
        chosen = np.sort(rng.choice(rows, CHANGED, replace=False))
        changed = base.update(pa.table({"id": chosen * 10, "score": rng.normal(size=CHANGED)}))
        fresh = np.sort(rng.choice(rows, CHANGED // 2, replace=False))
        new = {"id": fresh * 10 + 5, "score": np.zeros(len(fresh)), "label": np.zeros(len(fresh), np.uint8)}
        new["text"] = pa.array(["new"] * len(fresh))
        side = Dataset.open(store, "d@side").upsert(pa.table(new, schema=schema))
        gone = np.setdiff1d(rng.choice(rows, CHANGED, replace=False), chosen)[: CHANGED // 2]
        side = side.delete(rows=gone.tolist())
        stat = Diff(store, base.commit, changed.commit).stat()
        assert stat.changed == CHANGED and not stat.added and not stat.removed
        begin = time.perf_counter()
        assert merge(store, "d@side", "d").how == "merged"
        merged_ms = (time.perf_counter() - begin) * 1e3
        figures = [
            ("open_version_ms", _milliseconds(lambda: _open(store, "d@side")), "<= 50"),
            ("diff_100_changed_ms", _milliseconds(lambda: Diff(store, base.commit, changed.commit).stat()), "<= 200"),
            ("diff_values_ms", _milliseconds(lambda: list(Diff(store, base.commit, changed.commit).rows())), "<= 200"),
            ("diff_added_removed_ms", _milliseconds(lambda: Diff(store, base.commit, side.commit).stat()), ""),
            ("merge_ms", merged_ms, ""),
        ]
    return [Figure(name, value, "ms", bound) for name, value, bound in figures]
