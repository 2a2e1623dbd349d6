"""Reading ahead: every byte is right, streams cost few requests, random reads cost no more than their bytes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from leptonstore import limits
from leptonstore.tiers.read_ahead import ReadAhead
from leptonstore.tiers.windows import Windows


class Packs:
    """Bytes in memory, and what was asked of them."""

    def __init__(self) -> None:
        self.packs = {name: random.Random(name).randbytes(3_000_000) for name in "ab"}
        self.asked: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    def fetch(self, pack: str, offset: int, length: int) -> bytes:
        with self._lock:
            self.asked.append((pack, offset, length))
        if pack not in self.packs:
            raise FileNotFoundError(pack)
        return self.packs[pack][offset : offset + length]


@pytest.fixture
def packs() -> Packs:
    return Packs()


@pytest.fixture
def ahead(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadAhead]:
    monkeypatch.setattr(limits, "WINDOW_BYTES", 400_000)
    monkeypatch.setattr(limits, "READ_AHEAD_GAP_BYTES", 5_000)
    monkeypatch.setattr(limits, "WINDOWS_MAX", 6)
    with ThreadPoolExecutor(4) as pool:
        yield ReadAhead(packs.fetch, Windows(packs.fetch, lambda: pool))


def test_a_stream_costs_a_request_a_window(packs: Packs, ahead: ReadAhead) -> None:
    for offset in range(0, 3_000_000, 30_000):
        assert bytes(ahead.read("a", offset, 30_000)) == packs.packs["a"][offset : offset + 30_000]
    assert len(packs.asked) <= 2 + -(-3_000_000 // 400_000) + limits.READ_AHEAD_WINDOWS_MAX


def test_a_stream_is_read_further_ahead_the_longer_it_is(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_BYTES", 400_000)
    with ThreadPoolExecutor(1) as pool:
        windows = Windows(packs.fetch, lambda: pool)
        ahead = ReadAhead(packs.fetch, windows)
        for start, end, furthest in ((0, 120_000, 1), (120_000, 900_000, 5)):
            for offset in range(start, end, 30_000):
                ahead.read("a", offset, 30_000)
            assert [number for number in range(9) if windows.known("a", number)][-1] == furthest


def test_random_reads_fetch_what_they_ask_for(packs: Packs, ahead: ReadAhead) -> None:
    rng = random.Random(0)
    wanted = [(rng.choice("ab"), rng.randrange(2_900_000), rng.randrange(1, 3_000)) for _ in range(500)]
    for pack, offset, length in wanted:
        assert bytes(ahead.read(pack, offset, length)) == packs.packs[pack][offset : offset + length]
    asked = sum(length for _, _, length in packs.asked)
    assert asked <= 1.5 * sum(length for _, _, length in wanted)


def test_any_mixture_of_streams_from_many_threads_is_right(packs: Packs, ahead: ReadAhead) -> None:
    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            pack, at = rng.choice("ab"), rng.randrange(3_000_000)
            for _ in range(rng.randrange(40)):
                length = rng.choice([1, 700, 20_000, 450_000])
                assert bytes(ahead.read(pack, at, length)) == packs.packs[pack][at : at + length]
                at += length + rng.choice([0, 0, 100, 5_000])

    with ThreadPoolExecutor(6) as readers:
        list(readers.map(work, range(6)))


def test_an_error_in_a_window_is_told_and_forgotten(packs: Packs, ahead: ReadAhead) -> None:
    data = packs.packs.pop("a")
    for _ in range(2):
        for offset in range(0, 100_000, 10_000):
            with pytest.raises(FileNotFoundError):
                ahead.read("a", offset, 10_000)
    packs.packs["a"] = data
    for offset in range(0, 100_000, 10_000):
        assert bytes(ahead.read("a", offset, 10_000)) == data[offset : offset + 10_000]
    ahead.forget("a")
    del packs.packs["a"]
    with pytest.raises(FileNotFoundError):
        ahead.read("a", 100_000, 10)
