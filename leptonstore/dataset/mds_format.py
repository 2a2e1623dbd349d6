"""MDS, the format of mosaicml-streaming: what a shard looks like, and how a column's values become bytes and back.

    index.json   {"version": 2, "shards": [{column_names, column_encodings, column_sizes, samples, raw_data, zip_data, ...}]}
    shard        0 samples n, u32 | offsets, u32 x (n + 1), of the samples in the file | the shard's settings, JSON | samples
    sample       length of each value of variable width, u32 | values, in the order of column_names    (all little-endian)

    encoding                     Arrow                              encoding                    Arrow
    bytes                        large_binary                       jpeg, png                   image, encoded
    str                          string                             jpeg_array, list[jpeg|png]  list of large_binary
    int, int8 .. uint64          int64, the same                    json                        string, which holds JSON
    float16/32/64                the same                           str_int, str_float          int64, float64
    ndarray:DTYPE:SHAPE          tensor                             str_decimal                 string
    ndarray, ndarray:DTYPE, pil  tensor, if the first samples have one shape; 1-d arrays of several lengths: list

pkl is refused: reading it would run whatever its writer wrote. Source of the definition: streaming/base/format/mds in
mosaicml-streaming 0.13. An export writes the schema into index.json, beside what the library reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.npy_format import column_of
from leptonstore.dataset.plain import json_cells, parse_cells
from leptonstore.dataset.schema import CODEC, image_field, semantic_of, tensor_field, tensor_shape
from leptonstore.format.page import is_variable

VERSION = 2
INDEX = "index.json"
SCALARS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_LISTS = ("jpeg_array", "jpegarray", "list[jpeg]", "list[png]")
PROBED = ("ndarray", "pil")
_SHAPE_DTYPES = ("<u1", "<u2", "<u4", "<u8")
_VALUE_DTYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32"}
_VALUE_DTYPES |= {34: "float32", 64: "uint64", 65: "int64", 66: "float64"}
_PIL_CHANNELS = {"L": 0, "RGB": 3, "RGBA": 4}


class BadValue(ValueError):
    """A value or an encoding that cannot be read; the message says why."""


@dataclass(frozen=True)
class Encoding:
    """A parsed encoding. size: bytes of every value, None where it varies."""

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int | None:
        if self.name == "int":
            return 8
        if self.name in SCALARS:
            return np.dtype(self.name).itemsize
        return np.dtype(self.dtype).itemsize * math.prod(self.shape) if self.shape else None


def parse_encoding(text: str) -> Encoding:
    """Raises BadValue for one that is not read."""
    name, _, rest = text.partition(":")
    if name == "pkl":
        raise BadValue(
            "pickle, and reading that would run whatever its writer wrote; write it as json, ndarray or bytes"
        )
    if name == "ndarray":
        dtype, _, shape = rest.partition(":")
        sizes = (
            tuple(int(size) if size.isdigit() and len(size) < 12 else 0 for size in shape.split(",")) if shape else ()
        )
        if (dtype and dtype not in SCALARS) or 0 in sizes or len(sizes) > 32:
            raise BadValue(f"the encoding {text[:60]!r}, which is not known")
        return Encoding(name, dtype, sizes)
    known = (
        "bytes",
        "str",
        "int",
        "json",
        "str_int",
        "str_float",
        "str_decimal",
        "jpeg",
        "png",
        "pil",
        *SCALARS,
        *_LISTS,
    )
    if rest or name not in known:
        raise BadValue(f"the encoding {text[:60]!r}, which is not known")
    return Encoding(name)


def field_of(name: str, encoding: Encoding, probe: list[bytes]) -> pa.Field:
    """The column of an encoding; `probe`: the first values, for those whose shape is not said. Raises BadValue."""
    if encoding.name in ("jpeg", "png"):
        return image_field(name, encoding.name)
    if encoding.name in SCALARS:
        return pa.field(name, pa.from_numpy_dtype(np.dtype(encoding.name)), nullable=False)
    if encoding.name in _LISTS:
        return pa.field(name, pa.list_(pa.large_binary()), nullable=False)
    if encoding.name == "ndarray" and encoding.shape:
        return tensor_field(name, pa.from_numpy_dtype(np.dtype(encoding.dtype)), encoding.shape)
    if encoding.name in PROBED:
        return _probed_field(name, encoding, probe)
    types = {"bytes": pa.large_binary(), "int": pa.int64(), "str_int": pa.int64(), "str_float": pa.float64()}
    return pa.field(name, types.get(encoding.name, pa.string()), nullable=False)


def _probed_field(name: str, encoding: Encoding, probe: list[bytes]) -> pa.Field:
    arrays = [_array(encoding, value) for value in probe]
    dtypes, shapes = {array.dtype for array in arrays}, {array.shape for array in arrays}
    if len(dtypes) == 1 and len(shapes) == 1:
        semantic = "image" if encoding.name == "pil" else ""
        return tensor_field(name, pa.from_numpy_dtype(arrays[0].dtype), arrays[0].shape, semantic)
    if len(dtypes) == 1 and all(array.ndim == 1 for array in arrays):
        return pa.field(name, pa.list_(pa.from_numpy_dtype(arrays[0].dtype)), nullable=False)
    raise BadValue(
        f"arrays of different shapes or types ({encoding.name}); write images encoded (jpeg, png), or one shape"
    )


# -- bytes -> values -----------------------------------------------------------------------------------------------


def decode_column(field: pa.Field, encoding: Encoding, cells: list[bytes]) -> pa.Array:
    """The values of a column. Raises ValueError for one that does not fit."""
    name, data_type = encoding.name, field.type
    if name == "json" and not pa.types.is_string(data_type):
        return parse_cells(list(cells), data_type)
    if name in ("bytes", "jpeg", "png"):
        return pa.array(cells, data_type)
    if name in ("str", "json", "str_decimal"):
        return pa.array([cell.decode() for cell in cells], data_type)
    if name in ("str_int", "str_float"):
        read: Any = int if name == "str_int" else float
        return pa.array([read(cell[:400].decode()) for cell in cells], data_type)
    if name == "int" or name in SCALARS:
        values = np.frombuffer(b"".join(cells), "<i8" if name == "int" else np.dtype(name).newbyteorder("<"))
        return pa.array(values, pa.from_numpy_dtype(values.dtype)).cast(data_type)
    if name in _LISTS:
        return pa.array([_images(cell, name) for cell in cells], data_type)
    arrays = [_array(encoding, cell) for cell in cells]
    dtype = np.dtype(data_type.value_type.to_pandas_dtype())
    shape = tensor_shape(field)
    for array in arrays:
        if array.dtype != dtype or (array.shape != shape if shape is not None else array.ndim != 1):
            raise BadValue(f"an array of {array.dtype} of shape {array.shape}; the first samples have {data_type}")
    if shape is None:
        return pa.array(arrays, data_type)
    return column_of(field, np.stack(arrays) if arrays else np.zeros((0, *shape), dtype))


def _array(encoding: Encoding, data: bytes) -> np.ndarray:
    if encoding.name == "pil":
        return _pil(data)
    at, dtype, shape = 0, encoding.dtype, encoding.shape
    if not dtype:
        if not data or data[0] not in _VALUE_DTYPES:
            raise BadValue("an array of an unknown type")
        dtype, at = _VALUE_DTYPES[data[0]], 1
    if not shape:
        if len(data) <= at:
            raise BadValue("an array without a shape")
        sizes, kind = data[at] >> 2, np.dtype(_SHAPE_DTYPES[data[at] & 3])
        end = at + 1 + sizes * kind.itemsize
        if len(data) < end or not 0 < sizes <= 32:
            raise BadValue("an array that ends inside of its shape")
        shape, at = tuple(int(size) for size in np.frombuffer(data[at + 1 : end], kind)), end
    wanted = np.dtype(dtype)
    if math.prod(shape) * wanted.itemsize != len(data) - at or not math.prod(shape):
        raise BadValue(f"an array whose shape {shape} does not fit its {len(data) - at} bytes")
    return np.frombuffer(data, wanted.newbyteorder("<"), offset=at).reshape(shape).astype(wanted, copy=False)


def _pil(data: bytes) -> np.ndarray:
    if len(data) < 12:
        raise BadValue("an image that ends inside of its header")
    width, height, length = (int(number) for number in np.frombuffer(data[:12], "<u4"))
    mode = data[12 : 12 + min(length, 16)].decode("latin-1")
    if mode not in _PIL_CHANNELS or not width or not height:
        raise BadValue(f"an image of mode {mode!r}; L, RGB and RGBA are read (write others as png)")
    shape = (height, width, _PIL_CHANNELS[mode]) if _PIL_CHANNELS[mode] else (height, width)
    if math.prod(shape) != len(data) - 12 - length:
        raise BadValue(f"an image that says {width} x {height} {mode}, and has {len(data) - 12 - length} bytes")
    return np.frombuffer(data, np.uint8, offset=12 + length).reshape(shape)


def _images(data: bytes, name: str) -> list[bytes]:
    """0, u32 (in list[...] only) | number, u32 | lengths, u32 | images."""
    start = 4 if name.startswith("list[") else 0
    count = int.from_bytes(data[start : start + 4], "little")
    begin = start + 4 + 4 * count
    if len(data) < begin:
        raise BadValue("a list of images that ends inside of its lengths")
    ends = begin + np.cumsum(np.frombuffer(data, "<u4", count, start + 4), dtype=np.int64)
    if (int(ends[-1]) if count else begin) != len(data):
        raise BadValue("a list of images whose lengths do not fit")
    starts = [begin, *ends.tolist()[:-1]]
    return [data[one:end] for one, end in zip(starts, ends.tolist(), strict=True)] if count else []


# -- values -> bytes -----------------------------------------------------------------------------------------------


def encoding_of(field: pa.Field) -> str:
    """How a column is written: what a reader of the library gets is the value itself, else JSON."""
    data_type, kinds = field.type, pa.types
    shape = tensor_shape(field)
    if shape is not None:
        value = str(data_type.value_type).replace("halffloat", "float16").replace("double", "float64")
        value = "float32" if value == "float" else value
        return f"ndarray:{value}:{','.join(map(str, shape))}" if value in SCALARS else "json"
    if is_variable(data_type):
        if kinds.is_string(data_type) or kinds.is_large_string(data_type):
            return "str"
        codec = (field.metadata or {}).get(CODEC, b"").decode() if semantic_of(field) == "image" else ""
        return codec if codec in ("jpeg", "png") else "bytes"
    if kinds.is_integer(data_type) or kinds.is_floating(data_type):
        return np.dtype(data_type.to_pandas_dtype()).name
    return "json"


def encode_column(array: pa.Array, encoding: Encoding) -> list[bytes]:
    """The bytes of each value; there is no null but in JSON."""
    if encoding.name == "json":
        return [cell.encode() for cell in json_cells(array)]
    if encoding.name == "str":
        return [value.encode() for value in array.to_pylist()]
    if encoding.name in ("bytes", "jpeg", "png"):
        return list(array.to_pylist())
    if encoding.name == "ndarray":
        values = array.to_numpy_ndarray() if isinstance(array.type, pa.FixedShapeTensorType) else None
        assert values is not None
        return [value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes() for value in values]
    values = array.to_numpy(zero_copy_only=False)
    data, size = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), values.dtype.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]
