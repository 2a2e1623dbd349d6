"""Large values land in their column's buffer exactly as one by one."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.large_values import LargeValues
from leptonstore.dataset.values import Asked, Column, intern, resolve
from leptonstore.errors import ChunkCorrupt, ChunkMissing
from leptonstore.format.page import REFERENCE
from leptonstore.store import Store
from leptonstore.tiers.local import LocalTier


def values_of(rng: random.Random, rows: int, text: bool) -> list[bytes | str | None]:
    sizes = [rng.choice([0, 1, 17, 20_000, 70_000]) for _ in range(rows)]
    if text:
        return [None if rng.random() < 0.2 else rng.choice("aé") * size for size in sizes]
    return [None if rng.random() < 0.2 else rng.randbytes(size) for size in sizes]


def all_of(store: Store, column: Column, kind: pa.DataType) -> pa.Array:
    """As a dataset reads a column."""
    field = pa.field("x", kind)
    return Asked(store, [column], [field], lambda column, field: None).batch().column(0)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_mixed_columns_and_slices_of_them_come_back(store: Store, kind: pa.DataType) -> None:
    rng = random.Random(1)
    values = values_of(rng, 60, pa.types.is_string(kind) or pa.types.is_large_string(kind))
    column = intern(store, pa.array(values, kind))
    assert all_of(store, column, kind).to_pylist() == values, "not published yet"
    store.flush()
    for start, stop in ((0, 60), (7, 23), (30, 30), (59, 60)):
        part = column.slice(start, stop)
        for found in (all_of(store, part, kind), resolve(store, part, kind)):
            assert found.type == kind and found.to_pylist() == values[start:stop]
            found.validate(full=True)


def test_a_length_that_lies_allocates_nothing(store: Store) -> None:
    digest = store.put(bytes(20_000))
    store.flush()
    for length in (1 << 60, (1 << 64) - 1):
        values = pa.array([REFERENCE.pack(digest, length)], pa.binary())
        assert not LargeValues(store, values, np.array([True]), pa.binary()).fits
        assert all_of(store, Column(values, np.array([True])), pa.binary()).to_pylist() == [bytes(20_000)]


def test_what_is_missing_or_altered_is_told(store: Store) -> None:
    missing = pa.array([REFERENCE.pack(bytes(32), 20_000)], pa.binary())
    with pytest.raises(ChunkMissing):
        all_of(store, Column(missing, np.array([True])), pa.binary())
    column = intern(store, pa.array([random.Random(seed).randbytes(30_000) for seed in range(3)], pa.binary()))
    store.flush()
    assert isinstance(store.home, LocalTier)
    packs = list((store.home.root / "packs").rglob("*.pack"))
    path = max(packs, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[40_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChunkCorrupt):
        all_of(store, column, pa.binary())


def test_a_short_text_beside_a_long_one_is_text_when_a_row_is_read(store: Store) -> None:
    """A page with references keeps bytes: `ds[i]` gave short texts out as bytes, where there was a long one in their row group."""
    table = pa.table({"id": range(4), "said": ["short é", "x" * 20_000, None, ""]})
    ds = write_dataset(store, "d", Source(table.schema, ("id",), lambda: iter(table.to_batches()), 4))
    assert [ds[row]["said"] for row in range(4)] == table["said"].to_pylist()
    assert [row["said"] for row in ds.head(4)] == table["said"].to_pylist()
