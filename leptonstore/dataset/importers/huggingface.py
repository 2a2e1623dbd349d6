"""Import of a Hugging Face dataset on disk (`save_to_disk`), without the package `datasets`: it is Arrow and JSON.

A Dataset is its table; a DatasetDict is the tables of its splits one after another, with a column "split". What becomes
of each feature: leptonstore.dataset.hf_format. Files that the JSON names must lie in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.hf_format import DICT, INFO, STATE, field_of, restore
from leptonstore.dataset.importers import arrow
from leptonstore.dataset.importers.arrays import label_column
from leptonstore.dataset.importers.reading import name_of, read_up_to, reading, require_regular_file
from leptonstore.dataset.importers.tables import identity_columns, storable_schema
from leptonstore.dataset.places import Place, confined
from leptonstore.dataset.plain import SCHEMA_KEY, decode_schema, fixed_row_bytes
from leptonstore.dataset.schema import class_label_field
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SPLIT = "split"
_SPLITS_MAX = 1_000


@dataclass(frozen=True)
class _Table:
    """One saved Dataset: its folder, its Arrow files in order, and the table that they are."""

    folder: Place
    files: tuple[Place, ...]
    schema: pa.Schema


def open_source(path: Place, key: str | Sequence[str] | None = None) -> Source:
    """The columns by their features, and "split" for a DatasetDict.

    key: the columns that identify a row (default: all). Reads the JSON and the schemas. Raises SourceError (damaged, a
    name that climbs out, splits of different columns; an image without its bytes, with file and row) and SchemaError.
    """
    names = _splits_of(path)
    tables = [_open_table(path if name is None else confined(path, name)) for name in names]
    schema = tables[0].schema
    for table in tables[1:]:
        if not table.schema.equals(schema, check_metadata=True):
            raise SourceError(
                f"{table.folder} and {tables[0].folder.name} have different columns; import the splits one by one",
                str(table.folder),
            )
    split = None if names == [None] else class_label_field(SPLIT, [str(name) for name in names])
    if split is not None:
        if SPLIT in schema.names:
            raise SchemaError(f"{path} has splits and a column {SPLIT!r}; rename the column, or import one split")
        schema = schema.append(split)
    return Source(
        schema,
        identity_columns(schema, key),
        lambda: _batches(tables, schema, split),
        lineage={
            "format": "huggingface",
            "root": name_of(path),
            "files": [f"{table.folder.name}/{file.name}" for table in tables for file in table.files],
        },
    )


def is_saved(names: Sequence[str]) -> bool:
    """Whether a folder of these names is a dataset saved to disk."""
    return DICT in names or (STATE in names and INFO in names)


def _json(place: Place) -> dict[str, Any]:
    require_regular_file(place)
    with reading(place), place.open("rb") as file:
        data = bytes(read_up_to(file, limits.SOURCE_INDEX_BYTES_MAX + 1))
    try:
        if len(data) > limits.SOURCE_INDEX_BYTES_MAX:
            raise ValueError(f"more than {limits.SOURCE_INDEX_BYTES_MAX} bytes")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is damaged ({error}); save the dataset again", str(place)) from None
    return value


def _splits_of(path: Place) -> list[str | None]:
    """The names of the splits, [None] for a Dataset. Raises SourceError."""
    with reading(path):
        if not path.is_dir():
            raise SourceError(f"{path} is not a folder; give the folder that save_to_disk wrote", str(path))
    place = path / DICT
    if not place.is_file():
        return [None]
    names = _json(place).get("splits")
    if not isinstance(names, list) or not 0 < len(names) <= _SPLITS_MAX or not all(isinstance(n, str) for n in names):
        raise SourceError(f"{place} lists no splits; save the dataset again", str(place))
    if len(set(names)) < len(names):
        raise SourceError(f"{place} lists a split twice; save the dataset again", str(place))
    return list(names)


def _open_table(folder: Place) -> _Table:
    state = _json(folder / STATE)
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not listed:
        raise SourceError(f"{folder / STATE} lists no data file; save the dataset again", str(folder))
    files = []
    for entry in listed:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise SourceError(f"{folder / STATE} is damaged; save the dataset again", str(folder))
        files.append(confined(folder, name))
    if state.get("_indices_files"):
        raise SourceError(
            f"{folder} was saved with an index of its rows; call flatten_indices() and save it", str(folder)
        )
    stored = _stored_schema(files[0])
    for file in files[1:]:
        if not _stored_schema(file).equals(stored):
            raise SourceError(f"{file} and {files[0].name} have different columns; save the dataset again", str(file))
    return _Table(folder, tuple(files), _schema_of(folder, files[0], stored))


def _stored_schema(file: Place) -> pa.Schema:
    require_regular_file(file)
    with arrow.parsing(file), arrow.opened(file) as reader:
        return reader.schema


def _schema_of(folder: Place, file: Place, stored: pa.Schema) -> pa.Schema:
    metadata = stored.metadata or {}
    if SCHEMA_KEY.encode() in metadata:
        schema = decode_schema(metadata[SCHEMA_KEY.encode()], str(file))
        if schema.names != stored.names:
            raise SourceError(f"{file} carries the schema of other columns; save the dataset again", str(file))
        return schema
    features = _json(folder / INFO).get("features")
    features = features if isinstance(features, dict) else {}
    try:
        plain = storable_schema(stored)
        return storable_schema(pa.schema([field_of(field, features.get(field.name)) for field in plain]))
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None


def _batches(tables: list[_Table], schema: pa.Schema, split: pa.Field | None) -> Iterator[pa.RecordBatch]:
    for code, table in enumerate(tables):
        for file in table.files:
            rows = 0
            for batch in arrow.read_batches(file, fixed_row_bytes(schema)):
                columns = []
                for field in table.schema:
                    columns.append(_restored(batch.column(field.name), field, file, rows))
                if split is not None:
                    columns.append(label_column(split, np.full(batch.num_rows, code)))
                rows += batch.num_rows
                yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _restored(array: pa.Array, field: pa.Field, file: Place, row: int) -> pa.Array:
    try:
        made = restore(array, field)
    except (pa.ArrowException, ValueError) as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{file}: column {field.name!r}, rows from {row} on: {why}", str(file)) from None
    if made.null_count and not field.nullable:
        at = made.is_null().index(True).as_py()
        raise SourceError(f"{file}: row {row + at}, column {field.name!r} is null; correct it", str(file))
    return made
