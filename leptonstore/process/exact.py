"""Sums of numbers that are exact: of any number of values, in any order, in any pieces, to the last bit.

Adding floats rounds, and how depends on the order; so a sum over pieces that workers finish in any order would not be the same twice.
Here a sum is an integer of many 32-bit places (a superaccumulator: Kulisch 1971; Neal, "Fast exact summation using small and large
superaccumulators", 2015). A value has three of them, adding is adding places, and only at the end is there one rounding.

    sum = Σ amount[place] · 2^(32 · place - 2304)         -2304: below the square of the least subnormal

Sums of several groups stand together, as (group, place, amount) in three arrays: that is vectorised, and few places are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BITS = 32
_MASK = np.int64((1 << _BITS) - 1)
_ONE_AT = 72 * _BITS  # the bit that is worth 1
_MANTISSA_BITS = 53
_HALF_BITS = 27
_PLACES = 256  # room for a place in a key; sums need 140
# Values of 34 and of 32 bits whose sum is below 2^53.
_EXACT_AMOUNTS, _EXACT_INTEGERS = 1 << 18, 1 << 20
# Groups times places up to this many, or so many for each value, stand in one array; else what is not zero is sought out.
_DENSE_MIN, _DENSE_PER_ROW = 1 << 14, 4
# Counted instead of summed up; far apart, so that what is carried over meets nothing.
_NAN, _PLUS, _MINUS = 200, 210, 220


@dataclass(frozen=True)
class Sums:
    """Of groups 0, 1, …: amount at place of group, sorted by group and place, each pair once."""

    groups: Ints
    places: Ints
    amounts: Ints

    def of(self, count: int) -> list[Fraction | float]:
        """The sum of each of `count` groups: exact, or a float that is not finite."""
        ends = np.searchsorted(self.groups, np.arange(count + 1))
        places, amounts = self.places.tolist(), self.amounts.tolist()
        return [_value(places[a:b], amounts[a:b]) for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

    def to_arrow(self, count: int) -> tuple[pa.Array, pa.Array]:
        """(places, amounts) of each of `count` groups: list<int16>, list<int64>."""
        ends = pa.array(np.searchsorted(self.groups, np.arange(count + 1)).astype(np.int32))
        lists = [pa.array(self.places.astype(np.int16)), pa.array(self.amounts)]
        places, amounts = (pa.ListArray.from_arrays(ends, values) for values in lists)
        return places, amounts


def sums(values: NDArray[Any], groups: Ints | None = None) -> Sums:
    """Σ x of the values of each group. values: integers (64 bits at most) or floats; groups: of each value (None: all 0)."""
    if values.dtype.kind in "iub" and values.dtype.itemsize <= 4:  # 2^32 of these fit 64 bits
        return _added(*_summed(groups, values.astype(np.int64, copy=False)), None)
    if values.dtype == np.uint64:  # which int64 does not hold
        halves = (values >> np.uint64(1)).astype(np.int64), (values & np.uint64(1)).astype(np.int64)
        one = np.ones(len(values), np.int64)
        return _added(groups, [(halves[0], one), (halves[1], 0 * one)], None)
    mantissas, exponents, special = _parts(values)
    return _added(groups, [(mantissas, exponents)], special)


def square_sums(values: NDArray[Any], groups: Ints | None = None) -> Sums:
    """Σ x² of the values of each group; integers beyond 2^53 are rounded to float64 first."""
    if values.dtype.kind in "iub" and values.dtype.itemsize <= 2:
        return _added(*_summed(groups, np.square(values.astype(np.int64))), None)
    mantissas, exponents, special = _parts(values.astype(np.float64))
    high, low = mantissas >> _HALF_BITS, mantissas & ((1 << _HALF_BITS) - 1)
    double = 2 * exponents
    terms = [
        (high * high, double + 2 * _HALF_BITS),
        (2 * high * low, double + _HALF_BITS),
        (low * low, double),
    ]
    if special is not None:
        special[special == _MINUS] = _PLUS
    return _added(groups, terms, special)


def merged(groups: Ints, places: pa.Array, amounts: pa.Array) -> Sums:
    """What `to_arrow` gave, where row i now belongs to groups[i]."""
    lengths = places.value_lengths().to_numpy(zero_copy_only=False)
    flat = places.flatten().to_numpy().astype(np.int64), amounts.flatten().to_numpy()
    return _grouped(np.repeat(groups, lengths), *flat)


def mean_of(total: Fraction | float, count: int) -> float:
    """The mean, rounded once."""
    return to_float(total / count) if isinstance(total, Fraction) else total


def deviation_of(total: Fraction | float, squares: Fraction | float, count: int) -> float:
    """The deviation of a population (numpy.std); NaN where a value is not finite."""
    if not isinstance(total, Fraction) or not isinstance(squares, Fraction):
        return math.nan
    return _root((count * squares - total * total) / (count * count))


def to_float(value: Fraction | float) -> float:
    """The nearest float64; infinite beyond the largest one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _root(value: Fraction) -> float:
    """The square root of an exact number. Scaled, for the number itself may be beyond float64 where its root is not."""
    if value <= 0:
        return 0.0
    shift = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    scaled = value / Fraction(4) ** shift
    return math.ldexp(math.sqrt(scaled), shift)


