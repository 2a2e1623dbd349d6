"""Work on finished batches that begins before they are needed: copies to a device, which run by themselves once begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


def ahead(begin: Callable[[Any], Callable[[], Any]], batches: Iterator[Any], depth: int = 1) -> Iterator[Any]:
    """For each batch, in order, `begin(batch)()`; `begin` is called for up to `depth` batches beyond the one handed out.

    An exception of `batches` or `begin` is raised at the batch that it belongs to. Closing it closes `batches`.
    """
    begun: deque[Callable[[], Any]] = deque()
    end: Exception | None = None
    try:
        while True:
            while end is None and len(begun) <= depth:
                try:
                    begun.append(begin(next(batches)))
                except Exception as error:  # the end too
                    end = error
            if not begun:
                break
            yield begun.popleft()()
        if not isinstance(end, StopIteration):
            assert end is not None
            raise end
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
