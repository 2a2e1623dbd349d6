"""`Mixture`: several datasets as one, in proportions that may change while a run goes on.

    mix = Mixture({"web": (web, 0.7), "code": (code, 0.3)}, samples_per_epoch=1_000_000)
    loader = DataLoader(mix, batch_size=64)
    loader.set_weights({"web": 0.5, "code": 0.5})     from the next global batch on; every rank at the same step
    mix.counts(loader.state_dict())                   {"web": 6912, "code": 3072}: what was handed out, exactly

What a state says of a mixture stands in its order (loaders.mixture_order), how sources are interleaved in loaders.mixing, and the rows of
all sources in loaders.mixture_source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from loaders.mixing import POSITION_MAX, SOURCES_MAX, Weights, weights_text, whole_weights
from loaders.mixture_order import STOPS, BoundMixture, MixtureOrder, source_id
from loaders.mixture_source import MixtureSource, PartRows
from loaders.order import ORDER_ROWS_MAX, FullOrder, OrderStrategy
from loaders.source import ARENA_BYTES_MAX, has_source, source_of
from loaders.state import LoaderState, LoaderStateError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Schedule = Iterable[tuple[int, Mapping[str, float]]]


class Mixture:
    """Datasets (or views, or whatever else has a source) with weights, for `DataLoader(mixture, ...)`. Immutable; pickles.

    sources            {name: (dataset, weight)}: at most 256, names of letters, digits, '.', '_' and '-', weights >= 0 in any scale.
                       Columns must agree; `columns=` of the loader leaves out those that do not.
    samples_per_epoch  of all ranks together. Default: as many as the sources have rows. Sources repeat as they need to, each in passes of
                       its own in which every row comes once, and the passes run on over the end of an epoch.
    stop               "first": an epoch ends with the sample that is the last row of a source, the first of them to be through;
                       "all": with that of the last to be through, the others repeat. Each epoch then begins every source anew. Sources
                       without weight are not waited for. Instead of samples_per_epoch and schedule.
    schedule           [(position, weights), ...]: from a position on, in samples of all ranks since the start of the run (epochs do not
                       matter), other weights hold. `ramp` makes a slope of them. It takes no room in a state.
    order              how rows come within a pass of a source: a strategy (loaders.orders) for all, or {name: strategy}. Default: the
                       source's own, else shuffled.
    source_column      name of an int64 column that says which source a sample is of, by its place in `sources`.

    Of the first n samples since the last change of weights, each source has its share, exact to half a sample for two sources, to one for
    four, 1.5 for eight (loaders.mixing), when n is a multiple of 256; in between, sources stand in a keyed permutation of 256 places.

    A mixture takes the versions that it is given, and a loader over it follows none (`follow=`). `ds[row]` and `ds.__getitems__` count rows
    of the sources one after another. Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Any, float]],
        *,
        samples_per_epoch: int | None = None,
        stop: str | None = None,
        schedule: Schedule = (),
        order: OrderStrategy | Mapping[str, OrderStrategy] | None = None,
        source_column: str | None = None,
    ) -> None:
        if not 1 <= len(sources) <= SOURCES_MAX:
            raise ValueError(f"a mixture has 1 to {SOURCES_MAX} sources, not {len(sources)}")
        for name, (dataset, _) in sources.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"source {name!r}: use up to 64 letters, digits, '.', '_' and '-'")
            if isinstance(dataset, Mixture):
                raise ValueError(
                    f"source {name!r} is a mixture itself: name its sources here, with their weights multiplied"
                )
            if not has_source(dataset):
                raise ValueError(f"source {name!r} is a {type(dataset).__name__}, which a mixture cannot read from")
        self.names = tuple(sources)
        self.datasets = tuple(dataset for dataset, _ in sources.values())
        self.source_column = source_column
        self._order = MixtureOrder(
            self.names,
            tuple(source_id(name, source_of(dataset).fingerprint) for name, (dataset, _) in sources.items()),
            whole_weights({name: weight for name, (_, weight) in sources.items()}, self.names),
            self._orders(order),
            _whole_schedule(schedule, self.names),
            samples_per_epoch,
            stop,
        )
        self._require_fits()

    def counts(self, state: Mapping[str, Any]) -> dict[str, int]:
        """How many samples of each source were handed out, from the start of the run to the state of a loader over this mixture.

        Counted over full epochs, also where one was left early. Another position: `{**state, "epoch": 3, "consumed": 1280}`.
        Raises LoaderStateError for the state of another mixture.
        """
        saved, bound = self._restored(state)
        return bound.counts(saved.seed, saved.epoch, saved.consumed)

    def weights(self, state: Mapping[str, Any]) -> dict[str, float]:
        """The weights that hold for the sample after the state. Raises as `counts`."""
        saved, bound = self._restored(state)
        return bound.weights(saved.epoch, saved.consumed)

    def __lepton_source__(self, columns: Sequence[str] | None, arena_bytes_max: int | None) -> MixtureSource:
        """The sources one after another, in one budget: those named first are decoded first."""
        extra = self.source_column
        asked = None if columns is None else [name for name in columns if name != extra]
        budget, parts = ARENA_BYTES_MAX if arena_bytes_max is None else arena_bytes_max, []
        for dataset in self.datasets:
            part = source_of(dataset, asked, budget)
            cold = part.cold
            budget -= sum(spec.row_bytes * part.rows for spec in part.columns if spec.fixed and spec not in cold)
            budget = max(budget, 0)
            parts.append(part)
        return MixtureSource(
            self.names, parts, None if columns is not None and extra not in columns else extra, columns
        )

    def __lepton_order__(self) -> MixtureOrder:
        """The order that a loader takes unless it is given another."""
        return self._order

    def __len__(self) -> int:
        """Rows of all sources, which is not the length of an epoch."""
        return sum(map(len, self.datasets))

    def __getitem__(self, row: int) -> Any:
        """A row of a source, with `source_column`. Raises IndexError past the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row}: the mixture has {len(self)} rows")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """Several rows, read together by source; torch's DataLoader calls this once a batch."""
        ends = np.cumsum([0, *map(len, self.datasets)])
        which = np.searchsorted(ends, rows, side="right") - 1
        out: list[Any] = [None] * len(rows)
        for number in np.unique(which).tolist():
            at = np.flatnonzero(which == number)
            found = self.datasets[number].__getitems__((np.asarray(rows)[at] - ends[number]).tolist())
            for place, row in zip(at.tolist(), found, strict=True):
                out[place] = row if self.source_column is None else {**row, self.source_column: number}
        return out

    def __repr__(self) -> str:
        return f"<Mixture {weights_text(self._order.weights, self.names)}: {len(self):,} rows>"

    def _orders(self, order: OrderStrategy | Mapping[str, OrderStrategy] | None) -> tuple[OrderStrategy, ...]:
        given = order if isinstance(order, Mapping) else dict.fromkeys(self.names, order) if order is not None else {}
        unknown = [name for name in given if name not in self.names]
        if unknown:
            raise ValueError(f"order names {unknown[0]!r}, which is no source; there are {', '.join(self.names)}")
        own = [getattr(dataset, "__lepton_order__", lambda: FullOrder(shuffle=True)) for dataset in self.datasets]
        return tuple(given.get(name) or usual() for name, usual in zip(self.names, own, strict=True))

    def _require_fits(self) -> None:
        order = self._order
        samples = order.samples_per_epoch
        if samples is not None and not 1 <= samples <= ORDER_ROWS_MAX:
            raise ValueError(f"samples_per_epoch must be between 1 and {ORDER_ROWS_MAX}, not {samples}")
        if order.stop not in STOPS:
            raise ValueError(f"stop is {order.stop!r}; it can be 'first', 'all', or None for samples_per_epoch")
        if order.stop is not None and samples is not None:
            raise ValueError("stop and samples_per_epoch exclude each other: both say where an epoch ends")
        if order.stop is not None and order.schedule:
            raise ValueError(
                "a schedule counts samples since the start of the run, and with stop= nobody knows before an epoch is over how many it "
                "has: give samples_per_epoch, or call set_weights"
            )

    def _restored(self, state: Mapping[str, Any]) -> tuple[LoaderState, BoundMixture]:
        saved = LoaderState.from_dict(state)
        order = self._order.restored(saved.order)
        if order.spec() != saved.order:
            raise LoaderStateError(f"the loader state is of no mixture: its order is {saved.order.get('name')!r}")
        return saved, order.bind(PartRows(self.names, [source_of(dataset) for dataset in self.datasets]))


