"""The hot cache against a dict: put, get, leases, plans, clear and reopening; never a wrong byte, never over budget."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from leptonstore.cache import HotCache, Lease
from leptonstore.digest import digest_of

BUDGET = 1 << 20
NUMBERS = st.integers(0, 59)
# Empty, odd, of a segment's size and above (an arena), and more than the budget.
SIZES = (0, 1, 63, 64, 65, 1_000, 5_000, 16_000, 17_000, 30_000, 64_000, 65_536, 120_000, 300_000, 2_000_000)


def key_of(number: int) -> bytes:
    """Keys that share all but one byte, and ordinary ones."""
    return digest_of(str(number).encode()) if number % 2 else bytes(31) + bytes([number])


def value_of(number: int) -> bytes:
    """What the key stands for: the same in every run, as content-addressed values are."""
    return random.Random(number).randbytes(SIZES[number % len(SIZES)])


class CacheAgainstModel(RuleBasedStateMachine):
    """Two clients of one directory; `put` says which keys may be there at all."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.problems: list[str] = []
        self.clients = [self.open(), self.open()]
        self.put: set[int] = set()
        self.leases: list[tuple[int, memoryview]] = []

    def open(self) -> HotCache:
        return HotCache(self.folder / "cache", BUDGET, on_problem=self.problems.append)

    def teardown(self) -> None:
        for number, data in self.leases:
            assert data == value_of(number)
        for client in self.clients:
            client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(who=st.integers(0, 1), number=NUMBERS)
    def puts(self, who: int, number: int) -> None:
        value = value_of(number)
        kept = self.clients[who].put(key_of(number), value)
        if kept:
            self.put.add(number)
            found = self.clients[1 - who].get(key_of(number))
            assert found is not None and found.data == value, "what was kept is there for others at once"
        assert not (kept and len(value) > BUDGET)

    @rule(who=st.integers(0, 1), numbers=st.lists(NUMBERS, max_size=12))
    def puts_many(self, who: int, numbers: list[int]) -> None:
        for number in numbers:
            if self.clients[who].put(key_of(number), value_of(number)):
                self.put.add(number)

    @rule(who=st.integers(0, 1), number=NUMBERS, keep=st.booleans())
    def gets(self, who: int, number: int, keep: bool) -> None:
        found = self.clients[who].get(key_of(number))
        if found is not None:
            assert number in self.put, "it was never put, or dropped since"
            assert found.data.readonly and found.data == value_of(number)
            if keep and len(self.leases) < 12:
                self.leases.append((number, found.data))

    @rule(who=st.integers(0, 1), number=NUMBERS, keep=st.booleans())
    def gets_or_puts(self, who: int, number: int, keep: bool) -> None:
        fetched: list[int] = []

        def fetch() -> bytes:
            fetched.append(number)
            return value_of(number)

        lease: Lease = self.clients[who].get_or_put(key_of(number), fetch)
        assert lease.data == value_of(number) and len(fetched) <= 1
        assert fetched or number in self.put
        self.put.add(number)
        if keep and len(self.leases) < 12:
            self.leases.append((number, lease.data))

    @rule(who=st.integers(0, 1), numbers=st.lists(NUMBERS, max_size=100), restart=st.booleans())
    def plans(self, who: int, numbers: list[int], restart: bool) -> None:
        ahead = self.clients[who].plan([key_of(number) for number in numbers], restart)
        assert ahead >= len(numbers) and (not restart or ahead == len(numbers))

    @rule()
    def ends_leases(self) -> None:
        while self.leases:
            number, data = self.leases.pop()
            assert data == value_of(number), "a lease outlives eviction, clear and close"
            del data  # it pins, too
        assert self.clients[0].stats()["pinned_bytes"] == 0

    @rule(who=st.integers(0, 1))
    def clears(self, who: int) -> None:
        self.clients[who].clear()
        self.put.clear()
        assert self.clients[who].stats()["linked_bytes"] == 0

    @rule(who=st.integers(0, 1))
    def reopens(self, who: int) -> None:
        self.clients[who].close()
        self.clients[who] = self.open()

    @invariant()
    def budget_holds(self) -> None:
        files = sum(entry.stat().st_size for entry in os.scandir(self.folder / "cache") if entry.name.endswith(".seg"))
        stats = self.clients[0].stats()
        assert stats["linked_bytes"] + stats["pinned_bytes"] + stats["index_bytes"] <= BUDGET
        assert files <= BUDGET, "files that nobody counts"
        assert not self.problems, self.problems


TestCacheAgainstModel = CacheAgainstModel.TestCase
TestCacheAgainstModel.settings = settings(
    max_examples=40, stateful_step_count=35, deadline=None, suppress_health_check=list(HealthCheck)
)
