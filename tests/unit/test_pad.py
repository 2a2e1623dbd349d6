"""Pad mode: every batch has one size, and its valid rows are exactly the share."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loaders.order import Order
from loaders.pad import padded, padded_rows, valid_rows
from loaders.share import Share, row_windows, steps_of
from loaders.step import Step


def padded_steps(order: Order, share: Share, multiple: int) -> list[Step]:
    size = padded_rows(share.global_batch, share.world_size, multiple)
    return list(padded(steps_of(0, share, row_windows(order, share)), order, size))


@given(
    length=st.integers(0, 60),
    global_batch=st.integers(1, 70),
    world_size=st.integers(1, 8),
    multiple=st.integers(1, 5),
    drop_last=st.booleans(),
    start=st.integers(0, 60),
    shuffle=st.booleans(),
)
def test_valid_rows_are_the_shares_and_sizes_are_one(
    length: int, global_batch: int, world_size: int, multiple: int, drop_last: bool, start: int, shuffle: bool
) -> None:
    order = Order(length, 3, 1, shuffle)
    start = min(start, length)
    shares = [Share(length, global_batch, rank, world_size, drop_last, start) for rank in range(world_size)]
    ranks = [padded_steps(order, share, multiple) for share in shares]
    size = padded_rows(global_batch, world_size, multiple)
    assert size % multiple == 0 and size * world_size >= global_batch
    seen: list[int] = []
    for steps in zip(*ranks, strict=True):
        for step in steps:
            mask = valid_rows(step)
            assert len(step.rows) == len(mask) == size
            count = int(mask.sum())
            assert mask[:count].all()
            assert np.isin(step.rows, order.rows_at(0, length)).all()
            assert len(set(step.rows[max(count - 1, 0) :].tolist())) == 1  # what is added repeats one row
            seen += step.rows[mask].tolist()
    kept = (length - start) // global_batch * global_batch if drop_last else length - start
    assert seen == order.rows_at(start, start + kept).tolist()


def test_full_shares_are_left_alone() -> None:
    step = Step(0, 4, np.arange(5))
    assert list(padded(iter([step]), Order(9), 5)) == [step]
    assert valid_rows(step).all()
