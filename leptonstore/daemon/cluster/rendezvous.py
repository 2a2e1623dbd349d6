"""Who owns a block: weighted rendezvous hashing. Pure; every member that knows the same members finds the same owners.

    score(member, stretch) = -ln(u) / weight,   u in (0, 1) from a hash of both;   the lowest score owns

A member that comes takes its share from all others and moves nothing else; one that goes leaves its blocks to the next of each order.
Neighbouring blocks of a pack (a stretch) have one owner, so that one request to the bucket brings them.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); weights: Schindelhauer and Schomaker, "Weighted
distributed hash tables" (2005); the mixing of two 64-bit hashes is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.members import Member
from leptonstore.digest import digest_of

_OWNERS_KEPT = 65_536  # stretches whose owner is remembered: 512 GiB, some 10 MB


class Rendezvous:
    """The owners for one set of members. Immutable but for what it remembers; any thread."""

    def __init__(self, members: Sequence[Member]) -> None:
        """`members`: at least one, each address once."""
        self.members = tuple(members)
        self._seeds = np.array([_hash64(member.address.encode()) for member in members], np.uint64)
        self._weights = np.array([member.weight for member in members], np.float64)
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], Member] = OrderedDict()

    def owner(self, pack: str, block: int) -> Member:
        """The member that fetches this block."""
        key = pack, block // bounds.STRETCH_BLOCKS
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        member = self.members[int(np.argmin(self._scores(*key)))]
        with self._lock:
            self._known[key] = member
            if len(self._known) > _OWNERS_KEPT:
                self._known.popitem(last=False)
        return member

    def order(self, pack: str, block: int) -> list[Member]:
        """All members: the owner, who comes after it, and so on."""
        scores = self._scores(pack, block // bounds.STRETCH_BLOCKS)
        return [self.members[at] for at in np.argsort(scores, kind="stable")]

    def _scores(self, pack: str, stretch: int) -> np.ndarray:
        key = np.uint64(_hash64(f"{pack}/{stretch}".encode()))
        mixed = _mix(self._seeds ^ key)
        uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # never 0, never 1
        return -np.log(uniform) / self._weights


def _hash64(data: bytes) -> int:
    return int.from_bytes(digest_of(data)[:8], "little")


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
