"""RowWindows: k rows that follow one another in time as one sample: frames of a camera, moments of a timeline, visits of a patient.

    clips = RowWindows(drive, length=4, time="camera.time_ns", group="camera.drive", gap_max=150_000_000)
    loader = DataLoader(clips, 8, shuffle=True, transforms={"camera.image": [Each(DecodeImage())]})
    batch["camera.image"]: (8, 4, height, width, 3)    batch["pose.xyz"]: (8, 4, 3)

`dataset` is a dataset, a view, or anything else that a DataLoader has a fast path for. Its rows are sorted by time within their group,
whatever order they stand in. A window never crosses from one group to another, nor a gap: where two neighbours lie further apart than
`gap_max`, frames are missing, and no window has both of them (`dropped` says how many windows that costs).

A window is a row: orders, shares, states and receipts treat it as any other. Fixed columns get a dimension of `length`; of all others a
sample has a list of `length` values, to which `Each` (loaders.transforms) applies transforms. 8 bytes a window and as many a row are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.aligned import Aligned, AlignedSource, gather_windows, window_spec
from loaders.order import Rows
from loaders.source import Source, Values, fingerprint_of, has_source, require_known, source_of

ROW_WINDOWS_VERSION = "lepton.row-windows.1"


class _Found(NamedTuple):
    """Rows by group and time; where in them each window begins; how many windows gaps cost."""

    order: Rows
    begins: Rows
    dropped: int


class RowWindows(Aligned[_Found]):
    """Windows of `length` rows. For DataLoader; also a map-style dataset.

    time:    column of numbers that sorts the rows of a group; of two with the same the one that stands first is the earlier.
    group:   column that all rows of a window share, e.g. the recording; None: all rows are one group.
    stride:  rows from the beginning of one window to that of the next; it is counted anew after each gap.
    gap_max: how far apart in time neighbours may be; None: however far.

    Raises ValueError for columns that do not exist, or a time that is no number. Any thread; pickles.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        length: int,
        time: str,
        group: str | None = None,
        stride: int = 1,
        gap_max: float | None = None,
    ) -> None:
        if not has_source(dataset):
            raise ValueError(f"windows are made of a LeptonStore dataset, not of a {type(dataset).__name__}")
        for name, value in (("length", length), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name} of windows must be at least 1 row, not {value}")
        self.dataset, self.length, self.time, self.group = dataset, length, time, group
        self.stride, self.gap_max = stride, gap_max
        super().__init__()

    @property
    def dropped(self) -> int:
        """Windows that there would be if no group had a gap, less those that there are."""
        return self._found.dropped

    def __len__(self) -> int:
        return len(self._found.begins)

    @property
    def fingerprint(self) -> str:
        """Identifies the rows, and how windows are cut from them."""
        rows = source_of(self.dataset, [self.time], 0).fingerprint
        return fingerprint_of(
            [ROW_WINDOWS_VERSION, rows, self.length, self.time, self.group, self.stride, self.gap_max]
        )

    def rows_of(self, samples: Rows) -> Rows:
        """(samples, length): which rows of the dataset stand in some windows, the earliest first."""
        found = self._found
        return found.order[found.begins[samples, None] + np.arange(self.length)]

    def _find(self) -> _Found:
        columns = [self.time, *([] if self.group is None else [self.group])]
        source = source_of(self.dataset, list(dict.fromkeys(columns)))
        source.fill()
        values = source.gather(np.arange(source.rows))
        times = values[self.time]
        if not isinstance(times, np.ndarray) or times.ndim != 1:
            raise ValueError(
                f"column {self.time!r} of {source.name!r} has no single number in each row, which sorts them"
            )
        groups = np.zeros(source.rows, np.int64) if self.group is None else _codes(values[self.group])
        order = np.lexsort((times, groups))
        times, groups = times[order], groups[order]
        ends = np.flatnonzero(np.diff(groups)) + 1
        gaps = (
            ends
            if self.gap_max is None
            else np.flatnonzero((np.diff(groups) != 0) | (np.diff(times) > self.gap_max)) + 1
        )
        begins = self._begins(gaps, len(order))
        return _Found(order, begins, len(self._begins(ends, len(order))) - len(begins))

    def _begins(self, cuts: Rows, rows: int) -> Rows:
        """Where windows of runs between the cuts begin."""
        runs = pairwise([0, *cuts.tolist(), rows])
        found = [np.arange(first, stop - self.length + 1, self.stride) for first, stop in runs]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> RowWindowSource:
        return RowWindowSource(self, columns, arena_bytes_max)


class RowWindowSource(AlignedSource):
    """The source (loaders.source.Source) of RowWindows."""

    def __init__(self, windows: RowWindows, columns: Sequence[str] | None, arena_bytes_max: int | None) -> None:
        if columns is not None:
            there = [spec.name for spec in source_of(windows.dataset, None, 0).columns]
            require_known(columns, there, "the rows of windows")
        self._windows, self.rows = windows, len(windows)
        self._rows: Source = source_of(windows.dataset, columns, arena_bytes_max)
        specs = tuple(window_spec(spec, windows.length) for spec in self._rows.columns)
        super().__init__(self._rows, windows.fingerprint, {"": self._rows}, specs)

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """The columns of some windows. Fresh memory."""
        return gather_windows(self._rows, self._windows.rows_of(rows))


def _codes(groups: Values) -> npt.NDArray[np.int64]:
    """A number for each row, equal where the groups are, in the order in which they first stand."""
    numbers: dict[Any, int] = {}
    listed = groups.tolist() if isinstance(groups, np.ndarray) else groups
    return np.array([numbers.setdefault(group, len(numbers)) for group in listed], np.int64)
