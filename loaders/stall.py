"""Where a loader's time goes: how long each step waited for its batch, and what the threads that make batches worked at.

    LoaderStats    sums over the life of a loader: batches, rows, bytes, waits
    StageClock     seconds of work per stage, summed over all threads (and worker processes, which report theirs)

The waits are measured where the training loop stands: inside `next()`. The stages are measured where the work is done, so with n threads
they may add up to n seconds a second. Waits small and stages large: the loader keeps up. Waits large: the largest stage is what to change
(`lepton doctor loader` tries it).

This module imports neither torch nor leptonstore.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

STAGES = ("fill", "order", "fetch", "gather", "transform", "collate", "pin")
"""fill       arenas decoded before the first batch
order      rows of the coming steps
fetch      values from the store, a tier or the cache, with the decoding of their pages
gather     values of an arena to a batch's memory
transform  of samples (decoding of images and the like too) and of batches
collate    lists to tensors
pin        copies to page-locked memory

Whoever makes batches may add others.
"""

TELL_S = 2.0  # between two reports of a loader to whoever watches
STALL_S = 0.1  # a step that waited so long counts as a stall: what a person sees in a progress bar
# Buckets of the histogram of waits: bucket b counts waits of [2^(b-1), 2^b) us, bucket 0 those below 1 us. The last begins at 4 years.
WAIT_BUCKETS = 48


class StageClock:
    """Seconds per stage. Any thread: each has sums of its own, which are added up when somebody asks.

    `since = clock.lap("fetch", since)` costs 0.2 us. Pickles, without what it counted.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[tuple[threading.Thread, dict[str, float]]] = []
        self._ended: dict[str, float] = {}  # sums of threads that are gone

    def __reduce__(self) -> tuple[type[StageClock], tuple[()]]:
        return StageClock, ()

    def add(self, stage: str, seconds: float) -> None:
        """`seconds` of work at `stage`."""
        try:
            sums = self._local.sums
        except AttributeError:
            sums = self._enlist()
        sums[stage] = sums.get(stage, 0.0) + seconds

    def lap(self, stage: str, since: float) -> float:
        """What began at `since` (perf_counter) has ended. Returns the time now: the beginning of what follows."""
        now = perf_counter()
        self.add(stage, now - since)
        return now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time inside, also when it ends by an exception. 1 us."""
        began = perf_counter()
        try:
            yield
        finally:
            self.lap(name, began)

    def around(self, stage: str, work: Callable[[_T], _R]) -> Callable[[_T], _R]:
        """The same function; what it takes counts for `stage`."""
        add = self.add

        def timed_work(argument: _T) -> _R:
            began = perf_counter()
            result = work(argument)
            add(stage, perf_counter() - began)
            return result

        return timed_work

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far, in the order of STAGES; stages that took none are left out."""
        with self._lock:
            every = [self._ended, *(dict(sums) for _, sums in self._threads)]
            totals = dict.fromkeys(STAGES, 0.0)
            for sums in every:
                _add(sums, totals)
        return {name: total for name, total in totals.items() if total}

    def _enlist(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        self._local.sums = sums
        with self._lock:
            for thread, of_thread in self._threads:
                if not thread.is_alive():
                    _add(of_thread, self._ended)
            alive = [entry for entry in self._threads if entry[0].is_alive()]
            self._threads = [*alive, (threading.current_thread(), sums)]
        return sums


class LoaderStats(dict[str, Any]):
    """Sums over the life of a loader, of what this rank was handed:

    batches, rows   their numbers
    bytes           of the columns with a fixed width, as they stand in an arena; those of the others are not counted
    wait_s          seconds inside `iter()` and `next()`: what the training loop waited
    open_s          those of them in `iter()`: arenas that were filled
    faults          samples that the policy skipped or substituted
    restarts        worker processes that died and were started again
    """

    def __init__(self) -> None:
        super().__init__(batches=0, rows=0, bytes=0, wait_s=0.0, open_s=0.0, faults=0, restarts=0)
        self.clock = StageClock()
        self.waits = [0] * WAIT_BUCKETS
        self.worst: tuple[float, int, int] = (0.0, 0, 0)  # seconds, epoch, step of the pass: the longest wait

    def __reduce__(self) -> tuple[Any, ...]:
        return LoaderStats, (), {"waits": self.waits, "worst": self.worst}, None, iter(self.items())

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of work per stage, summed over threads."""
        return self.clock.seconds

    @property
    def stalls(self) -> int:
        """Steps that waited for STALL_S or longer, to the precision of the histogram's buckets."""
        return sum(self.waits[_bucket(STALL_S) :])

    def wait_quantile_s(self, share: float) -> float:
        """Seconds within which `share` of the steps (0..1) had their batch: the upper end of a bucket, at most twice the true value."""
        total, passed = sum(self.waits), 0
        for bucket, count in enumerate(self.waits):
            passed += count
            if total and passed >= share * total:
                return float(min((1 << bucket) / 1e6, self.worst[0])) if self.worst[0] else 0.0
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        waits = {f"{(1 << bucket) / 1e6:g}": count for bucket, count in enumerate(self.waits) if count}
        worst = dict(zip(("wait_s", "epoch", "step"), self.worst, strict=True))
        return {**self, "stages": self.stages, "waits_below_s": waits, "stalls": self.stalls, "worst": worst}

    def report(self) -> str:
        """Some lines for people."""
        if not self["batches"]:
            return "no batch was handed out yet"
        lines = [
            f"{self['batches']:,} batches, {self['rows']:,} rows, {self['bytes'] / 1e9:,.2f} GB handed out",
            f"waited {self['wait_s']:.2f} s in all ({self['open_s']:.2f} s of it to begin): half of the steps at most "
            f"{_time(self.wait_quantile_s(0.5))}, 99 % at most {_time(self.wait_quantile_s(0.99))}",
        ]
        if self.stalls:
            seconds, epoch, step = self.worst
            longest = f"the longest, {_time(seconds)}, at epoch {epoch}, step {step}"
            lines.append(f"{self.stalls:,} stall{'s' * (self.stalls > 1)} of {_time(STALL_S)} or more; {longest}")
        stages = self.stages
        if stages:
            total = sum(stages.values())
            told = sorted(stages.items(), key=lambda stage: -stage[1])
            lines.append(
                "work by stage: " + ", ".join(f"{name} {took:.2f} s ({took / total:.0%})" for name, took in told)
            )
        return "\n".join(lines)


def timed(items: Iterator[_T], stage: str, clock: StageClock) -> Iterator[_T]:
    """The same items; the time that each takes counts for `stage`."""
    while True:
        began = perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        clock.lap(stage, began)
        yield item


def _bucket(seconds: float) -> int:
    return min(int(seconds * 1e6).bit_length(), WAIT_BUCKETS - 1)


def _add(sums: dict[str, float], totals: dict[str, float]) -> None:
    for name, seconds in sums.items():
        totals[name] = totals.get(name, 0.0) + seconds


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def telling(
    batches: Iterator[_T], stats: LoaderStats, epoch: int, tell: Callable[[dict[str, float | str]], None]
) -> Iterator[_T]:
    """The same batches; `tell` gets how the loader fares every TELL_S, and at the end."""

    def figures() -> dict[str, float | str]:
        pass_s = {"waited_s": stats["wait_s"] - waited, "elapsed_s": perf_counter() - began}
        return {**pass_s, "rows": stats["rows"], "bytes": stats["bytes"], "epoch": epoch}

    began = told = perf_counter()
    waited = stats["wait_s"]
    try:
        for batch in batches:
            if perf_counter() - told > TELL_S:
                told = perf_counter()
                tell(figures())
            yield batch
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
        tell(figures())
