"""Every tier and every wrapper passes the conformance suite; each wrapper keeps its own promise."""

from __future__ import annotations

import errno
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from leptonstore.errors import FormatDamaged, StoreFull, TierUnavailable
from leptonstore.testing.faults import FaultyPacks
from leptonstore.testing.tiers import HomeSuite, LockSuite, PackTierSuite, add_pack, content, pack_id
from leptonstore.tiers.durable import LockFile
from leptonstore.tiers.local import LocalTier
from leptonstore.tiers.mounted import MountedTier
from leptonstore.tiers.moving import copy_pack
from leptonstore.tiers.retrying import RetryingPacks
from leptonstore.tiers.single_flight import SingleFlightPacks
from leptonstore.tiers.tiered import TieredPacks

BROKEN = OSError(errno.EIO, "input/output error")
DOWN = TierUnavailable("the far tier does not answer", "far")


class TestLocal(PackTierSuite, HomeSuite, LockSuite):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> LocalTier:
        return LocalTier(tmp_path / "store")

    def reopened(self, tier: LocalTier) -> LocalTier:
        return LocalTier(tier.root)

    def die(self, tier: LocalTier, lock: LockFile) -> None:
        lock.forget()


class TestMounted(PackTierSuite):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> LocalTier:
        LocalTier(tmp_path / "tier").create_document("mark", b"ours")
        return MountedTier(tmp_path / "tier", "mark")

    def reopened(self, tier: LocalTier) -> LocalTier:
        return MountedTier(tier.root, "mark")


class _Wrapped(PackTierSuite):
    """A wrapper over a local tier."""

    @staticmethod
    def wrap(place: Path) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def tier(self, tmp_path: Path) -> Any:
        made = self.wrap(tmp_path)
        made.place = tmp_path
        return made

    def reopened(self, tier: Any) -> Any:
        return self.wrap(tier.place)


class TestRetrying(_Wrapped):
    @staticmethod
    def wrap(place: Path) -> RetryingPacks:
        return RetryingPacks(LocalTier(place / "store"), wait=lambda seconds: None)


class TestSingleFlight(_Wrapped):
    @staticmethod
    def wrap(place: Path) -> SingleFlightPacks:
        return SingleFlightPacks(LocalTier(place / "store"))


class TestFaultyWithoutFaults(_Wrapped):
    @staticmethod
    def wrap(place: Path) -> FaultyPacks:
        return FaultyPacks(LocalTier(place / "store"))


class TestTieredWritingToTheNearest(_Wrapped):
    @staticmethod
    def wrap(place: Path) -> TieredPacks:
        return TieredPacks([LocalTier(place / "near"), LocalTier(place / "far")])


class TestTieredWritingToTheFarthest(_Wrapped):
    @staticmethod
    def wrap(place: Path) -> TieredPacks:
        return TieredPacks([LocalTier(place / "near"), LocalTier(place / "far")], write_to=1)


# -- tiered ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[FaultyPacks, FaultyPacks, TieredPacks]:
    near, far = FaultyPacks(LocalTier(tmp_path / "near")), FaultyPacks(LocalTier(tmp_path / "far"))
    return near, far, TieredPacks([near, far])


