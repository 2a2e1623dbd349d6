"""Batches made ahead by threads. Samples are scheduled, not batches: a slow sample keeps no other batch waiting.

    steps -- read, some steps at once --> groups of samples of each -- programs --> finish --> in order, to the caller

Two pools of threads that live as long as the pass. Readers wait for disks and networks; where columns have programs, workers do the
samples. Both take the task of the earliest step first. Without programs the readers finish the batches too, and there are no workers.

How many threads work and how many batches are ahead is the tuner's to say (loaders/tuning.py), which is told of each batch that is
handed out.

Steps that are read together (a flight) are fetched and decompressed together, so that what they lack in common is read once: at most
`prefetch_factor` of them, and about FLIGHT_BYTES_MAX.

An error is raised at the batch that it belongs to, after all batches before it. Closing forgets what has not begun and waits for
what has, for at most CLOSE_WAIT_S: a transform that hangs does not keep a process from ending.
"""

from __future__ import annotations

import atexit
import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, perf_counter
from typing import Any
from weakref import WeakSet

from loaders.faults import FaultCount, OnFault, name_of, step_named
from loaders.pipeline import Made, Recipe, Work, rows_bytes
from loaders.step import Step
from loaders.tuning import Tuner, bytes_of

# Read together: enough for an object store's bandwidth x delay, little beside a batch of images.
FLIGHT_BYTES_MAX = 32 << 20
CLOSE_WAIT_S = 5.0  # a sample takes far less; what takes longer is taken to hang
_GROUP_ROWS_MAX = 32  # samples of a task: at 1 ms each, the threads end a batch within 30 ms of each other at worst
_GROUPS_PER_THREAD = 4  # of a batch, so that the last of them are short


class TaskPool:
    """Threads that call tasks, the one with the lowest priority number first. Tasks do not raise. Submitting: any thread."""

    def __init__(self, threads: int, name: str) -> None:
        self._state = _PoolState(limit=threads)
        _pools.add(self._state)
        for number in range(threads):
            thread = threading.Thread(target=_work_off, args=(self._state,), name=f"{name}-{number}", daemon=True)
            self._state.threads.append(thread)
            thread.start()

    @property
    def limit(self) -> int:
        """Threads that may work at a time; at first all of them. To be set from one thread."""
        return self._state.limit

    @limit.setter
    def limit(self, threads: int) -> None:
        state = self._state
        if threads != state.limit:
            with state.wake:
                state.limit = threads
                state.wake.notify_all()

    def submit(self, priority: int, task: Callable[[], None]) -> None:
        """After `close` it does nothing."""
        state = self._state
        with state.wake:
            if not state.closed:
                heapq.heappush(state.tasks, (priority, next(state.order), task))
                state.wake.notify()

    def stop(self) -> None:
        """Forget what has not begun; the threads end after what they are at. Idempotent."""
        self._state.stop()

    def join(self, wait_s: float) -> None:
        """After `stop`: wait for the threads, at most so long."""
        self._state.join(wait_s)


@dataclass(eq=False)
class _PoolState:
    """What the threads know: not the pool, nor the iterator that owns it, so that dropping these ends them."""

    limit: int
    active: int = 0  # threads that are at a task
    tasks: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=count)
    wake: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False

    def stop(self) -> None:
        with self.wake:
            self.closed = True
            self.tasks.clear()
            self.wake.notify_all()

    def join(self, wait_s: float) -> None:
        deadline = monotonic() + wait_s
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))


_pools: WeakSet[_PoolState] = WeakSet()


@atexit.register
def _stop_all() -> None:
    # The threads are daemons, so that one that hangs keeps no interpreter from ending; the others end before it does.
    pools = list(_pools)
    for state in pools:
        state.stop()
    deadline = monotonic() + CLOSE_WAIT_S
    for state in pools:
        state.join(max(0.0, deadline - monotonic()))


def _work_off(state: _PoolState) -> None:
    was_active = 0
    while True:
        with state.wake:
            state.active -= was_active
            while not state.closed and (not state.tasks or state.active >= state.limit):
                state.wake.wait()
            if state.closed:
                return
            task = heapq.heappop(state.tasks)[2]
            state.active += 1
        was_active = 1
        task()
        del task  # or the last batch would live as long as the thread waits for the next


