"""The doctor of a loader: measures a real one on the user's data, names what is slow, and tries what would help.

    floor      the same batch handed out again and again: what a step costs when there is nothing to read
    first      the first batches of a loader that was just made: arenas filled, pages read for the first time
    steady     batches after that, as the loader is, with the user's step between them when its length is given
    stages     where the time of a batch goes when one thread makes it, and for columns that are read batch by batch, of each
    changes    of those that fit what was found, each is made and measured; the one that helps most is named, or none

A change counts when it is at least GAIN_MIN faster in the same run. Measured numbers are of this machine as it is now, other work included.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from loaders.dataloader import DataLoader
from loaders.loader import Windows
from loaders.order import EpochOrder
from loaders.orders import BlockShuffle
from loaders.share import Share, row_windows, steps_of
from loaders.source import ColumnSource
from loaders.step import Step
from loaders.tuning import usable_cores

SECONDS = 2.0  # of each measurement
BATCHES_MIN = 3  # measured, however long they take
GAIN_MIN = 1.15
ENOUGH = 0.05  # of the step's time waited: a faster loader would not be noticed
MEMORY_SHARE = 0.5  # of the free memory, for an arena that is proposed
CACHE_BYTES_MAX = 4 << 30  # of a hot cache that is made to try it; and at most a quarter of what is free there


class _SameBatch(DataLoader):
    """Hands out its first batch for every step: the rest of the machinery as it is."""

    _batch: Any = None

    def _batches(
        self, epoch: int, order: EpochOrder, share: Share, steps_in: Callable[[Windows], Iterator[Step]]
    ) -> Iterator[Any]:
        if self._batch is None:
            self._batch = next(super()._batches(epoch, order, share, lambda windows: steps_of(epoch, share, windows)))
        for _ in steps_in(row_windows(order, share)):
            yield self._batch


@dataclass(frozen=True)
class Pace:
    """What was measured: batches in `seconds`, of which the step waited `wait_s`; stages in seconds a batch."""

    batches: int
    rows: int
    seconds: float
    wait_s: float
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def batch_s(self) -> float:
        """Seconds that a step waits for its batch."""
        return self.wait_s / max(self.batches, 1)

    @property
    def samples_s(self) -> float:
        """Samples a second, steps included."""
        return self.rows / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Change:
    """Something to try. options: arguments of the loader that differ; cache: read through a hot cache."""

    name: str
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: bool = False


@dataclass(frozen=True)
class Trial:
    """A change that was tried. `gain`: how many times faster; 0 when it failed, and `error` says why."""

    name: str
    why: str
    samples_s: float
    gain: float
    error: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found. All that `to_dict` gives is JSON-able."""

    step_s: float
    floor: Pace
    first: Pace
    steady: Pace
    alone: Pace
    columns: dict[str, float]
    trials: tuple[Trial, ...]
    verdict: str
    change: Trial | None

    def to_dict(self) -> dict[str, Any]:
        """Everything."""
        paces = {
            name: {**asdict(pace), "batch_s": pace.batch_s, "samples_s": pace.samples_s}
            for name, pace in (
                ("floor", self.floor),
                ("first", self.first),
                ("steady", self.steady),
                ("alone", self.alone),
            )
        }
        return {
            "step_s": self.step_s,
            **paces,
            "columns_s": self.columns,
            "trials": [asdict(trial) for trial in self.trials],
            "verdict": self.verdict,
            "change": None if self.change is None else asdict(self.change),
        }


