"""num_workers="auto" and prefetch_bytes_max: the same batches, made by threads and within memory that nobody had to choose."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from time import sleep
from typing import Any

import pytest
from loader_data import ROWS, ids, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader  # noqa: E402
from loaders.numpy import NumpyLoader  # noqa: E402
from loaders.tuning import usable_cores  # noqa: E402

Make = Callable[..., Source]
COMMON: dict[str, Any] = {"batch_size": 50, "shuffle": True, "columns": ["id", "image"]}
BATCH_BYTES = 50 * (8 + 12)


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def same(batch: Any) -> Any:
    return batch


def slow(batch: Any) -> Any:
    sleep(0.002)
    return batch


@pytest.mark.parametrize("kind", [DataLoader, NumpyLoader])
def test_the_batches_are_those_of_one_thread(ds: Dataset, kind: Any) -> None:
    alone = kind(ds, **COMMON, arena_bytes_max=0)
    auto = kind(ds, **COMMON, arena_bytes_max=0, num_workers="auto", transform=slow)
    for _ in range(2):
        assert ids(auto) == ids(alone)
    assert auto.receipt() == alone.receipt()
    threads, depth = auto.prefetching
    assert 1 <= threads <= usable_cores() == auto.num_workers and depth >= 2
    assert pickle.loads(pickle.dumps(auto)).prefetching == (threads, depth)  # noqa: S301


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of torch: more than this machine has cores
def test_threads_come_when_steps_wait_for_them(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaders.tuning.usable_cores", lambda: 4)
    loader = DataLoader(ds, **COMMON, num_workers="auto", transform=slow)
    assert loader.prefetching[0] == 1
    seen = []
    for _ in range(3):
        for _ in loader:
            seen.append(loader.prefetching[0])
    assert max(seen) > 1 and max(seen) <= 4


def test_what_is_ahead_stays_within_the_budget(ds: Dataset) -> None:
    made: list[int] = []

    def count(batch: Any) -> Any:
        made.append(1)
        return batch

    loader = DataLoader(
        ds, **COMMON, num_workers=2, prefetch_factor=20, prefetch_bytes_max=3 * BATCH_BYTES, transform=count
    )
    for handed, _ in enumerate(loader, 1):
        assert len(made) <= handed + 3
    assert loader.prefetching == (2, 3)
    wide = DataLoader(ds, **COMMON, num_workers=2, prefetch_factor=20, transform=same)
    list(wide)
    assert wide.prefetching == (2, 40)


def test_a_budget_below_one_batch_is_named(ds: Dataset) -> None:
    loader = DataLoader(ds, **COMMON, num_workers=2, prefetch_bytes_max=BATCH_BYTES - 1, transform=same)
    message = (
        f"prefetch_bytes_max={BATCH_BYTES - 1} holds no batch: one has {BATCH_BYTES} bytes here; give at least 2000"
    )
    with pytest.raises(ValueError, match=message):
        list(loader)
    assert loader.state_dict()["consumed"] == 0
    with pytest.raises(ValueError, match="prefetch_bytes_max=0 holds no batch: give"):
        DataLoader(ds, **COMMON, num_workers=2, prefetch_bytes_max=0)


def test_auto_is_for_the_threads_of_this_loader(ds: Dataset) -> None:
    with pytest.raises(ValueError, match='num_workers="auto", prefetch_factor="auto": only for a LeptonStore dataset'):
        DataLoader([1, 2], num_workers="auto")
    with pytest.raises(ValueError, match="collate_fn exclude each other"):
        DataLoader(ds, num_workers="auto", collate_fn=list)
    with pytest.raises(ValueError, match="prefetch_bytes_max: only for"):
        DataLoader([1, 2], prefetch_bytes_max=1)
    with pytest.raises(ValueError, match="prefetch_bytes_max is for threads"):
        DataLoader(ds, num_workers=2, worker_mode="process", prefetch_bytes_max=1 << 20)
    with pytest.raises(ValueError, match="num_workers is a number or \"auto\", not 'many'"):
        DataLoader(ds, num_workers="many")
    with pytest.raises(ValueError, match="prefetch_factor option could only be specified in multiprocessing"):
        DataLoader(ds, prefetch_factor="auto")
