"""Pad mode of the loader: static shapes, and evaluation that is exact by the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loader_data import ROWS, make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import DataLoader, Order  # noqa: E402

Make = Callable[..., Source]


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    return write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))


@pytest.mark.parametrize("options", [{}, {"arena_bytes_max": 0}, {"arena_bytes_max": 0, "num_workers": 2}])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_shapes_are_static_and_valid_rows_the_epoch(ds: Dataset, options: dict[str, Any], world_size: int) -> None:
    common = {"global_batch_size": 100, "shuffle": True, "pad": True, **options}
    ranks = [DataLoader(ds, rank=rank, world_size=world_size, **common) for rank in range(world_size)]
    size = -(-100 // world_size)
    seen = []
    for batches in zip(*ranks, strict=True):
        for batch in batches:
            assert list(batch)[-1] == "_valid" and batch["_valid"].dtype == torch.bool
            assert {len(values) for values in batch.values()} == {size}
            assert batch["image"].shape == (size, 3, 4)
            rows = batch["id"]
            assert torch.equal(batch["label"], rows % 7)  # padded rows are real ones, whole
            assert [text for text in batch["text"] if text] == [f"row {row}" for row in rows if row % 11]
            seen += rows[batch["_valid"]].tolist()
    assert seen == Order(ROWS, 0, 0).rows_at(0, ROWS).tolist()
    assert sum(loader.stats["rows"] for loader in ranks) == ROWS  # padding is not counted


def test_an_evaluation_by_the_mask_is_exact(ds: Dataset) -> None:
    """5 ranks of 3 rows over 7 rows: one rank has nothing but padding at the last step."""
    view = ds.select(np.arange(7))
    total = count = 0
    empty = 0
    for rank in range(5):
        loader = DataLoader(view, global_batch_size=15, rank=rank, world_size=5, pad=True, as_tuple=("id", "_valid"))
        for rows, valid in loader:
            assert rows.shape == (3,)
            total, count = total + int((rows * valid).sum()), count + int(valid.sum())
            empty += not valid.any()
    assert (total, count) == (sum(range(7)), 7)
    tiny = ds.select([5])
    batches = [next(iter(DataLoader(tiny, 2, rank=rank, world_size=3, pad=True))) for rank in range(3)]
    assert [batch["_valid"].tolist() for batch in batches] == [[False, False], [False, False], [True, False]]
    assert {row for batch in batches for row in batch["id"].tolist()} == {5}


def test_a_restore_in_pad_mode_misses_and_repeats_nothing(ds: Dataset) -> None:
    def ranks(world_size: int, pad: bool) -> list[Any]:
        common = {"global_batch_size": 96, "shuffle": True, "columns": ["id"], "world_size": world_size, "pad": pad}
        return [DataLoader(ds, rank=rank, **common) for rank in range(world_size)]

    seen: list[int] = []
    state: Any = None
    for world_size, pad, steps in ((5, True, 7), (3, False, 5), (7, True, 10_000)):
        loaders = ranks(world_size, pad)
        for loader in loaders if state else []:
            loader.load_state_dict(state)
        for step, batches in enumerate(zip(*loaders, strict=True), 1):
            for batch in batches:
                seen += batch["id"][batch["_valid"]].tolist() if pad else batch["id"].tolist()
            if step == steps:
                break
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
    assert seen == Order(ROWS, 0, 0).rows_at(0, ROWS).tolist()


def test_what_does_not_fit_is_named(ds: Dataset, store: Store, source_of: Make) -> None:
    with pytest.raises(ValueError, match="leaves out '_valid', which says which rows of a batch count"):
        DataLoader(ds, 4, pad=True, as_tuple=("image", "label"))
    with pytest.raises(ValueError, match="pad and collate_fn exclude each other"):
        DataLoader(ds, 4, pad=True, collate_fn=list)
    with pytest.raises(ValueError, match="pad: only for a LeptonStore dataset"):
        DataLoader(torch.utils.data.TensorDataset(torch.arange(3)), pad=True)
    taken = pa.table({"id": pa.array([1, 2]), "_valid": pa.array([True, False])})
    other = write_dataset(store, "taken", source_of(taken, ("id",)))
    with pytest.raises(ValueError, match="has a column '_valid', which is the mask"):
        DataLoader(other, 4, pad=True)
    assert "_valid" in next(iter(DataLoader(other, 2)))  # and is a column like any other without it
