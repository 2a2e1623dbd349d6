"""Reading windows ahead: this rank's rows in the order in which they are stored, one window ahead, and nothing depends on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loaders.order import Order, OrderStrategy, Rows
from loaders.orders import BlockOrder, BlockShuffle, Bucketed, Subset
from loaders.orders.limits import Limits
from loaders.share import Share, row_windows, steps_of
from loaders.step import Step
from loaders.window_reader import WindowReader, read_ahead
from tests.integration.order_checks import Synthetic, SyntheticSource

ROWS, ROW_BYTES = 1_003, 10
ORDER = BlockOrder(ROWS, 10, 8, seed=2, epoch=1)
WINDOWS = list(ORDER.windows(0, ROWS))


class Cache:
    """Takes what is read, and tells who waits for it."""

    def __init__(self) -> None:
        self.pieces: list[Rows] = []
        self.came = threading.Condition()

    def read(self, rows: Rows) -> int:
        with self.came:
            self.pieces.append(rows)
            self.came.notify_all()
        return ROW_BYTES * len(rows)

    def wait_for(self, rows: set[int]) -> None:
        with self.came:
            assert self.came.wait_for(lambda: rows <= self.rows, timeout=60), "the rows were not read"

    @property
    def rows(self) -> set[int]:
        return {row for piece in self.pieces for row in piece.tolist()}


def steps_and_reader(cache: Any, share: Share, cache_bytes: int = 1 << 30) -> tuple[list[Step], Iterator[Step]]:
    def steps() -> Iterator[Step]:
        return steps_of(1, share, row_windows(ORDER, share))

    return list(steps()), WindowReader(cache.read, cache_bytes, ORDER, ORDER.windows(share.start, ROWS), share).steps(
        steps()
    )


def rows_of(steps: list[Step], start: int, stop: int) -> set[int]:
    """Of this rank, at positions of the epoch."""
    return {row for step in steps for at, row in enumerate(step.rows.tolist(), step.start) if start <= at < stop}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("start", [0, 300])
def test_a_window_is_read_while_the_one_before_it_is_used(world_size: int, start: int) -> None:
    cache = Cache()
    share = Share(ROWS, 30, rank=world_size - 1, world_size=world_size, start=start)
    expected, steps = steps_and_reader(cache, share)
    full = ROWS
    taken: list[Step] = []
    for step in steps:
        taken.append(step)
        number = next(number for number, (first, end) in enumerate(WINDOWS) if first <= step.start < end)
        upto = WINDOWS[min(number + 1, len(WINDOWS) - 1)][1]
        cache.wait_for(rows_of(expected, WINDOWS[number][1], min(upto, full)))
        assert not cache.rows & rows_of(expected, upto, ROWS), "no further"
    assert [step.rows.tolist() for step in taken] == [step.rows.tolist() for step in expected]
    assert all((np.diff(piece) > 0).all() for piece in cache.pieces), "in the order in which they are stored"
    assert len(cache.rows) == sum(len(piece) for piece in cache.pieces), "once"


def test_a_cache_that_two_windows_do_not_fit_in_is_not_read_into() -> None:
    cache = Cache()
    expected, steps = steps_and_reader(cache, Share(ROWS, 30), cache_bytes=ROW_BYTES)
    assert len(list(steps)) == len(expected)
    assert len(cache.rows) <= 3 * 64, "what it took to know how large rows are"


def test_an_error_is_left_to_whoever_reads_the_batch() -> None:
    class Broken(Cache):
        def read(self, rows: Rows) -> int:
            super().read(rows)
            raise OSError("gone")

    expected, steps = steps_and_reader(Broken(), Share(ROWS, 30))
    assert [step.rows.tolist() for step in steps] == [step.rows.tolist() for step in expected]


def test_a_pass_that_is_left_ends_its_threads() -> None:
    before = set(threading.enumerate())
    for taken in (0, 1, 5):
        _, steps = steps_and_reader(Cache(), Share(ROWS, 30))
        for _ in range(taken):
            next(steps)
        del steps
        assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    "strategy",
    [
        BlockShuffle(10, 8),
        Subset(range(0, ROWS, 2), BlockShuffle(10, 8)),
        Bucketed(np.arange(ROWS) % 50, 30, 60, BlockShuffle(10, 8)),
    ],
    ids=["blocks", "subset", "buckets"],
)
@pytest.mark.parametrize("limit", [None, 10])
def test_orders_of_block_wise_orders_are_read_ahead(strategy: OrderStrategy, limit: int | None) -> None:
    cache = Cache()
    source: Any = SyntheticSource(Synthetic(ROWS))
    source.reader_ahead, source.cache_bytes = lambda: cache.read, 1 << 30
    order = Limits(limit).epoch(strategy.bind(source), 1, 2, lambda order: Share(order.length, 30))
    share = Share(order.length, 30)
    steps = steps_of(2, share, row_windows(order, share))
    seen: set[int] = set()
    for step in read_ahead(source, order, share, steps):
        if len(step.rows) == 30:
            seen |= set(step.rows.tolist())
            cache.wait_for(seen)
    assert seen <= cache.rows <= set(order.rows_at(0, order.length).tolist()), "the last, short batch, too, or not"


def test_where_there_is_nothing_to_read_ahead_nothing_happens() -> None:
    steps = iter([Step(0, 0, np.arange(3))])
    source: Any = SyntheticSource(Synthetic(ROWS))
    share = Share(ROWS, 30)
    assert read_ahead(source, ORDER, share, steps) is steps
    source.reader_ahead = lambda: None
    assert read_ahead(source, ORDER, share, steps) is steps
    source.reader_ahead, source.cache_bytes = lambda: Cache().read, 1 << 30
    assert read_ahead(source, Order(ROWS), share, steps) is steps
