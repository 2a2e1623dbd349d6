"""Datasets over a real store: rows come back as they went in, versions share what is equal, errors name the row."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset, FileTable, Source, delete_ref, list_refs, write_dataset, write_files
from leptonstore.dataset.cut import RowCutter, row_hashes, value_hashes
from leptonstore.dataset.schema import class_label_field
from leptonstore.errors import BadInput, ChunkCorrupt, Conflict, RefMissing, SchemaError
from leptonstore.store import Store

Make = Callable[..., Source]


def _table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, rows * 16, np.uint8)), 16)
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [4, 4]), pixels)
    text = [None if at % 7 == 0 else f"row {at} " * (at % 5) for at in range(rows)]
    blob = [rng.bytes(20_000 if at % 97 == 0 else 40) for at in range(rows)]
    fields = [
        pa.field("image", tensor.type, False),
        class_label_field("split", ["train", "test"]),
        pa.field("text", pa.string()),
        pa.field("blob", pa.large_binary(), False),
        pa.field("size", pa.float32()),
    ]
    split = pa.array((np.arange(rows) % 5 == 0).astype(np.uint8))
    size = pa.array(rng.normal(size=rows).astype(np.float32))
    return pa.table(
        [tensor, split, pa.array(text, pa.string()), pa.array(blob, pa.large_binary()), size], schema=pa.schema(fields)
    )


@pytest.fixture
def table() -> pa.Table:
    return _table(9_000)


@pytest.fixture
def dataset(store: Store, source_of: Make, table: pa.Table) -> Dataset:
    return write_dataset(store, "d", source_of(table, ("image",)), "first")


def test_rows_come_back_as_they_went_in(dataset: Dataset, table: pa.Table) -> None:
    assert len(dataset) == 9_000 and dataset.to_arrow().equals(table)
    assert dataset.schema.equals(table.schema, check_metadata=True)
    assert len(dataset.leaves.digests) > 1
    row = dataset[97]
    assert row["blob"] == table.column("blob")[97].as_py() and row["image"].shape == (4, 4)
    assert dataset[-1]["text"] == table.column("text")[-1].as_py()
    assert dataset[10:13].equals(table.slice(10, 3))
    with pytest.raises(IndexError):
        dataset[9_000]


def test_take_keeps_the_order_asked_for(dataset: Dataset, table: pa.Table) -> None:
    rows = np.random.default_rng(1).integers(0, 9_000, 500)
    got = dataset.take(rows, ["split", "text", "blob"])
    assert got.equals(table.select(["split", "text", "blob"]).take(rows))
    images = dataset.take(rows, ["image"]).column(0).combine_chunks().to_numpy_ndarray()
    assert (images == table.column("image").combine_chunks().to_numpy_ndarray()[rows]).all()
    assert dataset.take([], ["text"]).num_rows == 0
    with pytest.raises(BadInput, match="out of range"):
        dataset.take([9_000])
    with pytest.raises(SchemaError, match="no column 'nope'"):
        dataset.take([0], ["nope"])


def test_views_select_and_pickle(dataset: Dataset, table: pa.Table) -> None:
    test = dataset.split("test")
    assert dataset.splits() == ["train", "test"] and len(test) == 1_800
    assert test[3]["text"] == table.column("text")[15].as_py()
    again = pickle.loads(pickle.dumps(test))  # noqa: S301 - our own object, made a line above
    assert again.to_arrow().equals(test.to_arrow()) and again.fingerprint == test.fingerprint != dataset.fingerprint
    with pytest.raises(BadInput, match="it has: train, test"):
        dataset.split("nope")


def test_the_version_does_not_depend_on_batches_or_the_store(
    store: Store, source_of: Make, table: pa.Table, tmp_path: Path
) -> None:
    one = write_dataset(store, "a", source_of(table, ("image",), 1_000))
    other = write_dataset(Store.create(tmp_path / "other"), "b", source_of(table.combine_chunks(), ("image",), 3_333))
    assert one.commit == other.commit


def test_writing_the_same_again_adds_nothing(store: Store, source_of: Make, table: pa.Table, dataset: Dataset) -> None:
    before, sequence = store.new_bytes, store.state.sequence
    again = write_dataset(store, "d", source_of(table, ("image",)), "another message")
    assert again.commit == dataset.commit and store.new_bytes == before and store.state.sequence == sequence


def test_another_column_never_moves_a_cut(store: Store, source_of: Make, table: pa.Table, dataset: Dataset) -> None:
    """Changing one column writes that column only."""
    changed = table.set_column(4, table.schema.field("size"), pa.array(np.zeros(9_000, np.float32)))
    before = store.put_bytes, store.new_bytes
    new = write_dataset(store, "d", source_of(changed, ("image",)), "zeros")
    assert (new.leaves.starts == dataset.leaves.starts).all()
    assert store.new_bytes - before[1] < 10_000
    assert [parent.hex() for parent in new.commit_object.parents] == [dataset.commit]


def test_deleting_rows_rewrites_only_their_neighbourhood(store: Store, source_of: Make) -> None:
    table = _table(40_000)
    write_dataset(store, "d", source_of(table, ("image",)))
    first = store.new_bytes
    write_dataset(store, "d", source_of(pa.concat_tables([table.slice(0, 20_000), table.slice(20_003)]), ("image",)))
    assert store.new_bytes - first < first * 0.3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=12), st.integers(0, 2**31))
def test_cuts_do_not_depend_on_how_the_stream_is_split(sizes: list[int], seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 1 << 60, sum(sizes), np.uint64)
    whole = list(RowCutter().ends(hashes))
    cutter, got, at = RowCutter(), [], 0
    for size in sizes:
        got += [at + end for end in cutter.ends(hashes[at : at + size])]
        at += size
    assert got == whole
    lengths = np.diff([0, *whole])
    assert ((lengths >= 1_000) & (lengths <= 8_000)).all()


def test_row_hashes_depend_on_values_only(table: pa.Table) -> None:
    for name in table.schema.names:
        array = table.column(name).combine_chunks()
        storage = array.storage if isinstance(array.type, pa.ExtensionType) else array
        part = row_hashes([storage.slice(100, 50)])
        assert (part == row_hashes([storage])[100:150]).all(), name


def test_refs_are_found_by_branch_and_by_digits(store: Store, dataset: Dataset) -> None:
    assert Dataset.open(store, f"d@{dataset.commit[:8]}").commit == dataset.commit
    assert Dataset.open(store.url, "d").commit == dataset.commit
    with pytest.raises(RefMissing, match="there is: d"):
        Dataset.open(store, "nope")
    with pytest.raises(RefMissing, match="its refs: main"):
        Dataset.open(store, "d@nope")
    with pytest.raises(BadInput, match="dataset name"):
        Dataset.open(store, "../d")


def test_a_branch_that_moved_meanwhile_is_a_conflict(store: Store, source_of: Make, dataset: Dataset) -> None:
    other = Store.open(store.url)
    table = _table(100, 5)

    def batches() -> list[pa.RecordBatch]:
        write_dataset(other, "d", source_of(_table(50, 6), ("image",)))  # while ours is being read
        return table.to_batches()

    with pytest.raises(Conflict, match="moved by another writer"):
        write_dataset(store, "d", Source(table.schema, ("image",), lambda: iter(batches())))
    assert len(Dataset.open(store, "d")) == 50


def test_nulls_and_foreign_batches_are_refused_by_column(store: Store, source_of: Make) -> None:
    schema = pa.schema([pa.field("a", pa.int8(), nullable=False)])
    bad = pa.table([pa.array([1, None], pa.int8())], schema=schema)
    with pytest.raises(SchemaError, match="column 'a' has nulls"):
        write_dataset(store, "d", source_of(bad, ("a",)))
    with pytest.raises(SchemaError, match="identity"):
        write_dataset(store, "d", source_of(bad, ("b",)))
    assert list_refs(store) == []


def test_a_read_of_damaged_bytes_names_dataset_row_and_column(store: Store, dataset: Dataset) -> None:
    """A page names its rows; a value that is a chunk of its own names its one row."""
    fresh = Dataset.open(Store.open(store.url), "d")
    references = fresh.take_stored(np.array([97]), "blob").values[0].as_py()
    place = store.locate(references[:32])
    assert place is not None
    path = store.home.path_of(place.pack)
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChunkCorrupt, match=r"d@main row 97 column 'blob'"):
        fresh.take([3, 97, 5], ["blob"])
    assert fresh.take([3, 5], ["blob"]).num_rows == 2
    page = store.locate(dataset.leaves.group(1).columns[0][0].digest)
    assert page is not None
    data[page.row.offset + 100] ^= 1
    path.write_bytes(data)
    first = int(dataset.leaves.starts[1])
    with pytest.raises(ChunkCorrupt, match=rf"d@main rows {first}-\d+ column 'image'"):
        fresh.take([first], ["image"])


def test_files_round_trip_and_are_parentless(store: Store) -> None:
    files = {"a.json": b"{}", "w/large": bytes(range(256)) * 40_000, "empty": b""}
    table = write_files(store, "checkpoint", "run", files.items(), {"step": 1}, branch="step-1", metrics={"loss": 0.5})
    again = FileTable.open(store, "checkpoint", "run@step-1")
    assert {path: again.read(path) for path in again.paths()} == files
    assert again.lineage == {"step": 1} and again.table.commit_object.parents == ()
    assert list_refs(store, "checkpoint", "run")[0].metrics == {"loss": 0.5}
    assert write_files(store, "checkpoint", "run", files.items(), {"step": 1}, branch="step-1").commit == table.commit
    with pytest.raises(RefMissing, match="no file 'nope'"):
        again.read("nope")
    with pytest.raises(BadInput, match="two files"):
        write_files(store, "checkpoint", "run", [("a", b""), ("a", b"")], {})
    delete_ref(store, "checkpoint", "run", "step-1")
    assert list_refs(store) == []


def test_stats_add_up(dataset: Dataset) -> None:
    stats = dataset.stats()
    assert stats.rows == 9_000 and stats.logical_bytes == dataset.commit_object.plain_bytes
    assert sum(column["stored_bytes"] for column in stats.columns.values()) + stats.metadata_bytes == stats.stored_bytes


def test_where_rows_are_cut_does_not_depend_on_how_they_are_batched() -> None:
    """A null among the values of a batch once gave all others of that batch another hash, and so other row groups."""
    for values in (
        pa.array([1, None, 3, None, 5], pa.int32()),
        pa.array([True, None, False, True, None]),
        pa.array([[1.0, 2.0], None, [3.0, None], [4.0, 5.0], None], pa.list_(pa.float32(), 2)),
        pa.array(["a", None, "", "b", "c"]),
    ):
        whole = value_hashes(values)
        single = [value_hashes(values.slice(row, 1))[0] for row in range(len(values))]
        assert whole.tolist() == [int(one) for one in single]
