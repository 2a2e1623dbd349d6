"""Values by their digests: what looks for equal values compares these. A large value's digest stands in its page, so nothing of it is read.

A digest is the first 16 bytes of the BLAKE3 of the value's bytes: the encoded file, the text as UTF-8, the elements of a tensor or list.
Any two of 10^9 different values share one with a probability of 10^-21. Columns of one type are compared: the type is no part of it.
Floats are equal when their bits are. A value with nulls inside is hashed as a page, in a domain of its own: no value without nulls has its
digest. A digest is of the value alone: it does not depend on which others it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from leptonstore.dataset.large_values import references_of
from leptonstore.dataset.values import Column
from leptonstore.digest import Buffer
from leptonstore.format.page import canonical_values, encode_page, fixed_width, is_variable
from leptonstore.process.columns import byte_values, null_mask

Bits = NDArray[np.bool_]
DIGEST_BYTES = 16
DIGEST_TYPE = pa.binary(DIGEST_BYTES)
MARK = b"lepton.digests"  # metadata of a field whose column holds digests of values
_NULLS_INSIDE = "leptonstore 2026 digest of a value with nulls inside"  # BLAKE3 derive-key context


def digest_field(field: pa.Field) -> pa.Field:
    """The field of a column that stands for `field` with digests in the place of values; null where the value is."""
    return pa.field(field.name, DIGEST_TYPE, field.nullable, {MARK: b"16"})


def stored_digests(column: Column) -> pa.Array:
    """Of values as pages keep them; no large value is read."""
    if column.references is None or not column.references.any():
        return value_digests(column.values)
    small = pa.array(~column.references)
    found = np.zeros((len(column.values), DIGEST_BYTES), np.uint8)
    inline = value_digests(column.values.filter(small))
    found[~column.references] = as_numbers(inline).view(np.uint8).reshape(-1, DIGEST_BYTES)
    digests, _ = references_of(column.values, column.references)
    known = b"".join(bytes(digest[:DIGEST_BYTES]) for digest in digests)
    found[column.references] = np.frombuffer(known, np.uint8).reshape(-1, DIGEST_BYTES)
    return digest_array(found.tobytes(), null_mask(column.values))


def value_digests(values: pa.Array) -> pa.Array:
    """Of plain values, binary(16); null where they are. Any Arrow type that a dataset has."""
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    found = [blake3(part).digest(length=DIGEST_BYTES) for part in _bytes_of(values)]
    missing, holed = null_mask(values), _nulls_inside(values)
    if holed is not None:
        for row in np.flatnonzero(holed & ~missing).tolist():
            page = encode_page(values.slice(row, 1))
            found[row] = blake3(page, derive_key_context=_NULLS_INSIDE).digest(length=DIGEST_BYTES)
    return digest_array(b"".join(found), missing)


def digests_in(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The digests of a column of `batch`, which holds them already (`digest_field`) or holds the values."""
    field = batch.schema.field(name)
    column = batch.column(name)
    return column if MARK in (field.metadata or {}) else value_digests(column)


def combined(columns: Sequence[pa.Array]) -> pa.Array:
    """One digest for each row of several columns of digests; null where any of them is."""
    if len(columns) == 1:
        return columns[0]
    missing = np.logical_or.reduce([null_mask(column) for column in columns])
    rows = np.stack([as_numbers(column) for column in columns], axis=1).reshape(len(columns[0]), -1).view(np.uint8)
    return digest_array(b"".join([blake3(row.data).digest(length=DIGEST_BYTES) for row in rows]), missing)


def as_numbers(digests: pa.Array) -> NDArray[np.uint64]:
    """(n, 2); zeros where there is none."""
    data = canonical_values(digests)
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def digest_array(data: bytes, missing: Bits) -> pa.Array:
    """n x 16 bytes as binary(16), null where `missing`."""
    validity = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes()) if missing.any() else None
    return pa.Array.from_buffers(DIGEST_TYPE, len(missing), [validity, pa.py_buffer(data)])


def _bytes_of(values: pa.Array) -> Sequence[Buffer]:
    """The bytes of each value; whatever where it is null, or has nulls inside."""
    kinds = pa.types
    if is_variable(values.type):
        return [b"" if value is None else value for value in byte_values(values)]
    if kinds.is_boolean(values.type):
        values = values.cast(pa.uint8())
    width = fixed_width(values.type)
    if width is not None:
        return _cut(canonical_values(values), np.arange(len(values) + 1) * width)
    if kinds.is_list(values.type) or kinds.is_large_list(values.type):
        inner = values.flatten()
        width = fixed_width(inner.type)
        if width is not None and not kinds.is_nested(inner.type):
            return _cut(canonical_values(inner), _ends(values) * width)
    return [encode_page(values.slice(row, 1)) for row in range(len(values))]


def _nulls_inside(values: pa.Array) -> Bits | None:
    """In which values something below them is null; None: in none of this type, or structs, whose pages tell."""
    kinds = pa.types
    if isinstance(values.type, pa.BaseExtensionType):
        return _nulls_inside(values.storage)
    if kinds.is_fixed_size_list(values.type):
        size = values.type.list_size
        inner = values.values.slice(values.offset * size, len(values) * size)
        ends = np.arange(len(values) + 1) * size
    elif kinds.is_list(values.type) or kinds.is_large_list(values.type):
        inner, ends = values.flatten(), _ends(values)
    else:
        return None
    bad, deeper = null_mask(inner), _nulls_inside(inner)
    if deeper is not None:
        bad = bad | deeper
    if not bad.any():
        return None
    before = np.concatenate(([0], np.cumsum(bad)))
    return before[ends[1:]] > before[ends[:-1]]


def _ends(values: pa.Array) -> NDArray[np.int64]:
    """Where the elements of each list end, in `flatten`; 0 first."""
    lengths = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _cut(data: Buffer, borders: NDArray[np.int64]) -> list[Buffer]:
    view = memoryview(data).cast("B")
    return [view[low:high] for low, high in pairwise(borders.tolist())]
