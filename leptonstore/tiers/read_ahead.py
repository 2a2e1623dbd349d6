"""Reading ahead in packs that are read from one end to the other: for callers that ask for one record after the other.

    reads of a pack ---- 50 KB, 50 KB, 50 KB: a stream ----> windows of READ_AHEAD_BYTES, the next one always under way

Two reads in a row that begin where another one ended (or up to READ_AHEAD_GAP_BYTES later) make a stream; anything else is read as it is
asked for, so that reads in random order cost no more than their bytes. Packs never change: what is in a window stays right.

Locks: `_lock` guards every field; it is never held while bytes are fetched. The executor's threads must not read through this.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from leptonstore import limits
from leptonstore.digest import Buffer

Fetch = Callable[[str, int, int], Buffer]
STREAM_READS_MIN = 2  # that followed another one
STREAMS_MAX = 8  # of one pack: as many threads may read it, each in its own place


@dataclass
class _Stream:
    end: int
    reads: int = 0


@dataclass
class _Window:
    start: int
    end: int
    data: Future[Buffer]


class ReadAhead:
    """Any thread."""

    def __init__(self, fetch: Fetch, executor: Callable[[], Executor]) -> None:
        """`fetch(pack, offset, length)` reads; `executor` runs it ahead."""
        self._fetch, self._executor = fetch, executor
        self.clear()

    def clear(self) -> None:
        """Forget everything; also in a child process."""
        self._lock = threading.Lock()
        self._streams: OrderedDict[str, list[_Stream]] = OrderedDict()
        self._windows: OrderedDict[tuple[str, int], _Window] = OrderedDict()

    def forget(self, pack: str) -> None:
        """It is gone."""
        with self._lock:
            self._streams.pop(pack, None)
            for key in [key for key in self._windows if key[0] == pack]:
                del self._windows[key]

    def read(self, pack: str, offset: int, length: int) -> Buffer:
        """As PackReader.read; `length` is not 0."""
        with self._lock:
            follows = self._follows(pack, offset, offset + length)
            windows = self._covering(pack, offset, offset + length) if follows else []
        if not windows:
            return self._fetch(pack, offset, length)
        parts, at = [], offset  # windows of several streams may overlap
        for window in windows:
            try:
                data = memoryview(window.data.result())
            except BaseException:
                self.forget(pack)
                raise
            parts.append(data[at - window.start : min(window.end, offset + length) - window.start])
            at = window.end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _follows(self, pack: str, offset: int, end: int) -> bool:
        """Under the lock. Whether this read goes on where others ended; from now on, another may go on at `end`."""
        streams = self._streams.setdefault(pack, [])
        self._streams.move_to_end(pack)
        if len(self._streams) > limits.READ_AHEAD_PACKS_MAX:
            self._streams.popitem(last=False)
        for stream in streams:
            if 0 <= offset - stream.end <= limits.READ_AHEAD_GAP_BYTES:
                stream.end, stream.reads = end, stream.reads + 1
                return stream.reads >= STREAM_READS_MIN
        streams.append(_Stream(end))
        del streams[:-STREAMS_MAX]
        return False

    def _covering(self, pack: str, offset: int, end: int) -> list[_Window]:
        """Under the lock. The windows that have [offset, end), made where they are missing; the next one is begun, too."""
        found: list[_Window] = []
        at = offset
        while at < end:
            window = next(
                (one for key, one in self._windows.items() if key[0] == pack and one.start <= at < one.end), None
            )
            if window is None:
                window = self._begin(pack, at, max(limits.READ_AHEAD_BYTES, end - at))
            found.append(window)
            at = window.end
        if (pack, at) not in self._windows:
            self._begin(pack, at, limits.READ_AHEAD_BYTES)
        return found

    def _begin(self, pack: str, start: int, length: int) -> _Window:
        window = _Window(start, start + length, self._executor().submit(self._fetch, pack, start, length))
        self._windows[pack, start] = window
        while len(self._windows) > limits.READ_AHEAD_WINDOWS_MAX:
            self._windows.popitem(last=False)
        return window
