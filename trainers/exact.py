"""Sums of real numbers that do not depend on the order of adding, nor on who adds what: the same bits at any number of ranks.

A value is taken to a multiple of 2^-40 and added as integers, and adding integers is exact:

    sums    int64 [3]: whole part, 2^-40ths (below 2^40), values that are no numbers (NaN, infinite, or beyond VALUE_MAX)

The carry from the second into the first may wait: sums of ranks are added element by element. A value is rounded by 2^-41 at most, which
is below what a loss in float32 can tell.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

FRACTION_BITS = 40
VALUE_MAX = 2.0**40  # |value| of one, so that 2^22 of them fit int64
VALUES_MAX = 1 << 22  # of one `add`; their 2^-40ths fit int64 too
WHOLE_MAX = 1 << 54  # of the sum on a rank, so that those of 256 ranks fit int64
_UNIT = 1 << FRACTION_BITS


class ExactSum:
    """Adds values up. One thread."""

    def __init__(self) -> None:
        self._whole, self._parts, self._bad = 0, 0, 0

    def add(self, values: Tensor) -> None:
        """Every value of a tensor of any shape, float dtype and device."""
        for wide in values.detach().to("cpu", torch.float64).flatten().split(VALUES_MAX):
            good = wide.abs() <= VALUE_MAX  # NaN is not
            bad = len(wide) - int(good.sum())
            if bad:
                wide, self._bad = wide[good], self._bad + bad
            whole = wide.floor()
            self._parts += int(((wide - whole) * _UNIT).round().to(torch.int64).sum())
            self._whole += int(whole.to(torch.int64).sum()) + (self._parts >> FRACTION_BITS)
            self._parts &= _UNIT - 1

    @property
    def sums(self) -> Tensor:
        """int64 [3], as above; those of ranks may be added up."""
        if abs(self._whole) > WHOLE_MAX:
            return torch.tensor([0, 0, 1])
        return torch.tensor([self._whole, self._parts, self._bad])


def mean_of(sums: Tensor, count: int) -> float:
    """Mean of what was added: `sums` of all ranks added up, over `count` values. NaN when one of them was no number, or there is none."""
    whole, parts, bad = sums.tolist()
    if bad or not count:
        return math.nan
    return float((Fraction(whole) + Fraction(parts, _UNIT)) / count)
