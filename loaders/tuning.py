"""How many threads make batches and how many batches are made ahead: chosen while the loader runs, within a budget of memory.

A pure controller: it is told of each batch that was handed out and says `threads` and `depth`; it measures nothing and starts nothing.

    threads   twice as many (but not more than the averages ask for) when steps wait and the threads are busy; taken back when batches then
              came no faster (what is slow is a disk, a network or the interpreter's lock), and from then on one more at a time. One
              less after a long calm in which fewer would do.
    depth     batches ahead: the threads' own, and some in store. Twice as many in store when steps wait although the threads are fast
              enough on average: the times vary. Never more than the budget holds of the largest batch seen.

It decides every WINDOW batches and changes one thing at a time. The window after a change is not looked at: what was ahead, or begins
to be, makes it better or worse than what follows. The one after that says whether the change is kept. What is fixed by the
user stays fixed. Starts at one thread and two batches in store: a model that is slower than the loader pays for nothing more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Auto: TypeAlias = Literal["auto"]

PREFETCH_BYTES_MAX = 2 << 30  # of batches made ahead: the usual budget. 13 batches of 256 float32 images of 224 x 224
WINDOW = 16  # batches between two decisions; two for each thread where those are more
WAIT_SHARE_MAX = 0.05  # of the time: with less, nothing that a change could gain is left
GAIN_MIN = 0.05  # faster than before, for a change to be kept
HOLD_WINDOWS = 8  # after a change that gained nothing, before the same is tried again: doubled each time
HOLD_WINDOWS_MAX = 256
CALM_WINDOWS = 4  # without waits, before a thread is given back
SPARE_THREADS = 1.25  # threads per thread that the averages ask for, before one is given back
STORE_FIRST = 2  # batches in store, beside those that the threads are at
STORE_MAX = 64


@dataclass
class Tuner:
    """Used by one thread.

    cores:      threads at most.
    bytes_max:  that batches ahead may occupy together; None: PREFETCH_BYTES_MAX, or one batch where that is larger.
    fixed_threads, fixed_depth: what the user chose; None: chosen here. A fixed depth is still cut to the budget.

    Raises ValueError for a budget that was given and holds no batch, as soon as the size of one is known.
    """

    cores: int
    bytes_max: int | None = None
    fixed_threads: int | None = None
    fixed_depth: int | None = None
    threads: int = field(init=False)
    _store: int = field(default=STORE_FIRST, init=False)
    _batch_bytes: float = field(default=0.0, init=False)  # of the largest
    # Sums over the window.
    _count: int = field(default=0, init=False)
    _wait_s: float = field(default=0.0, init=False)
    _make_s: float = field(default=0.0, init=False)
    _took_s: float = field(default=0.0, init=False)
    # What the last window's decision was, and what it has to beat.
    _tried: str = field(default="", init=False)
    _settling: bool = field(default=False, init=False)
    _before_s: float = field(default=0.0, init=False)
    _before_threads: int = field(default=1, init=False)
    _doubling: bool = field(default=True, init=False)
    _calm: int = field(default=0, init=False)
    _hold: dict[str, int] = field(default_factory=lambda: {"threads": 0, "store": 0}, init=False)
    _hold_next: dict[str, int] = field(
        default_factory=lambda: {"threads": HOLD_WINDOWS, "store": HOLD_WINDOWS}, init=False
    )

    def __post_init__(self) -> None:
        if self.cores < 1 or (self.bytes_max is not None and self.bytes_max < 1):
            raise ValueError(
                f"{self.cores} cores and prefetch_bytes_max={self.bytes_max} bytes: both must be 1 or more"
            )
        self.threads = self.fixed_threads or 1

    @property
    def threads_max(self) -> int:
        """What `threads` never exceeds."""
        return self.fixed_threads or self.cores

    @property
    def depth(self) -> int:
        """Batches that may be ahead: being made, or made and not handed out yet. At least 1."""
        wanted = self.fixed_depth or self.threads + self._store
        return max(1, min(wanted, self._room))

    @property
    def _room(self) -> int:
        """Batches that the budget holds; while the size of none is known, one for each thread and one, unless the user knows better."""
        if self._batch_bytes:
            return int((self.bytes_max or PREFETCH_BYTES_MAX) / self._batch_bytes)
        return self.threads + 1 if self.fixed_depth is None or self.bytes_max is not None else self.fixed_depth

    def observe(self, wait_s: float, make_s: float, took_s: float, batch_bytes: float) -> None:
        """A batch was handed out.

        wait_s:      seconds that its step waited for it.
        make_s:      seconds of work on it, of all threads together.
        took_s:      seconds since the batch before it was handed out: the wait, and what the caller did.
        batch_bytes: memory that it occupies.
        """
        if batch_bytes > self._batch_bytes:
            if self.bytes_max is not None and batch_bytes > self.bytes_max:
                raise ValueError(
                    f"prefetch_bytes_max={self.bytes_max} holds no batch: one has {batch_bytes:.0f} bytes here; give at least "
                    f"{2 * batch_bytes:.0f}, a smaller batch_size, or num_workers=0, which makes nothing ahead"
                )
            self._batch_bytes = batch_bytes
        self._count += 1
        self._wait_s += wait_s
        self._make_s += make_s
        self._took_s += took_s
        if self._count >= max(WINDOW, 2 * self.threads):  # what was begun before a change is through by then
            self._decide()
            self._count, self._wait_s, self._make_s, self._took_s = 0, 0.0, 0.0, 0.0

    def _decide(self) -> None:
        took_s, wait_share = self._took_s / self._count, self._wait_s / max(self._took_s, 1e-9)
        for what in self._hold:
            self._hold[what] = max(self._hold[what] - 1, 0)
        if self._settling:
            self._settling = False
            return
        if self._tried and not self._kept(took_s):
            return
        # Threads that the averages ask for, if a step never waited.
        busy = self._make_s / max(self._took_s - self._wait_s, 1e-9)
        if wait_share > WAIT_SHARE_MAX:
            self._calm = 0
            loaded = self._make_s / max(self._took_s * self.threads, 1e-9)  # how much of their time the threads work
            if loaded > 0.5 and self._try_threads(took_s, busy):
                return
            self._try_store(took_s)
            return
        self._calm += 1
        if self._calm >= CALM_WINDOWS and self.fixed_threads is None and busy * SPARE_THREADS < self.threads - 1:
            self.threads -= 1
            self._calm = 0

    def _try_threads(self, took_s: float, asked_for: float) -> bool:
        if self.fixed_threads is not None or self._hold["threads"] or self.threads >= self.cores:
            return False
        more = min(self.threads, max(int(asked_for) + 1 - self.threads, 1)) if self._doubling else 1
        self._before_threads = self.threads
        self.threads = min(self.threads + more, self.cores)
        self._tried, self._before_s, self._settling = "threads", took_s, True
        return True

    def _try_store(self, took_s: float) -> None:
        full = self.threads + self._store >= self._room or self._store >= STORE_MAX
        if self.fixed_depth is None and not self._hold["store"] and not full:
            self._store *= 2
            self._tried, self._before_s, self._settling = "store", took_s, True

    def _kept(self, took_s: float) -> bool:
        """Whether the last change made batches come faster; else it is taken back, and not tried again for a while."""
        tried, self._tried = self._tried, ""
        if took_s < (1 - GAIN_MIN) * self._before_s:
            self._hold_next[tried] = HOLD_WINDOWS
            return True
        if tried == "threads":
            self.threads, self._doubling = self._before_threads, False
        else:
            self._store //= 2
        self._settling = True
        self._hold[tried] = self._hold_next[tried]
        self._hold_next[tried] = min(2 * self._hold_next[tried], HOLD_WINDOWS_MAX)
        return False


class Chosen(NamedTuple):
    """num_workers and prefetch_factor as numbers, and whether they are the tuner's to choose (then these are what it may use)."""

    workers: int
    prefetch: int | None
    auto_workers: bool
    auto_prefetch: bool