def examine(
    dataset: Any,
    options: Mapping[str, Any],
    step_s: float = 0.0,
    seconds: float = SECONDS,
    tell: Callable[[str], None] = lambda what: None,
    cores: int | None = None,
) -> Diagnosis:
    """Measure `DataLoader(dataset, **options)` and what would make it faster.

    step_s:  seconds of the user's training step; 0: as fast as batches come.
    seconds: of each of the (up to ten) measurements.
    tell:    told what is measured now.
    Raises what the loader raises, and ValueError for a dataset without rows.
    """
    options, cores = dict(options), cores or usable_cores()
    tell("as it is, from the start")
    loader = DataLoader(dataset, **options)
    if not len(loader):
        raise ValueError("the dataset has no rows, or fewer than a batch with drop_last: there is nothing to measure")
    first = _pace(loader, step_s, seconds, first=True)
    tell("as it is")
    steady = _pace(loader, step_s, seconds)
    tell("the same batch again")
    floor = _pace(_SameBatch(dataset, **_alone(options)), 0.0, seconds / 4)
    tell("stage by stage")
    alone = _pace(DataLoader(dataset, **_alone(options)), 0.0, seconds)
    source = loader._source
    columns = _columns(source, loader, seconds / 4) if isinstance(source, ColumnSource) else {}
    if step_s and steady.batch_s <= ENOUGH * step_s:
        faster = step_s / max(alone.batch_s / max(loader.num_workers, 1), 1e-9)
        verdict = (
            f"nothing to change: steps wait {steady.batch_s / step_s:.1%} of their time, "
            f"and the loader is {faster:,.1f} x faster than they are"
        )
        return Diagnosis(step_s, floor, first, steady, alone, columns, (), verdict, None)
    trials = []
    for change in _changes(loader, options, alone, columns, cores):
        tell(change.name)
        trials.append(_tried(change, dataset, options, step_s, seconds, steady))
    best = max(trials, key=lambda trial: trial.gain, default=None)
    helps = best if best is not None and best.gain >= GAIN_MIN else None
    return Diagnosis(
        step_s, floor, first, steady, alone, columns, tuple(trials), _verdict(alone, steady, floor, helps), helps
    )


def _pace(loader: Any, step_s: float, seconds: float, first: bool = False) -> Pace:
    """Batches of a loader for some seconds, epoch after epoch. first: the very first batch counts too, and what it waits for."""
    stats, batches, warm = loader.stats, 0, first
    began, waited, rows, worked = perf_counter(), stats["wait_s"], stats["rows"], stats.stages
    while True:
        for _ in loader:
            if step_s:
                sleep(step_s)
            if not warm:
                warm = True
                began, waited, rows, worked = perf_counter(), stats["wait_s"], stats["rows"], stats.stages
                continue
            batches += 1
            if perf_counter() - began >= seconds and batches >= BATCHES_MIN:
                break
        if perf_counter() - began >= seconds and batches >= min(BATCHES_MIN, len(loader)):
            break
    stages = {name: (total - worked.get(name, 0.0)) / max(batches, 1) for name, total in stats.stages.items()}
    return Pace(
        batches=batches,
        rows=stats["rows"] - rows,
        seconds=perf_counter() - began,
        wait_s=stats["wait_s"] - waited,
        stages={name: each for name, each in stages.items() if each > 0},
    )


def _columns(source: ColumnSource, loader: Any, seconds: float) -> dict[str, float]:
    """Seconds a batch of reading each column that is read batch by batch, alone, the slowest first."""
    cold = source.cold
    if not cold:
        return {}
    took = {}
    order = loader._epoch_order(0)
    for spec in cold:
        alone = ColumnSource(source.dataset, [spec.name], 0)
        began, batches = perf_counter(), 0
        while batches < BATCHES_MIN or perf_counter() - began < seconds / len(cold):
            start = batches * loader.batch_size % max(order.length - loader.batch_size, 1)
            alone.read(order.rows_at(start, min(start + loader.batch_size, order.length)))
            batches += 1
        took[spec.name] = (perf_counter() - began) / batches
    return dict(sorted(took.items(), key=lambda one: -one[1]))


