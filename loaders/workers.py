"""Batches made ahead by worker processes: for Python code that holds the GIL, and for code that uses the global generators.

    steps -- tasks --> worker processes -- a slab for each batch --> in order, to the caller

A worker that dies (killed, out of memory, a crash in C) is started again and its steps are made again: everything that makes a batch is a
function of its step, so that the run is the undisturbed one. A step that ends its worker STEP_DEATHS_MAX times is an error that names it,
or, when the policy is not "raise", the sample that was being worked on is left out. The same goes for one that hangs beyond `timeout`.

Each worker has a few slabs of its own (loaders/slab.py). A batch lies in its slab until its tensors are dropped; whoever keeps many
batches gets copies of them, so that the slabs, and with them memory and descriptors, stay as many as they were.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from time import monotonic, monotonic_ns
from typing import Any
from weakref import WeakSet

import numpy as np

from loaders.faults import Fault, FaultCount, OnFault, Policy, SampleName, name_of, named
from loaders.pipeline import Made
from loaders.slab import AT_COLUMN, AT_PLACE, AT_SINCE, CANCELLED, REQUEST_AT, Slab, unpack
from loaders.stages import Transform
from loaders.stall import LoaderStats
from loaders.step import Step
from loaders.worker import (
    ANSWER,
    DIES,
    FAILED,
    HANGS,
    MADE,
    READY,
    TASK,
    Maker,
    Work,
    WorkerFailed,
    main,
    restored,
)

STEP_DEATHS_MAX = (
    4  # of workers at one step: kills from outside hit another step the next time, a step that kills does not
)
START_DEATHS_MAX = 3  # of a worker, one after another, before it says that it is ready
START_WAIT_S = (
    120.0  # for a worker that starts (it imports torch, and what the user's functions need), whatever `timeout` says
)
CLOSE_WAIT_S = 1.0  # for what a worker is at; then it is killed, which loses nothing: it only reads
_LEASED = (
    1  # slabs of each worker beside those of its steps, for batches that the caller still has (2 for a single worker)
)
_ANSWERS_BYTES = 1 << 12  # read at once


@dataclass(eq=False)
class _Pending:
    """A step from its submission until it is handed out. `left_out`: samples not to be made, and why."""

    number: int
    step: Step
    made: Made | None = None
    error: Exception | None = None
    done: bool = False
    wanted: bool = True
    deaths: int = 0
    left_out: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Worker:
    """A worker process as its parent sees it. `tasks`: (step, slab) in the order in which it does them."""

    number: int
    slabs: list[Slab]
    process: Any = None
    channel: socket.socket | None = None
    ready: bool = False
    began: float = 0.0
    deaths: int = 0  # since it was last ready
    inbox: bytes = b""
    tasks: deque[tuple[_Pending, int]] = field(default_factory=deque)

    def free_slab(self) -> int | None:
        taken = {slab for _, slab in self.tasks}
        return next((at for at, slab in enumerate(self.slabs) if at not in taken and not slab.leased), None)


_channels: WeakSet[socket.socket] = WeakSet()  # the parent's ends, which a forked child must not keep open
_all_slabs: WeakSet[Slab] = WeakSet()


class WorkerPool:
    """`workers` processes that run `maker`, started at once; of one loader, used by one thread.

    ahead:      steps that each of them may have.
    context:    of multiprocessing: how they are started.
    stats:      of the loader: `restarts` counts those that are started again, its clock what their stages take.
    init, dataset: what torch calls worker_init_fn, and what get_worker_info() tells of.
    """

    def __init__(
        self,
        maker: Maker,
        workers: int,
        ahead: int,
        context: Any,
        stats: LoaderStats,
        policy: Policy = "raise",
        init: Callable[[int], None] | None = None,
        dataset: Any = None,
    ) -> None:
        self.maker, self.ahead, self.policy = maker, max(ahead, 1), policy
        self._context, self._init, self._dataset, self._stats = context, init, dataset, stats
        self._owner = os.getpid()
        self.claim: object = None  # of the pass that has it
        self._workers: list[_Worker] = []
        leased = _LEASED if workers > 1 else 2
        try:
            for number in range(workers):
                worker = _Worker(number, [Slab() for _ in range(self.ahead + leased)])
                _all_slabs.update(worker.slabs)
                self._workers.append(worker)
            for worker in self._workers:
                self._start(worker)
        except BaseException:
            self.close()
            raise

    def serves(self, maker: Maker) -> bool:
        """Whether it makes the batches that `maker` would: a dataset that has grown is another source."""
        mine = self.maker
        return mine.source is maker.source and getattr(mine, "order", None) is getattr(maker, "order", None)

    @property
    def depth(self) -> int:
        """Steps that all of them together may have."""
        return len(self._workers) * self.ahead

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    # -- tasks -----------------------------------------------------------------------------------------------------

    def submit(self, pending: _Pending) -> bool:
        """Give a step to the worker that has least to do; False when none can take it."""
        able = [worker for worker in self._workers if len(worker.tasks) < self.ahead and worker.free_slab() is not None]
        if not able:
            return False
        worker = min(able, key=lambda one: len(one.tasks))
        slab = worker.free_slab()
        assert slab is not None
        worker.tasks.append((pending, slab))
        self._send(worker, pending, slab)
        return True

    def _send(self, worker: _Worker, pending: _Pending, at: int) -> None:
        slab, step = worker.slabs[at], pending.step
        rows, left_out = len(step.rows), len(pending.left_out)
        stop = REQUEST_AT + 8 * rows + 16 * left_out
        slab.reserve(stop)
        request = slab.bytes[REQUEST_AT:stop].view(np.int64)
        request[:rows] = step.rows
        request[rows:] = np.array(list(pending.left_out.items()), np.int64).reshape(-1)
        slab.words[AT_PLACE], slab.words[CANCELLED] = -1, not pending.wanted
        slab.words[AT_SINCE] = monotonic_ns()
        task = TASK.pack(pending.number, at, slab.size, step.epoch, step.start, rows, step.padding, left_out)
        if worker.channel is not None:
            with contextlib.suppress(OSError):  # it died: `poll` sees that, and sends again
                worker.channel.sendall(task)

    def poll(self, timeout_s: float | None) -> None:
        """Take what the workers answer; wait for the first answer, at most so long. Restarts those that died."""
        watched = {}
        for worker in self._workers:
            if worker.channel is not None:
                watched[worker.channel.fileno()] = worker
                watched[worker.process.sentinel] = worker
        poller = select.poll()
        for descriptor in watched:
            poller.register(descriptor, select.POLLIN)
        found = poller.poll(None if timeout_s is None else max(0, int(timeout_s * 1000)))
        for worker in {watched[descriptor].number: watched[descriptor] for descriptor, _ in found}.values():
            if not self._receive(worker):
                self._died(worker)

    def _receive(self, worker: _Worker) -> bool:
        """All answers that are there; False when the worker is dead."""
        assert worker.channel is not None
        dead = not worker.process.is_alive()
        while True:
            try:
                more = worker.channel.recv(_ANSWERS_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                more = b""
            if not more:
                dead = True
                break
            worker.inbox += more
        while len(worker.inbox) >= ANSWER.size:
            number, kind, size, place, length = ANSWER.unpack_from(worker.inbox)
            stop = ANSWER.size + (length if number < 0 else 0)
            if len(worker.inbox) < stop:
                break
            said, worker.inbox = worker.inbox[ANSWER.size : stop], worker.inbox[stop:]
            if number >= 0:
                self._take(worker, number, kind, size, place, length)
            elif kind == READY:
                worker.ready, worker.deaths = True, 0
            else:
                raise restored(said)
        return not dead

    def _take(self, worker: _Worker, number: int, kind: int, size: int, place: int, length: int) -> None:
        pending, at = worker.tasks.popleft()
        assert pending.number == number
        slab = worker.slabs[at]
        slab.remap(size)
        pending.done = True
        if not pending.wanted:
            return
        first = REQUEST_AT + 8 * len(pending.step.rows) + 16 * len(pending.left_out)
        if kind == MADE:
            unleased = sum(not one.leased for one in worker.slabs)
            batch, faults, seconds = unpack(slab, first, place, length, lease=unleased > self.ahead)
            for stage, took in seconds.items():
                self._stats.clock.add(stage, took)
            pending.made = Made(batch, [Fault(*fault) for fault in faults])
        elif kind == FAILED:
            pending.error = restored(unpack(slab, first, place, length, False))

    def abandon(self) -> None:
        """Nobody waits for the steps that are under way. What has not begun is not made."""
        if os.getpid() != self._owner:
            return
        for worker in self._workers:
            for pending, at in worker.tasks:
                pending.wanted = False
                worker.slabs[at].words[CANCELLED] = 1

    # -- what a step is waiting for --------------------------------------------------------------------------------

    def at_work_on(self, pending: _Pending) -> tuple[_Worker, int, str, float] | None:
        """(worker, place of the sample or -1, column, seconds) where a worker is at this step."""
        for worker in self._workers:
            if worker.tasks and worker.tasks[0][0] is pending:
                words = worker.slabs[worker.tasks[0][1]].words
                column = int(words[AT_COLUMN])
                name = self.maker.source.columns[column].name if column >= 0 else ""
                return worker, int(words[AT_PLACE]), name, (monotonic_ns() - int(words[AT_SINCE])) / 1e9
        return None

    def leave_out(self, pending: _Pending, worker: _Worker, place: int, why: int) -> None:
        """End a worker; its step is made again without this sample."""
        pending.left_out[place] = why
        worker.process.kill()
        self._died(worker, blame=False)

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        _channels.add(ours)
        try:
            work = Work(self.maker, worker.number, len(self._workers), self._init, self._dataset)
            forks = self._context.get_start_method() == "fork"
            before = _close_inherited(worker.slabs) if forks else None
            worker.process = self._context.Process(
                target=main,
                args=(work, theirs, worker.slabs, before),
                name=f"lepton-loader-{worker.number}",
                daemon=True,
            )
            with _findable_main():
                worker.process.start()
        except BaseException:
            worker.process = None
            ours.close()
            raise
        finally:
            theirs.close()
        worker.channel, worker.ready, worker.inbox, worker.began = ours, False, b"", monotonic()

    def _died(self, worker: _Worker, blame: bool = True) -> None:
        worker.process.join(CLOSE_WAIT_S)
        if worker.process.is_alive():  # it has closed its socket, and does not end
            worker.process.kill()
            worker.process.join()
        how = _ending(worker.process)
        self._forget(worker)
        worker.deaths += not worker.ready
        if worker.deaths >= START_DEATHS_MAX:
            raise WorkerFailed(
                f"worker {worker.number} {how} before it was ready, {worker.deaths} times: what it wrote to stderr says why. "
                f"Started by {self._context.get_start_method()}, it imports or inherits everything that it is given"
            )
        if blame and worker.ready and worker.tasks:
            self._blame(worker, how)
        self._stats["restarts"] += 1
        if blame:
            warnings.warn(
                f"DataLoader worker {worker.number} {how}; it is started again, and {len(worker.tasks)} steps are made again",
                RuntimeWarning,
                stacklevel=2,
            )
        self._start(worker)
        for pending, at in worker.tasks:
            self._send(worker, pending, at)

    def _blame(self, worker: _Worker, how: str) -> None:
        """Count a death of the step that a worker was at; at last it is an error, or its sample is left out."""
        pending, at = worker.tasks[0]
        pending.deaths += 1
        if pending.deaths < STEP_DEATHS_MAX:
            return
        words, step = worker.slabs[at].words, pending.step
        place, column = int(words[AT_PLACE]), int(words[AT_COLUMN])
        if place >= 0 and self.policy != "raise":
            pending.left_out[place], pending.deaths = DIES, 0
            return
        worker.tasks.popleft()
        source = self.maker.source
        where = f"rows {int(step.rows[0])} … of dataset {source.name!r}" if len(step.rows) else "no rows"
        sample: SampleName | None = None
        if place >= 0:
            sample = name_of(source, step, place, source.columns[column].name)
            where = str(sample)
        error = WorkerFailed(
            f"worker {worker.number} {how} at the step at position {step.start} of epoch {step.epoch} (last at {where}), "
            f"{pending.deaths} times: this step ends its workers"
        )
        if sample is not None:
            named(error, sample)
        pending.error, pending.done = error, True

    def _forget(self, worker: _Worker) -> None:
        if worker.channel is not None:
            worker.channel.close()
            worker.channel = None
        if worker.process is not None:
            worker.process.close()
            worker.process = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of a loader, in whatever process, starts workers of its own

    def close(self) -> None:
        """End the processes: those that do not in CLOSE_WAIT_S are killed. Idempotent. Batches keep their memory."""
        if os.getpid() != self._owner:  # a child that was forked meanwhile has a copy of this object, and no part in it
            return
        self.abandon()
        for worker in self._workers:
            if worker.channel is not None:
                worker.channel.close()
                worker.channel = None
        deadline = monotonic() + CLOSE_WAIT_S
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join(max(0.0, deadline - monotonic()))
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                self._forget(worker)
            for slab in worker.slabs:
                slab.close()
        self._workers = []

    def __del__(self) -> None:
        if "_workers" in self.__dict__:
            self.close()


@contextlib.contextmanager
def _findable_main() -> Iterator[None]:
    """A program that was read from a pipe has "<stdin>" for a file, which a spawned child would look for: as in a notebook, it has none."""
    module = sys.modules["__main__"]
    path = getattr(module, "__file__", None)
    hidden = path is not None and path.startswith("<") and not os.path.exists(path)
    if hidden:
        del module.__file__
    try:
        yield
    finally:
        if hidden:
            module.__file__ = path


def _ending(process: Any) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"(pid {process.pid}) was ended by {signal.Signals(-code).name}"
    return f"(pid {process.pid}) ended with exit code {code}"


def _close_inherited(kept: list[Slab]) -> Callable[[], None]:
    """What a forked worker does first: its siblings' slabs, and its parent's ends of all sockets, are not its own."""

    def close() -> None:
        for channel in list(_channels):
            channel.close()
        for slab in list(_all_slabs):
            if not any(slab is one for one in kept):
                slab.close()

    return close


class WorkerBatches:
    """An iterator over the batches of `steps`, made by a pool of worker processes. Used by one thread.

    pin:       done to each batch here: pinned memory belongs to one process.
    keep_pool: whether the pool outlives the pass (persistent_workers).
    The other parameters are those of `loaders.threads.ThreadedBatches`.
    """

    def __init__(
        self,
        pool: WorkerPool,
        steps: Iterator[Step],
        timeout_s: float = 0,
        in_order: bool = True,
        pin: Transform | None = None,
        keep_pool: bool = False,
        on_fault: OnFault | None = None,
    ) -> None:
        self._pool, self._keep_pool = pool, keep_pool
        pool.abandon()
        self._claim = pool.claim = object()  # not this object, which would keep itself alive
        self._steps, self._steps_left = steps, True
        self._steps_error: Exception | None = None
        self._timeout_s, self._in_order, self._pin, self._on_fault = timeout_s, in_order, pin, on_fault
        self._ahead: deque[_Pending] = deque()
        self._next: Step | None = None  # taken from `steps`, and no worker has room for it
        self._faults = FaultCount()
        self._open = True

    def __iter__(self) -> WorkerBatches:
        return self

    def __next__(self) -> Any:
        try:
            if self._open and self._pool.claim is not self._claim:
                raise RuntimeError(
                    "this pass is over: a later iter() of the same loader has taken its persistent workers"
                )
            self._submit()
            while not self._ahead and self._next is not None:  # the workers are still at steps of a pass that was left
                self._pool.poll(None)
                self._submit()
            if not self._ahead:
                if self._steps_error is not None:
                    error, self._steps_error = self._steps_error, None
                    raise error
                raise StopIteration
            pending = self._wait()
            self._ahead.remove(pending)
            if pending.error is not None:
                raise pending.error
            assert pending.made is not None
            batch, faults = pending.made
            pending.made = None
            self._faults.add(len(pending.step.rows), faults, self._on_fault)
            self._submit()
        except BaseException:
            self.close()
            raise
        return batch if self._pin is None else self._pin(batch)

    def _submit(self) -> None:
        while self._steps_left and len(self._ahead) < self._pool.depth:
            try:
                step = self._next or next(self._steps)
            except StopIteration:
                self._steps_left = False
                return
            except Exception as error:
                self._steps_left, self._steps_error = False, error
                return
            pending = _Pending(next(_numbers), step)
            if not self._pool.submit(pending):
                self._next = step
                return
            self._next = None
            self._ahead.append(pending)

    def _wait(self) -> _Pending:
        deadline = monotonic() + self._timeout_s if self._timeout_s else None
        while True:
            found = self._find_done()
            if found is not None:
                return found
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                deadline = monotonic() + self._more_time(self._ahead[0])
                continue
            self._pool.poll(left)

    def _find_done(self) -> _Pending | None:
        if self._in_order:
            return self._ahead[0] if self._ahead[0].done else None
        return next((pending for pending in self._ahead if pending.done), None)

    def _more_time(self, pending: _Pending) -> float:
        """The seconds that a step gets beyond its timeout; raises as torch's loader does when it gets none.

        Under a policy, time is a matter of samples: one that takes longer than the timeout is left out.
        """
        pool, step = self._pool, pending.step
        at = pool.at_work_on(pending)
        waiting = ""
        if at is not None:
            worker, place, column, seconds = at
            if not worker.ready and monotonic() - worker.began < START_WAIT_S:
                return self._timeout_s
            if place >= 0 and pool.policy != "raise":
                if seconds < self._timeout_s:
                    return self._timeout_s - seconds
                pool.leave_out(pending, worker, place, HANGS)
                return self._timeout_s
            if place >= 0:
                waiting = f", waiting for {name_of(pool.maker.source, step, place, column)} for {seconds:.1f} s"
        if not waiting and len(step.rows):
            name = pool.maker.source.name
            waiting = f", waiting for rows {int(step.rows[0])} … of dataset {name!r} (position {step.start})"
        raise RuntimeError(f"DataLoader timed out after {self._timeout_s} seconds{waiting}")

    def close(self) -> None:
        """End the pass, and the workers unless they are persistent. Idempotent."""
        if self._open:
            self._open = self._steps_left = False
            self._ahead.clear()
            self._next = None
            if self._keep_pool and self._pool.claim is self._claim:
                self._pool.abandon()
            elif not self._keep_pool:
                self._pool.close()

    def __del__(self) -> None:
        if "_open" in self.__dict__:
            self.close()


_numbers = count()  # of steps, never used twice: answers of a pass that was left are told from those of the next
