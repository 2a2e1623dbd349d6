"""Reading ahead in packs that are read from one end to the other: for callers that ask for one record after the other.

    reads of a pack ---- 50 KB, 50 KB, 50 KB: a stream ----> whole windows, the next ones under way

Two reads in a row that begin where another one ended (or up to READ_AHEAD_GAP_BYTES later) make a stream; anything else is read as it is
asked for, so that reads in random order cost no more than their bytes. The more of a stream was read, the further ahead it is read.

Locks: `_lock` guards the streams; it is never held while bytes are fetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.tiers.windows import Fetch, Windows

STREAM_READS_MIN = 2  # that followed another one
STREAMS_MAX = 8  # of one pack: as many threads may read it, each in its own place


@dataclass
class _Stream:
    start: int
    end: int
    reads: int = 0


class ReadAhead:
    """Any thread."""

    def __init__(self, fetch: Fetch, windows: Windows) -> None:
        """`fetch(pack, offset, length)` reads what is in no stream."""
        self._fetch, self._windows = fetch, windows
        self.clear()

    def clear(self) -> None:
        """Forget everything; also in a child process."""
        self._lock = threading.Lock()
        self._streams: OrderedDict[str, list[_Stream]] = OrderedDict()

    def forget(self, pack: str) -> None:
        """It is gone."""
        with self._lock:
            self._streams.pop(pack, None)
        self._windows.forget(pack)

    def read(self, pack: str, offset: int, length: int) -> Buffer:
        """As PackReader.read; `length` is not 0."""
        end = offset + length
        if not self.follows(pack, offset, end):
            return self._fetch(pack, offset, length)
        size = limits.WINDOW_BYTES
        first, last = offset // size, (end - 1) // size
        windows = [self._windows.window(pack, number) for number in range(first, last + 1)]
        parts = []
        for number, window in zip(range(first, last + 1), windows, strict=True):
            try:
                data = memoryview(window.result())
            except BaseException:
                self.forget(pack)
                raise
            parts.append(data[max(0, offset - number * size) : end - number * size])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def follows(self, pack: str, offset: int, end: int) -> bool:
        """Whether a read of [offset, end) goes on where others ended; then the windows behind it are under way. From now on, another one
        may go on at `end`."""
        with self._lock:
            stream = self._stream(pack, offset, end)
            if stream is None or stream.reads < STREAM_READS_MIN:
                return False
            size = limits.WINDOW_BYTES
            ahead = min(limits.READ_AHEAD_WINDOWS_MAX, (end - stream.start) // size + 1)
        last = (end - 1) // size
        for number in range(last + 1, min(last + 1 + ahead, -(-limits.PACK_BYTES_MAX // size))):
            self._windows.window(pack, number)
        return True

    def _stream(self, pack: str, offset: int, end: int) -> _Stream | None:
        """Under the lock. The one that this read goes on with, None when it begins another."""
        streams = self._streams.setdefault(pack, [])
        self._streams.move_to_end(pack)
        if len(self._streams) > limits.READ_AHEAD_PACKS_MAX:
            self._streams.popitem(last=False)
        for stream in streams:
            if 0 <= offset - stream.end <= limits.READ_AHEAD_GAP_BYTES:
                stream.end, stream.reads = end, stream.reads + 1
                return stream
        streams.append(_Stream(offset, end))
        del streams[:-STREAMS_MAX]
        return None
