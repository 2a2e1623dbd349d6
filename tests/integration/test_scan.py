"""Going through a version: every row once and in order, in slices of bounded size, in memory that is used again only when nobody looks."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, recycle, write_dataset
from leptonstore.dataset.recycle import Recycler
from leptonstore.errors import ChunkCorrupt
from leptonstore.store import Store

ROWS, SLICE = 300, 400_000
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("photo", pa.large_binary()),
        pa.field("text", pa.string()),
    ]
)


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    photos = [None if row % 17 == 0 else rng.bytes(int(rng.choice([10, 20_000, 60_000]))) for row in range(ROWS)]
    photos[200] = rng.bytes(2 * SLICE)  # longer than a slice
    texts = ["word " * int(rng.integers(0, 6_000)) for _ in range(ROWS)]
    return pa.table([pa.array(range(ROWS)), pa.array(photos, pa.large_binary()), pa.array(texts)], schema=SCHEMA)


@pytest.fixture
def dataset(store: Store, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(limits, "SCAN_SLICE_BYTES", SLICE)
    monkeypatch.setattr(limits, "SCAN_SLAB_BYTES", SLICE)
    monkeypatch.setattr(recycle, "WORTH_BYTES_MIN", 1)
    monkeypatch.setattr(limits, "ROW_GROUP_ROWS_MIN", 40)
    monkeypatch.setattr(limits, "ROW_GROUP_ROWS_MAX", 80)
    return write_dataset(store, "photos", Source(SCHEMA, ("id",), lambda: iter(table.to_batches(max_chunksize=50))))


def test_batches_that_are_kept_stay_as_they_were_read(dataset: Dataset, table: pa.Table) -> None:
    """All are kept to the end: memory that was used again too early would show."""
    batches = list(dataset.iter_batches())
    assert [first for first, _ in batches] == np.cumsum([0, *(len(batch) for _, batch in batches[:-1])]).tolist()
    assert pa.Table.from_batches([batch for _, batch in batches]).equals(table)


def test_memory_that_nobody_looks_at_is_used_again(dataset: Dataset, table: pa.Table) -> None:
    addresses, seen = set(), 0
    for first, batch in dataset.iter_batches(["photo"]):
        column = batch.column(0)
        assert column.equals(table.column("photo").slice(first, len(batch)).combine_chunks())
        addresses.add(column.buffers()[2].address)
        seen += 1
        del column, batch
    assert seen > 20 and len(addresses) < seen / 2


def test_a_slice_refers_to_so_many_bytes_at_most(dataset: Dataset) -> None:
    for _, batch in dataset.iter_batches(["photo"]):
        assert len(batch) == 1 or batch.nbytes <= SLICE + limits.VALUE_INLINE_BYTES_MAX * len(batch)


@pytest.mark.parametrize("seed", range(3))
def test_views_in_any_order_come_in_theirs(dataset: Dataset, table: pa.Table, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, ROWS, 500)
    view = dataset.select(rows)
    expected = table.take(rows)
    assert pa.Table.from_batches([batch for _, batch in view.iter_batches()]).equals(expected.combine_chunks())


def test_damage_names_its_row_and_the_rows_before_it_are_read(
    dataset: Dataset, table: pa.Table, store: Store, tmp_path: Path
) -> None:
    row = next(row for row in range(100, ROWS) if len(table["photo"][row].as_py() or b"") == 60_000)
    column = dataset.take_stored(np.array([row]), "photo")
    place = store.locate(column.values[0].as_py()[:32])
    assert place is not None
    path = next(tmp_path.rglob(f"{place.pack}.pack"))
    data = bytearray(path.read_bytes())
    data[place.row.offset + 1_000] ^= 1
    path.write_bytes(data)
    read = 0
    with pytest.raises(ChunkCorrupt, match=f"row {row} column 'photo'"):
        for first, batch in dataset.iter_batches(["photo"]):
            read = first + len(batch)
    assert 0 < read <= row


def test_a_scan_that_is_left_early_leaves_no_thread(dataset: Dataset) -> None:
    before = threading.active_count()
    batches = dataset.iter_batches()
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_is_referenced_is_not_handed_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycle, "WORTH_BYTES_MIN", 1)
    memory = Recycler(4_096, 2)
    first, view = memory.take(3_000)
    view[:] = b"a" * 3_000
    array = pa.Array.from_buffers(pa.uint8(), 3_000, [None, first])
    kept = array.slice(10, 5).to_numpy()
    address = first.address
    del first, view, array
    others = [memory.take(4_096) for _ in range(3)]
    for _, other in others:
        other[:] = b"b" * 4_096
    assert kept.tobytes() == b"a" * 5
    del kept
    assert memory.take(100)[0].address == address


def test_what_is_longer_than_a_slab_is_memory_of_its_own() -> None:
    buffer, view = Recycler(4_096, 1).take(10_000)
    assert buffer.size == len(view) == 10_000 and not view.readonly
