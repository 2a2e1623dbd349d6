"""Whoever gives chunks by their digest passes one suite: stores on a disk and on a bucket, and the hot cache before each of them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.cache.chunks import CachedChunks
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import BadInput, ChunkMissing
from leptonstore.store import Store
from leptonstore.store.keys import Passphrase, ScryptCost
from leptonstore.testing.chunks import ChunkReaderSuite, put_all
from leptonstore.testing.tiers import content
from leptonstore.tiers.local import LocalTier
from leptonstore.tiers.object import ObjectTier

SMALL = limits.CACHE_BUDGET_BYTES_MIN  # most of what the suite reads has to go again


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HotCache]:
    with HotCache(tmp_path / "cache", 64 << 20) as made:
        yield made


class TestLocalStore(ChunkReaderSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with Store.create(tmp_path / "store") as made:
            yield made

    @pytest.fixture
    def reader(self, store: Store) -> Store:
        return store

    def damage(self, store: Store, digest: bytes) -> None:
        place = store.locate(digest)
        assert place is not None and isinstance(store.home, LocalTier)
        path = next((store.home.root / "packs").rglob(f"{place.pack}.pack"))
        data = bytearray(path.read_bytes())
        data[place.row.end - 100] ^= 1
        path.write_bytes(data)


class TestStoreOnS3(ChunkReaderSuite):
    @pytest.fixture
    def store(self, bucket_url: str) -> Iterator[Store]:
        with Store.create(bucket_url) as made:
            yield made

    @pytest.fixture
    def reader(self, store: Store) -> Store:
        return store

    def damage(self, store: Store, digest: bytes) -> None:
        place = store.locate(digest)
        assert place is not None and isinstance(store.home, ObjectTier)
        path = f"packs/{place.pack[:2]}/{place.pack}.pack"
        data = bytearray(store.home._client.get(path))
        data[place.row.end - 100] ^= 1
        store.home._client.put(path, data)


class TestCachedLocalStore(TestLocalStore):
    @pytest.fixture
    def reader(self, store: Store, cache: HotCache) -> CachedChunks:  # type: ignore[override]
        return CachedChunks(store, cache)


class TestCachedStoreOnS3(TestStoreOnS3):
    @pytest.fixture
    def reader(self, store: Store, cache: HotCache) -> CachedChunks:  # type: ignore[override]
        return CachedChunks(store, cache)


class TestCacheThatIsTooSmall(TestLocalStore):
    @pytest.fixture
    def reader(self, store: Store, tmp_path: Path) -> Iterator[CachedChunks]:  # type: ignore[override]
        with HotCache(tmp_path / "small", SMALL) as cache:
            yield CachedChunks(store, cache)


class TestCacheThatCannotBeUsed(TestLocalStore):
    @pytest.fixture
    def reader(self, store: Store, tmp_path: Path) -> Iterator[CachedChunks]:  # type: ignore[override]
        (tmp_path / "file").write_text("in the way")
        problems: list[str] = []
        with HotCache(tmp_path / "file", SMALL, on_problem=problems.append) as cache:
            yield CachedChunks(store, cache)
        assert len(problems) == 1


class TestCacheBehindACache(TestLocalStore):
    @pytest.fixture
    def reader(self, store: Store, cache: HotCache, tmp_path: Path) -> Iterator[CachedChunks]:  # type: ignore[override]
        with HotCache(tmp_path / "other", SMALL) as other:
            yield CachedChunks(CachedChunks(store, cache), other)


# -- what the cache adds ----------------------------------------------------------------------------------------------------


class Counting:
    """A store that counts what it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[list[Digest]] = []
        self.gate = threading.Event()
        self.gate.set()

    def get(self, digest: Digest) -> Buffer:
        return next(self.get_many([digest]))

    def get_many(self, digests: Sequence[Digest]) -> Iterator[Buffer]:
        self.asked.append(list(digests))
        self.gate.wait(60)
        return self._store.get_many(digests)

    def find_many(self, digests: Sequence[Digest]) -> Found:
        return Found(self, digests)


class Found:
    def __init__(self, counting: Counting, digests: Sequence[Digest]) -> None:
        self._counting, self._digests = counting, digests
        self._found = counting._store.find_many(digests)
        self.lengths = self._found.lengths

    def read_into(self, parts: Sequence[memoryview]) -> None:
        self._counting.asked.append(list(self._digests))
        self._counting.gate.wait(60)
        self._found.read_into(parts)


