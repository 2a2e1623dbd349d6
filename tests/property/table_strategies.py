"""Any table: hypothesis strategies over the types that a store keeps."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from leptonstore.dataset.schema import class_label_field, image_field
from leptonstore.format.page import encode_page

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
TEXTS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(3)]
TIMES = [
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
    pa.time64("ns"),
    pa.timestamp("s"),
    pa.timestamp("ns"),
    pa.timestamp("us", "UTC"),
    pa.timestamp("ms", "Europe/Berlin"),
    pa.duration("ms"),
    pa.duration("ns"),
]
NUMBERS = [pa.bool_(), *INTEGERS, *FLOATS]
TENSORS = [
    pa.fixed_shape_tensor(kind, shape)
    for kind in (pa.uint8(), pa.int64(), pa.float16())
    for shape in ([2], [2, 3], [1, 2, 2])
]
FLAT = [*NUMBERS, *TEXTS, *TIMES, pa.decimal128(9, 2), pa.decimal128(20, -2)]
NESTED = st.recursive(
    st.sampled_from(FLAT),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda kind: pa.list_(kind, 2)),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda kinds: pa.struct([pa.field(f"m{at}", kind) for at, kind in enumerate(kinds)])
        ),
    ),
    max_leaves=3,
)


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Python values that `pa.array` takes for a type; never None."""
    is_ = pa.types
    if is_.is_boolean(kind):
        return st.booleans()
    if is_.is_integer(kind):
        signed = is_.is_signed_integer(kind)
        bits = kind.bit_width
        return st.integers(-(1 << bits - 1) if signed else 0, (1 << (bits - 1 if signed else bits)) - 1)
    if is_.is_floating(kind):
        some = st.floats(width=kind.bit_width).map(lambda value: math.nan if value != value else value)
        return some.map(np.float16) if kind.bit_width == 16 else some
    if is_.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if is_.is_binary(kind) or is_.is_large_binary(kind):
        return st.binary(max_size=9)
    if is_.is_string(kind) or is_.is_large_string(kind):
        return st.text(max_size=5)
    if is_.is_decimal(kind):
        digits = 10**kind.precision - 1
        return st.integers(-digits, digits).map(
            lambda number: decimal.Decimal((number < 0, _digits(number), -kind.scale))
        )
    if is_.is_date32(kind):
        return st.integers(-200_000, 200_000)
    if is_.is_date64(kind):
        return st.integers(-200_000, 200_000).map(lambda days: days * 86_400_000)
    if is_.is_time(kind):
        return st.integers(0, {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit] * 86_400 - 1)
    if is_.is_temporal(kind):
        bound = {"s": 10**10, "ms": 10**13, "us": 10**16, "ns": 9 * 10**18}[kind.unit]
        return st.integers(-bound, bound)
    if is_.is_fixed_size_list(kind):
        return st.lists(values(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if is_.is_list(kind) or is_.is_large_list(kind):
        return st.lists(st.none() | values(kind.value_type), max_size=3)
    assert is_.is_struct(kind)
    return st.fixed_dictionaries({field.name: st.none() | values(field.type) for field in kind})


def _digits(number: int) -> tuple[int, ...]:
    return tuple(map(int, str(abs(number))))


@st.composite
def columns(draw: st.DrawFn, kind: pa.DataType, rows: int, nulls: bool) -> pa.Array:
    """`rows` values of a type."""
    if isinstance(kind, pa.FixedShapeTensorType):
        size = math.prod(kind.shape)
        flat = draw(st.lists(values(kind.value_type), min_size=rows * size, max_size=rows * size))
        mask = draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) if nulls else [False] * rows
        items = pa.array(flat, kind.value_type)
        storage = pa.FixedSizeListArray.from_arrays(items, type=kind.storage_type, mask=pa.array(mask, pa.bool_()))
        return pa.ExtensionArray.from_storage(kind, storage)
    one = values(kind)
    return pa.array(draw(st.lists(st.none() | one if nulls else one, min_size=rows, max_size=rows)), kind)


NAMES = st.sampled_from(["a", "label", "jpg", "A b", "x.y", "é", "cls", "null", "image", "__x"])


@st.composite
def tables(
    draw: st.DrawFn,
    kinds: st.SearchStrategy[pa.DataType],
    nulls: bool = True,
    semantics: bool = True,
    rows_max: int = 6,
) -> pa.Table:
    """One to four columns, some of them images or class labels."""
    rows = draw(st.integers(0, rows_max))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    fields, arrays = [], []
    for name in names:
        special = draw(st.sampled_from(["", "", "image", "label"])) if semantics else ""
        if special == "image":
            fields.append(image_field(name, draw(st.sampled_from(["jpeg", "mixed"]))))
            arrays.append(draw(columns(pa.large_binary(), rows, False)))
        elif special == "label":
            fields.append(class_label_field(name, ["x", "y"]))
            arrays.append(pa.array(draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), pa.uint8()))
        else:
            kind = draw(kinds)
            arrays.append(draw(columns(kind, rows, nulls)))
            fields.append(pa.field(name, kind))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


class Rows:
    """A table in memory in the role of a dataset, in batches of a few rows."""

    def __init__(self, table: pa.Table, batch_rows: int = 2, fingerprint: str = "") -> None:
        self.table, self.batch_rows, self.fingerprint = table, batch_rows, fingerprint
        self.read = 0

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        position = 0
        for batch in self.table.select(columns or self.table.schema.names).to_batches(self.batch_rows):
            yield position, batch
            position += batch.num_rows
            self.read += batch.num_rows


def canonical(table: pa.Table) -> list[bytes]:
    """Its columns as pages: NaN and -0.0 are told apart from other values, and hidden bytes do not count."""
    out = []
    for column in table.columns:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        if isinstance(column.type, pa.ExtensionType):
            storage = pa.chunked_array([chunk.storage for chunk in chunks], column.type.storage_type).combine_chunks()
            array = pa.ExtensionArray.from_storage(column.type, storage)
        else:
            array = pa.chunked_array(chunks, column.type).combine_chunks()
        out.append(bytes(encode_page(array)))
    return out