def _parts(values: NDArray[Any]) -> tuple[Ints, Ints, NDArray[np.int16] | None]:
    """(m, e, special): each value is m · 2^e, |m| < 2^63; special: the place in which one that is not finite is counted, 0 for others."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64), np.zeros(len(values), np.int64), None
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    special = None
    if not finite.all():
        special = np.where(np.isnan(wide), _NAN, np.where(wide > 0, _PLUS, _MINUS)).astype(np.int16)
        special[finite] = 0
        wide = np.where(finite, wide, 0.0)
    fractions, exponents = np.frexp(wide)
    return np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64), exponents.astype(np.int64) - _MANTISSA_BITS, special


def _summed(groups: Ints | None, values: Ints) -> tuple[Ints | None, list[tuple[Ints, Ints]]]:
    """Sums of integers of 32 bits that fit 64 bits, as one value of each group."""
    if groups is None:
        totals = values.sum(keepdims=True)
    elif not len(groups):
        totals = values
    else:
        totals = _binned(groups, values, int(groups.max()) + 1, _EXACT_INTEGERS)
        groups = np.arange(len(totals))
    return groups, [(totals, np.zeros(len(totals), np.int64))]


def _added(groups: Ints | None, terms: Sequence[tuple[Ints, Ints]], special: NDArray[np.int16] | None) -> Sums:
    """Sums of terms, each of which has an m · 2^e for every value; groups None: all in group 0."""
    rows = len(terms[0][0])
    if not rows:
        return Sums(*(np.zeros(0, np.int64) for _ in range(3)))
    split = [_split(mantissas, exponents) for mantissas, exponents in terms]
    lowest = min(int(places.min()) for places, _ in split)
    span = max(int(places.max()) for places, _ in split) + 4 - lowest  # two above the highest, and what is carried
    count = 1 if groups is None else int(groups.max()) + 1
    if count * span > max(_DENSE_MIN, rows * _DENSE_PER_ROW):
        assert groups is not None
        found = [(groups, places + up, part) for places, parts in split for up, part in enumerate(parts)]
        made = _grouped(*(np.concatenate(part) for part in zip(*found, strict=True)))
    else:
        totals = np.zeros(count * span, np.int64)
        for places, parts in split:
            keys = places - lowest if groups is None else groups * span + (places - lowest)
            for up, part in enumerate(parts):
                totals += _binned(keys + up, part, len(totals), _EXACT_AMOUNTS)
        carried = totals >> _BITS
        totals &= _MASK
        totals[1:] += carried[:-1]  # the highest place of a group carries nothing, so no group reaches the next
        used = np.flatnonzero(totals)
        made = Sums(used // span, used % span + lowest, totals[used])
    return made if special is None else _with_special(made, groups, special)


def _split(mantissas: Ints, exponents: Ints) -> tuple[Ints, tuple[Ints, Ints, Ints]]:
    """(a place for each m · 2^e, what is to be added at that place and at the two after it); of 34 bits at most."""
    at = exponents + _ONE_AT
    place, shift = at >> 5, at & (_BITS - 1)
    # m · 2^shift has 94 bits: its lower half and its upper half, shifted alone, have 63 each.
    low, high = (mantissas & _MASK) << shift, (mantissas >> _BITS) << shift
    return place, (low & _MASK, (low >> _BITS) + (high & _MASK), high >> _BITS)


def _binned(keys: Ints, amounts: Ints, count: int, exact: int) -> Ints:
    """Sums by key. So many values at a time that float64, in which numpy counts, is exact."""
    totals = np.zeros(count, np.int64)
    for start in range(0, len(keys), exact):
        part = slice(start, start + exact)
        totals += np.bincount(keys[part], amounts[part], count).astype(np.int64)
    return totals


def _with_special(sums_: Sums, groups: Ints | None, special: NDArray[np.int16]) -> Sums:
    """With values counted that are not finite."""
    rows = np.flatnonzero(special)
    where = np.zeros(len(rows), np.int64) if groups is None else groups[rows]
    return _grouped(
        np.concatenate([sums_.groups, where]),
        np.concatenate([sums_.places, special[rows].astype(np.int64)]),
        np.concatenate([sums_.amounts, np.ones(len(rows), np.int64)]),
    )


def _grouped(groups: Ints, places: Ints, amounts: Ints) -> Sums:
    """Sum up by group and place. An amount has 34 bits at most, so 2^29 of them fit; what comes out has 34 again."""
    keys, totals = _by_key(groups * _PLACES + places, amounts)
    carried = totals >> _BITS
    keys, totals = _by_key(np.concatenate([keys, keys + 1]), np.concatenate([totals & _MASK, carried]))
    return Sums(keys // _PLACES, keys % _PLACES, totals)


def _by_key(keys: Ints, amounts: Ints) -> tuple[Ints, Ints]:
    used = amounts != 0
    table = pa.table({"key": keys[used], "amount": amounts[used]})
    found = table.group_by("key", use_threads=False).aggregate([("amount", "sum")])
    found_keys = found["key"].to_numpy()
    order = np.argsort(found_keys)
    return found_keys[order], found["amount_sum"].to_numpy()[order]


def _value(places: list[int], amounts: list[int]) -> Fraction | float:
    special = {place: amount for place, amount in zip(places, amounts, strict=True) if place >= _NAN}
    if special:
        infinite = [sign for sign, place in ((math.inf, _PLUS), (-math.inf, _MINUS)) if place in special]
        return infinite[0] if _NAN not in special and len(infinite) == 1 else math.nan
    total = sum(amount << (_BITS * place) for place, amount in zip(places, amounts, strict=True))
    return Fraction(total, 1 << _ONE_AT)