def chosen(num_workers: int | Auto, prefetch_factor: int | Auto | None, bytes_max: int | None) -> Chosen:
    """What "auto" stands for. With num_workers="auto" an unnamed prefetch_factor is chosen too.

    Raises ValueError for another word, and for a budget of no byte.
    """
    if bytes_max is not None and bytes_max < 1:
        raise ValueError(f"prefetch_bytes_max={bytes_max} holds no batch: give what a few batches take, or None")
    for name, value in (("num_workers", num_workers), ("prefetch_factor", prefetch_factor)):
        if isinstance(value, str) and value != "auto":
            raise ValueError(f'{name} is a number or "auto", not {value!r}')
    auto_workers = num_workers == "auto"
    auto_prefetch = prefetch_factor == "auto" or (auto_workers and prefetch_factor is None)
    return Chosen(
        usable_cores() if isinstance(num_workers, str) else num_workers,
        2 if isinstance(prefetch_factor, str) else prefetch_factor,
        auto_workers,
        auto_prefetch,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bytes_of(batch: Any) -> float:
    """About the memory of a batch: tensors and arrays, nested in dicts, lists and tuples; of a list of values from its first ones."""
    if isinstance(batch, dict):
        return sum(bytes_of(value) for value in batch.values())
    if isinstance(batch, tuple | list):
        some = batch[:_LOOKED_AT]
        return sum(bytes_of(value) for value in some) * len(batch) / max(len(some), 1)
    if isinstance(batch, bytes | str):
        return len(batch)
    return float(getattr(batch, "nbytes", _OBJECT_BYTES))


_LOOKED_AT = 16
_OBJECT_BYTES = 64  # of a value that does not say: a guess