def _changes(
    loader: Any, options: dict[str, Any], alone: Pace, columns: dict[str, float], cores: int
) -> Iterator[Change]:
    """What fits the loader, the likeliest first."""
    source, known = loader._source, signature(DataLoader).parameters
    workers = cores if loader.auto_workers else loader.num_workers
    slowest = max(alone.stages, key=lambda name: alone.stages[name], default="gather")
    share = alone.stages.get(slowest, 0.0) / max(sum(alone.stages.values()), 1e-12)
    by_batch = bool(source.cold) or any(options.get(name) for name in ("transform", "transforms", "collate"))
    if isinstance(source, ColumnSource):
        yield from _arena(source)
    if by_batch and workers < cores:
        yield Change(
            f"num_workers={cores}", f"{slowest} takes {share:.0%} of a batch, in one thread", {"num_workers": cores}
        )
    if by_batch and workers > cores:
        yield Change(f"num_workers={cores}", f"{workers} threads share {cores} cores", {"num_workers": cores})
    if by_batch and "worker_mode" in known and alone.stages.get("transform", 0.0) > 0.5 * sum(alone.stages.values()):
        yield Change(
            f'worker_mode="process", num_workers={cores}',
            "transforms that hold the interpreter's lock gain nothing from threads",
            {"worker_mode": "process", "num_workers": cores},
        )
    if source.cold and isinstance(source, ColumnSource) and source.dataset.cache is None:
        named = ", ".join(list(columns)[:3])
        yield Change(
            "dataset.cached(place)", f"{named} are decoded anew for each batch: the hot cache keeps them", cache=True
        )
    if source.cold and options.get("shuffle"):
        why = "a full shuffle reads a page for each row: a block-wise one reads pages whole (docs/orders.md says how well it mixes)"
        yield Change("order=BlockShuffle()", why, {"shuffle": None, "order": BlockShuffle()})
    if options.get("transforms") and "decoded_cache" in known and not options.get("decoded_cache"):
        cached = source.dataset.cache is not None
        yield Change(
            "decoded_cache=True" if cached else "dataset.cached(place), decoded_cache=True",
            "what a transform makes of a value is the same each time: keep it",
            {"decoded_cache": True},
            cache=not cached,
        )


def _arena(source: ColumnSource) -> Iterator[Change]:
    fixed = [spec for spec in source.cold if spec.fixed]
    if not fixed:
        return
    total = sum(spec.row_bytes for spec in source.columns if spec.fixed) * source.rows
    if total <= MEMORY_SHARE * _free_memory():
        names = ", ".join(repr(spec.name) for spec in fixed[:3])
        why = f"the arena has no room for {names}, which are read batch by batch: in one of {total / 2**20:,.0f} MiB they are gathered"
        yield Change(f"arena_bytes_max={total}", why, {"arena_bytes_max": total})


def _tried(change: Change, dataset: Any, options: dict[str, Any], step_s: float, seconds: float, steady: Pace) -> Trial:
    try:
        with ExitStack() as until:
            given = {**options, **change.options}
            if given.get("num_workers", 0) == 0:
                given.pop("prefetch_factor", None)
            tried = dataset.cached(*_trial_cache(until)) if change.cache else dataset
            loader = DataLoader(tried, **given)
            for _ in range(2 if change.cache else 1):  # the first time through fills it
                _pace(loader, 0.0, seconds)
            pace = _pace(loader, step_s, seconds)
    except Exception as error:  # whatever it is, of the user's code too: this change is not for this loader
        return Trial(change.name, change.why, 0.0, 0.0, " ".join(str(error).split())[:200])
    return Trial(change.name, change.why, pace.samples_s, pace.samples_s / max(steady.samples_s, 1e-9))


def _trial_cache(until: ExitStack) -> tuple[str, int]:
    """A hot cache that is gone afterwards: in RAM where there is a place for that."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = tempfile.mkdtemp(prefix="lepton-doctor-", dir=parent)
    until.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder, min(CACHE_BYTES_MAX, shutil.disk_usage(folder).free // 4)


def _verdict(alone: Pace, steady: Pace, floor: Pace, change: Trial | None) -> str:
    if change is not None:
        return f"{change.name}: {change.why}"
    if steady.batch_s <= 3 * floor.batch_s:
        took, handed = steady.batch_s * 1e6, floor.batch_s * 1e6
        return f"nothing to change: a batch takes {took:,.0f} us, and one that is only handed out {handed:,.0f} us"
    slowest = max(alone.stages, key=lambda name: alone.stages[name], default="gather")
    share = alone.stages.get(slowest, 0.0) / max(sum(alone.stages.values()), 1e-12)
    return f"{slowest} takes {share:.0%} of the work on a batch, and nothing that was tried helps: do less of it, or use more cores"


def _alone(options: dict[str, Any]) -> dict[str, Any]:
    """The same loader, all of whose work is done by the caller's thread."""
    out = {**options, "num_workers": 0}
    for name in ("prefetch_factor", "timeout", "persistent_workers", "worker_mode", "prefetch_bytes_max"):
        out.pop(name, None)
    return out


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
