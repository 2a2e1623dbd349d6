"""Timeline: recordings of several sensors, aligned on their timestamps. A sample is a moment of one of them and what the others saw then.

    drive = Timeline(
        {
            "camera": Track(frames, "time_ns"),
            "lidar": Track(sweeps, "time_ns", tolerance=50_000_000),
            "pose": Track(poses, "time_ns", match="linear", rotations=("quaternion",), tolerance=100_000_000),
        },
        reference="camera", group="recording",
    )
    loader = DataLoader(drive, 8, shuffle=True, collate={"lidar.points": ragged()})
    batch["camera.image"], batch["lidar.points"], batch["pose.xyz"]

Each track is a dataset (or view) of its own, with a column of times; a row of the timeline is a row of the reference track. Which rows of
the other tracks belong to it is found once, by a binary search in their times (sorted; rows may stand in any order in their
dataset): 8 bytes a row and track, 24 where values are interpolated. Values are read only when a batch asks for them.

    nearest    the row closest in time; of two at the same distance the earlier
    previous   the last row at or before the moment: what was known then
    next       the first row at or after it
    linear     between the rows before and after it, in proportion to the time; rotations along the shortest arc (slerp: Shoemake
               1985, "Animating rotation with quaternion curves"). A moment before the first row or after the last has no match
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from loaders.order import Rows
from loaders.source import ColumnSpec, Keys, Source, Values, fingerprint_of, in_background, require_known, source_of

if TYPE_CHECKING:
    import pyarrow as pa

    from loaders.source import Dataset

Match: TypeAlias = Literal["nearest", "previous", "next", "linear"]
Times: TypeAlias = npt.NDArray[Any]  # int64 or float64
TIMELINE_VERSION = "lepton.timeline.1"


@dataclass(frozen=True)
class Track:
    """What one sensor recorded.

    dataset:   its rows, in any order.
    time:      column of timestamps: integers, floats or Arrow's timestamps; of the same type in all tracks of a timeline.
    match:     which rows belong to a moment, see the module; of no meaning for the reference track.
    tolerance: how far in time, in the column's unit, such a row (with "linear": both) may be; None: however far.
    columns:   names of the columns to load; None: all.
    rotations: columns of unit quaternions (four floats) that "linear" interpolates as rotations.
    """

    dataset: Dataset
    time: str = "time"
    match: Match = "nearest"
    tolerance: float | None = None
    columns: Sequence[str] | None = None
    rotations: Sequence[str] = ()


class Timeline:
    """The moments of the reference track at which every other track has a match. For DataLoader; also a map-style dataset.

    Columns are named "track.column". Values are those of the matched rows, as a loader of their dataset would give them.

    reference: the track whose rows are the moments.
    group:     a column that all tracks have, e.g. the recording's name: rows match only where it is equal.
    missing:   a moment without a match is left out ("drop"; `dropped` counts them), or refused ("raise").

    Raises ValueError for tracks that do not fit together, and for times that are null or NaN. Any thread; pickles.
    """

    def __init__(
        self,
        tracks: Mapping[str, Track],
        *,
        reference: str,
        group: str | None = None,
        missing: Literal["drop", "raise"] = "drop",
    ) -> None:
        self.tracks, self.reference, self.group, self.missing = dict(tracks), reference, group, missing
        require_known([reference], list(self.tracks), "the tracks of the timeline")
        for name, track in self.tracks.items():
            _require_sound(name, track, group)
        if missing not in ("drop", "raise"):
            raise ValueError(f"missing={missing!r}: 'drop' or 'raise' moments without a match")
        self._found: _Matches | None = None
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Moments of the reference that have no match in some track."""
        return len(self.tracks[self.reference].dataset) - len(self)

    def __len__(self) -> int:
        return len(self._matches.moments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = len(self)
        if not -rows <= index < rows:
            raise IndexError(f"moment {index}: there are {rows}")
        return self.__getitems__([index % rows])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Several moments as dicts; torch's DataLoader calls this once a batch."""
        batch = TimelineSource(self, None, 0).gather(np.asarray(rows, np.int64))
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]

    @property
    def fingerprint(self) -> str:
        """Identifies the rows of all tracks, and how they are aligned."""
        tracks = [
            [name, track.dataset.fingerprint, track.time, track.match, track.tolerance, list(track.rotations)]
            for name, track in self.tracks.items()
        ]
        return fingerprint_of([TIMELINE_VERSION, tracks, self.reference, self.group])

    @property
    def _matches(self) -> _Matches:
        with self._lock:
            if self._found is None:
                self._found = self._match()
            return self._found

    def _match(self) -> _Matches:
        keys = {name: _Keys.of(name, track, self.group) for name, track in self.tracks.items()}
        here = keys[self.reference]
        pairs = {}
        there = np.ones(len(here.times), bool)
        for name, track in self.tracks.items():
            if name == self.reference:
                continue
            if keys[name].unit != here.unit:
                raise ValueError(
                    f"times of track {name!r} are {keys[name].unit} and those of {self.reference!r} {here.unit}: "
                    "give all tracks the same"
                )
            pairs[name] = _pairs(here, keys[name], track.match)
            there &= _within(here, keys[name], pairs[name], track.tolerance)
        if self.missing == "raise" and not there.all():
            row = int(np.flatnonzero(~there)[0])
            raise ValueError(
                f"{np.count_nonzero(~there)} moments of track {self.reference!r} have no match in all others, the first is row "
                f'{row}, time {here.times[row]}: give a larger tolerance, or missing="drop"'
            )
        moments = np.flatnonzero(there)
        return _Matches(moments, {name: pair.at(moments) for name, pair in pairs.items()})

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> TimelineSource:
        return TimelineSource(self, columns, arena_bytes_max)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class TimelineSource:
    """The source (loaders.source.Source) of a timeline: that of each track, for the rows that belong to the moments."""

    def __init__(self, timeline: Timeline, columns: Sequence[str] | None, arena_bytes_max: int | None) -> None:
        self._timeline = timeline
        self._matches = timeline._matches
        self.rows = len(timeline)
        there = [f"{name}.{column}" for name, track in timeline.tracks.items() for column in _columns(track)]
        require_known(columns, there, "the tracks")
        wanted = there if columns is None else list(columns)
        self._sources: dict[str, Source] = {}
        specs: dict[str, ColumnSpec] = {}
        for name, track in timeline.tracks.items():
            some = [column for column in _columns(track) if f"{name}.{column}" in wanted]
            if some:
                source = self._sources[name] = source_of(track.dataset, some, arena_bytes_max)
                specs |= {f"{name}.{spec.name}": replace(spec, name=f"{name}.{spec.name}") for spec in source.columns}
                if track.match == "linear" and name != timeline.reference:
                    _require_floats(name, track, source)
        self.columns: tuple[ColumnSpec, ...] = tuple(specs[name] for name in wanted)

    @property
    def name(self) -> str:
        """The reference's."""
        return str(self._timeline.tracks[self._timeline.reference].dataset.name)

    @property
    def commit(self) -> str:
        """The reference's; those of the others are in the fingerprint."""
        return str(self._timeline.tracks[self._timeline.reference].dataset.commit)

    @property
    def fingerprint(self) -> str:
        """The timeline's."""
        return self._timeline.fingerprint

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """Of all tracks."""
        cold = {f"{name}.{spec.name}" for name, source in self._sources.items() for spec in source.cold}
        return tuple(spec for spec in self.columns if spec.name in cold)

    def fill_ahead(self) -> None:
        """`fill` in a thread."""
        in_background(self.fill)

    def fill(self) -> None:
        """Of all tracks."""
        for source in self._sources.values():
            source.fill()

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The columns of some moments. Fresh memory."""
        found: dict[str, Values] = {}
        for name, source in self._sources.items():
            track, pair = self._timeline.tracks[name], self._matches.pairs.get(name)
            if pair is None:
                values = source.gather(self._matches.moments[rows])
            elif pair.weights is None:
                values = source.gather(pair.before[rows])
            else:
                values = _between(source, pair.at(rows), track)
            found |= {f"{name}.{column}": value for column, value in values.items()}
        return {spec.name: found[spec.name] for spec in self.columns}

    @property
    def plans(self) -> bool:
        """No: the hot cache goes by last use."""
        return False

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """Nothing."""
        return np.empty((0, 32), np.uint8)

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """Nothing."""


# -- finding rows --------------------------------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    """Of each moment the rows of a track; -1 where there is none. weights: of `after`; None where `before` is all there is."""

    before: Rows
    after: Rows
    weights: npt.NDArray[np.float64] | None

    def at(self, moments: Rows) -> _Pairs:
        """Those of some moments."""
        weights = None if self.weights is None else self.weights[moments]
        return _Pairs(self.before[moments], self.after[moments], weights)


class _Matches(NamedTuple):
    """Rows of the reference, and of each other track those that belong to them."""

    moments: Rows
    pairs: dict[str, _Pairs]


class _Keys(NamedTuple):
    """Times and groups of a track's rows, and its rows by group and time."""

    times: Times
    groups: pa.ChunkedArray | None
    unit: str

    @classmethod
    def of(cls, name: str, track: Track, group: str | None) -> _Keys:
        import pyarrow as pa

        table = track.dataset.to_arrow([track.time, *([group] if group is not None and group != track.time else [])])
        column, kind = table.column(track.time), table.schema.field(track.time).type
        if pa.types.is_timestamp(kind):
            unit, column = str(kind), column.cast(pa.int64())
        elif pa.types.is_integer(kind):
            unit, column = "integers", column.cast(pa.int64())
        elif pa.types.is_floating(kind):
            unit, column = "floats", column.cast(pa.float64())
        else:
            raise ValueError(
                f"column {track.time!r} of track {name!r} has type {kind}, and times are integers, floats or timestamps"
            )
        times = column.to_numpy() if not column.null_count else None
        if times is None or (times.dtype.kind == "f" and bool(np.isnan(times).any())):
            raise ValueError(
                f"column {track.time!r} of track {name!r} has nulls or NaN, which are no times: leave out these rows"
            )
        return cls(times, None if group is None else table.column(group), unit)


