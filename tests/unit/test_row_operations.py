"""rows.split, select, join, group_by: what they refuse, and what is easily mistaken."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from operation_data import applied, texts
from process_data import noise, tensor_table, write

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput, DuplicateKey, RefMissing, SchemaError
from leptonstore.process.operations.group_by import GroupBy
from leptonstore.process.operations.join import Join
from leptonstore.process.operations.rows import Select, Split
from leptonstore.store import Store


def test_a_condition_keeps_what_a_filter_keeps(store: Store) -> None:
    ds = write(store, "d", tensor_table(noise(30, 2, 2), [0, 1] * 15, ["cat", "dog"]), ["id"])
    where = "label = 'dog' and id > 7 or id in (2, 4)"
    keep = applied(Select(where), ds.to_arrow()).keep
    assert keep is not None
    assert ds.to_arrow(["id"]).filter(pa.array(keep)) == ds.to_arrow(["id"], filter=where)


def test_class_names_of_two_columns_are_not_mistaken_for_each_other(store: Store) -> None:
    """Schemas of equal types are equal to Arrow, whatever names their classes have."""
    for names in (["cat", "dog"], ["dog", "cat"]):
        table = tensor_table(noise(4, 2, 2), [0, 1, 0, 1], names)
        keep = applied(Select("label = 'dog'"), table).keep
        assert keep is not None and keep.tolist() == [bool(label) == (names[1] == "dog") for label in (0, 1, 0, 1)]


def test_a_split_does_not_replace_another(store: Store) -> None:
    schema = tensor_table(noise(2, 2, 2), [0, 0], ["a"], ["train", "test"]).schema
    with pytest.raises(SchemaError, match="already"):
        Split(by=["id"]).output(schema)
    with pytest.raises(BadInput, match="sum up to 1"):
        Split(names=["a", "b"], fractions=[0.5, 0.4])
    with pytest.raises(BadInput, match="a fraction for each name"):
        Split(names=["a", "b", "c"], fractions=[0.5, 0.5])


def other(store: Store, **columns: Any) -> Dataset:
    table = pa.table(columns)
    return write_dataset(
        store, "other", Source(table.schema, (table.schema.names[0],), lambda: iter(table.to_batches()))
    )


def test_a_join_looks_into_the_version_that_it_was_bound_to(store: Store) -> None:
    ds = texts(store)
    first = other(store, id=[0, 1, 2], weight=[1.0, 2.0, 3.0])
    bound = Join("other", ["id"]).bound(ds, ds.schema)
    assert bound.recipe()["commit"] == first.commit and bound.recipe()["dataset"] == "other"
    other(store, id=[0, 1, 2], weight=[9.0, 9.0, 9.0])
    assert applied(bound, ds.to_arrow()).columns["weight"].to_pylist()[:4] == [1.0, 2.0, 3.0, None]
    pinned = Join("other", ["id"], commit=first.commit).bound(ds, ds.schema)
    assert pinned.recipe() == bound.recipe()


def test_a_key_that_names_two_rows_is_refused_before_anything_runs(store: Store) -> None:
    ds = texts(store)
    other(store, id=[4, 1, 4], weight=[1.0, 2.0, 3.0])
    with pytest.raises(DuplicateKey, match=r"rows 0 and 2 of other@main both have id 4"):
        Join("other", ["id"]).bound(ds, ds.schema)


def test_keys_and_columns_that_do_not_fit_are_refused(store: Store) -> None:
    ds = texts(store)
    other(store, id=pa.array([1], pa.int32()), text=["x"], score=[1.5])
    for join, match in (
        (Join("other", ["id"]), "int64 here and int32 in other"),
        (Join("other", ["text"], ["id"]), "already"),
        (Join("other", ["id"], ["nothing"]), "no column 'nothing'"),
        (Join("other", ["missing"]), "no column 'missing'"),
    ):
        with pytest.raises(SchemaError, match=match):
            join.bound(ds, ds.schema)
    with pytest.raises(RefMissing):
        Join("nowhere", ["id"]).bound(ds, ds.schema)


@pytest.mark.parametrize("kept", [0, 20, 10**9])
def test_values_are_the_same_whether_they_are_kept_in_memory_or_not(
    store: Store, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr("leptonstore.process.operations.join.JOIN_VALUES_BYTES_MAX", kept)
    monkeypatch.setattr("leptonstore.process.operations.join._LOADED", {})
    ds = texts(store)
    other(store, id=[2, 0], a=[1.5, 2.5], b=["x", None], c=[[1, 2], []], d=[True, None])
    made = applied(Join("other", ["id"]).bound(ds, ds.schema), ds.to_arrow()).columns
    found = {name: column.to_pylist()[:3] for name, column in made.items()}
    assert found == {"a": [2.5, None, 1.5], "b": [None, None, "x"], "c": [[], None, [1, 2]], "d": [None, None, True]}


def test_large_values_are_joined_too(store: Store) -> None:
    ds = texts(store)
    blobs = [bytes([at]) * 40_000 for at in range(3)]
    other(store, id=[2, 0, 5], blob=pa.array(blobs, pa.large_binary()))
    found = applied(Join("other", ["id"]).bound(ds, ds.schema), ds.to_arrow()).columns["blob"].to_pylist()
    assert found[:6] == [blobs[1], None, blobs[0], None, None, blobs[2]]


def test_a_sum_beyond_64_bits_is_told() -> None:
    batch = pa.RecordBatch.from_pydict({"g": [1, 1], "x": pa.array([2**62, 2**62])})
    operation = GroupBy(["g"], ["sum(x)"])
    with pytest.raises(BadInput, match="beyond 64 bits"):
        operation.result(pa.Table.from_batches([operation.partial(batch)]))


def test_aggregates_that_do_not_fit_are_refused() -> None:
    schema = pa.schema([("g", pa.string()), ("x", pa.float32()), ("t", pa.list_(pa.int8()))])
    for aggregates, match in (
        (["mean"], "of which column"),
        (["median(x)"], "count, sum, mean"),
        (["sum(x"], "cannot read"),
        (["count", "count(x) as count"], "two columns 'count'"),
    ):
        with pytest.raises(BadInput, match=match):
            GroupBy(["g"], aggregates)
    for by, aggregate, match in (
        (["x"], "count", "cannot name"),
        (["g"], "mean(g)", "needs numbers"),
        (["g"], "min(t)", "no order"),
    ):
        with pytest.raises(SchemaError, match=match):
            GroupBy(by, [aggregate]).output(schema)


def test_equal_zeros_are_one_and_nan_is_above_all() -> None:
    batch = pa.RecordBatch.from_pydict({"g": [1, 1, 2, 2], "x": pa.array([0.0, -0.0, float("nan"), 1.0])})
    operation = GroupBy(["g"], ["min(x)", "max(x)"])
    found = operation.result(pa.Table.from_batches([operation.partial(batch)])).to_pylist()
    assert repr(found) == repr([{"g": 1, "x_min": 0.0, "x_max": 0.0}, {"g": 2, "x_min": 1.0, "x_max": float("nan")}])
