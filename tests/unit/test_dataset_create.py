"""A dataset from what a program has in its hands."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from leptonstore import Dataset, Store
from leptonstore.errors import BadInput, Conflict, DuplicateKey, SchemaError


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "store") as store:
        yield store


TABLE = pa.table({"id": [3, 1, 2], "name": ["c", "a", None]})
ROWS = TABLE.to_pylist()


@pytest.mark.parametrize(
    "rows",
    [
        TABLE,
        TABLE.to_batches()[0],
        TABLE.to_reader(),
        ROWS,
        tuple(ROWS),
        {"id": np.array([3, 1, 2]), "name": ["c", "a", None]},
        {"id": pa.chunked_array([[3], [1, 2]]), "name": TABLE["name"]},
    ],
    ids=["table", "batch", "reader", "list", "tuple", "columns", "arrow columns"],
)
def test_equal_rows_are_one_commit_however_they_come(store, rows):
    made = Dataset.create(store, "names", rows, message="first")
    assert made.to_arrow().to_pylist() == ROWS
    other = Dataset.create(store, "names", TABLE, message="first", branch="other")
    assert made.commit == other.commit
    assert Dataset.open(store, "names@main").commit == made.commit


def test_a_data_frame_keeps_the_types_that_it_has(store):
    frame = TABLE.to_pandas()
    made = Dataset.create(store, "names", frame)
    assert made.schema.names == ["id", "name"]
    assert made.to_arrow().to_pylist() == ROWS


def test_with_a_key_rows_are_sorted_and_may_be_upserted(store):
    made = Dataset.create(store, "names", TABLE, key="id")
    assert made.to_arrow()["id"].to_pylist() == [1, 2, 3]
    assert made.upsert([{"id": 2, "name": "b"}]).to_arrow()["name"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(DuplicateKey):
        Dataset.create(store, "twice", {"id": [1, 1]}, key="id")


@pytest.mark.parametrize("torch_too", [False, True])
def test_arrays_of_several_dimensions_are_tensors(store, torch_too):
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    x = __import__("torch").from_numpy(values) if torch_too else values
    made = Dataset.create(store, "x", {"x": x, "y": np.arange(4, dtype=np.int16)})
    assert made.schema.field("x").type == pa.fixed_shape_tensor(pa.float32(), (3, 2))
    np.testing.assert_array_equal(made[2]["x"], values[2])
    assert made.schema.field("y").type == pa.int16()


def test_what_is_there_already_is_not_replaced(store):
    made = Dataset.create(store, "names", TABLE)
    with pytest.raises(Conflict, match="names@main already"):
        Dataset.create(store, "names", TABLE)
    assert made.append([{"id": 4, "name": "d"}]).commit != made.commit


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ({"a": [1, 2], "b": [1]}, SchemaError, "'a': 2, 'b': 1"),
        ({"a": [1, "x"]}, SchemaError, "column 'a'"),
        ({"a": np.zeros((2, 2), complex)}, BadInput, "'a' has type complex128"),
        ({}, SchemaError, "column"),
        (7, BadInput, "no table"),
        ([{"a": 1}, {"a": "x"}], BadInput, "no table"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_made(store, rows, error, says):
    with pytest.raises(error, match=says):
        Dataset.create(store, "bad", rows)
    assert not store.state.refs
