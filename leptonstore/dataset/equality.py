"""Which rows of two columns differ: byte for byte as pages keep them, so that what compares equal has equal pages.

A NaN equals a NaN of the same bits, 0.0 is not -0.0, null is no value. A value that stands elsewhere is compared by its digest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.cut import U64, value_hashes
from leptonstore.dataset.values import Bits, Column, concat
from leptonstore.digest import digest_of
from leptonstore.format.page import REFERENCE, as_binary, canonical_values, encode_page, fixed_width, is_variable


def differing(one: Column, other: Column, data_type: pa.DataType) -> Bits:
    """A bit a row: whether the values of two equally long columns of `data_type` differ."""
    if is_variable(data_type):
        return _variable(one, other, data_type)
    width = fixed_width(data_type)
    if width and not isinstance(data_type, pa.FixedShapeTensorType) and not pa.types.is_nested(data_type):
        return _bytes_differ(one.values, other.values, width)
    out = np.zeros(len(one.values), np.bool_)
    _halve(one.values, other.values, 0, out)
    return out


def _valid(array: pa.Array) -> Bits:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _bytes_differ(one: pa.Array, other: pa.Array, width: int) -> Bits:
    rows = len(one)
    mine, others = (np.frombuffer(canonical_values(array), np.uint8).reshape(rows, width) for array in (one, other))
    if width in (1, 2, 4, 8):
        out = (mine.view(f"u{width}") != others.view(f"u{width}")).reshape(rows)
    else:
        out = (mine != others).any(axis=1)
    if one.null_count or other.null_count:
        out = out | (_valid(one) != _valid(other))
    return np.asarray(out, np.bool_)


def _variable(one: Column, other: Column, data_type: pa.DataType) -> Bits:
    binary = as_binary(data_type)
    mine, others = one.values.cast(binary), other.values.cast(binary)
    same = pc.fill_null(pc.equal(mine, others), False).to_numpy(zero_copy_only=False)
    out = ~(np.asarray(same, np.bool_) | ~(_valid(mine) | _valid(others)))
    if one.references is None and other.references is None:
        return out
    here, there = (_references(column) for column in (one, other))
    # The same value may stand in the page of one and elsewhere for the other, when what counts as large was changed.
    for row in np.flatnonzero(here != there).tolist():
        value, reference = (
            (mine[row].as_py(), others[row].as_py()) if there[row] else (others[row].as_py(), mine[row].as_py())
        )
        out[row] = value is None or REFERENCE.pack(digest_of(value), len(value)) != reference
    return out


def _references(column: Column) -> Bits:
    return np.zeros(len(column.values), np.bool_) if column.references is None else column.references


def _halve(one: pa.Array, other: pa.Array, first: int, out: Bits) -> None:
    """Any type: pages of equal values are equal bytes, so halves that are equal are passed over."""
    if not len(one) or encode_page(one) == encode_page(other):
        return
    if len(one) == 1:
        out[first] = True
        return
    half = len(one) // 2
    _halve(one.slice(0, half), other.slice(0, half), first, out)
    _halve(one.slice(half), other.slice(half), first + half, out)


def names_of(one: Column, other: Column, data_type: pa.DataType) -> tuple[U64, U64, bool]:
    """A number for each value of two columns, by which they can be aligned, and whether only equal values have equal ones."""
    both = concat([one, other])
    width = fixed_width(data_type)
    exact = both.references is None and not both.values.null_count
    if is_variable(data_type):
        values = both.values.cast(as_binary(data_type))
        numbers: Any = pc.fill_null(values.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        names = numbers.astype(np.int64).astype(np.uint64)
    elif width in (1, 2, 4, 8) and not pa.types.is_nested(data_type) and not isinstance(data_type, pa.ExtensionType):
        names = np.frombuffer(canonical_values(both.values), f"u{width}").astype(np.uint64)
    else:
        names, exact = value_hashes(both.values), False
    return names[: len(one.values)], names[len(one.values) :], exact


def mixed(sums: U64, names: U64) -> U64:
    """One number a row over several columns: `sums` of those before, and the `names` of the next."""
    product = (sums ^ names) * np.uint64(0x9E3779B97F4A7C15)
    return product ^ (product >> np.uint64(29))
