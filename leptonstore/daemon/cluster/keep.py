"""Which blocks stay when there is no room: a short queue of the latest ones, and behind it those that were visited most often.

    a new block -> latest (the last 1/8 of the budget, least recently used first) -> settled, when it was visited more often (by two)
    than the least visited of a few that are there; else it goes

- A loader that goes through a block in small reads makes one visit, not many: a hit counts again only after the queue of the latest was
  turned over. Without that, whatever was read last would seem the most wanted.
- A scan, or a shuffled epoch, of more blocks than fit makes equally many visits to each: then what is here stays, and as large a share of
  the next epoch is found as fits. (Least recently used would find nothing: each block goes just before its next turn.) So a new block
  needs two visits more: one more only means that its turn in this epoch has come, and the other's has not.
- Copies of blocks that others own fill what the own ones leave free, and go first; a share is theirs in any case.

Sources: TinyLFU (Einziger, Friedman, Manes, 2017): admission by counts that are halved; the count is a count-min sketch (Cormode,
Muthukrishnan, 2005) with conservative update.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from leptonstore.daemon.cluster import bounds

K = TypeVar("K", bound=Hashable)


@dataclass
class _Held:
    size: int
    copy: bool
    turn: int  # of the queue, when a visit was counted last


class _Pool(Generic[K]):
    """Keys of which some can be drawn at random."""

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.bytes = 0
        self._at: dict[K, int] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def add(self, key: K, size: int) -> None:
        self._at[key] = len(self.keys)
        self.keys.append(key)
        self.bytes += size

    def remove(self, key: K, size: int) -> None:
        at, last = self._at.pop(key), self.keys.pop()
        if last != key:
            self.keys[at] = last
            self._at[last] = at
        self.bytes -= size


class Keep(Generic[K]):
    """Names and sizes of what is here; who holds the bytes does as it says. Not for several threads at once."""

    def __init__(self, budget: int) -> None:
        """budget: bytes of all that is held; never exceeded."""
        self.budget = budget
        self._latest_budget = int(budget * bounds.LATEST_SHARE)
        self._settled_budget = budget - self._latest_budget
        self._copies_budget = int(budget * bounds.COPIES_SHARE)
        self._held: dict[K, _Held] = {}
        self._latest: OrderedDict[K, int] = OrderedDict()
        self._latest_bytes = 0
        self._own, self._copies = _Pool[K](), _Pool[K]()
        self._turn, self._passed = 0, 0  # bytes that went through the queue since its last turn
        blocks = max(64, budget // bounds.BLOCK_BYTES)
        size = 1 << max(10, (min(blocks * bounds.COUNTS_PER_BLOCK, bounds.COUNTS_MAX) - 1).bit_length())
        self._counts, self._mask = np.zeros(size, np.uint8), size - 1
        self._counted, self._counted_max = 0, 10 * blocks
        self._random = random.Random(0)

    def __contains__(self, key: K) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def keys(self) -> list[K]:
        """What is held, in no order."""
        return list(self._held)

    @property
    def bytes(self) -> int:
        """Of all that is held."""
        return self._latest_bytes + self._own.bytes + self._copies.bytes

    @property
    def copies_bytes(self) -> int:
        """Of settled copies."""
        return self._copies.bytes

    def room_for_copy(self, size: int) -> bool:
        """Whether a copy would not have to be better than others to stay."""
        settled = self._own.bytes + self._copies.bytes + self._latest_bytes
        return settled + size <= self._settled_budget or self._copies.bytes + size <= self._copies_budget

    def touch(self, key: K) -> None:
        """It was read."""
        held = self._held.get(key)
        if held is None:
            return
        if key in self._latest:
            self._latest.move_to_end(key)
        elif held.turn != self._turn:
            held.turn = self._turn
            self._count(key)

    def add(self, key: K, size: int, copy: bool = False) -> list[K]:
        """It is here now. Returns what has to go: others, or in the end the new one itself."""
        if key in self._held:
            self.touch(key)
            return []
        self._count(key)
        self._held[key] = _Held(size, copy, self._turn)
        self._latest[key] = size
        self._latest_bytes += size
        gone: list[K] = []
        while self._latest_bytes > self._latest_budget:
            oldest, bytes_of = self._latest.popitem(last=False)
            self._latest_bytes -= bytes_of
            self._turn_over(bytes_of)
            gone += self._settle(oldest)
        return gone

    def remove(self, key: K) -> None:
        """It is not here any more."""
        held = self._held.pop(key, None)
        if held is None:
            return
        if key in self._latest:
            del self._latest[key]
            self._latest_bytes -= held.size
        else:
            self._pool(held).remove(key, held.size)

    def _pool(self, held: _Held) -> _Pool[K]:
        return self._copies if held.copy else self._own

    def _turn_over(self, size: int) -> None:
        self._passed += size
        if self._passed >= self._latest_budget:
            self._passed = 0
            self._turn += 1

    def _settle(self, key: K) -> list[K]:
        """`key` leaves the queue: what goes in its place, or `key` itself."""
        held, gone = self._held[key], list[K]()
        while self._own.bytes + self._copies.bytes + held.size > self._settled_budget:
            victim = self._victim(held)
            spare = victim is not None and not held.copy and self._held[victim].copy  # a copy makes way for an own one
            if victim is None or (not spare and self._visits(key) <= self._visits(victim) + 1):
                del self._held[key]
                return [*gone, key]
            self.remove(victim)
            gone.append(victim)
        self._pool(held).add(key, held.size)
        return gone

    def _victim(self, held: _Held) -> K | None:
        """The least visited of some of those that a block like `held` may drive out."""
        if held.copy:
            within = self._copies.bytes + held.size <= self._copies_budget
            pool = self._own if within and self._own.keys else self._copies
        else:
            pool = self._copies if self._copies.bytes > self._copies_budget or not self._own.keys else self._own
        if not pool.keys:
            return None
        some = [pool.keys[self._random.randrange(len(pool.keys))] for _ in range(bounds.VICTIMS_LOOKED_AT)]
        return min(some, key=self._visits)

    # -- visits --------------------------------------------------------------------------------------------------

    def _places(self, key: K) -> tuple[int, int]:
        mixed = (hash(key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        return (mixed >> 32) & self._mask, (mixed >> 5) & self._mask

    def _visits(self, key: K) -> int:
        first, second = self._places(key)
        return min(int(self._counts[first]), int(self._counts[second]))

    def _count(self, key: K) -> None:
        first, second = self._places(key)
        least = min(int(self._counts[first]), int(self._counts[second]))
        if least < bounds.VISITS_MAX:
            for place in {first, second}:
                if self._counts[place] == least:
                    self._counts[place] = least + 1
        self._counted += 1
        if self._counted >= self._counted_max:
            self._counts >>= 1
            self._counted //= 2
