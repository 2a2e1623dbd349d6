"""Work on finished batches that begins before they are needed: copies to a device, which run by themselves once begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


class Ahead:
    """For each batch, in order, `begin(batch)()`; `begin` is called for up to `depth` batches beyond the one handed out.

    An exception of `batches` or `begin` is raised at the batch that it belongs to, and ends the iteration. Used by one thread.
    """

    def __init__(self, begin: Callable[[Any], Callable[[], Any]], batches: Iterator[Any], depth: int = 1) -> None:
        self._begin, self._batches, self._depth = begin, batches, depth
        self._begun: deque[Callable[[], Any]] = deque()
        self._end: Exception | None = None

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Any:
        while self._end is None and len(self._begun) <= self._depth:
            try:
                self._begun.append(self._begin(next(self._batches)))
            except Exception as error:  # the end too
                self._end = error
        if self._begun:
            return self._begun.popleft()()
        end, self._end = self._end, StopIteration()
        self.close()
        assert end is not None
        raise end

    def close(self) -> None:
        """Forget what has begun, and close `batches`. Idempotent."""
        self._begun.clear()
        self._end = self._end or StopIteration()
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
