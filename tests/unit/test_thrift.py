"""Thrift's compact protocol: what is written is read back, and damaged bytes are refused or read, never more."""

from __future__ import annotations

import contextlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.errors import FormatDamaged
from leptonstore.format import thrift


def _footer() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", None], "c": [[1], []]}), out)
    data = out.getvalue()
    length = int.from_bytes(data[-8:-4], "little")
    return data[-8 - length : -8]


FOOTER = _footer()


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=300),
    st.lists(st.integers(-9, 9), max_size=40),
    st.integers(1, 32_000),
)
def test_fields_come_back(number: int, data: bytes, values: list[int], last: int) -> None:
    inner = thrift.Struct().i16(1, -7).binary(3, data)
    written = thrift.Struct().i64(1, number).list(2, thrift.I32, [thrift.zigzag(value) for value in values])
    written.struct(3, inner).binary(3 + last, data, 5)
    fields = thrift.parse(written.done())
    assert fields[1].value == number and fields[2].value == values and fields[3 + last].value == data
    assert fields[3].value[1].value == -7 and fields[3].value[3].value == data
    copied = thrift.Struct()
    for key, field in fields.items():
        copied.raw(key, field)
    assert thrift.parse(copied.done()) == fields


def test_a_footer_of_pyarrow_is_read_and_written_again() -> None:
    fields = thrift.parse(FOOTER)
    assert fields[3].value == 2 and [element[4].value for element in fields[2].value[:2]] == [b"schema", b"a"]
    copied = thrift.Struct()
    for key, field in fields.items():
        copied.raw(key, field)
    assert copied.done() == FOOTER


def test_a_truncated_struct_is_refused() -> None:
    for length in range(len(FOOTER)):
        with pytest.raises(FormatDamaged):
            thrift.parse(FOOTER[:length])


@given(st.integers(0, len(FOOTER) - 1), st.integers(1, 255))
def test_a_damaged_struct_raises_nothing_else(at: int, change: int) -> None:
    data = bytearray(FOOTER)
    data[at] ^= change
    with contextlib.suppress(FormatDamaged):
        thrift.parse(bytes(data))
    nested = b"\x1c" * 10_000
    with pytest.raises(FormatDamaged):
        thrift.parse(nested)
