"""The conformance suite of tiers: what a store relies on, one class a role. Needs pytest.

    class TestMyTier(PackTierSuite, HomeSuite):
        @pytest.fixture
        def tier(self, tmp_path):
            return MyTier(tmp_path)

        def reopened(self, tier):
            return MyTier(tier.root)

A subclass runs every test of the roles that it names. `reopened` is another object for the same place, as another process has it.
"""

from __future__ import annotations

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leptonstore.errors import FormatDamaged
from leptonstore.tiers.roles import HomePruner, LockHome, PackPruner

PACK_BYTES = 200_000  # of the packs that are written here
LARGE_PACK_BYTES = 9_000_001  # more than one part of a multipart upload, more than one buffer
RACES, RACERS = 25, 8


def pack_id() -> str:
    """A random id, as stores make them."""
    return secrets.token_hex(16)


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that are the same for the same seed."""
    return random.Random(seed).randbytes(size)


def add_pack(tier: PackPruner, data: bytes, pack: str = "") -> str:
    """Write a whole pack; returns its id."""
    pack = pack or pack_id()
    sink = tier.create_pack(pack)
    sink.write(data)
    sink.seal()
    sink.abort()
    return pack


class _Suite:
    @pytest.fixture
    def tier(self) -> Any:
        """An empty tier."""
        raise NotImplementedError("a subclass makes the tier")

    def reopened(self, tier: Any) -> Any:
        """Another object for the same place."""
        raise NotImplementedError("a subclass opens the tier again")


class PackTierSuite(_Suite):
    """PackReader, PackWriter and PackPruner."""

    def test_a_sealed_pack_reads_back_from_everywhere(self, tier: PackPruner) -> None:
        data = content(PACK_BYTES)
        pack = add_pack(tier, data)
        for reader in (tier, self.reopened(tier)):
            assert reader.pack_bytes(pack) == len(data) and list(reader.packs()) == [pack]
            for start, length in [(0, len(data)), (0, 1), (len(data) - 1, 1), (4095, 2), (65_537, 70_001), (10, 0)]:
                assert bytes(reader.read(pack, start, length)) == data[start : start + length]

    def test_a_read_ends_where_the_pack_ends(self, tier: PackPruner) -> None:
        data = content(PACK_BYTES)
        pack = add_pack(tier, data)
        assert bytes(tier.read(pack, len(data) - 10, 100)) == data[-10:]
        assert bytes(tier.read(pack, len(data), 100)) == bytes(tier.read(pack, len(data) + 5_000, 100)) == b""

    def test_nothing_is_visible_before_the_seal(self, tier: PackPruner) -> None:
        pack, data = pack_id(), content(PACK_BYTES)
        sink = tier.create_pack(pack)
        sink.write(data[:1000], data[1000:])
        other = self.reopened(tier)
        assert other.pack_bytes(pack) is None and list(other.packs()) == []
        sink.seal()
        assert list(other.packs()) == [pack] and other.pack_bytes(pack) == len(data)
        sink.abort()
        assert list(other.packs()) == [pack], "what is sealed stays"

    def test_a_sink_reads_what_it_was_given(self, tier: PackPruner) -> None:
        data = content(LARGE_PACK_BYTES)
        sink, given, rng = tier.create_pack(pack_id()), 0, random.Random(1)
        while given < len(data):
            part = rng.choice([1, 64, 4096, 100_003, 1_500_000])
            sink.write(memoryview(data)[given : given + part])
            given = min(len(data), given + part)
            start = rng.randrange(given)
            length = min(rng.randrange(300_000), given - start)
            assert bytes(sink.read(start, length)) == data[start : start + length]
        sink.seal()
        assert bytes(sink.read(77, 100_000)) == data[77:100_077]
        sink.abort()

    def test_an_aborted_pack_never_was(self, tier: PackPruner) -> None:
        for size in (10, LARGE_PACK_BYTES):
            sink = tier.create_pack(pack_id())
            sink.write(content(size))
            sink.abort()
            sink.abort()
        assert list(self.reopened(tier).packs()) == []

    def test_a_large_pack_arrives_whole(self, tier: PackPruner) -> None:
        data = content(LARGE_PACK_BYTES)
        pack = add_pack(tier, data)
        assert bytes(self.reopened(tier).read(pack, 0, len(data))) == data

    def test_a_missing_pack_is_told(self, tier: PackPruner) -> None:
        pack = pack_id()
        assert tier.pack_bytes(pack) is None
        with pytest.raises(FileNotFoundError):
            tier.read(pack, 0, 10)

    def test_a_deleted_pack_is_gone(self, tier: PackPruner) -> None:
        kept, gone = add_pack(tier, content(1000)), add_pack(tier, content(1000, 1))
        assert bytes(tier.read(gone, 0, 10)) == content(1000, 1)[:10]
        for _ in range(2):
            tier.delete_pack(gone)
            assert tier.pack_bytes(gone) is None and list(tier.packs()) == [kept]
        with pytest.raises(FileNotFoundError):
            tier.read(gone, 0, 10)
        assert bytes(self.reopened(tier).read(kept, 0, 1000)) == content(1000)

    def test_threads_write_and_read_at_once(self, tier: PackPruner) -> None:
        def work(seed: int) -> str:
            data = content(50_000 + seed, seed)
            pack = add_pack(tier, data)
            for start in range(0, len(data), 7_001):
                assert bytes(tier.read(pack, start, 7_001)) == data[start : start + 7_001]
            return pack

        with ThreadPoolExecutor(RACERS) as pool:
            packs = list(pool.map(work, range(3 * RACERS)))
        assert sorted(tier.packs()) == sorted(packs)

    def test_it_has_a_name_for_people(self, tier: PackPruner) -> None:
        assert isinstance(tier.url, str) and tier.url


class HomeSuite(_Suite):
    """HomeReader, HomeWriter and HomePruner: the small documents, and the one primitive that writers agree by."""

    def test_a_document_is_created_once(self, tier: HomePruner) -> None:
        assert tier.create_document("log/1", b"first")
        assert not self.reopened(tier).create_document("log/1", b"second")
        for reader in (tier, self.reopened(tier)):
            assert reader.read_document("log/1", 100) == b"first"

    def test_of_many_creators_one_wins(self, tier: HomePruner) -> None:
        homes = [tier, self.reopened(tier)]
        with ThreadPoolExecutor(RACERS) as pool:
            for number in range(RACES):

                def create(racer: int, number: int = number) -> bool:
                    return bool(homes[racer % 2].create_document(f"log/{number}", f"by {racer}".encode()))

                won = list(pool.map(create, range(RACERS)))
                assert won.count(True) == 1
                assert tier.read_document(f"log/{number}", 100) == f"by {won.index(True)}".encode()

    def test_what_is_not_there_reads_as_none(self, tier: HomePruner) -> None:
        assert tier.read_document("config", 100) is None and tier.read_document("log/1", 100) is None
        assert tier.documents("log") == []

    def test_a_document_over_its_bound_is_refused(self, tier: HomePruner) -> None:
        tier.create_document("config", bytes(100))
        assert tier.read_document("config", 100) == bytes(100)
        with pytest.raises(FormatDamaged):
            tier.read_document("config", 99)

    def test_documents_are_listed_by_folder(self, tier: HomePruner) -> None:
        for name in ("log/00000002", "log/00000010", "log/00000001", "snapshots/1", "config"):
            tier.create_document(name, b"x")
        for reader in (tier, self.reopened(tier)):
            assert reader.documents("log") == ["00000001", "00000002", "00000010"]
            assert reader.documents("snapshots") == ["1"]

    def test_many_documents_are_all_listed(self, tier: HomePruner) -> None:
        names = [f"{number:05d}" for number in range(150)]
        with ThreadPoolExecutor(RACERS) as pool:
            assert all(pool.map(lambda name: tier.create_document(f"log/{name}", b"x"), names))
        assert tier.documents("log") == names

    def test_a_hint_is_replaced(self, tier: HomePruner) -> None:
        for value in (b"1\n", b"22\n", b"3\n"):
            tier.replace_document("HEAD", value)
            assert self.reopened(tier).read_document("HEAD", 100) == value

    def test_a_document_is_deleted(self, tier: HomePruner) -> None:
        tier.create_document("keys/a", b"x")
        tier.confirm_documents("keys")
        for _ in range(2):
            tier.delete_document("keys/a")
            assert tier.read_document("keys/a", 10) is None and tier.documents("keys") == []
        assert tier.create_document("keys/a", b"y")


class LockSuite(_Suite):
    """LockHome: who is alive. A subclass says how a maker dies (`die`): its process is gone, and released nothing."""

    def die(self, tier: LockHome, lock: Any) -> None:
        """Let the maker of `lock` be gone."""
        raise NotImplementedError("a subclass says how a maker dies")

    def test_a_live_document_is_seen_by_others(self, tier: LockHome) -> None:
        lock = tier.hold_lock("writers", b"+one\n")
        other = self.reopened(tier)
        assert other.live_locks("writers", 1000) == {lock.name: b"+one\n"}
        lock.append(b"+two\n")
        found = other.live_locks("writers", 1000)[lock.name]
        assert b"+one\n+two\n".startswith(found)
        lock.release()
        lock.release()
        assert other.live_locks("writers", 1000) == {}

    def test_that_of_a_dead_maker_is_removed(self, tier: LockHome) -> None:
        dead, live = tier.hold_lock("leases", b"a"), tier.hold_lock("leases", b"b")
        self.die(tier, dead)
        other = self.reopened(tier)
        assert other.live_locks("leases", 1000) == {live.name: b"b"}
        assert other.documents("leases") == [live.name]
        live.release()
