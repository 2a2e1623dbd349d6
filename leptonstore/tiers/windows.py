"""Pieces of packs at multiples of WINDOW_BYTES, the latest kept: requests that several reads share.

Aligned, because uploads are: a part of a multipart upload is a piece that servers keep together, and a request that crosses two of them
costs SeaweedFS half as much again. Packs never change: what is in a window stays right.

Locks: `_lock` guards the windows; it is never held while bytes are fetched. The executor's threads must not read through this.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future

from leptonstore import limits
from leptonstore.digest import Buffer

Fetch = Callable[[str, int, int], Buffer]


class Windows:
    """Window `number` of a pack is its bytes from number * WINDOW_BYTES on, fewer where the pack ends. Any thread."""

    def __init__(self, fetch: Fetch, executor: Callable[[], Executor]) -> None:
        """`fetch(pack, offset, length)` reads; `executor` runs it."""
        self._fetch, self._executor = fetch, executor
        self.clear()

    def clear(self) -> None:
        """Forget everything; also in a child process."""
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, int], Future[Buffer]] = OrderedDict()

    def forget(self, pack: str) -> None:
        """It is gone, or a window of it could not be had."""
        with self._lock:
            for key in [key for key in self._windows if key[0] == pack]:
                del self._windows[key]

    def used_up(self, pack: str, number: int) -> None:
        """Whoever read from it went on beyond its end: its memory is worth more to the next window."""
        with self._lock:
            self._windows.pop((pack, number), None)

    def known(self, pack: str, number: int) -> bool:
        """Whether `window` would cost nothing."""
        return (pack, number) in self._windows

    def window(self, pack: str, number: int) -> Future[Buffer]:
        """The bytes of a window, which are begun to be fetched where they are not here."""
        with self._lock:
            found = self._windows.get((pack, number))
            if found is None:
                size = limits.WINDOW_BYTES
                found = self._executor().submit(self._fetch, pack, number * size, size)
                self._windows[pack, number] = found
                while len(self._windows) > limits.WINDOWS_MAX:
                    self._windows.popitem(last=False)
            else:
                self._windows.move_to_end((pack, number))
            return found
