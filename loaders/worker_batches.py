"""The batches of a pass that worker processes make: handed out in order, timed, closed. See loaders/workers.py for the processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import count
from time import monotonic
from typing import Any

from loaders.faults import FaultCount, OnFault, name_of, step_named
from loaders.stages import Transform
from loaders.step import Step
from loaders.worker import HANGS
from loaders.workers import Pending, WorkerPool

# For a worker that starts (it imports torch, and what the user's functions need), whatever `timeout` says.
START_WAIT_S = 120.0


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
        self._ahead: deque[Pending] = deque()
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
            pending = Pending(next(_numbers), step)
            if not self._pool.submit(pending):
                self._next = step
                return
            self._next = None
            self._ahead.append(pending)

    def _wait(self) -> Pending:
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

    def _find_done(self) -> Pending | None:
        if self._in_order:
            return self._ahead[0] if self._ahead[0].done else None
        return next((pending for pending in self._ahead if pending.done), None)

    def _more_time(self, pending: Pending) -> float:
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
            waiting = f", waiting for {step_named(pool.maker.source, step)}"
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
