"""Aligning two sequences: pairs are equal and ascend, and what only one side edited is found whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.align import align

Values = st.lists(st.integers(0, 6), max_size=40)


@settings(max_examples=300, deadline=None)
@given(Values, Values)
def test_pairs_are_equal_and_ascend_in_both(one: list[int], other: list[int]) -> None:
    a, b = np.array(one, np.uint64), np.array(other, np.uint64)
    found, paired = align(a, b)
    assert (a[found] == b[paired]).all()
    assert (np.diff(found) > 0).all() and (np.diff(paired) > 0).all()
    if set(one) & set(other):
        assert len(found)
    if one == other:
        assert len(found) == len(one)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)))
def test_of_different_values_exactly_the_common_ones_are_paired(
    count: int, removed: set[int], inserted: set[int]
) -> None:
    one = np.arange(count, dtype=np.uint64)
    other: list[int] = []
    for value in range(count):
        other += [1_000 + value] * (value in inserted) + [value] * (value not in removed)
    found, paired = align(one, np.array(other, np.uint64))
    assert found.tolist() == [value for value in range(count) if value not in removed]
    assert [other[at] for at in paired] == found.tolist()


def test_one_row_among_many_equal_ones_moves_nothing_else() -> None:
    """Rows that are told apart by a class label only: an insert here and one there leave all others paired."""
    rng = np.random.default_rng(0)
    one = rng.integers(0, 10, 3_000).astype(np.uint64)
    other = np.insert(one, [500, 2_000], [3, 7])
    found, _ = align(one, other)
    assert len(found) >= 2_990
