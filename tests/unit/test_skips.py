"""Steps that are left out: the same rows at any world size and from any restore, and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.order import Order
from loaders.share import Share, row_windows, steps_of
from loaders.skips import SKIPS_MAX, Skips, gaps_of, joined, without

LENGTHS = st.integers(1, 400)
BATCHES = st.integers(1, 60)
RANGES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 400), st.integers(1, 80)), max_size=5)


@given(LENGTHS, BATCHES, st.integers(0, 5), RANGES)
def test_a_step_is_left_out_when_it_shares_a_position_with_a_range(
    length: int, batch: int, restored: int, told: list[tuple[int, int, int]]
) -> None:
    ranges = joined([(epoch, start, start + count) for epoch, start, count in told])
    share = Share(length, batch, start=min(restored * batch, length))
    order = Order(length)
    every = list(steps_of(1, share, row_windows(order, share)))
    expected = [
        step.start
        for step in every
        if not any(
            epoch == 1 and start < step.start + len(step.rows) and step.start < stop for epoch, start, stop in ranges
        )
    ]
    gaps = gaps_of(share, 1, ranges)
    assert [step.start for step in without(iter(every), gaps)] == expected
    assert share.steps - sum(stop - first for first, stop in gaps) == len(expected)
    assert all(stop < first for (_, stop), (first, _) in itertools.pairwise(gaps))
    for rank in range(3):  # every rank leaves out the same steps
        assert gaps_of(replace(share, rank=rank, world_size=3), 1, ranges) == gaps


@given(RANGES)
def test_joined_ranges_cover_the_same_positions(told: list[tuple[int, int, int]]) -> None:
    ranges = [(epoch, start, start + count) for epoch, start, count in told]
    covered = {(epoch, at) for epoch, start, stop in ranges for at in range(start, stop)}
    together = joined(ranges)
    assert {(epoch, at) for epoch, start, stop in together for at in range(start, stop)} == covered
    assert sum(stop - start for _, start, stop in together) == len(covered)


def test_steps_become_positions_once_the_global_batch_is_known() -> None:
    skips = Skips()
    skips.ask(2, 10, 12)
    assert skips.ranges(100) == [(2, 1_000, 1_200)]
    assert skips.ranges(7) == [(2, 1_000, 1_200)]  # the same rows when the world grows
    skips.ask(2, 12, 13)
    assert skips.ranges(100) == [(2, 1_000, 1_300)]
    skips.add([(0, 5, 6)])
    assert skips.ranges(1) == [(0, 5, 6), (2, 1_000, 1_300)]


@pytest.mark.parametrize(
    ("epoch", "first", "stop", "message"),
    [(-1, 0, 1, "epoch must be"), (0, 3, 3, r"not \[3, 3\)"), (0, -1, 2, r"not \[-1, 2\)"), (0, 5, 2, "first < stop")],
)
def test_what_is_no_range_is_refused(epoch: int, first: int, stop: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skips().ask(epoch, first, stop)


def test_ranges_are_bounded() -> None:
    skips = Skips()
    for number in range(SKIPS_MAX):
        skips.ask(0, 3 * number, 3 * number + 1)
    with pytest.raises(ValueError, match=f"at most {SKIPS_MAX} ranges"):
        skips.ask(1, 0, 1)
    skips.ranges(10)
    with pytest.raises(ValueError, match=f"more than {SKIPS_MAX} ranges"):
        skips.add([(7, 0, 1)])
