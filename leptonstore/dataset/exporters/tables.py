"""One file with the table in it: Parquet, CSV, JSON lines, Arrow IPC."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import pyarrow as pa

from leptonstore.dataset.confined import writing
from leptonstore.dataset.exporters.common import ExportReport, Progress, Rows, batches_from, closing, named, new_file
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import json_rows
from leptonstore.dataset.schema import class_names, tensor_shape
from leptonstore.errors import SchemaError


def export_parquet(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """zstd, a row group per batch, semantic types in the field metadata."""
    import pyarrow.parquet as pq

    rows = 0
    with (
        new_file(dest) as file,
        closing(lambda: pq.ParquetWriter(file, ds.schema, compression="zstd"), dest) as writer,
    ):
        for _, batch in ds.iter_batches():
            if batch.num_rows:
                with writing(dest):
                    writer.write_batch(batch, row_group_size=batch.num_rows)
                rows += batch.num_rows
                progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


def export_csv(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """A header line; class labels as names."""
    import pyarrow.csv as pacsv

    schema = _csv_schema(ds.schema)
    rows = 0
    with new_file(dest) as file, closing(lambda: pacsv.CSVWriter(file, schema), dest) as writer:
        for position, batch in ds.iter_batches():
            columns = [named(batch.column(field.name), field, position) for field in ds.schema]
            with writing(dest):
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += batch.num_rows
            progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


def _csv_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as they are written: class labels as text. Raises SchemaError for those that CSV cannot hold."""
    kinds = pa.types
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary, kinds.is_nested)
    refused = [f for f in schema if tensor_shape(f) is not None or any(test(f.type) for test in tests)]
    if refused:
        listed = ", ".join(f"{field.name!r} ({field.type})" for field in refused)
        raise SchemaError(f"csv cannot hold column {listed}; export as parquet, or drop it first")
    return pa.schema([pa.field(f.name, f.type if class_names(f) is None else pa.string()) for f in schema])


def export_arrow(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """An Arrow IPC file that can be memory-mapped, or a stream where the name ends in .arrows."""
    make = pa.ipc.new_stream if dest.suffix.lower() == ".arrows" else pa.ipc.new_file
    rows = 0
    with new_file(dest) as file, closing(lambda: make(file, ds.schema), dest) as writer:
        for _, batch in batches_from(ds):
            with writing(dest):
                writer.write_batch(batch)
            rows += batch.num_rows
            progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


def export_jsonl(ds: Rows, dest: Place, progress: Progress) -> ExportReport:
    """One object a line, packed where the name ends in .gz; class labels as names. See leptonstore.dataset.plain."""
    rows = 0
    with new_file(dest) as file, _packed(file, dest) as out:
        for position, batch in batches_from(ds):
            columns = [named(batch.column(field.name), field, position) for field in ds.schema]
            lines = json_rows(columns, ds.schema.names)
            with writing(dest):
                out.write("".join(f"{line}\n" for line in lines).encode())
            rows += batch.num_rows
            progress(batch.num_rows)
    return ExportReport(dest, rows, 1, dest.stat().st_size)


@contextmanager
def _packed(file: IO[bytes], dest: Place) -> Iterator[IO[bytes]]:
    if not dest.name.lower().endswith(".gz"):
        yield file
        return
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # without a name and time: equal tables, equal files
        yield cast(IO[bytes], packed)
