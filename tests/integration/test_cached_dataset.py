"""A dataset read through the hot cache: the same rows, fetched once for the host, and the same errors."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.cache import HotCache
from leptonstore.dataset import Dataset, Source, cached, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing
from leptonstore.store import Store
from leptonstore.store.keys import Passphrase, ScryptCost
from leptonstore.tiers.local import LocalTier
from tests.integration.cache_data import run_python
from tests.integration.loader_data import make_table

ROWS = 9_000
BUDGET = 64 << 20


class CountingTier(LocalTier):
    """A directory that counts the bytes of packs that were read from it."""

    bytes = 0

    def read(self, pack: str, offset: int, length: int) -> bytes:
        data = super().read(pack, offset, length)
        self.bytes += len(data)
        return data

    def read_once(self, pack: str, offset: int, length: int) -> bytes | memoryview:  # type: ignore[override]
        data = super().read_once(pack, offset, length)
        self.bytes += len(data)
        return data  # type: ignore[return-value]


def counted(store: Store) -> CountingTier:
    """Reads of this store are counted from now on."""
    assert isinstance(store.home, LocalTier)
    tier = CountingTier(store.home.root)
    store.tier.use([tier])
    return tier


def large_table(rows: int = 600, pieces: bool = True) -> pa.Table:
    """Values of their own chunks (one is stored in pieces), small ones between them, and text in several parts."""
    rng = np.random.default_rng(0)
    blobs = [rng.bytes(20_000 + at) if at % 7 else (None if at % 2 else rng.bytes(30)) for at in range(rows)]
    blobs[20] = rng.bytes(5_000_000 if pieces else 20_000)
    text = [f"{at} " * 300 for at in range(rows)]
    return pa.table({"id": np.arange(rows), "blob": pa.array(blobs, pa.binary()), "text": text})


@pytest.fixture
def dataset(store: Store, source_of: Callable[..., Source]) -> Dataset:
    write_dataset(store, "small", source_of(make_table(ROWS), ("id",)))
    write_dataset(store, "d", source_of(large_table(), ("id",)))
    return Dataset.open(store, "d")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HotCache]:
    with HotCache(tmp_path / "cache", BUDGET) as made:
        yield made


@pytest.mark.parametrize("name", ["small", "d"])
def test_every_way_of_reading_gives_the_same_rows(store: Store, dataset: Dataset, tmp_path: Path, name: str) -> None:
    plain = Dataset.open(store, name)
    through = plain.cached(tmp_path / "cache", BUDGET)
    rng = np.random.default_rng(1)
    for _ in range(2):  # fetched, then cached
        for rows in (
            rng.permutation(len(plain))[:300],
            np.array([5, 5, 3, len(plain) - 1, 5]),
            np.arange(100, 400),
            np.empty(0, np.int64),
        ):
            assert through.take(rows).combine_chunks() == plain.take(rows).combine_chunks()
        assert through.to_arrow() == plain.to_arrow()
        assert through[7].keys() == plain[7].keys() and str(through[7]) == str(plain[7])
        view, same = through.select(rng.permutation(len(plain))[:200]), None
        same = plain.select(view.selection)
        assert view.cache is through.cache and view.to_arrow() == same.to_arrow()
        assert view.take(np.arange(50)[::-1], ["id"]) == same.take(np.arange(50)[::-1], ["id"])


def test_a_row_many_times_in_a_view(store: Store, dataset: Dataset) -> None:
    view = dataset.select(np.full(20_000, 3))
    assert view.to_arrow(["id"]).column(0).to_pylist() == [3] * 20_000
    assert view.take(np.arange(20_000), ["id"]).num_rows == 20_000


def test_what_the_host_has_is_not_read_from_the_tier_again(store: Store, dataset: Dataset, cache: HotCache) -> None:
    with Store.open(store.url) as one:
        first = Dataset.open(one, "d").cached(cache)
        first.to_arrow()
    for way in ("view", "process"):
        with Store.open(store.url) as other:
            again = Dataset.open(other, "d")
            again = again.cached(cache.path) if way == "process" else again.cached(cache)
            tier = counted(other)
            _ = again.schema  # the commit is read from the store
            seen = tier.bytes
            assert again.to_arrow() == dataset.to_arrow()
            assert again.take([9, 3, 555]) == dataset.take([9, 3, 555])
            assert tier.bytes == seen, "pages, nodes and large values are there"


def test_a_row_of_many_parts_fetches_its_own_part(
    store: Store, source_of: Callable[..., Source], cache: HotCache
) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(4_000), "row": pa.array([rng.bytes(784) for _ in range(4_000)], pa.binary())})
    write_dataset(store, "rows", source_of(table, ("id",)))
    with Store.open(store.url) as other:
        through = Dataset.open(other, "rows").cached(cache)
        tier = counted(other)
        assert through[1234]["row"] == table.column("row")[1234].as_py()
        assert 784 < tier.bytes < 400_000, "of 3.1 MB"


def test_pages_are_not_kept_a_second_time_in_the_process(dataset: Dataset, cache: HotCache) -> None:
    through = dataset.cached(cache)
    through.to_arrow()
    kept = through.pages._kept
    assert {name for _, name in kept} <= {"blob"}
    assert sum(column.values.nbytes for column in kept.values()) < 64 * len(dataset)


def test_what_was_read_pins_nothing(dataset: Dataset, cache: HotCache) -> None:
    through = dataset.cached(cache)
    held = [through.to_arrow(), through.to_arrow(), through.take([3, 4, 5]), list(through.iter_batches())]
    linked = cache.stats()["linked_bytes"]
    assert cache.clear() == linked and cache.stats()["pinned_bytes"] == 0 and held


def test_it_passes_between_processes(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    through = dataset.cached(tmp_path / "cache", BUDGET).select(np.arange(50, 20, -1))
    again = pickle.loads(pickle.dumps(through))  # noqa: S301
    assert again.cache.path == tmp_path / "cache" and again.cache.budget_bytes == BUDGET
    assert again.to_arrow() == through.to_arrow()
    (tmp_path / "pickle").write_bytes(pickle.dumps(through))
    code = """
