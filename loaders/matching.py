"""Which rows of one table belong to the moments of another: times and groups of rows, and binary searches in them.

    nearest    the row closest in time; of two at the same distance the earlier
    previous   the last row at or before the moment: what had happened then
    next       the first row at or after it
    linear     the rows before and after it, and how much the second weighs

Of rows at the same time the one that stands later in its dataset is the last. Knows rows by number only; loaders.timeline,
loaders.asof and loaders.row_windows make samples of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loaders.order import Rows

if TYPE_CHECKING:
    import pyarrow as pa

    from loaders.source import Dataset

Match: TypeAlias = Literal["nearest", "previous", "next", "linear"]
Times: TypeAlias = npt.NDArray[Any]  # int64 or float64


class Pairs(NamedTuple):
    """Of each moment the rows of a track; -1 where there is none. weights: of `after`; None where `before` is all there is."""

    before: Rows
    after: Rows
    weights: npt.NDArray[np.float64] | None

    def at(self, moments: Rows) -> Pairs:
        """Those of some moments."""
        weights = None if self.weights is None else self.weights[moments]
        return Pairs(self.before[moments], self.after[moments], weights)


class Stamps(NamedTuple):
    """Times and groups of the rows of a track."""

    times: Times
    groups: pa.ChunkedArray | None
    unit: str

    @classmethod
    def of(cls, name: str, dataset: Dataset, time: str, group: str | None) -> Stamps:
        """Those of a dataset's rows. name: of the track, for messages. Raises ValueError for what are no times, and for nulls and NaN."""
        import pyarrow as pa

        table = dataset.to_arrow([time, *([group] if group is not None and group != time else [])])
        column, kind = table.column(time), table.schema.field(time).type
        if pa.types.is_timestamp(kind):
            unit, column = str(kind), column.cast(pa.int64())
        elif pa.types.is_integer(kind):
            unit, column = "integers", column.cast(pa.int64())
        elif pa.types.is_floating(kind):
            unit, column = "floats", column.cast(pa.float64())
        else:
            raise ValueError(
                f"column {time!r} of track {name!r} has type {kind}, and times are integers, floats or timestamps"
            )
        times = column.to_numpy() if not column.null_count else None
        if times is None or (times.dtype.kind == "f" and bool(np.isnan(times).any())):
            raise ValueError(
                f"column {time!r} of track {name!r} has nulls or NaN, which are no times: leave out these rows"
            )
        return cls(times, None if group is None else table.column(group), unit)


def pairs_of(here: Stamps, there: Stamps, match: Match) -> Pairs:
    """The rows of `there` that belong to each row of `here`."""
    count = len(here.times)
    before, after = np.full(count, -1), np.full(count, -1)
    weights = np.zeros(count) if match == "linear" else None
    for moments, rows in same_group(here, there):
        rows = rows[np.argsort(there.times[rows], kind="stable")]
        times, asked = there.times[rows], here.times[moments]
        left = np.searchsorted(times, asked, side="right") - 1  # the last at or before
        right = np.searchsorted(times, asked, side="left")  # the first at or after
        has_left, has_right = left >= 0, right < len(times)
        left, right = left.clip(0), right.clip(max=len(times) - 1)
        if match == "nearest":
            gap_left = np.where(has_left, asked - times[left], np.inf)
            gap_right = np.where(has_right, times[right] - asked, np.inf)
            chosen = rows[np.where(gap_right < gap_left, right, left)]
        elif match == "previous":
            chosen = np.where(has_left, rows[left], -1)
        elif match == "next":
            chosen = np.where(has_right, rows[right], -1)
        else:
            both = has_left & has_right
            chosen = np.where(both, rows[left], -1)
            after[moments] = np.where(both, rows[right], -1)
            span = (times[right] - times[left]).astype(np.float64)
            assert weights is not None
            weights[moments] = np.divide(asked - times[left], span, out=np.zeros(len(asked)), where=span > 0)
        before[moments] = chosen
    return Pairs(before, after if weights is not None else before, weights)


def same_group(here: Stamps, there: Stamps) -> list[tuple[Rows, Rows]]:
    """(rows of `here`, rows of `there`) of each group that both have."""
    if here.groups is None or there.groups is None:
        both = np.arange(len(here.times)), np.arange(len(there.times))
        return [both] if len(here.times) and len(there.times) else []
    import pyarrow.compute as pc

    names = pc.unique(here.groups).drop_null()
    one, other = (
        pc.index_in(side.groups, value_set=names).fill_null(-1).to_numpy().astype(np.int64) for side in (here, there)
    )
    by_one, by_other = np.argsort(one, kind="stable"), np.argsort(other, kind="stable")
    sorted_one, sorted_other = one[by_one], other[by_other]
    found = []
    for number in range(len(names)):
        mine = by_one[np.searchsorted(sorted_one, number) : np.searchsorted(sorted_one, number, "right")]
        theirs = by_other[np.searchsorted(sorted_other, number) : np.searchsorted(sorted_other, number, "right")]
        if len(theirs):
            found.append((mine, theirs))
    return found


def within(here: Stamps, there: Stamps, pairs: Pairs, tolerance: float | None) -> npt.NDArray[np.bool_]:
    """Which moments have rows, not farther away than the tolerance."""
    found = (pairs.before >= 0) & (pairs.after >= 0)
    if tolerance is not None and len(there.times):
        for rows in (pairs.before, pairs.after):
            found &= np.abs(there.times[rows.clip(0)] - here.times) <= tolerance
    return found
