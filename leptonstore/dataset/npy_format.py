"""The header of a .npy file, and numpy's types as Arrow's. Pickled arrays are refused; nothing is ever unpickled.

    0 magic "\\x93NUMPY" | 6 major 7 minor | 8 length of the header, u16 (major 1) or u32 | literal of a dict, padded | values

The dict has "descr" (type), "fortran_order" and "shape". Definition: numpy.lib.format. Its literal is parsed by
ast.literal_eval, which builds values only, of at most limits.NPY_HEADER_BYTES_MAX bytes, as numpy itself does.
"""

from __future__ import annotations

import ast
import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers.arrays import tensor_column
from leptonstore.dataset.schema import tensor_field
from leptonstore.digest import Buffer
from leptonstore.errors import SourceError

MAGIC = b"\x93NUMPY"
_UNITS = {"s": "s", "ms": "ms", "us": "us", "ns": "ns"}
_DIMENSIONS_MAX = 32


@dataclass(frozen=True)
class NpyHeader:
    """dtype of the values as stored, the array's shape, the order of its values, and where they begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    data_offset: int

    @property
    def data_bytes(self) -> int:
        """Of all values."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Of the values of one row (the first dimension counts rows)."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def read_header(stream: Any, where: str) -> NpyHeader:
    """The header at the start of `stream`, which stands at the values afterwards. Raises SourceError."""

    def refuse(why: str) -> SourceError:
        return SourceError(f"{where} {why}", where)

    head = stream.read(8)
    if len(head) < 8 or head[:6] != MAGIC:
        raise refuse("is no .npy file (its first bytes are others); name its format")
    if head[6] not in (1, 2, 3):
        raise refuse(f"has version {head[6]}.{head[7]} of .npy, which is not known; write it again")
    width = 2 if head[6] == 1 else 4
    digits = stream.read(width)
    if len(digits) < width:
        raise refuse("ends inside of its header; copy it again")
    (length,) = struct.unpack("<H" if width == 2 else "<I", digits)
    if length > limits.NPY_HEADER_BYTES_MAX:
        raise refuse(f"announces a header of {length} bytes; at most {limits.NPY_HEADER_BYTES_MAX} are accepted")
    text = stream.read(length)
    if len(text) < length:
        raise refuse("ends inside of its header; copy it again")
    try:
        value = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin-1").strip())
        if not isinstance(value, dict) or set(value) != {"descr", "fortran_order", "shape"}:
            raise ValueError("not the three entries that a header has")
        shape, fortran = value["shape"], value["fortran_order"]
        if not isinstance(fortran, bool) or not isinstance(shape, tuple) or len(shape) > _DIMENSIONS_MAX:
            raise ValueError("shape or order")
        if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 48 for size in shape):
            raise ValueError("a size that is none")
        dtype = _dtype_of(value["descr"])
    except SourceError as error:
        raise refuse(str(error)) from None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, UnicodeDecodeError) as error:
        raise refuse(f"has a damaged header ({' '.join(str(error).split())[:100]}); write it again") from None
    return NpyHeader(dtype, shape, fortran, 8 + width + length)


def _dtype_of(descr: Any) -> np.dtype:
    if not isinstance(descr, str):
        raise SourceError("holds records of several fields; save each field as an array of its own")
    dtype = np.dtype(descr)
    if dtype.hasobject:
        raise SourceError("holds Python objects, which only pickle could read, and that runs code; save plain arrays")
    return dtype


def field_of(name: str, dtype: np.dtype, row_shape: tuple[int, ...], where: str) -> pa.Field:
    """The column for rows of such values: a scalar column, or a tensor. Raises SourceError for types that Arrow lacks."""
    value_type = _arrow_type(dtype)
    if value_type is None:
        raise SourceError(f"{where}: {name!r} has type {dtype}, which is not kept; cast it", where)
    if not row_shape:
        return pa.field(name, value_type, nullable=dtype.kind == "M")
    if dtype.kind in "MmUS":
        raise SourceError(f"{where}: {name!r} is a tensor of {dtype}, which is not kept; cast it to numbers", where)
    if 0 in row_shape:
        raise SourceError(f"{where}: {name!r} has rows without values (shape {row_shape}); leave it out", where)
    return tensor_field(name, value_type, row_shape)


def _arrow_type(dtype: np.dtype) -> pa.DataType | None:
    if dtype.kind in "biuf" and dtype.itemsize <= 8:
        return pa.from_numpy_dtype(dtype.newbyteorder("="))
    if dtype.kind == "U" and dtype.itemsize:
        return pa.string()
    if dtype.kind == "S" and dtype.itemsize:
        return pa.binary()
    if dtype.kind in "Mm":
        unit, count = np.datetime_data(dtype)
        if unit in _UNITS and count == 1:
            return pa.timestamp(unit) if dtype.kind == "M" else pa.duration(unit)
        if unit == "D" and count == 1 and dtype.kind == "M":
            return pa.date32()
    return None


def column_of(field: pa.Field, values: np.ndarray) -> pa.Array:
    """`values` of shape (rows, *row shape) as that column; NaT becomes null. Raises pa.ArrowInvalid."""
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    if isinstance(field.type, pa.FixedShapeTensorType):
        return tensor_column(field, values)
    if values.dtype.kind in "US":
        return pa.array(values.tolist(), field.type)
    return pa.array(values, field.type)


def encode_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of an array in C order."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def parse_array(data: Buffer, where: str) -> np.ndarray:
    """A whole small .npy file. Raises SourceError."""
    stream = io.BytesIO(data)
    header = read_header(stream, where)
    if header.data_offset + header.data_bytes != len(data):
        raise SourceError(
            f"{where} has {len(data)} bytes, its header says {header.data_offset + header.data_bytes}", where
        )
    values = (
        np.frombuffer(data, header.dtype, offset=header.data_offset) if header.data_bytes else np.empty(0, header.dtype)
    )
    return values.reshape(header.shape, order="F" if header.fortran else "C")
