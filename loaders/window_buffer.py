"""What was read ahead of a window, kept in this process until the batches that it is for take it: where there is no hot cache.

    threads of the window reader -- rows, in the order in which they are stored --> pieces --> batches, row by row

Each row of a pass is taken once, so a piece goes when its last row was taken: memory is the window in use and the one behind it. A row that
is not here (taken twice, or never read ahead) is read by whoever asks. Values are handed on as they are: bytes are not copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from loaders.order import Rows

BUFFER_BYTES_MAX = 1 << 30  # two windows may take: 10,000 images of 50 KB each; a larger window is read batch by batch


class WindowBuffer:
    """Of one pass. Any thread."""

    def __init__(
        self, read: Callable[[Rows], dict[str, Any]], bytes_of: Callable[[dict[str, Any], Rows], float]
    ) -> None:
        """read(rows): the values of some rows; bytes_of(values, rows): of one row, about."""
        self._read, self._bytes_of = read, bytes_of
        # row -> the values that it is among (column -> array or list), and its place there
        self._at: dict[int, tuple[dict[str, Any], int]] = {}
        self._lock = threading.Lock()

    def fetch(self, rows: Rows) -> int:
        """Read these rows and keep them; how many bytes that is, about. Raises what reading raises."""
        values = self._read(rows)
        with self._lock:
            self._at.update((row, (values, at)) for at, row in enumerate(rows.tolist()))
        return int(self._bytes_of(values, rows) * len(rows))

    def clear(self) -> None:
        """Forget what was not taken."""
        with self._lock:
            self._at.clear()

    def take(self, rows: Rows) -> dict[str, Any] | None:
        """The values of these rows, in their order, which are then no longer here; None unless all of them are."""
        numbers = rows.tolist()
        with self._lock:
            if not numbers or len(set(numbers)) < len(numbers) or any(row not in self._at for row in numbers):
                return None
            found = [self._at.pop(row) for row in numbers]
        out: dict[str, Any] = {}
        for name, column in found[0][0].items():
            if isinstance(column, list):
                out[name] = [piece[name][at] for piece, at in found]
                continue
            out[name] = values = np.empty((len(found), *column.shape[1:]), column.dtype)
            for number, (piece, at) in enumerate(found):
                values[number] = piece[name][at]
        return out
