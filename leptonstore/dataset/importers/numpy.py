"""Import of numpy's files: an array (.npy) or several of one first dimension (.npz), never unpickled.

The first dimension counts rows: an array of shape (n, 28, 28) is a column of n tensors of 28 x 28, one of shape (n,) a
column of numbers. .npy gives the column "values" (or what `column` says), .npz one column for each array. Kept are
booleans, integers, floats, text (U), bytes (S), datetime64 and timedelta64; archives that `lepton export` wrote carry
their schema. Everything streams; only an array in Fortran order stands in memory as a whole.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from leptonstore.dataset.npy_format import NpyHeader, field_of, read_header
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import SCHEMA_KEY
from leptonstore.dataset.source import Source
from leptonstore.errors import SourceError

SUFFIXES = (".npy", ".npz")
MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK\x03\x04"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FORTRAN_BYTES_MAX = limits.SOURCE_VALUE_BYTES_MAX


@dataclass(frozen=True)
class _Array:
    """An array of the file: its column's name, its member in a .npz ("" in a .npy), and its header."""

    name: str
    member: str
    header: NpyHeader


def open_source(path: Place, key: str | Sequence[str] | None = None, column: str = "values") -> Source:
    """A column for each array.

    key: the columns that identify a row (default: all). column: the name of the column of a .npy file. Reads headers.
    Raises SourceError (damaged, pickled objects, a type that is not kept, arrays of different lengths; with file and
    array) and SchemaError.
    """
    require_regular_file(path)
    with reading(path), path.open("rb") as file:
        packed = file.read(4) == _ZIP_MAGIC
    with _unzipping(path):
        arrays, carried = _arrays_of_npz(path) if packed else ([_array_of_npy(path, column)], None)
    rows = _common_rows(path, arrays)
    restored = Restored.of(
        [field_of(array.name, array.header.dtype, array.header.shape[1:], str(path)) for array in arrays], carried, path
    )
    return Source(
        restored.schema,
        identity_columns(restored.schema, key),
        lambda: _batches(path, arrays, restored, rows),
        rows,
        {"format": "numpy", "files": lineages_of([(path, {})])},
    )


def _array_of_npy(path: Place, column: str) -> _Array:
    with reading(path), path.open("rb") as file:
        header = read_header(file, str(path))
    size = size_of(path)
    if header.shape and header.data_offset + header.data_bytes != size:
        raise SourceError(
            f"{path} has {size} bytes, its header says {header.data_offset + header.data_bytes}; copy it again",
            str(path),
        )
    return _Array(column, "", header)


def _arrays_of_npz(path: Place) -> tuple[list[_Array], object]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > limits.COLUMNS_MAX:
            raise SourceError(
                f"{path} holds {len(members)} arrays; at most {limits.COLUMNS_MAX} are accepted", str(path)
            )
        arrays = []
        for member in members:
            where = f"{path}: {member.filename!r}"
            if not member.filename.endswith(".npy"):
                raise SourceError(f"{where} is no array (.npy); save arrays only", str(path))
            if member.compress_type not in _METHODS or member.flag_bits & 1:
                raise SourceError(f"{where} is encrypted or packed in an unusual way; save it with numpy", str(path))
            with archive.open(member) as stream:
                header = read_header(stream, where)
            if header.shape and header.data_offset + header.data_bytes != member.file_size:
                raise SourceError(
                    f"{where} has {member.file_size} bytes, its header says {header.data_offset + header.data_bytes}",
                    str(path),
                )
            arrays.append(_Array(member.filename.removesuffix(".npy"), member.filename, header))
        file.seek(-22 - len(archive.comment), 2)  # the end record, whose last field is the comment's length
        if int.from_bytes(file.read(22)[20:], "little") != len(archive.comment):
            raise SourceError(f"{path} ends inside of its comment; copy it again", str(path))
        prefix = f"{SCHEMA_KEY}=".encode()
        carried = archive.comment.removeprefix(prefix) if archive.comment.startswith(prefix) else None
    if not arrays:
        raise SourceError(f"{path} holds no array; check the path", str(path))
    names = [array.name for array in arrays]
    if len(set(names)) < len(names):
        raise SourceError(f"{path} holds two arrays of one name; save it again", str(path))
    return arrays, carried


