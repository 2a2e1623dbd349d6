"""A set of digests that only grows, in 16 bytes each: sorted runs in memory, and on disk when there are many.

A member is known by its first 16 bytes: to get a chunk in that does not belong, somebody would have to find a second value with the same
128 bits, which costs more work than there is (as in garbage collection). New members stand in a Python set until there are BUFFER_DIGESTS;
then they become a sorted run, and runs of like size are merged, so that there are few: adding costs O(log n) per member, asking O(log² n).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.store.runs import Keys, SortedRuns, positions, sort_unique

KEY_BYTES = limits.GC_KEY_BYTES
BUFFER_DIGESTS = 16_384  # about 1.3 MiB of Python objects
_DTYPE = np.dtype(f"S{KEY_BYTES}")


class DigestSet:
    """Any thread. Memory: BUFFER_DIGESTS, and 16 bytes a member up to limits.SPILL_BYTES; what is larger is mapped from nameless files."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: for what is large (default: the system's folder for temporary files)."""
        self._folder = folder
        self._guard = threading.Lock()
        self._new: set[bytes] = set()
        self._runs: list[Keys] = []

    def add(self, digests: Iterable[Digest]) -> None:
        """Add all of `digests`."""
        with self._guard:
            self._new.update([digest[:KEY_BYTES] for digest in digests])
            if len(self._new) >= BUFFER_DIGESTS:
                self._runs.append(sort_unique(_keys(self._new)))
                self._new = set()
                self._merge()

    def _merge(self) -> None:
        """Until each run is at least twice as large as the next: so there are at most log2(n / BUFFER_DIGESTS) of them."""
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            both = SortedRuns(KEY_BYTES, self._folder)
            both.add_sorted(self._runs[-2])
            both.add_sorted(self._runs[-1])
            self._runs[-2:] = [both.finish()]

    def contains(self, digests: Sequence[Digest]) -> list[bool]:
        """Whether each of `digests` was added."""
        keys = [digest[:KEY_BYTES] for digest in digests]
        with self._guard:
            found = [key in self._new for key in keys]
            runs = list(self._runs)
        if runs and not all(found):
            wanted = _keys(keys)
            hit = np.array(found, np.bool_)
            for run in runs:
                hit |= positions(run, wanted)[1]
            return [bool(one) for one in hit.tolist()]
        return found

    def __len__(self) -> int:
        """How many there are; a member that was added again after it had become part of a run may count twice."""
        with self._guard:
            return len(self._new) + sum(len(run) for run in self._runs)


def _keys(keys: Iterable[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), _DTYPE)
