"""A DataLoader over a dataset that is read through the hot cache: the same batches, a plan that is what it reads, one arena a host."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from leptonstore import limits  # noqa: E402
from leptonstore.cache import HotCache  # noqa: E402
from leptonstore.cache.hot import Lease  # noqa: E402
from leptonstore.dataset import Dataset, Source, write_dataset  # noqa: E402
from leptonstore.store import Store  # noqa: E402
from leptonstore.store.keys import KeyFile  # noqa: E402
from loaders import DataLoader, Order  # noqa: E402
from loaders import plan as loader_plan  # noqa: E402
from loaders.orders import BlockShuffle  # noqa: E402
from loaders.source import ColumnSource  # noqa: E402
from tests.integration.cache_data import run_python  # noqa: E402
from tests.integration.loader_data import ROWS, make_table  # noqa: E402
from tests.integration.test_cached_dataset import counted  # noqa: E402

BUDGET = 64 << 20
Make = Callable[..., Source]


@pytest.fixture
def dataset(store: Store, source_of: Make) -> Dataset:
    """A column of each kind; `image` has values of their own chunks, `row` pages of many parts."""
    rng = np.random.default_rng(0)
    table = make_table(ROWS)
    large = pa.array([rng.bytes(17_000) if at % 4 == 0 else b"small" for at in range(ROWS)], pa.binary())
    table = table.append_column("large", large)
    table = table.append_column("row", pa.array([rng.bytes(784) for _ in range(ROWS)], pa.binary()))
    write_dataset(store, "d", source_of(table, ("id",)))
    return Dataset.open(store, "d")


def same(one: Any, other: Any) -> bool:
    """Batches of two loaders."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7))
        if torch.is_tensor(one[name])
        else one[name] == other[name]
        for name in one
    )


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("arena_bytes_max", [0, None])
def test_batches_are_those_without_a_cache(
    dataset: Dataset, tmp_path: Path, workers: int, arena_bytes_max: int | None
) -> None:
    options: dict[str, Any] = {"batch_size": 100, "shuffle": True, "seed": 3}
    options |= {"num_workers": workers, "arena_bytes_max": arena_bytes_max}
    plain = DataLoader(dataset, **options)
    loader = DataLoader(dataset.cached(tmp_path / "cache", BUDGET).select(np.arange(ROWS)), **options)
    for _ in range(3):
        pairs = list(zip(plain, loader, strict=True))
        assert len(pairs) == 27 and all(same(one, other) for one, other in pairs)


def test_worker_processes_read_through_the_cache(dataset: Dataset, tmp_path: Path) -> None:
    through = dataset.cached(tmp_path / "cache", BUDGET).select(np.arange(400))
    _ = through[0]  # open in the parent, too
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True, "num_workers": 2, "collate_fn": list}
    batches = list(DataLoader(through, **options))
    assert [[row["id"] for row in batch] for batch in batches] == [
        [row["id"] for row in batch] for batch in DataLoader(dataset.select(np.arange(400)), **options)
    ]
    with HotCache(tmp_path / "cache") as cache:
        assert cache.stats()["values"] > 100, "large values, a quarter of 400, and more"


class Recorded:
    """Keys that were asked for, by any cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[bytes] = []
        get = HotCache.get

        def record(cache: HotCache, key: bytes) -> Lease | None:
            self.asked.append(key)
            return get(cache, key)

        monkeypatch.setattr(HotCache, "get", record)


COLUMNS = [["large"], ["row"], ["row", "large", "text"], ["image", "large", "blob", "row"]]


@pytest.mark.parametrize("columns", COLUMNS, ids=["values", "parts", "several", "tensors"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_plan_is_what_is_asked_for(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: list[str], world_size: int
) -> None:
    """This rank's keys, in their order; no key of a dataset is asked for that was not told, but nodes and pages of references."""
    through = dataset.cached(tmp_path / "cache", BUDGET).select(np.random.default_rng(2).permutation(ROWS)[:1500])
    loader = DataLoader(
        through,
        global_batch_size=90,
        shuffle=True,
        columns=columns,
        arena_bytes_max=0,
        rank=world_size - 1,
        world_size=world_size,
    )
    told: list[bytes] = []
    plan = HotCache.plan

    def tell(cache: HotCache, keys: Any, restart: bool = False) -> int:
        told[:] = ([] if restart else told) + [row.tobytes() for row in keys]
        return plan(cache, keys, restart)

    monkeypatch.setattr(HotCache, "plan", tell)
    recorded = Recorded(monkeypatch)
    for _ in range(2):
        batches = iter(loader)
        recorded.asked.clear()
        list(batches)
        count = len(told) // 2
        assert 2 * count - 4 <= len(told) and set(recorded.asked) <= set(told)
        assert recorded.asked == told[: len(recorded.asked)], "what is asked for in this epoch is told first"
        following = told[len(recorded.asked) :]
        iter(loader)
        loader.set_epoch(loader._progress.next.epoch - 1)
        assert following == told[: len(following)], "and then what is asked for in the next one"


