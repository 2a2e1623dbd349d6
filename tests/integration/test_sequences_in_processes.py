"""Windows, packs, lists, bundles, timelines and what was known then out of worker processes: the batches of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import (  # noqa: E402
    AsOf,
    Bundle,
    DataLoader,
    Known,
    RowWindows,
    Timeline,
    TokenPacks,
    TokenWindows,
    Track,
)
from loaders.collate import pad, ragged, struct  # noqa: E402

ROWS = 600


@pytest.fixture
def ds(store: Store, source_of: Callable[..., Source]) -> Dataset:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 30, ROWS)
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "tokens": pa.array([rng.integers(0, 999, length).tolist() for length in lengths], pa.list_(pa.uint16())),
            "box": pa.array([{"at": [1.0] * (row % 3), "w": row} for row in range(ROWS)]),
            "text": [f"row {row}" for row in range(ROWS)],
        }
    )
    return write_dataset(store, "rows", source_of(table, ("id",)))


def plus_id(value: dict[str, Any]) -> np.ndarray:
    return np.asarray(value["tokens"], np.int64) + value["id"]


MADE: dict[str, tuple[Callable[[Dataset], Any], dict[str, Any]]] = {
    "windows": (lambda ds: TokenWindows(ds, length=16), {}),
    "packs": (lambda ds: TokenPacks(ds, length=32, dtype="int64"), {"arena_bytes_max": 0}),
    "lists": (lambda ds: ds, {"collate": {"tokens": pad(0, extra="mask"), "box": struct(at=ragged())}}),
    "bundle": (
        lambda ds: Bundle(ds, sample=("tokens", "id")),
        {"columns": ["sample"], "transforms": {"sample": [plus_id]}, "collate": {"sample": pad(-1)}},
    ),
    "timeline": (
        lambda ds: Timeline({"a": Track(ds, "id"), "b": Track(ds, "id", columns=["text"])}, reference="a"),
        {"collate": {"a.tokens": ragged()}},
    ),
    "rows": (lambda ds: RowWindows(ds, length=3, time="id"), {}),
    "asof": (lambda ds: AsOf(ds, "id", {"a": Known(ds, "id", "id", 5, columns=["text", "id"])}), {}),
}


def flat(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        return [item for name, value in batch.items() for item in (name, *flat(value))]
    if isinstance(batch, list):
        return [item for value in batch for item in flat(value)]
    return [batch.dtype, batch.tolist()] if isinstance(batch, torch.Tensor) else [batch]


@pytest.mark.parametrize("kind", MADE)
def test_worker_processes_give_the_same(ds: Dataset, kind: str) -> None:
    make, options = MADE[kind]
    common = {"batch_size": 32, "shuffle": True, "seed": 1, **options}
    here = [flat(batch) for batch in DataLoader(make(ds), **common)]
    loader = DataLoader(make(ds), num_workers=2, worker_mode="process", multiprocessing_context="fork", **common)
    assert [flat(batch) for batch in loader] == here and len(here) == len(loader)