def test_a_read_falls_through_to_a_tier_that_has_a_copy(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    near, far, both = two
    data = content(10_000)
    pack = add_pack(far, data)
    add_pack(near, data, pack)
    for down in (BROKEN, DOWN):
        near.down = down
        assert both.read(pack, 5, 100) == data[5:105] and both.pack_bytes(pack) == len(data)
        near.down, far.down = None, down
        assert both.read(pack, 5, 100) == data[5:105]
        far.down = None
    assert both.where(pack) == [0, 1]
    near.delete_pack(pack)
    assert both.read(pack, 0, 10) == data[:10] and both.where(pack) == [1]


def test_missing_is_said_only_when_every_tier_says_so(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    """A store that took an unreachable tier for an empty one would report lost data."""
    _, far, both = two
    pack = add_pack(far, content(1000))
    far.down = DOWN
    with pytest.raises(TierUnavailable):
        both.read(pack, 0, 10)
    with pytest.raises(TierUnavailable):
        both.pack_bytes(pack)
    with pytest.raises(TierUnavailable):
        list(both.packs())
    far.down = None
    with pytest.raises(FileNotFoundError):
        both.read(pack_id(), 0, 10)


def test_a_damaged_copy_is_passed_over(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    near, far, both = two
    data = content(1000)
    pack = add_pack(near, data)
    add_pack(far, data, pack)
    near.alter_next_read(lambda read: bytes(len(read)))
    assert both.read(pack, 0, 100) == bytes(100)
    assert both.pass_over(pack)
    near.down = BROKEN  # it is not asked again
    assert both.read(pack, 0, 100) == data[:100]
    near.down = None
    far.delete_pack(pack)
    both.read(pack, 0, 1)
    assert not both.pass_over(pack), "there is no other copy"


def test_a_delete_reaches_every_tier_that_answers(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    near, far, both = two
    pack = add_pack(near, content(1000))
    add_pack(far, content(1000), pack)
    near.down = DOWN
    with pytest.raises(TierUnavailable):
        both.delete_pack(pack)
    near.down = None
    assert far.pack_bytes(pack) is None and near.pack_bytes(pack) == 1000
    both.delete_pack(pack)
    assert both.pack_bytes(pack) is None


# -- copying -----------------------------------------------------------------------------------------------------


def test_a_copy_counts_when_it_reads_back_the_same(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    near, far, _ = two
    data = content(9_000_000)
    pack = add_pack(near, data)
    assert copy_pack(near, far, pack) == len(data)
    assert far.read(pack, 0, len(data)) == data
    assert copy_pack(near, far, pack) == 0, "it is there"
    far.delete_pack(pack)
    far.alter_next_read(lambda read: read[:-1] + bytes([read[-1] ^ 1]))
    with pytest.raises(FormatDamaged, match="did not read back"):
        copy_pack(near, far, pack)
    assert far.pack_bytes(pack) is None
    far.fail_next("create_pack", StoreFull("no space"))
    with pytest.raises(StoreFull):
        copy_pack(near, far, pack)
    with pytest.raises(FileNotFoundError):
        copy_pack(near, far, pack_id())


def test_another_pack_of_that_name_is_not_overwritten(two: tuple[FaultyPacks, FaultyPacks, TieredPacks]) -> None:
    near, far, _ = two
    pack = add_pack(near, content(1000, 1))
    add_pack(far, content(1000, 2), pack)
    with pytest.raises(FormatDamaged, match="another pack"):
        copy_pack(near, far, pack)
    assert far.read(pack, 0, 1000) == content(1000, 2)


# -- retrying ----------------------------------------------------------------------------------------------------


def test_what_fails_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    faulty, waits = FaultyPacks(LocalTier(tmp_path)), []
    tier = RetryingPacks(faulty, tries=4, wait=waits.append, rng=random.Random(0))
    pack = add_pack(tier, content(1000))
    faulty.fail_next("read", BROKEN, times=3)
    assert tier.read(pack, 0, 10) == content(1000)[:10] and tier.retried == 3
    assert all(0 <= wait <= 0.2 * 2**number for number, wait in enumerate(waits)) and len(set(waits)) == 3
    faulty.fail_next("read", DOWN, times=4)
    with pytest.raises(TierUnavailable, match="failed 4 times"):
        tier.read(pack, 0, 10)
    faulty.lose_answer("delete_pack", TimeoutError("no answer"))
    tier.delete_pack(pack)
    assert tier.pack_bytes(pack) is None


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), StoreFull("full")])
def test_what_patience_does_not_mend_is_not_asked_again(tmp_path: Path, error: Exception) -> None:
    faulty = FaultyPacks(LocalTier(tmp_path))
    tier = RetryingPacks(faulty, wait=lambda seconds: pytest.fail("it waited"))
    faulty.fail_next("create_pack", error)
    with pytest.raises(type(error)):
        tier.create_pack(pack_id())
    assert tier.retried == 0


# -- single flight -----------------------------------------------------------------------------------------------


class _Slow(FaultyPacks):
    """Holds every read until it is told to go on."""

    def __init__(self, inner: LocalTier) -> None:
        super().__init__(inner)
        self.reads, self.begun, self.go = 0, threading.Event(), threading.Event()

    def read(self, pack: str, offset: int, length: int) -> bytes:
        self.reads += 1
        self.begun.set()
        assert self.go.wait(60)
        return super().read(pack, offset, length)


@pytest.mark.parametrize("error", [None, BROKEN])
def test_equal_reads_at_the_same_time_are_one(tmp_path: Path, error: OSError | None) -> None:
    slow = _Slow(LocalTier(tmp_path))
    tier = SingleFlightPacks(slow)
    pack = add_pack(tier, content(1000))
    if error is not None:
        slow.fail_next("read", error)

    def read(_: int) -> bytes:
        try:
            return tier.read(pack, 0, 100)
        except OSError as failed:
            return str(failed).encode()

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(read, 0)
        assert slow.begun.wait(60)
        others = [pool.submit(read, number) for number in range(1, 8)]
        while tier.shared < 7 and not all(other.done() for other in others):
            threading.Event().wait(0.001)
        slow.go.set()
        answers = {first.result(60), *(other.result(60) for other in others)}
    assert answers == {content(1000)[:100] if error is None else str(error).encode()} and slow.reads == 1
    assert tier.read(pack, 0, 100) == content(1000)[:100] and slow.reads == 2, "what is over is read anew"