def _common_rows(path: Place, arrays: list[_Array]) -> int:
    first = arrays[0]
    for array in arrays:
        if not array.header.shape:
            raise SourceError(f"{path}: {array.name!r} is a single value, without rows; leave it out", str(path))
        if array.header.shape[0] != first.header.shape[0]:
            raise SourceError(
                f"{path}: {array.name!r} has {array.header.shape[0]} rows, {first.name!r} has {first.header.shape[0]}; all "
                "arrays need one first dimension",
                str(path),
            )
        if array.header.row_bytes > limits.SOURCE_VALUE_BYTES_MAX:
            raise SourceError(
                f"{path}: {array.name!r} has rows of {array.header.row_bytes} bytes; at most "
                f"{limits.SOURCE_VALUE_BYTES_MAX} are accepted (the first dimension counts rows)",
                str(path),
            )
        if array.header.fortran and len(array.header.shape) > 1 and array.header.data_bytes > _FORTRAN_BYTES_MAX:
            raise SourceError(
                f"{path}: {array.name!r} is in Fortran order and has more than {_FORTRAN_BYTES_MAX} bytes; save it in C order "
                "(numpy.ascontiguousarray)",
                str(path),
            )
    return first.header.shape[0]


def _batches(path: Place, arrays: list[_Array], restored: Restored, rows: int) -> Iterator[pa.RecordBatch]:
    count = rows_per_batch(sum(array.header.row_bytes for array in arrays))
    with _unzipping(path), ExitStack() as held:
        streams = [_opened(path, array, held) for array in arrays]
        for start in range(0, rows, count):
            some = min(count, rows - start)
            yield restored.batch([_rows(path, *pair, start, some) for pair in zip(arrays, streams, strict=True)], start)


def _opened(path: Place, array: _Array, held: ExitStack) -> Any:
    """A stream that stands at the values, or the whole array where it is in Fortran order."""
    # a file of its own for each: reading several members of one by turns would seek, and throw buffers away
    file = held.enter_context(path.open("rb"))
    stream = file
    if array.member:
        archive = held.enter_context(zipfile.ZipFile(file))
        stream = held.enter_context(archive.open(array.member))
    if read_header(stream, str(path)) != array.header:
        raise SourceError(f"{path} changed while it was read; run the import again", str(path))
    if not array.header.fortran or len(array.header.shape) < 2:
        return stream
    values = np.frombuffer(_exactly(path, array, stream, array.header.data_bytes), array.header.dtype)
    return values.reshape(array.header.shape, order="F")


def _rows(path: Place, array: _Array, stream: Any, start: int, count: int) -> np.ndarray:
    if isinstance(stream, np.ndarray):
        return stream[start : start + count]
    data = _exactly(path, array, stream, count * array.header.row_bytes)
    if not data:
        return np.zeros((count, *array.header.shape[1:]), array.header.dtype)
    return np.frombuffer(data, array.header.dtype).reshape(count, *array.header.shape[1:])


def _exactly(path: Place, array: _Array, stream: Any, size: int) -> bytes | bytearray:
    data = read_up_to(stream, size)
    if len(data) < size:
        raise SourceError(f"{path}: {array.name!r} ends before its last row; copy it again", str(path))
    return data


@contextmanager
def _unzipping(path: Place) -> Iterator[None]:
    """Inside, whatever zipfile says about an archive that it cannot read is a SourceError."""
    try:
        with reading(path):
            yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from error
    except (KeyError, ValueError, OverflowError, IndexError, struct.error) as error:  # of lengths that lie
        raise _damaged(path, error) from error


def _damaged(path: Place, error: Exception) -> SourceError:
    return SourceError(
        f"{path} is a damaged .npz file ({' '.join(str(error).split())[:100]}); copy it again", str(path)
    )
