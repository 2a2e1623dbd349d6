"""The conformance suite of those who give chunks by their digest (leptonstore/tiers/chunks.py). Needs pytest.

    class TestMyCache(ChunkReaderSuite):
        @pytest.fixture
        def store(self, tmp_path):
            with Store.create(tmp_path) as made:
                yield made

        @pytest.fixture
        def reader(self, store):
            return MyCache(store)

The suite puts chunks into `store` and reads them through `reader`, which may be the store itself. `damage` alters a stored chunk behind
their backs.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import ChunkCorrupt, ChunkMissing
from leptonstore.store import Store
from leptonstore.testing.tiers import content
from leptonstore.tiers.chunks import ChunkFinder, ChunkReader

SIZES = (0, 1, 700, 5_000, 70_000, 300_000)
PIECES_BYTES = 5_000_000  # more than a store keeps in one chunk
THREADS = 6


def put_all(store: Store, sizes: tuple[int, ...] = SIZES) -> dict[bytes, bytes]:
    """Digest -> value of chunks that are published."""
    made = {store.put(value): value for value in (content(size, size) for size in sizes)}
    store.flush()
    return made


class ChunkReaderSuite:
    """ChunkReader and ChunkFinder."""

    @pytest.fixture
    def store(self) -> Any:
        """An empty store."""
        raise NotImplementedError("a subclass makes the store")

    @pytest.fixture
    def reader(self, store: Store) -> Any:
        """Reads what is in the store."""
        raise NotImplementedError("a subclass makes the reader")

    def damage(self, store: Store, digest: bytes) -> None:
        """Alter stored bytes of a published chunk."""
        raise NotImplementedError("a subclass damages what it stores")

    def test_it_plays_its_roles(self, reader: ChunkFinder) -> None:
        assert isinstance(reader, ChunkReader) and isinstance(reader, ChunkFinder)

    def test_what_was_put_reads_back_each_time(self, store: Store, reader: ChunkReader) -> None:
        made = put_all(store, (*SIZES, PIECES_BYTES))
        for _ in range(3):
            for digest, value in made.items():
                assert bytes(reader.get(digest)) == value

    def test_many_come_in_the_order_asked(self, store: Store, reader: ChunkReader) -> None:
        made = put_all(store, (*SIZES, PIECES_BYTES))
        rng = random.Random(0)
        assert list(reader.get_many([])) == []
        for _ in range(3):
            asked = rng.choices(list(made), k=25)
            assert [bytes(value) for value in reader.get_many(asked)] == [made[digest] for digest in asked]

    def test_more_than_is_read_together_comes_too(
        self, store: Store, reader: ChunkReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = put_all(store, tuple(range(40_000, 40_060)))
        monkeypatch.setattr(limits, "READ_TOGETHER_BYTES", 150_000)
        monkeypatch.setattr(limits, "CACHE_CLAIMS_MAX", 7)
        for _ in range(2):
            assert [bytes(value) for value in reader.get_many(list(made))] == list(made.values())

    def test_what_is_not_published_yet_reads_back(self, store: Store, reader: ChunkReader) -> None:
        made = {store.put(value): value for value in (content(size, size) for size in SIZES)}
        assert {digest: bytes(reader.get(digest)) for digest in made} == made
        assert dict(zip(made, map(bytes, reader.get_many(list(made))), strict=True)) == made

    def test_chunks_are_read_into_their_places(self, store: Store, reader: ChunkFinder) -> None:
        made = put_all(store)
        rng = random.Random(1)
        for _ in range(3):
            asked = rng.choices(list(made), k=12)
            found = reader.find_many(asked)
            assert list(found.lengths) == [len(made[digest]) for digest in asked]
            memory = bytearray(b"\xaa" * (sum(map(len, map(made.__getitem__, asked))) + 2))
            parts, at = [], 1
            for digest in asked:
                parts.append(memoryview(memory)[at : at + len(made[digest])])
                at += len(made[digest])
            found.read_into(parts)
            assert memory == b"\xaa" + b"".join(made[digest] for digest in asked) + b"\xaa", "and nothing beside them"

    def test_a_length_is_told_only_of_what_can_be_read_into_a_place(self, store: Store, reader: ChunkFinder) -> None:
        small, pieces = put_all(store, (5_000, PIECES_BYTES))
        lengths = reader.find_many([small, pieces, bytes(32), small]).lengths
        assert lengths[0] == lengths[3] == 5_000 and lengths[2] is None
        assert lengths[1] in (None, PIECES_BYTES)
        assert list(reader.find_many([]).lengths) == []

    def test_a_missing_chunk_is_told_with_its_digest(self, store: Store, reader: ChunkReader) -> None:
        made, missing = put_all(store), digest_of(b"nobody put this")
        for _ in range(2):
            with pytest.raises(ChunkMissing) as told:
                reader.get(missing)
            assert told.value.digest == missing.hex()
            with pytest.raises(ChunkMissing):
                list(reader.get_many([*made, missing]))
        assert [bytes(value) for value in reader.get_many(list(made))] == list(made.values()), "the others are there"

    def test_a_damaged_chunk_is_told_and_never_given(self, store: Store, reader: ChunkFinder) -> None:
        made = put_all(store, (70_000, 80_000))
        good, bad = made
        self.damage(store, bad)
        for _ in range(2):
            with pytest.raises(ChunkCorrupt):
                reader.get(bad)
            with pytest.raises(ChunkCorrupt):
                list(reader.get_many([good, bad]))
            with pytest.raises(ChunkCorrupt):
                reader.find_many([bad]).read_into([memoryview(bytearray(len(made[bad])))])
            assert bytes(reader.get(good)) == made[good]

    def test_what_was_given_is_not_to_be_changed_and_does_not_change(self, store: Store, reader: ChunkReader) -> None:
        made = put_all(store, tuple(range(60_000, 60_040)))
        held = [(digest, reader.get(digest)) for digest in made]
        held += list(zip(made, reader.get_many(list(made)), strict=True))
        for digest in reversed(made):
            reader.get(digest)
        assert all(memoryview(value).readonly and bytes(value) == made[digest] for digest, value in held)

    def test_threads_read_at_once(self, store: Store, reader: ChunkReader) -> None:
        made = put_all(store, tuple(range(20_000, 20_030)))

        def work(seed: int) -> bool:
            asked = random.Random(seed).sample(list(made), len(made))
            return [bytes(value) for value in reader.get_many(asked)] == [made[digest] for digest in asked] and all(
                bytes(reader.get(digest)) == made[digest] for digest in asked[:10]
            )

        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(work, range(2 * THREADS)))
