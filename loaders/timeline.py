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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.aligned import Aligned, AlignedSource
from loaders.matching import Match, Pairs, Stamps, pairs_of, within
from loaders.order import Rows
from loaders.source import ColumnSpec, Source, Values, fingerprint_of, require_known, source_of

if TYPE_CHECKING:
    from loaders.source import Dataset

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


class _Matches(NamedTuple):
    """Rows of the reference, and of each other track those that belong to them."""

    moments: Rows
    pairs: dict[str, Pairs]


class Timeline(Aligned[_Matches]):
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
        super().__init__()

    @property
    def dropped(self) -> int:
        """Moments of the reference that have no match in some track."""
        return len(self.tracks[self.reference].dataset) - len(self)

    def __len__(self) -> int:
        return len(self._found.moments)

    @property
    def fingerprint(self) -> str:
        """Identifies the rows of all tracks, and how they are aligned."""
        tracks = [
            [name, track.dataset.fingerprint, track.time, track.match, track.tolerance, list(track.rotations)]
            for name, track in self.tracks.items()
        ]
        return fingerprint_of([TIMELINE_VERSION, tracks, self.reference, self.group])

    def _find(self) -> _Matches:
        keys = {name: Stamps.of(name, track.dataset, track.time, self.group) for name, track in self.tracks.items()}
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
            pairs[name] = pairs_of(here, keys[name], track.match)
            there &= within(here, keys[name], pairs[name], track.tolerance)
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


class TimelineSource(AlignedSource):
    """The source (loaders.source.Source) of a timeline: that of each track, for the rows that belong to the moments."""

    def __init__(self, timeline: Timeline, columns: Sequence[str] | None, arena_bytes_max: int | None) -> None:
        self._timeline = timeline
        self._matches = timeline._found
        self.rows = len(timeline)
        there = [f"{name}.{column}" for name, track in timeline.tracks.items() for column in _columns(track)]
        require_known(columns, there, "the tracks")
        wanted = there if columns is None else list(columns)
        sources: dict[str, Source] = {}
        specs: dict[str, ColumnSpec] = {}
        for name, track in timeline.tracks.items():
            some = [column for column in _columns(track) if f"{name}.{column}" in wanted]
            if some:
                source = source_of(track.dataset, some, arena_bytes_max)
                sources[f"{name}."] = source
                specs |= {f"{name}.{spec.name}": replace(spec, name=f"{name}.{spec.name}") for spec in source.columns}
                if track.match == "linear" and name != timeline.reference:
                    _require_floats(name, track, source)
        reference = timeline.tracks[timeline.reference].dataset
        super().__init__(reference, timeline.fingerprint, sources, tuple(specs[name] for name in wanted))

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The columns of some moments. Fresh memory."""
        found: dict[str, Values] = {}
        for prefix, source in self._sources.items():
            name = prefix.removesuffix(".")
            track, pair = self._timeline.tracks[name], self._matches.pairs.get(name)
            if pair is None:
                values = source.gather(self._matches.moments[rows])
            elif pair.weights is None:
                values = source.gather(pair.before[rows])
            else:
                values = _between(source, pair.at(rows), track)
            found |= {f"{prefix}{column}": value for column, value in values.items()}
        return {spec.name: found[spec.name] for spec in self.columns}


# -- values between two rows ---------------------------------------------------------------------------------------------


def _between(source: Source, pairs: Pairs, track: Track) -> dict[str, Values]:
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