def _pairs(here: _Keys, there: _Keys, match: Match) -> _Pairs:
    """The rows of `there` that belong to each row of `here`."""
    count = len(here.times)
    before, after = np.full(count, -1), np.full(count, -1)
    weights = np.zeros(count) if match == "linear" else None
    for moments, rows in _same_group(here, there):
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
    return _Pairs(before, after if weights is not None else before, weights)


def _same_group(here: _Keys, there: _Keys) -> list[tuple[Rows, Rows]]:
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


def _within(here: _Keys, there: _Keys, pairs: _Pairs, tolerance: float | None) -> npt.NDArray[np.bool_]:
    """Which moments have rows, not farther away than the tolerance."""
    found = (pairs.before >= 0) & (pairs.after >= 0)
    if tolerance is not None and len(there.times):
        for rows in (pairs.before, pairs.after):
            found &= np.abs(there.times[rows.clip(0)] - here.times) <= tolerance
    return found


# -- values between two rows ---------------------------------------------------------------------------------------------


def _between(source: Source, pairs: _Pairs, track: Track) -> dict[str, Values]:
    assert pairs.weights is not None
    count, weights = len(pairs.before), pairs.weights
    both = source.gather(np.concatenate([pairs.before, pairs.after]))
    out: dict[str, Values] = {}
    for name, values in both.items():
        one, other = values[:count], values[count:]
        if name == track.time:
            out[name] = np.where(weights < 0.5, one, other)
            continue
        mix: Callable[..., Any] = _slerp if name in track.rotations else _lerp
        assert isinstance(values, np.ndarray)
        out[name] = mix(one, other, weights.reshape(-1, *[1] * (values.ndim - 1))).astype(values.dtype)
    return out


