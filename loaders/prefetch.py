"""Batches made ahead by threads, handed out in order. For work that releases the GIL: reading, decompressing, decoding.

    Prefetcher(make, inputs, threads, depth, timeout_s)     next() -> make(input); close()

At most `depth` inputs are taken ahead. An exception of `make` (or of `inputs`) is raised at the batch that it belongs
to, after all batches before it. Closing forgets what has not begun and waits for what has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class Prefetcher:
    """An iterator over `make(input)` for each of `inputs`, computed by `threads` threads. Used by one thread.

    timeout_s: seconds that a batch may keep its caller waiting, 0 for no limit; then RuntimeError, as torch's loader
               raises, and the iteration is over.
    """

    def __init__(
        self, make: Callable[[Any], Any], inputs: Iterator[Any], threads: int, depth: int, timeout_s: float = 0
    ) -> None:
        self._make = make
        self._inputs = inputs
        self._depth = max(depth, 1)
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lepton-loader")
        self._ahead: deque[Future[Any]] = deque()
        self._inputs_error: BaseException | None = None
        self._inputs_left = True

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        self._submit()
        if not self._ahead:
            self.close()
            if self._inputs_error is not None:
                error, self._inputs_error = self._inputs_error, None
                raise error
            raise StopIteration
        future = self._ahead.popleft()
        if self._timeout_s and not wait((future,), self._timeout_s).done:
            self.close(wait_for_threads=False)
            raise RuntimeError(f"DataLoader timed out after {self._timeout_s} seconds")
        try:
            batch = future.result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def _submit(self) -> None:
        while self._inputs_left and len(self._ahead) < self._depth:
            try:
                item = next(self._inputs)
            except StopIteration:
                self._inputs_left = False
            except Exception as error:
                self._inputs_left, self._inputs_error = False, error
            else:
                self._ahead.append(self._pool.submit(self._make, item))

    def close(self, wait_for_threads: bool = True) -> None:
        """Stop: what has not begun is cancelled, what has is waited for (unless it is known to hang). Idempotent."""
        self._inputs_left = False
        self._ahead.clear()
        self._pool.shutdown(wait=wait_for_threads, cancel_futures=True)
