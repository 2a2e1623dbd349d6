"""The threads that may block on the store, and how much of it at once.

A request that uses the store has a place (`place`) from its beginning to the last byte of its answer. When all are taken, the next waits
for one, with nothing of it read but its head; when too many wait, or one waits for too long, it is told to come again (TooBusy, 429). What
does not use the store (health, metrics) needs no place.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Generic, ParamSpec, TypeVar

from leptonstore.daemon.http.bounds import PLACE_WAIT_S, REQUESTS_MAX, REQUESTS_WAITING_MAX, STEP_S, THREADS
from leptonstore.errors import TierUnavailable, TooBusy

P = ParamSpec("P")
T = TypeVar("T")
_END: Any = object()


class Work:
    """For one event loop, on which all of it is called."""

    def __init__(
        self,
        threads: int = THREADS,
        requests_max: int = REQUESTS_MAX,
        waiting_max: int = REQUESTS_WAITING_MAX,
        wait_s: float = PLACE_WAIT_S,
        step_s: float = STEP_S,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lepton-http-work")
        self._free = asyncio.Semaphore(requests_max)
        self._waiting_max, self._wait_s, self._step_s = waiting_max, wait_s, step_s
        self.running = self.waiting = 0  # requests that have a place, or wait for one

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """For one request; first come, first served. Raises TooBusy."""
        if self._free.locked():
            if self.waiting >= self._waiting_max:
                raise TooBusy(f"{self.waiting} requests wait already: try again later", 1.0)
            self.waiting += 1
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._free.acquire()
            except TimeoutError:
                raise TooBusy(
                    f"the daemon was busy with other requests for {self._wait_s:g} s: try again later", 1.0
                ) from None
            finally:
                self.waiting -= 1
        else:
            await self._free.acquire()  # at once
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()

    async def run(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it in a thread. Raises what it raises, TierUnavailable when it takes longer than a step may (it then ends by itself)."""
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, lambda: context.run(do, *args, **kwargs))
        try:
            async with asyncio.timeout(self._step_s):
                return await future
        except TimeoutError:
            raise TierUnavailable(f"the store did not answer within {self._step_s:g} s: try again later") from None

    async def steps(self, iterator: Iterator[T]) -> AsyncGenerator[T, None]:
        """Its items, each made in a thread while the one before is sent. It is closed in the end, whatever happens."""
        steps = _Steps(iterator)
        ahead: asyncio.Task[T] | None = None
        try:
            ahead = asyncio.ensure_future(self.run(steps.next))
            while (item := await ahead) is not _END:
                ahead = asyncio.ensure_future(self.run(steps.next))
                yield item
                del item
        finally:
            if ahead is not None and not ahead.done():
                ahead.cancel()
            elif ahead is not None and not ahead.cancelled():
                ahead.exception()  # nobody wants to know any more
            self._closed_later(steps)

    def _closed_later(self, steps: _Steps[Any]) -> None:
        try:
            self._pool.submit(steps.close)
        except RuntimeError:  # the pool has ended: no thread uses it any more
            steps.close()

    def close(self) -> None:
        """Nothing is done any more. Does not wait for threads that hang."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Steps(Generic[T]):
    """An iterator that several threads may use, one at a time. After `close` it has ended."""

    def __init__(self, iterator: Iterator[T]) -> None:
        self._iterator, self._guard, self._closed = iterator, threading.Lock(), False

    def next(self) -> T:
        with self._guard:
            if self._closed:
                ended: T = _END
                return ended
            return next(self._iterator, _END)

    def close(self) -> None:
        with self._guard:
            self._closed = True
            close = getattr(self._iterator, "close", None)
            if close is not None:
                close()