def test_the_plan_of_an_encrypted_dataset_is_what_is_asked_for(
    tmp_path: Path, source_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
    rng = np.random.default_rng(0)
    values = [rng.bytes(17_000 if at % 2 else 50) for at in range(200)]
    table = pa.table({"id": np.arange(200), "value": pa.array(values, pa.binary()), "text": ["x" * 300] * 200})
    with Store.create(tmp_path / "sealed", unlock=KeyFile(bytes(range(64)))) as sealed:
        write_dataset(sealed, "v", source_of(table, ("id",)))
        through = Dataset.open(sealed, "v").cached(tmp_path / "cache", BUDGET)
        loader = DataLoader(through, batch_size=30, shuffle=True, columns=["value", "text"])
        batches = iter(loader)
        rows = Order(200, 0, 0).rows_at(0, 200)
        assert loader._source is not None
        told = loader._source.future_keys(rows, [30] * 6 + [20])
        recorded = Recorded(monkeypatch)
        list(batches)
        assert recorded.asked == [row.tobytes() for row in told] and len(told) >= 107


def fetched_share(dataset: Dataset, store: Store, place: Path, planned: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the dataset's bytes, from the second epoch on, with a cache of half of them."""
    if not planned:
        monkeypatch.setattr(HotCache, "plan", lambda cache, keys, restart=False: 0)
    data = sum(
        part.page_bytes + part.referenced_bytes
        for at in range(len(dataset.leaves.digests))
        for part in dataset.leaves.group(at).columns[1]
    )
    loader = DataLoader(dataset.cached(place, data // 2), batch_size=32, shuffle=True, columns=["value"])
    tier = counted(store)
    list(loader)
    first = tier.bytes
    assert first >= data
    for _ in range(3):
        list(loader)
    return (tier.bytes - first) / 3 / data


def test_a_plan_fetches_little_more_than_half_of_what_a_cache_of_half_lacks(
    store: Store, source_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(1500), "value": pa.array([rng.bytes(20_000) for _ in range(1500)], pa.binary())})
    write_dataset(store, "v", source_of(table, ("id",)))
    dataset = Dataset.open(store, "v")
    planned = fetched_share(dataset, store, tmp_path / "planned", True, monkeypatch)
    by_use = fetched_share(dataset, store, tmp_path / "lru", False, monkeypatch)
    assert planned < 0.6 < 0.75 < by_use, (planned, by_use)


def test_a_restored_and_a_left_epoch_are_planned_from_where_they_go_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = dataset.cached(tmp_path / "cache", BUDGET)

    def make() -> DataLoader:
        return DataLoader(through, batch_size=100, shuffle=True, columns=["row"], seed=1)

    loader = make()
    batches = iter(loader)
    for _ in range(9):
        next(batches)
    state = loader.state_dict()
    again = make()
    again.load_state_dict(state)
    recorded = Recorded(monkeypatch)
    rest = iter(again)
    source = again._source
    assert source is not None and source._chunks is not None
    ahead = source._chunks.cache.plan([])
    recorded.asked.clear()
    assert len(list(rest)) == 18
    assert source._chunks.cache.plan([]) == ahead - len(recorded.asked), "the plan was followed to the end of the epoch"


def test_what_does_not_fit_one_plan_is_told_as_it_goes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_plan, "PLAN_KEYS_MAX", 2_000)
    monkeypatch.setattr(loader_plan.Planner.__init__, "__defaults__", (2_000,))
    monkeypatch.setattr("loaders.share.WINDOW_POSITIONS", 200)
    loader = DataLoader(
        dataset.cached(tmp_path / "cache", BUDGET), batch_size=100, shuffle=True, columns=["large", "row"]
    )
    batches = iter(loader)
    cache = loader._source._chunks.cache  # type: ignore[union-attr]
    least = min(cache.plan([]) for _ in batches)
    assert least >= 300 and cache.plan([]) < 4_000


def test_a_loader_passes_between_processes(dataset: Dataset, tmp_path: Path) -> None:
    loader = DataLoader(dataset.cached(tmp_path / "cache", BUDGET), batch_size=500, shuffle=True, columns=["id", "row"])
    expected = [batch["id"].tolist() for batch in loader]
    loader.set_epoch(0)
    assert [batch["id"].tolist() for batch in pickle.loads(pickle.dumps(loader))] == expected  # noqa: S301


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_of_a_block_wise_order_are_read_ahead_into_the_cache(
    dataset: Dataset, store: Store, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batches, and each value fetched once; where a disk is behind the cache, nothing is read ahead."""
    assert DataLoader(dataset.cached(tmp_path / "cache", BUDGET))._source.reader_ahead() is None  # type: ignore[union-attr]
    monkeypatch.setattr(ColumnSource, "distant", True)
    monkeypatch.setattr("loaders.window_reader.READ_BYTES", 4 << 20)
    options: dict[str, Any] = {"batch_size": 20, "order": BlockShuffle(50, 10), "columns": ["id", "large"]}
    plain = list(DataLoader(dataset, **options))
    before = set(threading.enumerate())
    tier = counted(store)
    loader = DataLoader(dataset.cached(tmp_path / "cache", BUDGET), num_workers=workers, **options)
    source = loader._source
    taken: list[int] = []
    reader = type(source).reader_ahead

    def recorded(self: Any) -> Any:
        read = reader(self)
        return lambda rows: (taken.append(len(rows)), read(rows))[1]

    monkeypatch.setattr(type(source), "reader_ahead", recorded)
    batches = iter(loader)
    for number, batch in enumerate(batches):
        assert same(batch, plain[number])
    assert sum(taken) > ROWS // 3, "the threads took part"
    assert tier.bytes < 1.1 * sum(17_000 if at % 4 == 0 else 5 for at in range(ROWS)) + 1_000_000, "each value once"
    del batches
    gc.collect()
    assert set(threading.enumerate()) <= before


# -- arenas ---------------------------------------------------------------------------------------------------------------

ARENA = ["image", "label", "score", "id"]


def test_an_arena_is_one_object_of_the_host(dataset: Dataset, store: Store, tmp_path: Path) -> None:
    through = dataset.cached(tmp_path / "cache", BUDGET)
    loaders = [DataLoader(through, batch_size=64, shuffle=True, columns=ARENA) for _ in range(2)]
    plain = DataLoader(dataset, batch_size=64, shuffle=True, columns=ARENA)
    for first, second, third in zip(*loaders, plain, strict=True):
        assert same(first, third) and same(second, third)
        first["image"].zero_()  # a batch owns its memory
        first["label"] += 1
    sources = [loader._source for loader in loaders]
    assert all(source is not None and not source.arena["image"].flags.writeable for source in sources)
    with HotCache(tmp_path / "cache") as cache:
        assert cache.stats()["values"] == 1, "and not the pages that it was made of"
    with Store.open(store.url) as again:
        tier = counted(again)
        there = Dataset.open(again, "d").cached(tmp_path / "cache")
        assert sum(len(batch["id"]) for batch in DataLoader(there, batch_size=64, columns=ARENA)) == ROWS
        assert tier.bytes < 10_000, "the commit"
    other = dataset.select(np.arange(100)).cached(tmp_path / "cache")
    assert len(list(DataLoader(other, batch_size=10, columns=ARENA))) == 10, "another view has another arena"


def test_processes_decode_an_arena_once(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    code = """
import json, os, sys
from leptonstore.dataset import Dataset
from leptonstore.store import Store
from loaders import DataLoader
ready, begin = os.pipe()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(ready, 1)
            with Store.open(sys.argv[1]) as store:
                ds = Dataset.open(store, "d").cached(sys.argv[2], 64 << 20)
                loader = DataLoader(ds, batch_size=50, columns=["image", "label"])
                assert sum(len(batch["label"]) for batch in loader) == len(ds)
            loader._source._chunks.cache.close()
            code = 0
        finally:
            os._exit(code)
    children.append(child)
os.write(begin, b"1234")
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
from leptonstore.cache import HotCache
print(json.dumps([codes, HotCache(sys.argv[2]).stats()]))
"""
    codes, stats = run_python(code, store.url, tmp_path / "cache")
    assert codes == [0] * 4 and stats["puts"] == 1


def test_an_arena_that_does_not_fit_stays_with_the_process(dataset: Dataset, tmp_path: Path) -> None:
    through = dataset.cached(tmp_path / "cache", limits.CACHE_BUDGET_BYTES_MIN)
    wide = ["image", "label", "score", "id", "pair"]
    big = through.select(np.tile(np.arange(ROWS), 12))
    loader = DataLoader(big, batch_size=1000, columns=wide)
    assert sum(len(batch["id"]) for batch in loader) == 12 * ROWS
    with HotCache(tmp_path / "cache") as cache:
        assert cache.stats()["values"] == 0


def test_a_loader_over_a_cache_that_goes_away_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    loader = DataLoader(dataset.cached(tmp_path / "cache", BUDGET), batch_size=100, shuffle=True, num_workers=2)
    plain = DataLoader(dataset, batch_size=100, shuffle=True)
    with pytest.warns(RuntimeWarning, match="reading goes on without it") as told:
        for number, (one, other) in enumerate(zip(loader, plain, strict=True)):
            assert same(one, other)
            if number == 5:
                (tmp_path / "cache").rename(tmp_path / "gone")
        assert all(same(one, other) for one, other in zip(loader, plain, strict=True))
    assert len(told) == 1
