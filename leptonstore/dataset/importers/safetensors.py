"""Import of safetensors: tensors of one first dimension as columns.

    0 length of the header, u64 little-endian | 8 JSON: name -> {dtype, shape, data_offsets: [begin, end]} | values

The first dimension counts rows. The offsets must cover the values from the first byte to the last, without holes or overlap
(as the safetensors library demands); the header is bounded by limits.SOURCE_HEADER_BYTES_MAX. BF16 and 8-bit floats have
no Arrow type and are refused by name. Files that `lepton export` wrote carry their schema in "__metadata__".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers.columns import Restored
from leptonstore.dataset.importers.reading import (
    lineages_of,
    read_up_to,
    reading,
    require_regular_file,
    rows_per_batch,
    size_of,
)
from leptonstore.dataset.importers.tables import identity_columns
from leptonstore.dataset.npy_format import field_of
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import SCHEMA_KEY
from leptonstore.dataset.source import Source
from leptonstore.errors import SourceError

SUFFIXES = (".safetensors",)
DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_DIMENSIONS_MAX = 32


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file; begin: of its values, in the file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


def open_source(path: Place, key: str | Sequence[str] | None = None) -> Source:
    """A column for each tensor, in the order of the file.

    key: the columns that identify a row (default: all). Reads the header. Raises SourceError (damaged, a type that is not
    kept, tensors of different lengths; with file and tensor) and SchemaError.
    """
    require_regular_file(path)
    with reading(path), path.open("rb") as file:
        tensors, metadata = parse_header(file, size_of(path), str(path))
    rows = _common_rows(path, tensors)
    fields = [field_of(tensor.name, tensor.dtype, tensor.shape[1:], str(path)) for tensor in tensors]
    restored = Restored.of(fields, metadata.get(SCHEMA_KEY), path)
    return Source(
        restored.schema,
        identity_columns(restored.schema, key),
        lambda: _batches(path, tensors, restored, rows),
        rows,
        {"format": "safetensors", "files": lineages_of([(path, {})])},
    )


def parse_header(stream: Any, size: int, where: str) -> tuple[list[_Tensor], dict[str, Any]]:
    """(tensors in the order of their values, metadata) of a file of `size` bytes. Raises SourceError."""

    def refuse(why: str) -> SourceError:
        return SourceError(f"{where} {why}", where)

    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if len(head) < 8 or length > size - 8:
        raise refuse("is no safetensors file, or it is truncated; copy it again")
    if length > limits.SOURCE_HEADER_BYTES_MAX:
        raise refuse(f"announces a header of {length} bytes; at most {limits.SOURCE_HEADER_BYTES_MAX} are accepted")
    text = bytes(read_up_to(stream, length))
    try:
        header = json.loads(text)
        if len(text) < length or not isinstance(header, dict):
            raise ValueError("not an object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("metadata")
    except (ValueError, RecursionError) as error:
        raise refuse(f"has a damaged header ({error}); copy it again") from None
    tensors, data = [], size - 8 - length
    for name, value in header.items():
        tensors.append(_tensor(name, value, 8 + length, data, refuse))
    tensors.sort(key=lambda tensor: tensor[1:])
    end = 0
    for _, begin, stop in tensors:
        if begin != end:
            raise refuse("has values that overlap, or bytes that belong to no tensor; write it again")
        end = stop
    if end != data:
        raise refuse(f"holds {data} bytes of values, its header says {end}; copy it again")
    if not tensors:
        raise refuse("holds no tensor; check the path")
    return [tensor for tensor, _, _ in tensors], metadata


def _tensor(name: str, value: Any, start: int, data: int, refuse: Any) -> Any:
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise refuse(f"has a damaged header (tensor {name[:100]!r}); copy it again")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"holds {name[:100]!r} of type {str(dtype)[:20]}, which is not kept; cast it to F32")
    is_list = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not is_list or len(shape) > _DIMENSIONS_MAX or not all(_is_size(number) for number in [*shape, *offsets]):
        raise refuse(f"has a damaged header (tensor {name[:100]!r}); copy it again")
    kind = np.dtype(DTYPES[dtype])
    if not offsets[0] <= offsets[1] <= data or offsets[1] - offsets[0] != kind.itemsize * math.prod(shape):
        raise refuse(f"says that {name[:100]!r} lies where it cannot; copy it again")
    return _Tensor(name, kind, tuple(shape), start + offsets[0]), offsets[0], offsets[1]


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 48


def _common_rows(path: Place, tensors: list[_Tensor]) -> int:
    first = tensors[0]
    if len(tensors) > limits.COLUMNS_MAX:
        raise SourceError(f"{path} holds {len(tensors)} tensors; at most {limits.COLUMNS_MAX} are accepted", str(path))
    for tensor in tensors:
        if not tensor.shape or tensor.shape[0] != first.shape[0]:
            raise SourceError(
                f"{path}: tensor {tensor.name!r} has the shape {tensor.shape}, {first.name!r} has {first.shape}; all tensors "
                "need one first dimension, which counts rows (weights of a model are files: import the folder with the "
                "format files)",
                str(path),
            )
        if tensor.row_bytes > limits.SOURCE_VALUE_BYTES_MAX:
            raise SourceError(
                f"{path}: tensor {tensor.name!r} has rows of {tensor.row_bytes} bytes; at most "
                f"{limits.SOURCE_VALUE_BYTES_MAX} are accepted",
                str(path),
            )
    return first.shape[0]


def _batches(path: Place, tensors: list[_Tensor], restored: Restored, rows: int) -> Iterator[pa.RecordBatch]:
    count = rows_per_batch(sum(tensor.row_bytes for tensor in tensors))
    with reading(path), path.open("rb", buffering=0) as file:
        for start in range(0, rows, count):
            some = min(count, rows - start)
            yield restored.batch([_rows(path, file, tensor, start, some) for tensor in tensors], start)


def _rows(path: Place, file: Any, tensor: _Tensor, start: int, count: int) -> np.ndarray:
    file.seek(tensor.begin + start * tensor.row_bytes)
    data = read_up_to(file, count * tensor.row_bytes)
    if len(data) < count * tensor.row_bytes:
        raise SourceError(f"{path}: tensor {tensor.name!r} ends before its last row; copy it again", str(path))
    return np.frombuffer(data, tensor.dtype).reshape(count, *tensor.shape[1:])
