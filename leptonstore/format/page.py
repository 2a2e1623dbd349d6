"""LPG1: the canonical bytes of one column's values for some consecutive rows.

    0 magic "LPG1" | 4 flags u32 (1: some values are references) | 8 rows u64 | 16 buffers u32 | 20 zero u32
    24 length of each buffer, u64 | padding to 64 | buffer | padding to 64 | buffer | …      (all little-endian)

The buffers, in pre-order over the Arrow type: validity bits (empty when nothing is null), then
    fixed width       the values, nulls zeroed           bool   bits, nulls zero
    string, binary    offsets from 0 (i32; large: i64), then the bytes; nulls have length 0
    list              offsets from 0, then the child     fixed_size_list, tensor   the child, null lists all null
    struct            each child, null where the struct is
With flag 1 a first buffer of bits says which rows are references: such a value stands here as the digest (32) and
length (u64) of a chunk of its own. Padding is zero. So a page is a function of the values alone: slicing, history and the
writer's version do not show. Fixed-width values are one contiguous buffer, aligned to 64 bytes: a reader maps them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged

FLAG_REFERENCES = 1
REFERENCE = struct.Struct("<32sQ")
_HEAD = struct.Struct("<4sIQII")
_ALIGN = 64
_BINARY_HEAD = struct.Struct("<4sIQII3Q16x")  # of a page of three buffers: with its lengths and the padding
_ZEROS = bytes(_ALIGN)
assert _BINARY_HEAD.size == _ALIGN

Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Page:
    """Decoded values. With `references` (a bool per row) `values` is binary and holds 40-byte references there."""

    values: pa.Array
    references: Bits | None = None


def is_variable(data_type: pa.DataType) -> bool:
    """Whether values are strings or bytes, which may be stored as references."""
    kinds = pa.types
    return bool(
        kinds.is_string(data_type)
        or kinds.is_large_string(data_type)
        or kinds.is_binary(data_type)
        or kinds.is_large_binary(data_type)
    )


def fixed_width(data_type: pa.DataType) -> int | None:
    """Bytes of one value when the type is a plain fixed-width one (tensors included), else None."""
    if isinstance(data_type, pa.FixedShapeTensorType):
        data_type = data_type.storage_type
    if pa.types.is_fixed_size_list(data_type):
        width = fixed_width(data_type.value_type)
        return None if width is None else width * data_type.list_size
    if pa.types.is_boolean(data_type) or pa.types.is_nested(data_type) or is_variable(data_type):
        return None
    return int(data_type.byte_width)  # not bit_width, which wraps around from 2^28 bytes on


def as_binary(data_type: pa.DataType) -> pa.DataType:
    """The binary type with the offsets of a variable-width type."""
    large = pa.types.is_large_string(data_type) or pa.types.is_large_binary(data_type)
    return pa.large_binary() if large else pa.binary()


def _bits(values: Bits) -> bytes:
    return np.packbits(values, bitorder="little").tobytes()


def _valid(array: pa.Array) -> Bits:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _collect(array: pa.Array, out: list[Buffer]) -> None:
    """Append the canonical buffers of `array` to `out`."""
    data_type, rows = array.type, len(array)
    if isinstance(data_type, pa.FixedShapeTensorType):
        _collect(array.storage, out)
        return
    nulls = array.null_count
    valid = _valid(array) if nulls else None
    out.append(_bits(valid) if valid is not None else b"")
    kinds = pa.types
    if kinds.is_boolean(data_type):
        filled = pc.fill_null(array, False) if nulls else array
        out.append(_bits(np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.bool_)))
    elif is_variable(data_type):
        _collect_variable(array, out)
    elif kinds.is_list(data_type) or kinds.is_large_list(data_type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offset_type = np.int32 if kinds.is_list(data_type) else np.int64
        out.append(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(offset_type).tobytes())
        _collect(array.flatten(), out)
    elif kinds.is_fixed_size_list(data_type):
        _collect(_fixed_children(array, valid), out)
    elif kinds.is_struct(data_type):
        for child in array.flatten():
            _collect(child, out)
    else:
        width = data_type.byte_width
        values = np.frombuffer(array.buffers()[1] or b"", np.uint8, count=rows * width, offset=array.offset * width)
        if valid is not None:
            values = values.reshape(rows, width) * valid[:, None]
        out.append(np.ascontiguousarray(values).reshape(-1).data)


def _collect_variable(array: pa.Array, out: list[Buffer]) -> None:
    if array.null_count:
        empty = b"" if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type) else ""
        array = pc.fill_null(array, empty)
    _, raw_offsets, data = array.buffers()
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    dtype = np.int64 if large else np.int32
    offsets = np.zeros(1, dtype)
    if len(array):
        size = np.dtype(dtype).itemsize
        offsets = np.frombuffer(raw_offsets, dtype, count=len(array) + 1, offset=array.offset * size)
    out.append((offsets - offsets[0]).astype(dtype).tobytes())
    start, stop = int(offsets[0]), int(offsets[-1])
    out.append(memoryview(data)[start:stop] if data is not None and stop > start else b"")


def _fixed_children(array: pa.Array, valid: Bits | None) -> pa.Array:
    """The child of a fixed-size list, `list_size` per row; children of null lists are null."""
    size = array.type.list_size
    child = array.values.slice(array.offset * size, len(array) * size)
    if valid is None:
        return child
    return pc.if_else(pa.array(np.repeat(valid, size)), child, pa.scalar(None, child.type))


def canonical_values(array: pa.Array) -> Buffer:
    """The values of a fixed-width array as a page has them: contiguous, nulls zeroed."""
    buffers: list[Buffer] = []
    _collect(array, buffers)
    return buffers[-1]


def encode_page(values: pa.Array, references: Bits | None = None) -> bytes:
    """The canonical bytes of `values`. `references` marks rows whose value is a 40-byte reference (binary arrays)."""
    buffers: list[Buffer] = []
    flags = 0
    if references is not None and references.any():
        flags = FLAG_REFERENCES
        buffers.append(_bits(references))
    _collect(values, buffers)
    return _join(flags, len(values), buffers)


def _join(flags: int, rows: int, buffers: list[Buffer]) -> bytes:
    lengths = [memoryview(buffer).nbytes for buffer in buffers]
    head = _HEAD.pack(b"LPG1", flags, rows, len(buffers), 0) + struct.pack(f"<{len(lengths)}Q", *lengths)
    parts: list[Buffer] = [head, bytes(-len(head) % _ALIGN)]
    for buffer, length in zip(buffers, lengths, strict=True):
        parts += [buffer, bytes(-length % _ALIGN)]
    return b"".join(parts)


def encode_binary_pages(values: pa.Array, references: Bits | None, ends: list[int]) -> Iterator[bytes]:
    """`encode_page` of consecutive slices of strings or bytes without nulls, in one pass; `ends` are exclusive."""
    _, raw_offsets, data = values.buffers()
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    dtype = np.dtype(np.int64 if large else np.int32)
    offsets = np.frombuffer(raw_offsets, dtype, len(values) + 1, values.offset * dtype.itemsize)
    view = memoryview(data) if data is not None else memoryview(b"")
    refers = references is not None and bool(references.any())
    bounds: list[int] = offsets[[0, *ends]].tolist()
    start = 0
    for end, first, last in zip(ends, bounds[:-1], bounds[1:], strict=True):
        own = offsets[start : end + 1] - first
        if refers and references is not None and references[start:end].any():
            buffers: list[Buffer] = [_bits(references[start:end]), b"", own.tobytes(), view[first:last]]
            yield _join(FLAG_REFERENCES, end - start, buffers)
        else:  # as `_join`, for the many small pages: a third of its time
            size, length = own.nbytes, last - first
            head = _BINARY_HEAD.pack(b"LPG1", 0, end - start, 3, 0, 0, size, length)
            yield b"".join((head, own.data, _ZEROS[: -size % _ALIGN], view[first:last], _ZEROS[: -length % _ALIGN]))
        start = end


class _Reader:
    """Hands out the buffers of a page in order; every length is checked before it is used."""

    def __init__(self, data: Buffer) -> None:
        view = memoryview(data)
        if len(view) < _HEAD.size:
            raise FormatDamaged("page is truncated")
        magic, self.flags, self.rows, count, _ = _HEAD.unpack(view[: _HEAD.size])
        if magic != b"LPG1" or self.flags & ~FLAG_REFERENCES or self.rows > limits.ROW_GROUP_ROWS_MAX:
            raise FormatDamaged("page has the wrong magic, unknown flags or too many rows")
        if count * 8 > len(view) - _HEAD.size:
            raise FormatDamaged("page claims more buffers than it has bytes")
        lengths = struct.unpack(f"<{count}Q", view[_HEAD.size : _HEAD.size + 8 * count])
        at = _HEAD.size + 8 * count
        at += -at % _ALIGN
        self.buffers: list[memoryview] = []
        for length in lengths:
            if length > len(view) - at:
                raise FormatDamaged("page places a buffer outside itself")
            self.buffers.append(view[at : at + length])
            at += length + -length % _ALIGN
        if at != len(view):
            raise FormatDamaged("page has bytes after its buffers")
        self.next = 0
        self.elements_max = max(8 * len(view), limits.PAGE_EMPTY_ELEMENTS_MAX)

    def take(self, length: int | None = None) -> memoryview:
        if self.next >= len(self.buffers):
            raise FormatDamaged("page has fewer buffers than its type needs")
        buffer = self.buffers[self.next]
        self.next += 1
        if length is not None and len(buffer) != length:
            raise FormatDamaged(f"page has a buffer of {len(buffer)} bytes where its type needs {length}")
        return buffer

    def validity(self, rows: int) -> pa.Buffer | None:
        buffer = self.take()
        if len(buffer) not in (0, (rows + 7) // 8):
            raise FormatDamaged("page has validity bits of the wrong length")
        return pa.py_buffer(buffer) if len(buffer) else None

    def offsets(self, rows: int, dtype: type) -> tuple[pa.Buffer, int]:
        buffer = self.take((rows + 1) * np.dtype(dtype).itemsize)
        offsets: np.ndarray[Any, Any] = np.frombuffer(buffer, dtype)
        if offsets[0] != 0 or (rows and bool((offsets[1:] < offsets[:-1]).any())):
            raise FormatDamaged("page has offsets that do not ascend from 0")
        return pa.py_buffer(buffer), int(offsets[-1])


def _build(data_type: pa.DataType, rows: int, reader: _Reader) -> pa.Array:
    if isinstance(data_type, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(data_type, _build(data_type.storage_type, rows, reader))
    if rows > reader.elements_max:
        raise FormatDamaged(f"page claims {rows} elements")
    validity = reader.validity(rows)
    kinds = pa.types
    if kinds.is_boolean(data_type):
        return pa.Array.from_buffers(data_type, rows, [validity, pa.py_buffer(reader.take((rows + 7) // 8))])
    if is_variable(data_type):
        large = kinds.is_large_string(data_type) or kinds.is_large_binary(data_type)
        offsets, end = reader.offsets(rows, np.int64 if large else np.int32)
        array = pa.Array.from_buffers(data_type, rows, [validity, offsets, pa.py_buffer(reader.take(end))])
        if kinds.is_string(data_type) or kinds.is_large_string(data_type):
            _check_utf8(array)
        return array
    if kinds.is_list(data_type) or kinds.is_large_list(data_type):
        offsets, end = reader.offsets(rows, np.int32 if kinds.is_list(data_type) else np.int64)
        child = _build(data_type.value_type, end, reader)
        return pa.Array.from_buffers(data_type, rows, [validity, offsets], children=[child])
    if kinds.is_fixed_size_list(data_type):
        child = _build(data_type.value_type, rows * data_type.list_size, reader)
        return pa.Array.from_buffers(data_type, rows, [validity], children=[child])
    if kinds.is_struct(data_type):
        children = [_build(field.type, rows, reader) for field in data_type]
        return pa.Array.from_buffers(data_type, rows, [validity], children=children)
    width = data_type.byte_width
    return pa.Array.from_buffers(data_type, rows, [validity, pa.py_buffer(reader.take(rows * width))])


def _check_utf8(array: pa.Array) -> None:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise FormatDamaged(f"page has text that is not UTF-8 ({error})") from None


def decode_page(data: Buffer, data_type: pa.DataType) -> Page:
    """Bytes -> page, without copying values. Raises FormatDamaged; `data` must live as long as the page."""
    reader = _Reader(data)
    references: Bits | None = None
    if reader.flags & FLAG_REFERENCES:
        if not is_variable(data_type):
            raise FormatDamaged(f"page of {data_type} claims references")
        bits = np.frombuffer(reader.take((reader.rows + 7) // 8), np.uint8)
        references = np.unpackbits(bits, count=reader.rows, bitorder="little").astype(np.bool_)
        data_type = as_binary(data_type)
    values = _build(data_type, reader.rows, reader)
    if reader.next != len(reader.buffers):
        raise FormatDamaged("page has more buffers than its type needs")
    if references is not None:
        lengths = pc.binary_length(values).to_numpy(zero_copy_only=False)[references]
        if not bool((lengths == REFERENCE.size).all()):
            raise FormatDamaged(f"page has a reference that is not {REFERENCE.size} bytes long")
    return Page(values, references)
