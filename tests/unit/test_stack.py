"""numbers.stack: the numbers of a row beside each other, as a model takes them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from process_data import write

from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field
from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.operations.stack import Stack
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store


def table() -> pa.Table:
    field = tensor_field("image", pa.uint8(), (2, 2))
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("a", pa.float64()),
            pa.field("b", pa.bool_()),
            field,
            pa.field("word", pa.string()),
        ]
    )
    images = tensor_column(field, np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    return pa.table(
        [pa.array([7, 8, 9]), pa.array([0.5, None, 1e40]), pa.array([True, False, None]), images, ["x"] * 3], schema
    )


def test_values_stand_in_the_order_of_the_columns_and_null_makes_null(store: Store) -> None:
    write(store, "rows", table(), ["id"])
    made = (
        Pipeline("rows", [Stack(["image", "id"]), Stack(["a", "b"], into="two")], "made").run(store).dataset.to_arrow()
    )
    vectors = made["features"].combine_chunks().to_numpy_ndarray()
    assert vectors.dtype == np.float32 and vectors.tolist() == [[0, 1, 2, 3, 7], [4, 5, 6, 7, 8], [8, 9, 10, 11, 9]]
    assert made["two"].to_pylist() == [[0.5, 1.0], None, None]
    assert made.schema.field("features").nullable is table().schema.field("image").nullable
    assert made["word"].to_pylist() == ["x"] * 3


def test_beyond_the_range_of_the_type_is_infinite(store: Store) -> None:
    write(store, "rows", table(), ["id"])
    made = Pipeline("rows", [Stack(["a"])], "made").run(store).dataset.to_arrow()
    assert made["features"].to_pylist() == [[0.5], None, [np.inf]]


def test_what_cannot_be_stacked_is_named_before_anything_runs(store: Store) -> None:
    write(store, "rows", table(), ["id"])
    for columns, into, said in (
        (["word"], "f", "'word' holds string"),
        (["a"], "b", "a column 'b' already"),
        (["c"], "f", "'c'"),
    ):
        with pytest.raises(SchemaError, match=said):
            Pipeline("rows", [Stack(columns, into=into)], "made").plan(store)
    with pytest.raises(BadInput, match="empty"):
        Stack([])
