"""Reading windows ahead: this rank's rows in the order in which they are stored, one window ahead, and nothing depends on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loaders.order import Order, Rows
from loaders.orders import BlockOrder
from loaders.share import Share, row_windows, steps_of
from loaders.step import Step
from loaders.windows import WindowReader, read_ahead
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
            assert self.came.wait_for(lambda: rows <= self.rows, timeout=20), "the rows were not read"

    @property
    def rows(self) -> set[int]:
        return {row for piece in self.pieces for row in piece.tolist()}


def steps_and_reader(cache: Any, share: Share, cache_bytes: int = 1 << 30) -> tuple[list[Step], Iterator[Step]]:
    def steps() -> Iterator[Step]:
        return steps_of(1, share, row_windows(ORDER, share))

    return list(steps()), WindowReader(cache.read, cache_bytes, ORDER, share).steps(steps())


def rows_of(steps: list[Step], start: int, stop: int) -> set[int]:
    """Of this rank, at positions of the epoch."""
    return {row for step in steps for at, row in enumerate(step.rows.tolist(), step.start) if start <= at < stop}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("start", [0, 300])
def test_a_window_is_read_while_the_one_before_it_is_used(world_size: int, start: int) -> None:
    cache = Cache()
    share = Share(ROWS, 30, rank=world_size - 1, world_size=world_size, start=start)
    expected, steps = steps_and_reader(cache, share)
    taken: list[Step] = []
    for number, (first, end) in enumerate(WINDOWS):
        if end <= start:
            continue
        while not taken or taken[-1].start < first:
            taken.append(next(steps))
            if len(taken) == len(expected):
                break
        upto = WINDOWS[min(number + 1, len(WINDOWS) - 1)][1]
        full = start + (ROWS - start) // 30 * 30  # the last, short batch is left to itself
        cache.wait_for(rows_of(expected, start, min(upto, full)))
        assert not cache.rows & rows_of(expected, upto, ROWS), "no further"
    taken += list(steps)
    assert [step.rows.tolist() for step in taken] == [step.rows.tolist() for step in expected]
    assert all((np.diff(piece) > 0).all() for piece in cache.pieces), "in the order in which they are stored"
    assert len(cache.rows) == sum(len(piece) for piece in cache.pieces), "once"


def test_a_cache_that_two_windows_do_not_fit_in_is_not_read_into() -> None:
    cache = Cache()
    expected, steps = steps_and_reader(cache, Share(ROWS, 30), cache_bytes=2 * 80 * ROW_BYTES - 1)
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


def test_where_there_is_nothing_to_read_ahead_nothing_happens() -> None:
    steps = iter([Step(0, 0, np.arange(3))])
    source: Any = SyntheticSource(Synthetic(ROWS))
    share = Share(ROWS, 30)
    assert read_ahead(source, ORDER, share, steps) is steps
    source.reader_ahead = lambda: None
    assert read_ahead(source, ORDER, share, steps) is steps
    source.reader_ahead = lambda: Cache().read
    assert read_ahead(source, Order(ROWS), share, steps) is steps
