"""Worker processes of the loader: kills, memory over epochs, and what handing over a batch costs beside torch's workers. For bench.loader.

Contract (here, and not in any other place, as the machine decides the rest):
- 20 `kill -9` of random workers in an epoch: every batch once, in order, equal to the undisturbed run.
- Ten epochs with two workers: resident memory of each process within 5 % of its second epoch's, open descriptors constant.

Beside it, with no bound: batches of 256 rows in eight new tensors (1 MB and 20 MB in all) handed over by two processes to a
loop that drops each, and by torch's DataLoader with two; samples of a plain Python function that holds the GIL (about 100 us
each), in two processes here, where each sample is seeded, and by torch's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from bench.harness import Figure, median
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from loaders import DataLoader

BATCH, KILLS, EPOCHS = 256, 20, 10
PROCESSES: dict[str, Any] = {"num_workers": 2, "worker_mode": "process", "multiprocessing_context": "fork"}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """See the contract."""
    rows = 20_000 if arguments.quick else 60_000
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        with Store.create(Path(folder) / "store") as store:
            table = _table(rows)
            dataset = write_dataset(
                store, "rows", Source(table.schema, ("id",), lambda: iter(table.to_batches(1_000)), rows, {})
            )
            return [
                *_kills(dataset),
                *_flat(dataset),
                *(_handed_over(width) for width in (64, 1_200)),
                _python(dataset),
            ]


def _table(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, rows * 784, np.uint8)), 784)
    return pa.table(
        {
            "id": np.arange(rows),
            "image": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [28, 28]), pixels),
            "label": rng.integers(0, 10, rows),
            "text": [f"row {at}" for at in range(rows)],
        }
    )


def work(text: str) -> int:
    """About 100 us of Python."""
    return sum(range(4_000)) + len(text)


# -- kills -----------------------------------------------------------------------------------------------------------------


def _kills(dataset: Dataset) -> list[Figure]:
    options: dict[str, Any] = {"shuffle": True, "transforms": {"text": [work]}}
    few = dataset.select(np.arange(min(len(dataset), 20_000)))
    expected = list(DataLoader(few, BATCH, **options))
    loader = DataLoader(few, BATCH, **options, **PROCESSES)
    chance, killed, equal = random.Random(0), set[int](), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for batch, other in zip(loader, expected, strict=True):
            equal += all(_same(batch[name], other[name]) for name in other) and list(batch) == list(other)
            alive = [child.pid for child in _workers() if child.pid not in killed]
            if alive and len(killed) < KILLS and chance.random() < 0.5:
                victim = chance.choice(alive)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
    return [
        Figure("workers killed", len(killed), "", f"== {KILLS}"),
        Figure("workers restarted", loader.stats["restarts"], "", f"== {KILLS}"),
        Figure("batches equal", equal / len(expected), "of all", "== 1"),
    ]


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if torch.is_tensor(one) else bool(one == other)


def _workers() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("lepton-loader")]


# -- memory ----------------------------------------------------------------------------------------------------------------


def _flat(dataset: Dataset) -> list[Figure]:
    loader = DataLoader(dataset, BATCH, shuffle=True, arena_bytes_max=0, persistent_workers=True, **PROCESSES)
    memory, files = [], []
    for _ in range(EPOCHS):
        for _batch in loader:
            pass
        pids = [os.getpid(), *sorted(child.pid for child in _workers())]
        memory.append([_resident(pid) for pid in pids])
        files.append([len(os.listdir(f"/proc/{pid}/fd")) for pid in pids])
    growth = max(last / second for second, last in zip(memory[1], memory[-1], strict=True))
    opened = max(abs(last - second) for second, last in zip(files[1], files[-1], strict=True))
    return [
        Figure("memory, epoch 10 / 2", growth, "x", "<= 1.05"),
        Figure("descriptors, 10 - 2", opened, "", "== 0"),
    ]


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- handing over ----------------------------------------------------------------------------------------------------------


class Ready:
    """A dataset whose batches lie in memory: what is measured is the way to the parent."""

    def __init__(self, width: int, rows: int) -> None:
        self.rows = rows
        self.batch = {f"column {n}": torch.zeros(BATCH, width, dtype=torch.float64) + n for n in range(8)}

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.batch.items()}


class _ReadyRows:
    """What RowsMaker needs to know of such data."""

    name, commit, columns = "ready", "0" * 64, ()


def whole(batch: Any) -> Any:
    """A collate_fn."""
    return batch


def _handed_over(width: int) -> Figure:
    from loaders.order import FullOrder
    from loaders.rows import RowsMaker
    from loaders.share import Share, row_windows, steps_of
    from loaders.stall import LoaderStats
    from loaders.workers import WorkerBatches, WorkerPool

    count = 400 if width > 1_000 else 1_000
    data: Any = Ready(width, BATCH * count)
    share = Share(len(data), BATCH)

    def ours() -> Iterator[Any]:
        context = multiprocessing.get_context("fork")
        source: Any = _ReadyRows()
        pool = WorkerPool(RowsMaker(data, source, whole, 0), 2, 2, context, LoaderStats())
        order = FullOrder(False).bind(data).epoch(0, 0)
        return WorkerBatches(pool, steps_of(0, share, row_windows(order, share)))

    def theirs() -> Iterator[Any]:
        return iter(torch.utils.data.DataLoader(data, BATCH, num_workers=2, collate_fn=whole))

    mine, torchs = (median(_per_batch(begin) for _ in range(3)) for begin in (ours, theirs))
    megabytes = 8 * BATCH * width * 8 / 1e6
    return Figure(
        f"hand over {megabytes:.0f} MB", 1 / mine, "batches/s", peer=f"torch {megabytes:.0f} MB", peer_value=1 / torchs
    )


def _per_batch(begin: Callable[[], Iterator[Any]]) -> float:
    """Seconds a batch, from the tenth on: processes have started."""
    batches = begin()
    for _ in range(10):
        next(batches)
    began, count = perf_counter(), 0
    for batch in batches:
        count += len(batch) > 0
    return (perf_counter() - began) / count


# -- Python code -----------------------------------------------------------------------------------------------------------


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By torch's DataLoader, over the same dataset."""
    found = {name: torch.tensor([row[name] for row in rows]) for name in ("id", "label")}
    return {**found, "text": torch.tensor([work(row["text"]) for row in rows])}


def _python(dataset: Dataset) -> Figure:
    view = dataset.select(np.arange(10 * BATCH, 60 * BATCH))
    columns = ["id", "label", "text"]

    def ours() -> Iterator[Any]:
        return iter(DataLoader(view, BATCH, shuffle=True, columns=columns, transforms={"text": [work]}, **PROCESSES))

    def theirs() -> Iterator[Any]:
        data: Any = view
        return iter(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=2, collate_fn=collate))

    mine, torchs = (median(_per_batch(begin) for _ in range(3)) for begin in (ours, theirs))
    return Figure("Python, 100 us a sample", BATCH / mine, "rows/s", peer="torch workers", peer_value=BATCH / torchs)
