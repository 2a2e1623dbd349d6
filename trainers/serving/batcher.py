"""Micro-batches: requests of a few rows each, computed together by one thread.

Requests wait in the order in which they came. The worker takes as many whole ones as fit into a batch; while it computes, the next
ones gather, so that batches grow with the load by themselves, and an idle model answers at once. `wait_ms` lets it wait for company.

Invariants: an accepted request is answered exactly once, by outputs or by an error, also when the batcher is closed; at most
`queue_rows_max` rows wait; only the worker thread ever runs the model; a request that fails its batch fails alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from leptonstore.web.limits import RETRY_AFTER_S
from trainers.serving.refusal import Refused


class Runner(Protocol):
    """What the worker runs: [n, ...] -> [n, ...]."""

    def __call__(self, rows: Tensor) -> Tensor: ...


R = TypeVar("R", bound=Runner)


@dataclass(frozen=True)
class Answer:
    """Outputs of one request's rows, and where its time went (seconds). `batch_rows`: of all requests of its batch."""

    outputs: Tensor
    queue_s: float
    model_s: float
    batch_rows: int


@dataclass(frozen=True, eq=False)
class _Waiting:
    rows: Tensor
    arrived: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]


class Batcher(Generic[R]):
    """`submit` from any event loop; `close` from any thread. Begins with a thread that makes the model, so that whatever torch
    keeps per thread (their number, for one) is that of the thread which runs it.

    on_batch: called in the worker thread with (rows, requests, seconds) of every batch.
    """

    def __init__(
        self,
        make: Callable[[], R],
        *,
        batch_rows: int,
        wait_s: float,
        queue_rows_max: int,
        on_batch: Callable[[int, int, float], None] = lambda rows, requests, seconds: None,
    ) -> None:
        """Returns when the model is ready. Raises what `make` raises."""
        self._batch_rows, self._wait_s, self._queue_rows_max = batch_rows, wait_s, queue_rows_max
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0  # that wait
        self._closed = False
        self._made: list[R | Exception] = []  # one, once it is made
        self._thread = threading.Thread(target=self._work, args=(make,), name="lepton-model", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._made)
        (made,) = self._made
        if isinstance(made, Exception):
            self._thread.join()
            raise made
        self.runner: R = made  # what `make` gave; to be run by the batcher's thread alone

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for the model."""
        return self._rows

    @property
    def alive(self) -> bool:
        """Whether there is still somebody to answer."""
        return self._thread.is_alive()

    async def submit(self, rows: Tensor) -> Answer:
        """Outputs of `rows` [n, ...], n >= 1. Raises Refused: the queue is full, the batcher closed, or the model failed.

        A caller that is cancelled takes its rows out of the queue.
        """
        loop = asyncio.get_running_loop()
        request = _Waiting(rows, time.monotonic(), loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise Refused("draining", "this server is stopping", RETRY_AFTER_S)
            if self._rows + len(rows) > self._queue_rows_max:
                raise Refused("queue_full", f"{self._rows:,} rows are waiting; try again later", RETRY_AFTER_S)
            self._waiting.append(request)
            self._rows += len(rows)
            if len(self._waiting) == 1 or self._rows >= self._batch_rows:
                self._changed.notify()
        return await request.future

    def close(self) -> None:
        """Answers what was accepted, and ends the thread. Later requests are refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self, make: Callable[[], R]) -> None:
        try:
            made: R | Exception = make()
        except Exception as error:
            made = error
        with self._changed:
            self._made.append(made)
            self._changed.notify_all()
        if isinstance(made, Exception):
            return
        while batch := self._next_batch():
            self._compute(made, batch)

    def _next_batch(self) -> list[_Waiting]:
        """Waits for one; empty when the batcher is closed and nothing waits any more."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                until = self._waiting[0].arrived + self._wait_s
                left = until - time.monotonic()
                if left > 0:
                    self._changed.wait_for(lambda: self._closed or self._rows >= self._batch_rows, left)
                if taken := self._take():
                    return taken

    def _take(self) -> list[_Waiting]:
        """Whole requests up to `batch_rows`, at least one; those that nobody waits for any more are dropped."""
        taken: list[_Waiting] = []
        rows = 0
        while self._waiting and (not taken or rows + len(self._waiting[0].rows) <= self._batch_rows):
            request = self._waiting.popleft()
            self._rows -= len(request.rows)
            if not request.future.cancelled():
                taken.append(request)
                rows += len(request.rows)
        return taken

    def _compute(self, model: Runner, batch: Sequence[_Waiting]) -> None:
        started = time.monotonic()
        rows = torch.cat([request.rows for request in batch]) if len(batch) > 1 else batch[0].rows
        try:
            outputs = model(rows)
            if len(outputs) != len(rows):
                raise RuntimeError(f"the model gave {len(outputs)} rows for {len(rows)}")
        except Exception as error:
            if len(batch) > 1:  # whose rows it was is found by trying each alone
                for request in batch:
                    self._compute(model, [request])
                return
            _deliver(batch, [error])
            return
        seconds = time.monotonic() - started
        self._on_batch(len(rows), len(batch), seconds)
        answers, at = [], 0
        for request in batch:
            part = outputs[at : at + len(request.rows)]
            at += len(request.rows)
            answers.append(Answer(part, started - request.arrived, seconds, len(rows)))
        _deliver(batch, answers)


def _deliver(batch: Sequence[_Waiting], results: Sequence[Answer | Exception]) -> None:
    """One call into each event loop for all of its requests."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
    for request, result in zip(batch, results, strict=True):
        by_loop.setdefault(request.loop, []).append((request.future, result))
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, pairs)
        except RuntimeError:  # it is closed: nobody waits
            continue


def _settle(pairs: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    for future, result in pairs:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
