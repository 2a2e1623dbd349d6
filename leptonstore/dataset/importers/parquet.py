"""Import of Parquet: one file, or a directory of files of one schema, read in the order of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from leptonstore.dataset.importers.reading import (
    files_of,
    lineages_of,
    require_regular_file,
    rows_per_batch,
    size_of,
)
from leptonstore.dataset.importers.tables import conform, identity_columns, storable_schema
from leptonstore.dataset.places import Place
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SUFFIXES = (".parquet", ".pq")
_READ_BUFFER_BYTES = 1 << 20  # a column chunk is read in pieces of this size, never as a whole


@dataclass(frozen=True)
class _File:
    """A Parquet file whose footer was read. row_bytes: average size of an unpacked row, largest row group."""

    path: Place
    schema: pa.Schema
    rows: int
    bytes: int
    row_bytes: int


def open_source(path: Place, key: str | Sequence[str] | None = None) -> Source:
    """The columns as they are (semantic types in field metadata too); dictionary columns become their values.

    key: the columns that identify a row (default: all). Reads footers only. Raises SourceError for a damaged file or
    files of different schemas, SchemaError for a type that is not kept or a key that is no column.
    """
    files = [_open_file(file) for file in files_of(path, SUFFIXES)]
    schema = files[0].schema
    for file in files[1:]:
        if not file.schema.equals(schema, check_metadata=True):
            raise SourceError(
                f"{file.path} and {files[0].path.name} have different schemas ({_difference(schema, file.schema)}); "
                "import them as two data sets",
                str(file.path),
            )
    return Source(
        schema=schema,
        identity=identity_columns(schema, key),
        batches=lambda: (batch for file in files for batch in _batches(file)),
        rows=sum(file.rows for file in files),
        lineage={"format": "parquet", "files": lineages_of([(file.path, {"rows": file.rows}) for file in files])},
    )


def _open_file(path: Place) -> _File:
    require_regular_file(path)
    try:
        with _parsing(path), opened_parquet(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
            schema = storable_schema(file.schema_arrow)
            return _File(path, schema, file.metadata.num_rows, size_of(path), row_bytes)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None


@contextmanager
def opened_parquet(path: Place) -> Iterator[pq.ParquetFile]:
    """The file, of which column chunks are read in pieces."""
    options = {"buffer_size": _READ_BUFFER_BYTES, "pre_buffer": False}
    if isinstance(path, Path):
        with pq.ParquetFile(path, **options) as opened:
            yield opened
    else:
        with path.open(buffering=0) as file, pq.ParquetFile(file, **options) as opened:
            yield opened


def _batches(file: _File) -> Iterator[pa.RecordBatch]:
    rows = 0
    with _parsing(file.path), opened_parquet(file.path) as opened:
        for batch in opened.iter_batches(rows_per_batch(file.row_bytes), use_threads=False):
            batch.validate(full=True)  # Arrow does not look into what a file calls UTF-8 or an index
            rows += batch.num_rows
            yield conform(batch, file.schema)
    if rows != file.rows:
        raise SourceError(f"{file.path} holds {rows} rows, its footer says {file.rows}; write it again", str(file.path))


@contextmanager
def _parsing(path: Place) -> Iterator[None]:
    """Inside, whatever Arrow says about a file that it cannot read is a SourceError. (Arrow raises OSError for
    damaged pages, ArrowInvalid for footers and values, UnicodeDecodeError for names; anything else is a bug of ours.)
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise SourceError(f"cannot read {path} as Parquet: {why}; write it again", str(path)) from error


def _difference(first: pa.Schema, second: pa.Schema) -> str:
    for one, other in zip(first, second, strict=False):
        if not one.equals(other, check_metadata=True):
            return f"column {one.name!r}: {one.type} and {other.name!r}: {other.type}"
    return f"{len(first)} and {len(second)} columns"