import json, pickle, sys
from pathlib import Path
ds = pickle.loads(Path(sys.argv[1]).read_bytes())
values = ds.to_arrow(["id"]).column(0).to_pylist()
ds.take([0, 1, 2])
print(json.dumps([values, ds.chunks.cache.stats()["values"]]))
"""
    values, held = run_python(code, tmp_path / "pickle")
    assert values == list(range(50, 20, -1)) and held > 0


def test_values_of_an_encrypted_store_are_only_kept_in_ram(
    tmp_path: Path, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(
        tmp_path / "sealed", unlock=Passphrase(b"a passphrase of a test"), cost=ScryptCost(n=16)
    ) as sealed:
        write_dataset(sealed, "d", source_of(large_table(100), ("id",)))
        dataset = Dataset.open(sealed, "d")
        monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "ext4")
        with pytest.raises(BadInput, match="may only be kept in RAM"):
            dataset.cached(tmp_path / "cache", BUDGET)
        monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
        through = dataset.cached(tmp_path / "ram", BUDGET)
        for _ in range(2):
            assert through.to_arrow() == dataset.to_arrow()
        digest = dataset.leaves.digests[0]
        with HotCache(tmp_path / "ram") as cache:
            assert cache.get(digest) is None and cache.get(sealed.stored_name(digest)) is not None


def _read_only(folder: Path) -> None:
    (folder / "cache").write_text("a file in the way")


def _gone(folder: Path) -> None:
    for entry in (folder / "cache").iterdir():
        entry.unlink()
    (folder / "cache").rmdir()


@pytest.mark.parametrize("when", ["before", "after"])
def test_without_its_cache_reading_goes_on_with_one_warning(dataset: Dataset, tmp_path: Path, when: str) -> None:
    cached._told.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if when == "before":
            _read_only(tmp_path)
        through = dataset.cached(tmp_path / "cache", 1 << 20)
        if when == "after":
            through.take([1, 2, 3])
            _gone(tmp_path)
        others = [through.select(np.arange(at, at + 100)) for at in range(3)]
        others += [dataset.cached(tmp_path / "cache") for _ in range(2)] if when == "before" else []
        assert through.to_arrow() == dataset.to_arrow()
        for other in others:
            assert other.take([5, 3]) == dataset.take(
                other.select([5, 3]).selection if other.selection is not None else [5, 3]
            )
    assert [str(one.message) for one in told if "hot cache" in str(one.message)] == [str(told[0].message)]
    assert "reading goes on without it" in str(told[0].message)


def test_a_full_device_is_told_once(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached._told.clear()
    through = dataset.cached(tmp_path / "cache", BUDGET)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(RuntimeWarning, match="takes no new values") as told:
        assert through.to_arrow() == dataset.to_arrow()
        assert through.take([3, 2]) == dataset.take([3, 2])
    assert len(told) == 1


def test_errors_of_the_store_name_dataset_row_and_column_as_before(
    store: Store, dataset: Dataset, cache: HotCache
) -> None:
    reference = dataset.take_stored(np.array([97]), "blob").values[0].as_py()
    place = store.locate(reference[:32])
    assert place is not None and isinstance(store.home, LocalTier)
    path = store.home.path_of(place.pack)
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)
    through = Dataset.open(store, "d").cached(cache)
    for _ in range(2):
        with pytest.raises(ChunkCorrupt, match=r"d@main row 97 column 'blob'"):
            through.take([3, 97, 5], ["blob"])
        assert through.take([3, 5], ["blob"]) == dataset.take([3, 5], ["blob"])
    page = store.locate(dataset.leaves.group(0).columns[2][0].digest)
    assert page is not None
    store.home.delete_pack(page.pack)
    fresh = Dataset.open(store, "d").cached(cache)
    with pytest.raises((ChunkCorrupt, ChunkMissing), match=r"d@main rows 0-\d+ column 'text'"):
        fresh.take([0], ["text"])


def test_what_a_batch_misses_on_a_bucket_is_few_requests_and_hits_are_none(
    bucket_url: str, source_of: Callable[..., Source], cache: HotCache
) -> None:
    from leptonstore.tiers.object import ObjectTier

    with Store.create(bucket_url) as store:
        write_dataset(store, "d", source_of(large_table(pieces=False), ("id",)))
        through = Dataset.open(store, "d").cached(cache)
        assert isinstance(store.home, ObjectTier)
        through.take([0])  # nodes, and pages of references
        rows = np.random.default_rng(0).permutation(len(through))
        for expected in (2, 0):  # requests for a batch: its 150 values lie in 10 MB
            for first in range(0, len(rows), 150):
                before = store.home.counters.to_json()["get"]
                table = through.take(rows[first : first + 150], ["id", "blob"])
                assert table.column("id").to_pylist() == rows[first : first + 150].tolist()
                assert store.home.counters.to_json()["get"] - before <= expected


def test_export_reads_around_the_cache(dataset: Dataset, cache: HotCache, tmp_path: Path) -> None:
    through = dataset.cached(cache)
    export_dataset(through, tmp_path / "d.parquet")
    assert cache.stats()["values"] == 0
    export_dataset(dataset, tmp_path / "e.parquet")
    assert (tmp_path / "d.parquet").read_bytes() == (tmp_path / "e.parquet").read_bytes()


def test_four_processes_fetch_once_and_hold_one_copy(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    code = """
import json, os, sys, threading
from leptonstore.dataset import Dataset
from leptonstore.store import Store
ready, begin, out = [], *os.pipe()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        with Store.open(sys.argv[1]) as store:
            ds = Dataset.open(store, "d").cached(sys.argv[2], 64 << 20)
            table = ds.take(list(range(600)))
            assert table.num_rows == 600
        ds.chunks.cache.close()
        os._exit(0)
    children.append(child)
os.write(begin, b"1234")
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
with Store.open(sys.argv[1]) as store:
    print(json.dumps([codes, Dataset.open(store, "d").cached(sys.argv[2]).chunks.cache.stats()]))
"""
    code = code.replace("ready, begin, out = [], *os.pipe()", "ready, begin = os.pipe()")
    codes, stats = run_python(code, store.url, tmp_path / "cache")
    assert codes == [0] * 4
    assert stats["puts"] == stats["values"], json.dumps(stats)
