"""What a column may mean."""

from __future__ import annotations

import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.columns import cast_column
from leptonstore.dataset.schema import (
    SEMANTIC,
    SEMANTICS,
    check_semantics,
    class_label_field,
    image_field,
    path_field,
    semantic_of,
    tensor_field,
    text_field,
    tokens_field,
)
from leptonstore.errors import SchemaError
from leptonstore.store import Store

FIELDS = [
    image_field("image", "jpeg"),
    tensor_field("raw", pa.uint8(), (4, 4), "image"),
    class_label_field("label", ["a", "b"]),
    text_field("text"),
    tokens_field("tokens"),
    path_field("path"),
]


def test_each_semantic_type_has_a_field_that_fits_it() -> None:
    check_semantics(pa.schema(FIELDS))
    assert {semantic_of(field) for field in FIELDS} == set(SEMANTICS)
    check_semantics(pa.schema([pa.field("x", pa.float32(), metadata={SEMANTIC: b"somebody else's"})]))


@pytest.mark.parametrize("semantic", SEMANTICS)
def test_a_meaning_that_the_type_cannot_have_is_refused_by_column(store: Store, semantic: str) -> None:
    schema = pa.schema(
        [pa.field("id", pa.int64()), pa.field("x", pa.float32(), metadata={SEMANTIC: semantic.encode()})]
    )
    batch = pa.RecordBatch.from_pydict({"id": [1], "x": [1.0]}, schema=schema)
    with pytest.raises(SchemaError, match=f"column 'x' has semantic '{semantic}'"):
        write_dataset(store, "d", Source(schema, ("id",), lambda: iter([batch])))
    plain = pa.schema([pa.field("id", pa.int64()), pa.field("x", pa.float32())])
    made = write_dataset(store, "d", Source(plain, ("id",), lambda: iter([batch.cast(plain)])))
    with pytest.raises(SchemaError, match=f"column 'x' has semantic '{semantic}'"):
        cast_column(made, "x", metadata={SEMANTIC.decode(): semantic})


def test_tokens_come_back_as_they_were(store: Store) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), tokens_field("tokens")])
    rows = {"id": [1, 2, 3], "tokens": [[5, 6], [], [7]]}
    batch = pa.RecordBatch.from_pydict(rows, schema=schema)
    made = write_dataset(store, "d", Source(schema, ("id",), lambda: iter([batch])))
    assert made.to_arrow().to_pydict() == rows and semantic_of(made.schema.field("tokens")) == "tokens"
