"""What a column may mean."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.columns import cast_column
from leptonstore.dataset.schema import (
    NUMBERS,
    SEMANTIC,
    SEMANTICS,
    array_field,
    array_planes,
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


@pytest.mark.parametrize(
    "numbers, planes", [(pa.int8(), 0), (pa.uint16(), 2), (pa.int32(), 4), (pa.float64(), 8), (pa.float16(), 2)]
)
def test_a_column_of_arrays_says_how_many_byte_planes_its_values_have(numbers: pa.DataType, planes: int) -> None:
    assert array_planes(array_field("x", numbers)) == planes
    assert array_planes(pa.field("x", pa.binary())) is None


def test_arrays_of_what_is_no_number_and_numbers_of_what_are_no_bytes_are_refused(store: Store) -> None:
    with pytest.raises(SchemaError, match=r"column 'x' has lepton\.numbers"):
        array_field("x", pa.string())
    schema = pa.schema([pa.field("x", pa.int16(), metadata={NUMBERS: b"int16"})])
    with pytest.raises(SchemaError, match="column 'x' says that it holds arrays"):
        check_semantics(schema)


def test_16_bits_are_stored_as_planes_and_come_back_bit_for_bit(store: Store) -> None:
    """Noise around few levels, as CT has it: the high bytes hardly differ, and shrink when they stand together."""
    rng = np.random.default_rng(0)
    values = [rng.normal(rng.choice([-1000, 40, 600]), 25, 40_000).astype("<i2").tobytes() for _ in range(4)]
    sizes = {}
    for name, field in (("planes", array_field("x", pa.int16())), ("plain", pa.field("x", pa.large_binary()))):
        schema = pa.schema([pa.field("id", pa.int64(), nullable=False), field])
        batch = pa.RecordBatch.from_pydict({"id": range(4), "x": values}, schema=schema)
        with Store.create(f"{store.url}-{name}") as other:
            made = write_dataset(other, name, Source(schema, ("id",), lambda batch=batch: iter([batch])))
            assert made.to_arrow()["x"].to_pylist() == values
            sizes[name] = made.stats().columns["x"]["stored_bytes"]
    assert sizes["planes"] < 0.9 * sizes["plain"]


@pytest.mark.parametrize("numbers, smaller", [(np.int16, True), (np.uint8, False)])
def test_tensors_of_integers_are_stored_as_planes_too(store: Store, numbers: type, smaller: bool) -> None:
    from leptonstore.dataset.groups import plane_width
    from leptonstore.dataset.importers.arrays import tensor_column

    values = np.random.default_rng(0).normal(100, 25, (50, 20, 20)).clip(0, 255).astype(numbers)
    schema = pa.schema([tensor_field("x", pa.from_numpy_dtype(np.dtype(numbers)), (20, 20))])
    batch = pa.RecordBatch.from_arrays([tensor_column(schema.field("x"), values)], schema=schema)
    made = write_dataset(store, "d", Source(schema, ("x",), lambda: iter([batch])))
    assert np.array_equal(made.to_arrow()["x"].combine_chunks().to_numpy_ndarray(), values)
    assert (plane_width(schema.field("x").type) == values.itemsize) == smaller
