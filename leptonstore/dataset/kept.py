"""Kept: what was read lately, up to a number of bytes; what was not used for the longest time goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from leptonstore.dataset.forked import renew_in_children

_V = TypeVar("_V")


class Kept(Generic[_V]):
    """A bounded cache in memory. The newest value stays, however large it is. Any thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._values: OrderedDict[Hashable, tuple[_V, int]] = OrderedDict()
        self._lock = threading.Lock()
        renew_in_children(self)

    def get(self, key: Hashable) -> _V | None:
        """The value, None when it is not kept."""
        # Without the lock, which would cost as much as the rest: each of the two calls is atomic, and it may go in between.
        found = self._values.get(key)
        if found is None:
            return None
        try:  # noqa: SIM105 - a context manager would cost more than the look-up
            self._values.move_to_end(key)
        except KeyError:
            pass
        return found[0]

    def add(self, key: Hashable, value: _V, size: int) -> _V:
        """Keep `value`, which takes `size` bytes; returns what is kept, which another thread may have added before."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                return found[0]
            self._values[key] = value, size
            self._bytes += size
            while self._bytes > self._bytes_max and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][1]
            return value
