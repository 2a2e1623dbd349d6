"""Numbers: what is known of a flat array of them, in a form that merges.

float16 to float64, booleans, integers of any width, and what is counted as such: times, lengths, pixels, elements of tensors. NaN and
infinities are counted apart and take no part in the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.errors import FormatDamaged
from leptonstore.process.statistics import distinct
from leptonstore.process.statistics.frequent import Frequent
from leptonstore.process.statistics.moments import Moments
from leptonstore.process.statistics.ranks import TYPES, Ranks, runs
from leptonstore.process.statistics.record import Arrays, part_of, take, within
from leptonstore.process.statistics.results import QUANTILES, Cardinality, NumberStats

_COUNTED_BYTES = 2  # integers of so few bytes are counted by value
_PAIRS_FROM = 1 << 18  # values, from which on pairs of bytes are counted


@dataclass(frozen=True)
class NumberSketch:
    """kind: "f", "i" or "u", how values are kept (float64, int64, uint64). apart: how many are NaN, infinite, minus infinite.

    registers, frequent: of the different values, where these are asked for and `ranks` is not exact (then it says all).
    """

    kind: str
    apart: tuple[int, int, int]
    least: int | float | None
    greatest: int | float | None
    moments: Moments
    ranks: Ranks
    registers: distinct.Registers | None = None
    frequent: Frequent | None = None

    @classmethod
    def empty(cls, kind: str) -> NumberSketch:
        """Of no values."""
        return cls(kind, (0, 0, 0), None, None, Moments(), Ranks.empty(kind))

    @classmethod
    def of(cls, values: NDArray[Any], values_matter: bool = True) -> NumberSketch:
        """Of a flat array. values_matter: whether different and frequent values are asked for (not of the elements of tensors)."""
        apart = (0, 0, 0)
        if values.dtype.kind == "f":
            values = values.astype(np.float64)  # of its own: it is sorted in place
            values += 0.0  # -0.0 is 0.0
            finite = np.isfinite(values)
            if not finite.all():
                odd = values[~finite]
                nan, positive = int(np.isnan(odd).sum()), int(np.count_nonzero(odd == np.inf))
                apart = nan, positive, len(odd) - nan - positive
                values = values[finite]
            values.sort()
            different, rows = runs(values) if len(values) else (values, np.zeros(0, np.int64))
        elif values.dtype.itemsize <= _COUNTED_BYTES:
            different, rows = counted(values)
        else:
            wide = np.sort(values).astype(TYPES[values.dtype.kind], copy=False)
            different, rows = runs(wide) if len(wide) else (wide, np.zeros(0, np.int64))
            values = wide
        return cls._of_different(
            different, rows, apart, values_matter, values if len(values) == len(different) else None
        )

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64], lowest: int = 0) -> NumberSketch:
        """Of the values lowest, lowest + 1, …, which occur `counts` times."""
        present = np.flatnonzero(counts)
        return cls._of_different(present + lowest, counts[present], (0, 0, 0), False, None)

    @classmethod
    def _of_different(
        cls,
        values: NDArray[Any],
        rows: NDArray[np.int64],
        apart: tuple[int, int, int],
        matter: bool,
        single: NDArray[Any] | None,
    ) -> NumberSketch:
        kind = values.dtype.kind
        if not len(values):
            return cls(kind, apart, None, None, Moments(), Ranks.empty(kind))
        moments = Moments.of(values, rows) if single is None else Moments.of(single)
        exact = limits.STATISTICS_EXACT_VALUES if matter else limits.STATISTICS_EXACT_LENGTHS
        ranks = Ranks.of(values, rows, limits.STATISTICS_BLOCK_POINTS, exact)
        registers = frequent = None
        if matter and len(values) > exact:
            registers = distinct.registers_of(distinct.number_hashes(values))
            frequent = Frequent.of(values.view(np.uint64), rows)
        return cls(kind, apart, values[0].item(), values[-1].item(), moments, ranks, registers, frequent)

    @classmethod
    def merged(cls, parts: Sequence[NumberSketch]) -> NumberSketch:
        """Of all values of all parts, in row order; parts of one kind, at least one."""
        kind = parts[0].kind
        some = [part for part in parts if part.moments.count]
        first, second, third = (sum(part.apart[at] for part in parts) for at in range(3))
        registers = frequent = None
        ranks = Ranks.merged([part.ranks for part in parts])
        if any(part.registers is not None for part in parts):
            registers = np.maximum.reduce([part._registers() for part in some])
            frequent = Frequent.merged([part._frequent() for part in some])
        elif ranks.error and not any(
            part.ranks.error for part in parts
        ):  # too many different values for the first time
            values = [part.ranks.values for part in some]
            registers = np.maximum.reduce([distinct.registers_of(distinct.number_hashes(one)) for one in values])
            frequent = Frequent.merged([part._frequent() for part in some])
        return cls(
            kind,
            (first, second, third),
            min((part.least for part in some if part.least is not None), default=None),
            max((part.greatest for part in some if part.greatest is not None), default=None),
            Moments.merged(part.moments for part in parts),
            ranks,
            registers,
            frequent,
        )

    def _registers(self) -> distinct.Registers:
        if self.registers is not None:
            return self.registers
        return distinct.registers_of(distinct.number_hashes(self.ranks.values))

    def _frequent(self) -> Frequent:
        if self.frequent is not None:
            return self.frequent
        return Frequent.of(self.ranks.values.view(np.uint64), self.ranks.weights)

    # -- what it says ------------------------------------------------------------------------------------------------

    def stats(self) -> NumberStats:
        """For people."""
        nan, *infinite = self.apart
        shown = None
        if self.least is not None and self.greatest is not None:
            shown = self.ranks.histogram(self.least, self.greatest)
        return NumberStats(
            count=self.moments.count,
            not_finite=nan + sum(infinite),
            min=self.least,
            max=self.greatest,
            mean=self.moments.average,
            std=self.moments.deviation,
            histogram=shown,
            nan=nan,
            quantiles=self.ranks.quantiles(QUANTILES),
            rank_error=self.ranks.share_error,
        )

    def counts(self) -> dict[int | float, int] | None:
        """Each finite value with its rows, ascending; None when there are too many to say."""
        if self.ranks.error:
            return None
        return dict(zip(self.ranks.values.tolist(), self.ranks.weights.tolist(), strict=True))

    def cardinality(self) -> Cardinality:
        """How many different values."""
        apart = sum(1 for one in self.apart if one)
        if not self.ranks.error:
            return Cardinality(len(self.ranks.values) + apart)
        return Cardinality(round(distinct.estimate(self._registers())) + apart, distinct.ERROR)

    def top(self, most: int) -> tuple[list[tuple[int | float, int]], int]:
        """(the most frequent finite values and their rows, by how much these may be too low)."""
        if not self.ranks.error:
            order = np.lexsort((np.arange(len(self.ranks.values)), -self.ranks.weights))[:most]
            return list(zip(self.ranks.values[order].tolist(), self.ranks.weights[order].tolist(), strict=True)), 0
        found = self._frequent()
        values = found.keys.view(TYPES[self.kind])
        places = sorted(found.top(len(found.rows)), key=lambda at: (-int(found.rows[at]), values[at]))[:most]
        return [(values[at].item(), int(found.rows[at])) for at in places], found.error

    # -- kept --------------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """To be kept."""
        found: Arrays = {"apart": np.array(self.apart, np.int64)}
        if self.least is not None and self.greatest is not None:
            found["ends"] = np.array([self.least, self.greatest], TYPES[self.kind])
        found |= within("moments", self.moments.arrays()) | within("ranks", self.ranks.arrays())
        if self.registers is not None and self.frequent is not None:
            found |= {"registers": self.registers} | within("frequent", self.frequent.arrays())
        return found

    @classmethod
    def from_arrays(cls, arrays: Arrays, kind: str) -> NumberSketch:
        """What was kept. Raises FormatDamaged."""
        nan, positive, negative = take(arrays, "apart", "<i8", 3).tolist()
        moments = Moments.from_arrays(part_of("moments", arrays) or {})
        ranks = Ranks.from_arrays(part_of("ranks", arrays) or {}, kind)
        least = greatest = None
        if moments.count:
            least, greatest = take(arrays, "ends", TYPES[kind], 2).tolist()
        registers = frequent = None
        if "registers" in arrays:
            registers = take(arrays, "registers", "u1", distinct.REGISTERS)
            frequent = Frequent.from_arrays(part_of("frequent", arrays) or {})
        if (
            min(nan, positive, negative) < 0 or ranks.count != moments.count or least > greatest
            if least is not None
            else False
        ):
            raise FormatDamaged("sketch of numbers does not add up")
        if registers is not None and int(registers.max()) > distinct.RANK_MAX:
            raise FormatDamaged("sketch of distinct values has a rank that there is not")
        return cls(kind, (nan, positive, negative), least, greatest, moments, ranks, registers, frequent)


def counted(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The different values of an array of 8- or 16-bit integers, as int64 or uint64, and how often each occurs."""
    table = bit_counts(values)
    lowest = int(np.iinfo(values.dtype).min)
    if lowest:
        table = np.roll(table, len(table) // 2)  # the pattern of bits of -1 is the greatest
    present = np.flatnonzero(table)
    return (present + lowest).astype(TYPES[values.dtype.kind]), table[present]


def bit_counts(values: NDArray[Any]) -> NDArray[np.int64]:
    """How often each pattern of bits occurs in an array of 8- or 16-bit integers: 256 or 65,536 counts."""
    width = values.dtype.itemsize
    flat = np.ascontiguousarray(values).reshape(-1).view(f"u{width}")
    if width == 1 and len(flat) > _PAIRS_FROM:
        # Two bytes at a time: counting costs the same for 16 bits as for 8.
        even = len(flat) & ~1
        pairs = bit_counts(flat[:even].view("<u2")).reshape(256, 256)
        return pairs.sum(axis=0) + pairs.sum(axis=1) + bit_counts(flat[even:])
    table = np.zeros(1 << (8 * width), np.int64)
    step = limits.COUNT_VALUES_BYTES_MAX // width  # numpy widens what it counts
    for start in range(0, len(flat), step):
        table += np.bincount(flat[start : start + step], minlength=len(table))
    return table
