"""Doing work of a stream a few items ahead, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

READ_THREADS = 2  # row groups decoded at once by a scan; memory grows by one row group each
_T = TypeVar("_T")
_R = TypeVar("_R")


def read_ahead(items: Iterator[_T], read: Callable[[_T], _R]) -> Iterator[_R]:
    """`read` of each item, in order; when there are more than two, several at a time.

    Reading, decompressing and hashing release the GIL. What `items` or `read` raise comes where its result would have.
    """
    first = list(islice(items, 3))
    if len(first) <= 2:
        yield from map(read, first)
        return
    with ThreadPoolExecutor(READ_THREADS, "lepton-read") as pool:
        ahead: deque[Future[_R]] = deque()
        try:
            for item in chain(first, items):
                ahead.append(pool.submit(read, item))
                if len(ahead) > READ_THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
