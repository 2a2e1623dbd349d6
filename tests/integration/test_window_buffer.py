"""Windows of a block-wise order in memory: the same batches as without, nothing kept that was taken, and errors where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from loader_data import ROWS, ids, make_table

from leptonstore.dataset import Dataset, write_dataset
from leptonstore.store import Store
from loaders import DataLoader
from loaders.orders import BlockShuffle
from loaders.source import ColumnSource
from loaders.window_buffer import WindowBuffer

ORDER = BlockShuffle(64, 4)


@pytest.fixture
def ds(store: Store, source_of: Any) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


def loader_of(ds: Dataset, **options: Any) -> DataLoader:
    return DataLoader(ds, 50, order=ORDER, columns=["id", "text", "blob", "image"], arena_bytes_max=0, **options)


def told(batches: Any) -> list[tuple[Any, ...]]:
    return [(batch["id"].tolist(), batch["text"], batch["blob"], batch["image"].tolist()) for batch in batches]


@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_are_those_that_are_read_one_by_one(ds: Dataset, ranks: int) -> None:
    for rank in range(ranks):
        share = {"rank": rank, "world_size": ranks}
        plain, ahead = loader_of(ds, **share), loader_of(ds, num_workers=2, **share)
        for _ in range(2):
            assert told(ahead) == told(plain)
        source: Any = ahead._source
        assert isinstance(source.buffer, WindowBuffer) and not source.buffer._at, "what was taken is kept"


def test_a_restored_loader_reads_the_rest_of_its_window(ds: Dataset) -> None:
    whole = ids(loader_of(ds))
    for taken in (1, 4, 7):
        first = loader_of(ds, num_workers=2)
        batches = iter(first)
        for _ in range(taken):
            next(batches)
        again = loader_of(ds, num_workers=2)
        again.load_state_dict(first.state_dict())
        assert ids(again) == whole[taken:]


def test_each_row_is_read_once_and_in_long_runs(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[np.ndarray] = []
    cold = ColumnSource.read_cold

    def counted(self: ColumnSource, rows: np.ndarray, *more: Any) -> Any:
        read.append(rows)
        return cold(self, rows, *more)

    monkeypatch.setattr(ColumnSource, "read_cold", counted)
    list(loader_of(ds, num_workers=2))
    rows = np.concatenate(read)
    assert len(rows) == ROWS == len(np.unique(rows))
    assert all((np.diff(some) > 0).all() for some in read), "not in the order in which they are stored"


def test_a_pass_that_is_left_keeps_nothing(ds: Dataset) -> None:
    loader = loader_of(ds, num_workers=2)
    batches = iter(loader)
    next(batches)
    source: Any = loader._source
    buffer = source.buffer
    assert buffer._at
    batches.close()
    assert not buffer._at


def test_an_error_is_met_at_the_batch_that_it_belongs_to(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ids(loader_of(ds))
    broken = whole[9][0]
    cold = ColumnSource.read_cold

    def failing(self: ColumnSource, rows: np.ndarray, *more: Any) -> Any:
        if broken in rows:
            raise OSError("damaged")
        return cold(self, rows, *more)

    monkeypatch.setattr(ColumnSource, "read_cold", failing)
    batches, seen = iter(loader_of(ds, num_workers=2)), []
    with pytest.raises(OSError, match="damaged"):
        for batch in batches:
            seen.append(batch["id"].tolist())
    assert seen == whole[:9]


def test_rows_that_are_asked_for_again_are_not_here() -> None:
    buffer = WindowBuffer(lambda rows: {"x": rows * 2, "y": [str(row) for row in rows]}, lambda values, rows: 8.0)
    assert buffer.fetch(np.arange(10)) == 80
    assert buffer.take(np.array([3, 12])) is None and buffer.take(np.array([3, 3])) is None
    found = buffer.take(np.array([7, 3]))
    assert found is not None and found["x"].tolist() == [14, 6] and found["y"] == ["7", "3"]
    assert buffer.take(np.array([3])) is None