def _lerp(one: npt.NDArray[Any], other: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    mixed: npt.NDArray[Any] = (1 - weights) * one + weights * other
    return np.where(weights == 0, one, np.where(weights == 1, other, mixed))  # a row's own value, also beside a NaN


def _slerp(one: npt.NDArray[Any], other: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Between unit quaternions, the shorter way; (n, 4)."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    cosine = (one * other).sum(-1, keepdims=True)
    other, cosine = np.where(cosine < 0, -other, other), np.abs(cosine).clip(max=1)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    close = sine < 1e-6  # then the arc is a line
    safe = np.where(close, 1, sine)
    from_one = np.where(close, 1 - weights, np.sin((1 - weights) * angle) / safe)
    from_other = np.where(close, weights, np.sin(weights * angle) / safe)
    mixed: npt.NDArray[Any] = from_one * one + from_other * other
    return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


# -- checks --------------------------------------------------------------------------------------------------------------


def _columns(track: Track) -> list[str]:
    return list(track.dataset.schema.names if track.columns is None else track.columns)


def _require_sound(name: str, track: Track, group: str | None) -> None:
    there = track.dataset.schema.names
    wanted = [track.time, *([] if group is None else [group]), *_columns(track), *track.rotations]
    require_known(wanted, there, f"rows of track {name!r}")
    if track.match not in ("nearest", "previous", "next", "linear"):
        raise ValueError(f"track {name!r}: match={track.match!r} is none of nearest, previous, next, linear")
    if track.tolerance is not None and not track.tolerance >= 0:
        raise ValueError(f"track {name!r}: tolerance={track.tolerance} must be 0 or more")
    if track.rotations and track.match != "linear":
        raise ValueError(f'track {name!r}: rotations= are for match="linear"')


def _require_floats(name: str, track: Track, source: Source) -> None:
    for spec in source.columns:
        if spec.name != track.time and (spec.dtype is None or spec.dtype.kind != "f"):
            raise ValueError(
                f'track {name!r} is matched "linear", between two rows, and its column {spec.name!r} has no floats: '
                "name the columns to load with columns=[...]"
            )
        if spec.name in track.rotations and spec.shape != (4,):
            raise ValueError(
                f"column {spec.name!r} of track {name!r} has shape {spec.shape}, and a quaternion has (4,)"
            )