@dataclass(eq=False)
class _Pending:
    """A step from its submission until it is handed out. `groups`: tasks of its samples that are not done."""

    number: int
    step: Step
    made: Made | None = None
    error: BaseException | None = None
    done: bool = False
    groups: int = 0
    work_s: float = 0.0  # of all threads
    bytes: float = 0.0  # that it occupies, once it is made
    at: dict[int, tuple[int, str, float]] = field(default_factory=dict)  # thread -> (sample, column, since)

    def told(self, index: int, column: str) -> None:
        self.at[threading.get_ident()] = index, column, monotonic()


class ThreadedBatches:
    """An iterator over the batches of `steps`, made by threads as the tuner says. Used by one thread.

    tuner:     says how many threads and how many batches ahead; the pools have `tuner.threads_max`.
    flight:    steps that may be read together.
    timeout_s: seconds that a batch may keep its caller waiting, 0 for no limit; then RuntimeError, as torch's loader
               raises, which names what is waited for, and the iteration is over.
    in_order:  False: batches come as they are done.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps: Iterator[Step],
        tuner: Tuner,
        flight: int = 1,
        timeout_s: float = 0,
        in_order: bool = True,
        on_fault: OnFault | None = None,
    ) -> None:
        self._steps, self._steps_left = steps, True
        self._steps_error: Exception | None = None
        self._tuner, self._flight = tuner, max(flight, 1)
        self._timeout_s, self._in_order, self._on_fault = timeout_s, in_order, on_fault
        self._ahead: deque[_Pending] = deque()
        self._numbers = count()
        self._faults = FaultCount()
        self._line = _Line(recipe, tuner.threads_max)
        self._line.limit(tuner.threads)
        self._handed_at = perf_counter()

    def __iter__(self) -> ThreadedBatches:
        return self

    def __next__(self) -> Any:
        self._submit()
        if not self._ahead:
            self.close()
            if self._steps_error is not None:
                error, self._steps_error = self._steps_error, None
                raise error
            raise StopIteration
        began = perf_counter()
        pending = self._wait()
        try:
            self._observe(pending, began)
            self._ahead.remove(pending)
            if pending.error is not None:
                raise pending.error
            assert pending.made is not None
            batch, faults = pending.made
            self._faults.add(len(pending.step.rows), faults, self._on_fault)
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def _observe(self, pending: _Pending, began: float) -> None:
        now = perf_counter()
        self._tuner.observe(now - began, pending.work_s, now - self._handed_at, pending.bytes)
        self._line.limit(self._tuner.threads)
        self._handed_at = now

    def _wait(self) -> _Pending:
        try:
            with self._line.ready:
                self._line.ready.wait_for(self._find_done, self._timeout_s or None)
                found = self._find_done()
            if found is None:
                waiting = self._line.busy_with(self._ahead[0])
                raise RuntimeError(f"DataLoader timed out after {self._timeout_s} seconds{waiting}")
        except BaseException:  # also Ctrl-C: what hangs is not waited for
            self.close(wait_s=0)
            raise
        return found

    def _find_done(self) -> _Pending | None:
        if self._in_order:
            return self._ahead[0] if self._ahead[0].done else None
        return next((pending for pending in self._ahead if pending.done), None)

    def _submit(self) -> None:
        while self._steps_left and self._tuner.depth - len(self._ahead) >= (at_once := self._at_once()):
            flight: list[_Pending] = []
            for _ in range(at_once):
                try:
                    step = next(self._steps)
                except StopIteration:
                    self._steps_left = False
                    break
                except Exception as error:
                    self._steps_left, self._steps_error = False, error
                    break
                flight.append(_Pending(next(self._numbers), step))
            if flight:
                self._ahead.extend(flight)
                self._line.begin(flight)

    def _at_once(self) -> int:
        """Steps of the next flight: one at first, so that the first batch comes soon and tells how large they are."""
        step_bytes = self._line.step_bytes
        return (
            max(1, min(self._flight, self._tuner.depth // 2, int(FLIGHT_BYTES_MAX / step_bytes))) if step_bytes else 1
        )

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Stop: what has not begun is forgotten, what has is waited for. Idempotent."""
        self._steps_left = False
        self._ahead.clear()
        self._line.close(wait_s)

    def __del__(self) -> None:
        if "_line" in self.__dict__:
            self.close()


