"""AsOf: what was known at each of some moments, from records that come late and are corrected. No sample sees what came after its moment.

    ticks = AsOf(
        moments, "time_ns",
        {"trade": Known(trades, "time_ns", known="known_ns", key=("id",), last=32)},
        group="instrument",
    )
    batch["label"]: (64,)    batch["trade.price"]: (64, 32), the oldest first

A record has two times: when something happened, and when that became known here. A correction is a row more, with the key of what it
corrects and a later known time; so a table is only ever appended to. Of a record's rows that were known at the moment, the one that
became known last counts, and only if what it tells of happened at or before the moment:

    row counts at t    time <= t    and    known <= t    and    no row of the same key was known in (known, t]

A sample is a row of `moments` with its columns (labels, too: what they look at is theirs) and, of each track, the `last` rows that count.
Whatever became known after a moment changes nothing in its sample: not today's corrections, and not tomorrow's appended rows.

The look-up: rows stand sorted by (group, time, row number), and of each is known from when until when it counts; where the rows of a
moment end is found once by a binary search. A request looks backwards from there, at twice as many rows as it wants and then
at four times as many again, until it has enough that count. 24 bytes a row and 16 a moment are kept for each track, nothing for a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.aligned import Aligned, AlignedSource, gather_windows, window_spec
from loaders.matching import Stamps, Times, same_group
from loaders.order import Rows
from loaders.source import ColumnSpec, Source, Values, fingerprint_of, require_known, source_of

if TYPE_CHECKING:
    from loaders.source import Dataset

ASOF_VERSION = "lepton.asof.1"
_CELLS_TOGETHER = 1 << 18  # (moments x rows looked at) at a time: some 12 MB


@dataclass(frozen=True)
class Known:
    """Records with two times.

    dataset:   its rows, in any order; of rows at one time the one that stands later is the later.
    time:      column of when it happened.
    known:     column of when the row became known; of the same type: integers, floats or Arrow's timestamps.
    last:      how many rows a window has.
    key:       columns that name a record: of its rows, the one that became known last counts (of equal ones, that which stands later).
               (): every row is a record of its own.
    reach:     how long before the moment, in the column's unit, a row may have happened; None: however long.
    withdrawn: a column of bools: where it is true the record is taken back, from when that row was known.
    columns:   names of the columns to load; None: all.
    """

    dataset: Dataset
    time: str
    known: str
    last: int
    key: Sequence[str] = ()
    reach: float | None = None
    withdrawn: str | None = None
    columns: Sequence[str] | None = None


class _Track(NamedTuple):
    """Rows of a track in the order of the module's docstring, and where the rows of each moment may stand: [starts, stops)."""

    rows: Rows
    known: Times
    until: Times
    starts: Rows
    stops: Rows


class _Found(NamedTuple):
    """Rows of `moments` that have whole windows, when they are, and what they look into."""

    moments: Rows
    at: Times
    tracks: dict[str, _Track]


class AsOf(Aligned[_Found]):
    """The moments at which enough was known, with windows of what was. For DataLoader; also a map-style dataset.

    moments: dataset or view whose rows are the samples; its columns keep their names.
    time:    its column with the moment; of the type of the tracks' times.
    tracks:  name -> records; their columns are "track.column", with a dimension of `last` in front (variable ones: a list of so many).
    group:   a column that all of them have, e.g. the instrument: rows count only where it is equal; a key names a record within it.
    missing: a moment at which fewer than `last` rows counted is left out ("drop"; `dropped` counts them), or refused ("raise").

    Raises ValueError for what does not fit together, and for times that are null or NaN. Any thread; pickles.
    """

    def __init__(
        self,
        moments: Dataset,
        time: str,
        tracks: Mapping[str, Known],
        *,
        group: str | None = None,
        missing: Literal["drop", "raise"] = "drop",
    ) -> None:
        self.moments, self.time, self.tracks = moments, time, dict(tracks)
        self.group, self.missing = group, missing
        require_known([time, *([] if group is None else [group])], moments.schema.names, "the moments")
        for name, track in self.tracks.items():
            _require_sound(name, track, group)
        if missing not in ("drop", "raise"):
            raise ValueError(f"missing={missing!r}: 'drop' or 'raise' moments at which too little was known")
        super().__init__()

    @property
    def dropped(self) -> int:
        """Moments at which too little was known."""
        return len(self.moments) - len(self)

    def __len__(self) -> int:
        return len(self._found.moments)

    @property
    def fingerprint(self) -> str:
        """Identifies the moments, the rows of all tracks, and which of them count."""
        tracks = [
            [
                name,
                track.dataset.fingerprint,
                track.time,
                track.known,
                track.last,
                list(track.key),
                track.reach,
                track.withdrawn,
            ]
            for name, track in self.tracks.items()
        ]
        return fingerprint_of([ASOF_VERSION, self.moments.fingerprint, self.time, tracks, self.group])

    def rows_of(self, track: str, samples: Rows) -> Rows:
        """(samples, last): which rows of the track's dataset stand in the windows of some samples, the oldest first."""
        found = self._found
        return _last(found.tracks[track], found.at[samples], samples, self.tracks[track].last)

    def _find(self) -> _Found:
        here = Stamps.of("moments", self.moments, self.time, self.group)
        tracks = {name: _track_of(name, track, self.group, here) for name, track in self.tracks.items()}
        there = np.ones(len(here.times), bool)
        every = np.arange(len(here.times))
        for name, found in tracks.items():
            there &= (_last(found, here.times, every, self.tracks[name].last) >= 0).all(axis=1)
        if self.missing == "raise" and not there.all():
            row = int(np.flatnonzero(~there)[0])
            raise ValueError(
                f"at {np.count_nonzero(~there)} moments too little was known, the first is row {row}, time {here.times[row]}: "
                'ask for fewer rows (last=), or take missing="drop"'
            )
        moments = np.flatnonzero(there)
        kept = {name: t._replace(starts=t.starts[moments], stops=t.stops[moments]) for name, t in tracks.items()}
        return _Found(moments, here.times[moments], kept)

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> AsOfSource:
        return AsOfSource(self, columns, arena_bytes_max)