def into(chunks: CachedChunks, digests: Sequence[Digest]) -> list[bytes]:
    found = chunks.find_many(digests)
    parts = [memoryview(bytearray(length or 0)) for length in found.lengths]
    found.read_into(parts)
    return [bytes(part) for part in parts]


@pytest.mark.parametrize("way", ["get_many", "find_many"])
def test_hits_are_not_fetched_and_misses_are_fetched_together(store: Store, cache: HotCache, way: str) -> None:
    made = put_all(store, tuple(range(30_000, 30_020)))
    counting, digests = Counting(store), list(made)
    chunks = CachedChunks(counting, cache)

    def read(asked: Sequence[Digest]) -> list[bytes]:
        return list(map(bytes, chunks.get_many(asked))) if way == "get_many" else into(chunks, asked)

    assert read(digests[5:10]) == list(made.values())[5:10]
    assert read([*digests, *digests]) == 2 * list(made.values())
    assert read(digests) == list(made.values())
    assert counting.asked == [digests[5:10], digests[:5] + digests[10:]]


def test_of_two_that_miss_the_same_chunks_each_is_fetched_once(store: Store, cache: HotCache) -> None:
    made = put_all(store, tuple(range(30_000, 30_040)))
    digests = list(made)
    one, other = Counting(store), Counting(store)
    one.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(into, CachedChunks(one, cache), digests[:25])
        while not one.asked:  # it has claimed what it fetches
            pass
        second = pool.submit(into, CachedChunks(other, cache), digests[15:])
        while not other.asked:
            pass
        assert not second.done(), "it waits for what the first one fetches"
        one.gate.set()
        assert first.result() == list(made.values())[:25] and second.result() == list(made.values())[15:]
    assert one.asked == [digests[:25]] and other.asked == [digests[25:]]


def test_when_the_one_that_fetches_fails_the_other_one_fetches(store: Store, cache: HotCache) -> None:
    made = put_all(store, (30_000, 30_001))
    digests, missing = list(made), bytes(range(32))
    one, other = Counting(store), Counting(store)
    one.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(CachedChunks(one, cache).get_many([missing, *digests])))
        while not one.asked:
            pass
        second = pool.submit(lambda: list(CachedChunks(other, cache).get_many(digests)))
        one.gate.set()
        with pytest.raises(ChunkMissing):
            first.result()
        assert [bytes(value) for value in second.result()] == list(made.values())


def test_a_value_that_is_not_wanted_is_fetched_by_each_who_asks(store: Store, cache: HotCache) -> None:
    made = put_all(store, tuple(range(30_000, 30_010)))
    counting, digests = Counting(store), list(made)
    cache._retry = 1 << 30  # as after a full device
    chunks = CachedChunks(counting, cache)
    for _ in range(2):
        assert into(chunks, digests) == list(made.values())
    assert counting.asked == [digests, digests]


def sealed_store(path: Path) -> Store:
    return Store.create(path, unlock=Passphrase(b"a passphrase of a test"), cost=ScryptCost(n=16))


def test_what_an_encrypted_store_has_is_not_given_to_readers_of_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, cache: HotCache
) -> None:
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
    value = content(50_000)
    with sealed_store(tmp_path / "sealed") as sealed, sealed_store(tmp_path / "another") as another:
        digest = sealed.put(value)
        sealed.flush()
        chunks = CachedChunks(sealed, cache, sealed.stored_name)
        assert chunks.get(digest) == value and cache.get(chunks.key(digest)) is not None
        for reader, name in ((store, None), (another, another.stored_name)):
            with pytest.raises(ChunkMissing):
                CachedChunks(reader, cache, name).get(digest)


def test_values_of_an_encrypted_store_are_not_kept_outside_ram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: HotCache, store: Store
) -> None:
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "ext4")
    with pytest.raises(BadInput, match="may only be kept in RAM"):
        CachedChunks(store, cache, lambda digest: digest)


def test_a_cache_directory_that_goes_away_is_told_once(store: Store, tmp_path: Path) -> None:
    made = put_all(store, tuple(range(30_000, 30_030)))
    problems: list[str] = []
    with HotCache(tmp_path / "cache", 1 << 20, on_problem=problems.append) as cache:
        chunks, digests = CachedChunks(store, cache), list(made)
        assert into(chunks, digests[:10]) == list(made.values())[:10]
        for entry in cache.path.iterdir():
            entry.unlink()
        cache.path.rmdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                assert into(chunks, digests) == list(made.values())
                assert [bytes(value) for value in chunks.get_many(digests)] == list(made.values())
    assert len(problems) == 1 and "reading goes on without it" in problems[0]
