"""Batches that are made a few at a time: the same ones, in order, and what they raise in its place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.grouped import GROUP_BATCHES_MAX, GROUP_BYTES, group_size, in_groups


@given(st.integers(0, 50), st.integers(1, 20))
def test_groups_hand_out_the_same_batches(count: int, size: int) -> None:
    assert list(in_groups(iter(range(count)), size)) == list(range(count))


@given(st.integers(0, 30), st.integers(1, 8))
def test_what_a_batch_raises_is_raised_in_its_place(bad: int, size: int) -> None:
    def batches() -> Iterator[int]:
        yield from range(bad)
        raise ValueError(f"batch {bad}")

    handed = []
    with pytest.raises(ValueError, match=f"batch {bad}$"):
        for batch in in_groups(batches(), size):
            handed.append(batch)
    assert handed == list(range(bad))


def test_batches_that_were_handed_out_are_let_go() -> None:
    import gc
    import weakref

    class Batch:
        pass

    drawn = in_groups((Batch() for _ in range(4)), 4)
    first = next(drawn)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


def test_large_batches_are_made_one_by_one() -> None:
    assert group_size(1) == GROUP_BATCHES_MAX
    assert group_size(GROUP_BYTES // 4) == 4
    assert group_size(GROUP_BYTES // 3) == 1
    assert group_size(0) == GROUP_BATCHES_MAX
