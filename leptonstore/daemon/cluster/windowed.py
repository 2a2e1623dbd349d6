"""Many parts in order, with as many requests under way as memory allows."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.wire import Part

T = TypeVar("T")
Begin = Callable[[Sequence[Part]], Sequence[Callable[[], T]]]


class Windows:
    """FLIGHT_BLOCKS for all readers together. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.readers = 0

    def in_order(self, parts: Sequence[Part], begin: Begin[T]) -> Iterator[Callable[[], T]]:
        """What waits for each part, in order. begin(some): the requests for them are under way when it returns.

        The first requests are under way when this returns, and those for what comes next while something is waited for.
        """
        batches = self._batches(parts)
        waiting = deque(begin(some) for some in itertools.islice(batches, 2))
        return self._rest(batches, waiting, begin)

    def _rest(
        self, batches: Iterator[Sequence[Part]], waiting: deque[Sequence[Callable[[], T]]], begin: Begin[T]
    ) -> Iterator[Callable[[], T]]:
        with self._lock:
            self.readers += 1
        try:
            while waiting:
                yield from waiting.popleft()
                waiting.extend(begin(some) for some in itertools.islice(batches, 1))
        finally:
            with self._lock:
                self.readers -= 1

    def _batches(self, parts: Sequence[Part]) -> Iterator[Sequence[Part]]:
        """Stretches with so many different blocks that two of them, for every reader, are FLIGHT_BLOCKS together."""
        first, blocks = 0, set[tuple[str, int]]()
        for at, part in enumerate(parts):
            blocks.add(part.key)
            if len(blocks) > max(2, bounds.FLIGHT_BLOCKS // (2 * (self.readers + 1))):
                yield parts[first:at]
                first, blocks = at, {part.key}
        if first < len(parts):
            yield parts[first:]
