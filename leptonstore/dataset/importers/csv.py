"""Import of CSV (RFC 4180, a header line, UTF-8), plain or .gz, streamed by Arrow.

Types are inferred from the first block (limits.CSV_BLOCK_BYTES) and hold for the whole file; `types` overrides them. A
column that is empty throughout the first block is text. Arrow's rules for empty fields hold: null in columns of
numbers, times and booleans (as "NA", "NULL" and the like), the empty string in columns of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from leptonstore import limits
from leptonstore.dataset.importers.reading import lineages_of, require_regular_file
from leptonstore.dataset.importers.tables import conform, identity_columns, storable_schema
from leptonstore.dataset.places import Place
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SUFFIXES = (".csv", ".csv.gz")


def open_source(
    path: Place,
    key: str | Sequence[str] | None = None,
    delimiter: str = ",",
    types: Mapping[str, pa.DataType] | None = None,
) -> Source:
    """The table of a CSV file, all columns nullable.

    key: the columns that identify a row (default: all). types: column name -> Arrow type, instead of the inferred one.
    Reads the first block. Raises SourceError (empty, ragged, not UTF-8, a value that does not fit; with the row where
    Arrow knows it) and SchemaError (two columns of one name, a key or a typed column that does not exist).
    """
    require_regular_file(path)
    if len(delimiter) != 1:
        raise SourceError(f"a delimiter is one character, not {delimiter!r}; for a tab give a real tab", str(path))
    with _parsing(path), _open(path, delimiter, types or {}) as reader:
        inferred = reader.schema
        names = inferred.names  # decodes the header
    unknown = sorted(set(types or {}) - set(names))
    if unknown:
        raise SchemaError(f"{path} has no column {unknown[0]!r} to give a type; it has {', '.join(names)}")
    fields = [pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in inferred]
    for field in fields:
        if pa.types.is_binary(field.type) and field.name not in (types or {}):
            raise SourceError(f"{path}: column {field.name!r} is not UTF-8; convert the file to UTF-8", str(path))
    try:
        schema = storable_schema(pa.schema(fields))
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None

    def batches() -> Iterator[pa.RecordBatch]:
        with _parsing(path), _open(path, delimiter, dict(zip(schema.names, schema.types, strict=True))) as reader:
            for batch in reader:
                yield conform(batch, schema)

    lineage = {"format": "csv", "files": lineages_of([(path, {})])}
    return Source(schema, identity_columns(schema, key), batches, None, lineage)


@contextmanager
def _open(path: Place, delimiter: str, types: Mapping[str, pa.DataType]) -> Iterator[pacsv.CSVStreamingReader]:
    options = {
        "read_options": pacsv.ReadOptions(
            use_threads=False, block_size=limits.CSV_BLOCK_BYTES
        ),  # threads: no row numbers
        "parse_options": pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": pacsv.ConvertOptions(column_types=dict(types)),
    }
    if isinstance(path, Path):
        with pacsv.open_csv(str(path), **options) as reader:  # Arrow unpacks by the name's ending
            yield reader
        return
    packed = path.name.lower().endswith(".gz")
    with (
        path.open() as file,
        pa.input_stream(file, compression="gzip" if packed else None) as stream,
        pacsv.open_csv(stream, **options) as reader,
    ):
        yield reader


@contextmanager
def _parsing(path: Place) -> Iterator[None]:
    """Inside, whatever Arrow says about a file that it cannot read is a SourceError with Arrow's row number."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: its header is not UTF-8; convert the file to UTF-8", str(path)) from error
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        fix = f"rows up to {limits.CSV_BLOCK_BYTES} bytes are read" if "straddl" in why else "correct the file"
        raise SourceError(f"cannot read {path} as CSV: {why}; {fix}", str(path)) from error
