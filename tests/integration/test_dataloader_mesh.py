"""Four gloo ranks on device meshes: data ranks share global batches, all others see equal ones or their slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ranks import run_ranks

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

pytest.importorskip("torch")

from loaders import DataLoader, Order

ROWS = 203
RANKS = 4
ORDER = Order(ROWS, 3, 0).rows_at(0, ROWS).tolist()
Batches = list[dict[str, Any]]


def table() -> pa.Table:
    tokens = (np.arange(ROWS)[:, None] * 100 + np.arange(6)).astype(np.int32)
    odd = np.zeros((ROWS, 5), np.int32)
    return pa.table(
        {
            "id": pa.array(np.arange(ROWS)),
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), 6),
            "odd": pa.FixedSizeListArray.from_arrays(pa.array(odd.reshape(-1)), 5),
        }
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the four processes saw."""
    folder = tmp_path_factory.mktemp("mesh")
    rows = table()
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        write_dataset(store, "sequences", Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), ROWS, {}))
    return run_ranks("mesh_run.py", folder, RANKS)


def together(*ranks: Batches) -> list[list[int]]:
    """The rows of each global batch."""
    return [[row for batch in step for row in batch["id"]] for step in zip(*ranks, strict=True)]


def test_tensor_ranks_see_equal_batches_and_data_ranks_share(ranks: list[dict[str, Any]]) -> None:
    seen = [rank["dp x tp"] for rank in ranks]
    assert seen[0] == seen[1] and seen[2] == seen[3]
    assert together(seen[0], seen[2]) == [ORDER[at : at + 20] for at in range(0, ROWS, 20)]
    assert all(rank["sub"] == rank["dp x tp"] for rank in ranks)  # a mesh of the data dimension alone says the same


def test_all_data_dimensions_count_and_need_not_divide(ranks: list[dict[str, Any]]) -> None:
    seen = [rank["hybrid"] for rank in ranks]
    assert together(*seen) == [ORDER[at : at + 30] for at in range(0, ROWS, 30)]
    padded = [rank["padded"] for rank in ranks]
    assert {len(batch["id"]) for rank in padded for batch in rank} == {8}
    valid = [
        [{"id": [row for row, real in zip(batch["id"], batch["_valid"], strict=True) if real]} for batch in rank]
        for rank in padded
    ]
    assert together(*valid) == together(*seen)


def test_context_ranks_see_their_slice_of_equal_rows(ranks: list[dict[str, Any]]) -> None:
    seen = [rank["context"] for rank in ranks]
    assert (
        together(seen[0], seen[2]) == together(seen[1], seen[3]) == [ORDER[at : at + 14] for at in range(0, ROWS, 14)]
    )
    for rank, batches in enumerate(seen):
        first = rank % 2 * 3
        for batch in batches:
            assert batch["tokens"] == [[row * 100 + at for at in range(first, first + 3)] for row in batch["id"]]
    assert all("length 5, which 2 context-parallel ranks cannot share" in rank["refused"] for rank in ranks)


def test_without_data_dimensions_every_rank_sees_all(ranks: list[dict[str, Any]]) -> None:
    assert all(together(rank["whole"]) == [ORDER[at : at + 10] for at in range(0, ROWS, 10)] for rank in ranks)


def test_states_are_equal_on_all_ranks_and_count_data_ranks_only(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["state"] == ranks[0]["state"] for rank in ranks)
    assert (ranks[0]["state"]["consumed"], ranks[0]["state"]["global_batch"]) == (60, 20)


def test_arguments_that_do_not_fit_are_named(store: Store) -> None:
    rows = table()
    ds = write_dataset(store, "s", Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), ROWS, {}))
    for options, message in [
        ({"data_dims": ("dp",)}, "data_dims: only with mesh="),
        ({"mesh": object(), "rank": 0, "world_size": 1}, "mesh, and rank or world_size, exclude each other"),
        ({"mesh": object(), "context_dim": "cp"}, "context_dim= and sequence_columns= belong together"),
        ({"mesh": object(), "collate_fn": list, "sequence_columns": {"tokens": 1}}, "sequence_columns and collate_fn"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataLoader(ds, 4, **options)
