"""Exact sums: no order, no partition and no rank changes a bit."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.exact import FRACTION_BITS, VALUE_MAX, ExactSum, mean_of

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def added(parts: list[list[float]]) -> torch.Tensor:
    """Sums of ranks, each of which adds one part."""
    total = torch.zeros(3, dtype=torch.int64)
    for part in parts:
        one = ExactSum()
        one.add(torch.tensor(part, dtype=torch.float64))
        total += one.sums
    return total


@settings(deadline=None)
@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_and_any_ranks_give_the_same_bits(values: list[float], random: object, ranks: int) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    alone, shared = added([values]), added([shuffled[rank::ranks] for rank in range(ranks)])
    assert mean_of(alone, len(values)) == mean_of(shared, len(values))


@settings(deadline=None)
@given(VALUES)
def test_the_mean_is_that_of_the_values_up_to_the_unit(values: list[float]) -> None:
    exact = sum((Fraction(value) for value in values), Fraction()) / len(values)
    found = mean_of(added([values]), len(values))
    assert abs(Fraction(found) - exact) <= Fraction(1, 1 << FRACTION_BITS) + abs(exact) * Fraction(1, 1 << 52)


def test_many_small_carries_add_up() -> None:
    one = ExactSum()
    for _ in range(3):
        one.add(torch.full((1000,), 0.7, dtype=torch.float64))
    assert mean_of(one.sums, 3000) == pytest.approx(0.7, abs=2**-40)
    assert 0 <= int(one.sums[1]) < 1 << FRACTION_BITS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, VALUE_MAX * 2])
def test_what_is_no_number_makes_the_mean_none(bad: float) -> None:
    assert math.isnan(mean_of(added([[1.0, bad], [2.0]]), 3))
    assert math.isnan(mean_of(added([[]]), 0))
