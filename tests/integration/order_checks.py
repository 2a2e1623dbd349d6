"""What every order promises, as checks that any strategy, source or mixture can be put through; and a dataset of any size in no memory.

A `make(rank=, world_size=, num_workers=)` gives a loader with a fixed `global_batch_size`; `key(batch)` says which rows a batch has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from loaders.order import EpochOrder
from loaders.source import ColumnSpec

WORLD_SIZES = (1, 2, 3, 5, 7, 8)
WORKERS = (0, 1, 2, 3)

Make = Callable[..., Any]
Key = Callable[[Any], list[Any]]


def ids_of(batch: Any) -> list[Any]:
    """The rows of a batch with a column `id`."""
    found: list[Any] = batch["id"].tolist()
    return found


# -- a dataset-like object ---------------------------------------------------------------------------------------------


class Synthetic:
    """`rows` rows whose `id` is the row number. `columns`: arrays for strategies to read. Nothing is held but those."""

    def __init__(self, rows: int, **columns: np.ndarray) -> None:
        self.rows, self.values = rows, columns

    def __len__(self) -> int:
        return self.rows

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> SyntheticSource:
        return SyntheticSource(self)

    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        return [{"id": row} for row in rows]


class SyntheticSource:
    """Of a `Synthetic`. Its column counts as cold, so that threads are used when there are any."""

    name, commit = "synthetic", "00" * 32
    plans = False

    def __init__(self, dataset: Synthetic) -> None:
        self.rows, self.values = dataset.rows, dataset.values
        kept = {"id": np.dtype(np.int64), **{name: values.dtype for name, values in self.values.items()}}
        self.columns = tuple(ColumnSpec(name, "number", dtype, ()) for name, dtype in kept.items())
        self.fingerprint = f"synthetic-{self.rows}"
        self.cold = self.columns

    def fill(self) -> None:
        pass

    def fill_ahead(self) -> None:
        pass

    def gather(self, rows: np.ndarray) -> dict[str, Any]:
        return {"id": rows.copy(), **{name: values[rows] for name, values in self.values.items()}}


# -- one epoch ---------------------------------------------------------------------------------------------------------


def assert_pure(order: EpochOrder, again: EpochOrder) -> list[int]:
    """`rows_at` equals `rows_of` in any slicing, and another object of the same order says the same. Gives the epoch's rows."""
    whole = order.rows_at(0, order.length)
    assert whole.dtype == np.int64 and whole.shape == (order.length,)
    for size in (1, 7, 64, 1000):
        starts = range(0, order.length, size)
        parts = [again.rows_at(start, min(start + size, order.length)) for start in list(starts)[:40]]
        assert [row for part in parts for row in part.tolist()] == whole[: 40 * size].tolist()
    some = np.random.default_rng(0).integers(0, max(order.length, 1), 300 if order.length else 0)
    assert again.rows_of(some).tolist() == whole[some].tolist()
    backwards = np.arange(order.length)[::-1]
    assert order.rows_of(backwards).tolist() == whole[::-1].tolist()
    whole_again = order.rows_at(0, order.length)
    whole_again[:] = -1  # what is given out is the caller's
    assert order.rows_at(0, order.length).tolist() == whole.tolist()
    for start, stop in ((-1, 0), (1, 0), (0, order.length + 1)):
        try:
            order.rows_at(start, stop)
        except ValueError:
            continue
        raise AssertionError(f"positions {start} to {stop} were not refused")
    return [int(row) for row in whole]


# -- many ranks --------------------------------------------------------------------------------------------------------


def ranks(make: Make, world_size: int, num_workers: int = 0) -> list[Any]:
    return [make(rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)]


def global_batches(loaders: list[Any], key: Key = ids_of, steps: int | None = None) -> list[list[Any]]:
    """The global batches of the next epoch (or its first steps), put together from all ranks."""
    taken = islice(zip(*loaders, strict=True), steps)
    return [list(chain.from_iterable(key(batch) for batch in batches)) for batches in taken]


def assert_topology_free(
    make: Make, world_sizes: Sequence[int] = WORLD_SIZES, workers: Sequence[int] = WORKERS, key: Key = ids_of
) -> list[list[Any]]:
    """The concatenated global batches are equal for every world size and number of workers. Gives them, for two epochs."""
    alone = ranks(make, 1)
    expected = [global_batches(alone, key) for _ in range(2)]
    for world_size in world_sizes:
        for num_workers in workers:
            loaders = ranks(make, world_size, num_workers)
            assert {len(loader) for loader in loaders} == {len(expected[0])}, "equal steps"
            for epoch in expected:
                assert global_batches(loaders, key) == epoch, f"world size {world_size}, {num_workers} workers"
    return expected[0] + expected[1]


def assert_resumes_everywhere(make: Make, key: Key = ids_of, world_sizes: Sequence[int] = (4, 3, 8)) -> None:
    """Stopped at every step of an epoch at the first world size, gone on with for some steps at the second, finished at the third.

    Nothing is repeated and nothing missing, and the next epoch is that of a loader that was never stopped.
    """
    alone = ranks(make, 1)
    expected, following = (global_batches(alone, key) for _ in range(2))
    for stop in range(len(expected) + 1):
        seen: list[list[Any]] = []
        state: Any = None
        for number, world_size in enumerate(world_sizes):
            loaders = ranks(make, world_size)
            for loader in loaders if state else []:
                loader.load_state_dict(json.loads(json.dumps(state)))
            last = number == len(world_sizes) - 1
            steps = None if last else [stop, 1 + stop % 3][number % 2]
            if state and state["epoch"]:  # the stop was at the epoch's end
                assert seen == expected and global_batches(loaders, key) == following
                break
            running = [iter(loader) for loader in loaders]
            seen += global_batches(running, key, steps)
            states = [loader.state_dict() for loader in loaders]
            assert all(each == states[0] for each in states), "the same on every rank"
            state = states[0]
        assert seen == expected, f"stopped after step {stop}"
        if not state["epoch"]:
            raise AssertionError("the epoch was not finished")


def assert_reachable(loader: Any, epochs: Sequence[int] = (0, 3), key: Key = ids_of) -> None:
    """`batch_at` and `rows_at` give any batch again, and leave the loader where it is."""
    before = loader.state_dict()
    for epoch in epochs:
        loader.set_epoch(epoch)
        for step, batch in enumerate(list(loader)):
            state = loader.state_dict()
            assert key(loader.batch_at(epoch, step)) == key(batch)
            assert loader.rows_at(epoch, step).tolist() == key(batch)
            assert loader.state_dict() == state
        for wrong in (-1, len(loader)):
            try:
                loader.rows_at(epoch, wrong)
            except IndexError:
                continue
            raise AssertionError(f"step {wrong} was not refused")
    assert before["epoch"] == 0
