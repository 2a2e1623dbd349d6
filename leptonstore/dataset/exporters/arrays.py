"""Export of columns of numbers and tensors as one file of arrays: numpy's .npz, and safetensors.

The first dimension counts rows. Both formats name lengths before values, and a column's values stand together, so the
dataset is read once for each column: memory holds a batch. There is no null. Times are the integers that they are stored
as; the schema is carried in the archive's comment (.npz, up to 64 KiB) and in "__metadata__" (safetensors).
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from leptonstore.dataset.confined import writing
from leptonstore.dataset.exporters.common import ExportReport, Progress, Rows, new_file, require_no_nulls
from leptonstore.dataset.importers.safetensors import DTYPES
from leptonstore.dataset.npy_format import encode_header
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import SCHEMA_KEY, encode_schema
from leptonstore.dataset.schema import tensor_shape
from leptonstore.errors import SchemaError

_COMMENT_BYTES_MAX = 65_535
_TIME = (1980, 1, 1, 0, 0, 0)  # of all members: equal tables give equal files


def export_npz(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """Raises SchemaError for columns that are no numbers, BadInput for a null."""
    dtypes = _dtypes(ds.schema, "npz")
    with new_file(dest) as file, writing(dest), zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for at, field in enumerate(ds.schema):
            member = zipfile.ZipInfo(f"{field.name}.npy", _TIME)
            with archive.open(member, "w", force_zip64=True) as out:
                out.write(encode_header(dtypes[at], (len(ds), *(tensor_shape(field) or ()))))
                for data, rows in _values(ds, field, "npz"):
                    out.write(data)
                    progress(rows if at == len(ds.schema) - 1 else 0)
        comment = f"{SCHEMA_KEY}={encode_schema(ds.schema)}".encode()
        if len(comment) <= _COMMENT_BYTES_MAX:
            archive.comment = comment
    return ExportReport(dest, len(ds), 1, dest.stat().st_size)


def export_safetensors(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """Raises SchemaError for columns that are no numbers, BadInput for a null."""
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    dtypes = _dtypes(ds.schema, "safetensors")
    # The library wants the widest types first, which aligns them all.
    order = sorted(range(len(dtypes)), key=lambda at: (-dtypes[at].itemsize, ds.schema.names[at]))
    header: dict[str, object] = {"__metadata__": {SCHEMA_KEY: encode_schema(ds.schema)}}
    end = 0
    for at in order:
        field, shape = ds.schema.field(at), [len(ds), *(tensor_shape(ds.schema.field(at)) or ())]
        if field.name == "__metadata__":
            raise SchemaError("safetensors cannot hold a column '__metadata__'; rename it")
        begin, end = end, end + dtypes[at].itemsize * math.prod(shape)
        header[field.name] = {"dtype": names[dtypes[at]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(dest) as file:
        with writing(dest):
            file.write(struct.pack("<Q", len(text)) + text)
        for number, at in enumerate(order):
            for data, rows in _values(ds, ds.schema.field(at), "safetensors"):
                with writing(dest):
                    file.write(data)
                progress(rows if number == len(order) - 1 else 0)
    return ExportReport(dest, len(ds), 1, dest.stat().st_size)


def _dtypes(schema: pa.Schema, what: str) -> list[np.dtype]:
    dtypes = []
    for field in schema:
        dtype = _dtype(field)
        if dtype is None or not field.name or "\0" in field.name or "/" in field.name:
            raise SchemaError(
                f"{what} cannot hold column {field.name!r} ({field.type}); export as parquet, or drop it first"
            )
        dtypes.append(dtype)
    return dtypes


def _dtype(field: pa.Field) -> np.dtype | None:
    """The numbers as which a column's values are written, little-endian."""
    data_type, kinds = field.type, pa.types
    if isinstance(data_type, pa.FixedShapeTensorType):
        data_type = data_type.value_type
    if kinds.is_boolean(data_type) or kinds.is_integer(data_type) or kinds.is_floating(data_type):
        return np.dtype(data_type.to_pandas_dtype()).newbyteorder("<")
    if kinds.is_temporal(data_type):
        return np.dtype("<i4") if data_type.bit_width == 32 else np.dtype("<i8")
    return None


def _values(ds: Rows, field: pa.Field, what: str) -> Iterator[tuple[bytes, int]]:
    """(values of some rows as bytes, number of rows), in order."""
    dtype = _dtype(field)
    for position, batch in ds.iter_batches([field.name]):
        array = batch.column(0)
        require_no_nulls(array, field, position, what)
        if isinstance(array, pa.ExtensionArray):
            array = array.storage.flatten()
            require_no_nulls(array, field, position, what)
        if pa.types.is_temporal(array.type):
            array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
        yield array.to_numpy(zero_copy_only=False).astype(dtype, copy=False).tobytes(), batch.num_rows