class _Line:
    """The tasks of a pass and the threads that do them."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        self.ready = threading.Condition()  # a step is done
        self.step_bytes = 0.0  # of the last step that was read
        self._recipe = recipe
        self._threads = threads
        with_workers = bool(recipe.programs)
        # One reader keeps two workers busy unless bytes come from far away.
        self._readers = TaskPool(-(-threads // 2) if with_workers else threads, "lepton-loader-read")
        self._workers = TaskPool(threads, "lepton-loader") if with_workers else self._readers

    def limit(self, threads: int) -> None:
        """So many of the threads may work."""
        self._workers.limit = threads
        if self._readers is not self._workers:
            self._readers.limit = -(-threads // 2)

    def begin(self, flight: list[_Pending]) -> None:
        self._readers.submit(flight[0].number, lambda: self._read(flight))

    def close(self, wait_s: float) -> None:
        for pool in (self._readers, self._workers):
            pool.stop()
        for pool in (self._readers, self._workers):
            pool.join(wait_s)

    def _read(self, flight: list[_Pending]) -> None:
        recipe, began = self._recipe, perf_counter()
        try:
            works = recipe.read([pending.step for pending in flight])
        except BaseException as error:
            if len(flight) == 1:
                self._fail(flight[0], error)
            else:  # whose is it?
                for pending in flight:
                    self._read([pending])
            return
        largest = max(works, key=lambda work: len(work.step.rows))
        self.step_bytes = len(largest.step.rows) * rows_bytes(largest.values, largest.step.rows)
        took = (perf_counter() - began) / len(flight)
        for pending, work in zip(flight, works, strict=True):
            rows = len(work.step.rows)
            pending.work_s += took
            pending.bytes = self.step_bytes
            group = max(1, min(_GROUP_ROWS_MAX, rows // (_GROUPS_PER_THREAD * self._threads)))
            parts = [
                (name, first, min(first + group, rows)) for first in range(0, rows, group) for name in recipe.programs
            ]
            if not parts:
                self._finish(pending, work)
                continue
            pending.groups = len(parts)
            for part in parts:
                self._workers.submit(pending.number, self._group(pending, work, *part))

    def _group(self, pending: _Pending, work: Work, name: str, first: int, stop: int) -> Callable[[], None]:
        def run() -> None:
            began = perf_counter()
            try:
                if pending.error is None:
                    self._recipe.sample(work, name, first, stop, pending.told)
            except BaseException as error:
                with self.ready:
                    pending.error = _earlier(pending.error, error)
            finally:
                pending.at.pop(threading.get_ident(), None)
            with self.ready:
                pending.work_s += perf_counter() - began
                pending.groups -= 1
                last = pending.groups == 0
            if last:
                self._finish(pending, work)

        return run

    def _finish(self, pending: _Pending, work: Work) -> None:
        began = perf_counter()
        try:
            if pending.error is None:
                pending.made = self._recipe.finish(work)
                pending.bytes = max(pending.bytes, bytes_of(pending.made.batch))
                pending.work_s += perf_counter() - began
        except BaseException as error:
            pending.error = error
        self._done(pending)

    def _fail(self, pending: _Pending, error: BaseException) -> None:
        pending.error = error
        self._done(pending)

    def _done(self, pending: _Pending) -> None:
        with self.ready:
            pending.done = True
            self.ready.notify_all()

    def busy_with(self, pending: _Pending) -> str:
        """What a step that does not come is waiting for, for a message."""
        source = self._recipe.source
        told = [
            f"{name_of(source, pending.step, index, column)} for {monotonic() - since:.1f} s"
            for index, column, since in sorted(pending.at.values(), key=lambda one: one[2])
        ]
        if not told and len(pending.step.rows):
            told = [step_named(source, pending.step)]
        return f", waiting for {' and '.join(told)}" if told else ""


def _earlier(known: BaseException | None, error: BaseException) -> BaseException:
    """Of two errors of one step, that of the earlier sample: the one that a single thread would have met."""
    if known is None:
        return error
    position = [getattr(getattr(one, "sample", None), "position", -1) for one in (known, error)]
    return known if position[0] <= position[1] else error