class AsOfSource(AlignedSource):
    """The source (loaders.source.Source) of AsOf: that of the moments, and windows of those of the tracks."""

    def __init__(self, asof: AsOf, columns: Sequence[str] | None, arena_bytes_max: int | None) -> None:
        self._asof, self.rows = asof, len(asof)
        parts: dict[str, tuple[Dataset, list[str]]] = {"": (asof.moments, list(asof.moments.schema.names))}
        parts |= {f"{name}.": (track.dataset, _columns(track)) for name, track in asof.tracks.items()}
        there = [f"{prefix}{column}" for prefix, (_, names) in parts.items() for column in names]
        require_known(columns, there, "moments and tracks")
        wanted = there if columns is None else list(columns)
        sources: dict[str, Source] = {}
        specs: dict[str, ColumnSpec] = {}
        for prefix, (dataset, names) in parts.items():
            some = [column for column in names if f"{prefix}{column}" in wanted]
            if not some:
                continue
            source = sources[prefix] = source_of(dataset, some, arena_bytes_max)
            for spec in source.columns:
                last = asof.tracks[prefix.removesuffix(".")].last if prefix else 0
                specs[f"{prefix}{spec.name}"] = window_spec(spec, last, prefix) if prefix else spec
        super().__init__(asof.moments, asof.fingerprint, sources, tuple(specs[name] for name in wanted))

    def gather(self, rows: Rows) -> dict[str, Values]:
        """The columns of some moments, and their windows. Fresh memory."""
        found: dict[str, Values] = {}
        for prefix, source in self._sources.items():
            if prefix:
                windows = gather_windows(source, self._asof.rows_of(prefix.removesuffix("."), rows))
                found |= {f"{prefix}{name}": values for name, values in windows.items()}
            else:
                found |= source.gather(self._asof._found.moments[rows])
        return {spec.name: found[spec.name] for spec in self.columns}


def split_in_time(
    times: Times, ends: Times, boundary: float, embargo: float = 0, starts: Times | None = None
) -> tuple[Rows, Rows]:
    """(rows to train on, rows to validate on) of samples whose labels look at (times, ends]: nothing that one side's labels look at is
    looked at by the other's.

    times, ends: of each sample, when it is asked, and when its label is settled. starts: when its features begin (default: `times`).
    boundary:    validation is asked at or after it, and what was asked before it is trained on, unless its label is settled only
                 at or after it: that is purged (Lopez de Prado 2018, "Advances in Financial Machine Learning", chapter 7).
    embargo:     samples of validation whose features begin earlier than this after the boundary are left out, too.

    Raises ValueError where a label is settled before it is asked for.
    """
    begin = times if starts is None else starts
    if bool((ends < times).any()):
        raise ValueError("a label is settled before its moment: ends must not be less than times")
    return np.flatnonzero(ends < boundary), np.flatnonzero((times >= boundary) & (begin >= boundary + embargo))


# -- which rows count ----------------------------------------------------------------------------------------------------


