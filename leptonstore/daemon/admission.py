"""How much runs at once: so many requests of a kind, first come first served; who would wait too long is told to come again.

A queue that is let grow makes everybody wait for what nobody waits for any more. So it is bounded in length and in time, and who is
refused (TooBusy) is told when to ask again. First come first served is what keeps the slowest request near the usual one: threads
that fight for a lock (the interpreter's, too) do not take turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from leptonstore.errors import TooBusy


class Admission:
    """At most `at_once` inside; at most `waiting_max` wait, each for at most `wait_s` (None: for as long as it takes). Any thread."""

    def __init__(self, what: str, at_once: int, waiting_max: int, wait_s: float | None) -> None:
        self._what, self._waiting_max, self._wait_s = what, waiting_max, wait_s
        self._guard = threading.Lock()
        self._free = self.at_once = at_once
        self._queue: deque[threading.Lock] = deque()

    @property
    def inside(self) -> int:
        """How many are inside now."""
        return self.at_once - self._free

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue)

    def enter(self) -> None:
        """Wait for a place. `leave` has to follow. Raises TooBusy."""
        with self._guard:
            if self._free and not self._queue:
                self._free -= 1
                return
            if len(self._queue) >= self._waiting_max:
                raise TooBusy(f"{self._waiting_max} {self._what} wait already: try again later", 1.0)
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        if turn.acquire(timeout=-1 if self._wait_s is None else self._wait_s):
            return
        with self._guard:
            if turn in self._queue:
                self._queue.remove(turn)
                raise TooBusy(
                    f"the daemon was busy with other {self._what} for {self._wait_s:.0f} s: try again later", 1.0
                )
        # Its turn came in this moment.

    def leave(self) -> None:
        """Give the place to who waits longest."""
        with self._guard:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Inside, a place is held."""
        self.enter()
        try:
            yield
        finally:
            self.leave()
