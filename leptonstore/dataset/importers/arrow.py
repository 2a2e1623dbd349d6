"""Import of Arrow IPC: files (Feather 2) and streams, one of them or a directory of one schema.

Record batches are cut where they are larger than limits.IMPORT_BATCH_*. Memory holds one of the file's own batches: its
writer chose their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from leptonstore.dataset.importers.reading import files_of, lineages_of, require_regular_file, rows_per_batch
from leptonstore.dataset.importers.tables import conform, identity_columns, storable_schema
from leptonstore.dataset.places import Place
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SUFFIXES = (".arrow", ".arrows", ".ipc", ".feather")
MAGIC = b"ARROW1"


def open_source(path: Place, key: str | Sequence[str] | None = None) -> Source:
    """The columns as they are (semantic types in field metadata too); dictionary columns become their values.

    key: the columns that identify a row (default: all). Reads the schemas. Raises SourceError for a damaged file or files
    of different schemas, SchemaError for a type that is not kept or a key that is no column.
    """
    files = files_of(path, SUFFIXES)
    schema = read_schema(files[0])
    for file in files[1:]:
        if not read_schema(file).equals(schema, check_metadata=True):
            raise SourceError(
                f"{file} and {files[0].name} have different schemas; import them as two data sets", str(file)
            )
    return Source(
        schema=schema,
        identity=identity_columns(schema, key),
        batches=lambda: (conform(batch, schema) for file in files for batch in read_batches(file)),
        lineage={"format": "arrow", "files": lineages_of([(file, {}) for file in files])},
    )


def read_schema(path: Place) -> pa.Schema:
    """The schema as a store keeps it. Raises SourceError, SchemaError."""
    require_regular_file(path)
    try:
        with parsing(path), opened(path) as reader:
            return storable_schema(reader.schema)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None


def read_batches(path: Place, row_bytes: int = 0) -> Iterator[pa.RecordBatch]:
    """The batches of a file or stream, checked, of bounded size. row_bytes: of a row where it will be larger than here.

    Raises SourceError.
    """
    with parsing(path), opened(path) as reader:
        is_file = isinstance(reader, pa.RecordBatchFileReader)
        batches = (reader.get_batch(at) for at in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            batch.validate(full=True)  # Arrow does not look into what a file calls offsets or UTF-8
            rows = rows_per_batch(max(row_bytes, batch.nbytes // max(1, batch.num_rows)))
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


@contextmanager
def opened(path: Place) -> Iterator[Any]:
    """A reader of the file or of the stream: its first bytes say which."""
    with path.open("rb", buffering=0) as file:
        is_file = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        source = pa.OSFile(str(path), "rb") if isinstance(path, Path) else pa.PythonFile(file, "r")
        with source:
            yield _reader(source, is_file)


def _reader(source: Any, is_file: bool) -> Any:
    try:
        return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise
    except Exception as error:  # of the code of an extension type that somebody registered in this process
        raise pa.ArrowInvalid(f"its extension type cannot be made ({type(error).__name__}: {error})") from error


@contextmanager
def parsing(path: Place) -> Iterator[None]:
    """Inside, whatever Arrow says about a file that it cannot read is a SourceError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise SourceError(f"cannot read {path} as Arrow IPC: {why}; write it again", str(path)) from error