def _track_of(name: str, track: Known, group: str | None, here: Stamps) -> _Track:
    happened = Stamps.of(name, track.dataset, track.time, group)
    told = Stamps.of(name, track.dataset, track.known, None)
    for what, unit in ((track.time, happened.unit), (track.known, told.unit)):
        if unit != here.unit:
            raise ValueError(
                f"times in column {what!r} of track {name!r} are {unit} and those of the moments {here.unit}: give all the same"
            )
    times, known = happened.times, told.times
    until = _superseded(track, group, known)
    rows, first = [], 0
    starts, stops = np.zeros(len(here.times), np.int64), np.zeros(len(here.times), np.int64)
    for moments, mine in same_group(here, happened):
        mine = mine[np.lexsort((mine, times[mine]))]
        asked = here.times[moments]
        stops[moments] = first + np.searchsorted(times[mine], asked, side="right")
        starts[moments] = first
        if track.reach is not None:
            reach = int(track.reach) if asked.dtype.kind == "i" else track.reach
            starts[moments] += np.searchsorted(times[mine], asked - reach, side="left")
        rows.append(mine)
        first += len(mine)
    order = np.concatenate(rows) if rows else np.empty(0, np.int64)
    return _Track(order, known[order], until[order], starts, stops)


def _superseded(track: Known, group: str | None, known: Times) -> Times:
    """When another row took the place of each: the known time of the next one with its key; the greatest time there is for none."""
    never = np.inf if known.dtype.kind == "f" else np.iinfo(known.dtype).max
    until = np.full(len(known), never, known.dtype)
    if track.key and len(known):
        codes = _codes(track.dataset, list(dict.fromkeys([*([] if group is None else [group]), *track.key])))
        order = np.lexsort((np.arange(len(known)), known, codes))
        again = np.flatnonzero(codes[order][1:] == codes[order][:-1])
        until[order[again]] = known[order[again + 1]]
    if track.withdrawn is not None:
        import pyarrow.compute as pc

        taken_back = pc.fill_null(track.dataset.to_arrow([track.withdrawn]).column(0), False).to_numpy()
        until[taken_back] = known[taken_back]  # it counts at no moment
    return until


def _codes(dataset: Dataset, columns: list[str]) -> Rows:
    """A number for each row: equal where all the columns are."""
    import pyarrow.compute as pc

    codes = np.zeros(len(dataset), np.int64)
    for column in dataset.to_arrow(columns).columns:
        values = pc.unique(column)
        own = pc.index_in(column, value_set=values).to_numpy().astype(np.int64)
        _, codes = np.unique(codes * max(len(values), 1) + own, return_inverse=True)
    return codes


def _last(track: _Track, at: Times, which: Rows, count: int) -> Rows:
    """(len(which), count): rows of the dataset that counted last at the moments `which`, whose times are `at`; -1 in front of fewer."""
    out = np.full((len(which), count), -1, np.int64)
    width, todo = 2 * count, np.arange(len(which))
    while len(todo):
        together = max(_CELLS_TOGETHER // width, 1)
        short = [_look(track, at, which, out, todo[k : k + together], width) for k in range(0, len(todo), together)]
        todo, width = np.concatenate(short), 4 * width
    return out


def _look(track: _Track, at: Times, which: Rows, out: Rows, some: Rows, width: int) -> Rows:
    """Look at `width` rows before the end of `some`; returns those that have too few, and more to look at."""
    count = out.shape[1]
    starts, stops = track.starts[which[some], None], track.stops[which[some], None]
    places = stops - width + np.arange(width)
    inside = places >= starts
    places = np.where(inside, places, 0)
    moment = at[some, None]
    if not len(track.rows):
        return np.empty(0, np.int64)
    counts = inside & (track.known[places] <= moment) & (moment < track.until[places])
    from_end = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # 1 for the last that counts
    sample, place = np.nonzero(counts & (from_end <= count))
    out[some[sample], count - from_end[sample, place]] = track.rows[places[sample, place]]
    more: npt.NDArray[Any] = (from_end[:, 0] < count) & (stops[:, 0] - width > starts[:, 0])
    return some[more]


# -- checks --------------------------------------------------------------------------------------------------------------


def _columns(track: Known) -> list[str]:
    return list(track.dataset.schema.names if track.columns is None else track.columns)


def _require_sound(name: str, track: Known, group: str | None) -> None:
    there = track.dataset.schema.names
    named = [track.time, track.known, *track.key, *_columns(track)]
    named += [one for one in (group, track.withdrawn) if one is not None]
    require_known(named, there, f"rows of track {name!r}")
    if track.last < 1:
        raise ValueError(f"track {name!r}: last={track.last}: a window has at least one row")
    if track.reach is not None and not track.reach >= 0:
        raise ValueError(f"track {name!r}: reach={track.reach} must be 0 or more")
    if track.withdrawn is not None and str(track.dataset.schema.field(track.withdrawn).type) != "bool":
        raise ValueError(f"track {name!r}: withdrawn={track.withdrawn!r} is no column of bools")
