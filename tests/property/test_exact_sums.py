"""Sums are exact whatever the numbers, their order and the pieces: checked against fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.process import exact

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(
    st.lists(FINITE, max_size=40).map(lambda found: np.array(found, np.float64)),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40).map(
        lambda x: np.array(x, np.float32)
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda found: np.array(found, np.int64)),
    st.lists(st.integers(0, 2**64 - 1), max_size=40).map(lambda found: np.array(found, np.uint64)),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(lambda found: np.array(found, np.int32)),
    st.lists(st.integers(0, 255), max_size=40).map(lambda found: np.array(found, np.uint8)),
    st.lists(st.booleans(), max_size=40).map(lambda found: np.array(found, np.bool_)),
)


def total(values: np.ndarray) -> Fraction:
    return sum((Fraction(value) for value in values.tolist()), Fraction())


@given(NUMBERS)
def test_a_sum_is_the_sum_of_fractions(values: np.ndarray) -> None:
    assert exact.sums(values).of(1) == [total(values)]


@given(NUMBERS)
def test_a_sum_of_squares_is_too(values: np.ndarray) -> None:
    assert exact.square_sums(values).of(1) == [
        sum((Fraction(x) ** 2 for x in values.astype(np.float64).tolist()), Fraction())
    ]


@given(NUMBERS, st.data())
def test_groups_and_pieces_in_any_order_sum_up_to_the_same(values: np.ndarray, data: st.DataObject) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))), np.int64)
    whole = [total(values[groups == group]) for group in range(4)]
    assert exact.sums(values, groups).of(4) == whole
    cut = data.draw(st.integers(0, len(values)))
    parts = [exact.sums(values[at], groups[at]).to_arrow(4) for at in (slice(cut, None), slice(0, cut))]
    places, amounts = (pa.concat_arrays([part[at] for part in parts]) for at in (0, 1))
    assert exact.merged(np.tile(np.arange(4), 2), places, amounts).of(4) == whole


@given(st.lists(FINITE, min_size=1, max_size=40))
def test_mean_and_deviation_are_rounded_once(found: list[float]) -> None:
    values = np.array(found)
    sums, squares = exact.sums(values).of(1)[0], exact.square_sums(values).of(1)[0]
    mean = total(values) / len(values)
    assert exact.mean_of(sums, len(values)) == float(mean)
    variance = sum((Fraction(value) - mean) ** 2 for value in found) / len(found)
    deviation = exact.deviation_of(sums, squares, len(values))
    assert (deviation == 0) == (variance == 0)
    if variance:
        assert abs(Fraction(deviation) / _root(variance) - 1) < Fraction(1, 2**50)


def _root(value: Fraction) -> Fraction:
    scale = 1 << 2400
    return Fraction(math.isqrt(value.numerator * scale * scale // value.denominator), scale)


def test_many_values_of_one_size_do_not_overflow() -> None:
    """2^20 values with all bits of a mantissa set, all in the same places."""
    value = math.nextafter(2.0, 0)
    values = np.full(1 << 20, value)
    assert exact.sums(values).of(1) == [Fraction(value) * (1 << 20)]
    assert exact.sums(-values, np.zeros(1 << 20, np.int64)).of(1) == [-Fraction(value) * (1 << 20)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.inf),
        ([-math.inf, 2.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1], math.nan),
    ],
)
def test_what_is_not_finite_sums_up_as_floats_do(values: list[float], expected: float) -> None:
    for groups in (None, np.zeros(len(values), np.int64)):
        found = exact.sums(np.array(values), groups)
        assert repr(found.of(1)[0]) == repr(expected)
        again = exact.merged(np.zeros(1, np.int64), *found.to_arrow(1)).of(1)[0]
        assert repr(again) == repr(expected)


def test_a_sum_beyond_floats_is_infinite() -> None:
    sums = exact.sums(np.array([1.7e308, 1.7e308])).of(1)[0]
    assert exact.to_float(sums) == math.inf and exact.mean_of(sums, 2) == 1.7e308