def ramp(
    start: int, stop: int, before: Mapping[str, float], after: Mapping[str, float], steps: int = 16
) -> list[tuple[int, dict[str, float]]]:
    """A schedule from weights `before`, at sample `start`, to `after`, from sample `stop` on: linear, in `steps` equal changes.

    Weights are taken as shares of their sum. Raises ValueError for weights, positions or steps that make no slope.
    """
    if not (0 <= start < stop and 1 <= steps <= stop - start):
        raise ValueError(f"no slope of {steps} steps fits between the samples {start} and {stop}")
    names = tuple(before)
    one, other = (np.array(whole_weights(weights, names), np.float64) for weights in (before, after))
    slope = [(start + (stop - start) * step // steps, one + (other - one) * step / steps) for step in range(steps + 1)]
    return [(at, dict(zip(names, weights.tolist(), strict=True))) for at, weights in slope]


def _whole_schedule(schedule: Schedule, names: Sequence[str]) -> tuple[tuple[int, Weights], ...]:
    out = tuple((int(position), whole_weights(weights, names)) for position, weights in schedule)
    for position, _ in out:
        if not 0 <= position <= POSITION_MAX:
            raise ValueError(f"a position of the schedule must be between 0 and {POSITION_MAX}, not {position}")
    for (one, _), (other, _) in pairwise(out):
        if one >= other:
            raise ValueError(f"positions of the schedule must ascend: {other} stands after {one}")
    return out
