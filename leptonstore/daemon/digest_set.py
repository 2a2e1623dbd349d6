"""A set of digests that grows: what one session has put. 32 bytes each, where a set of bytes objects takes a hundred.

Newest ones in a set, older ones in sorted arrays of which each is at least twice as long as the next: 2^22 digests are looked for in
some ten of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from leptonstore.digest import DIGEST_BYTES, Digest
from leptonstore.store.runs import Keys, positions, sort_unique

_RECENT_MAX = 8_192
_KEY = np.dtype(f"S{DIGEST_BYTES}")


class DigestSet:
    """Not for several threads: the caller locks."""

    def __init__(self) -> None:
        self._recent: set[Digest] = set()
        self._runs: list[Keys] = []

    def __len__(self) -> int:
        """At least how many; one that was added again after a while may count twice."""
        return len(self._recent) + sum(map(len, self._runs))

    def add_all(self, digests: Iterable[Digest]) -> None:
        """Add several."""
        self._recent.update(digests)
        if len(self._recent) > _RECENT_MAX:
            run = _keys(list(self._recent))
            self._recent.clear()
            run = sort_unique(run)
            while self._runs and len(self._runs[-1]) < 2 * len(run):
                run = sort_unique(np.concatenate([self._runs.pop(), run]))
            self._runs.append(run)

    def has(self, digests: Sequence[Digest]) -> list[bool]:
        """Of each, whether it is there."""
        found = np.array([digest in self._recent for digest in digests], np.bool_)
        wanted = _keys(digests)
        for run in self._runs:
            found |= positions(run, wanted)[1]
        return [bool(one) for one in found.tolist()]


def _keys(digests: Sequence[Digest]) -> Keys:
    return np.frombuffer(b"".join(digests), _KEY)
