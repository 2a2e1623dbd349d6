"""Import of CSV (RFC 4180, a header line, UTF-8), plain or .gz, streamed by Arrow. A .tsv is the same with tabs.

Types are inferred from the first block (limits.CSV_BLOCK_BYTES) and hold for the whole file; `types` overrides them. A
column that is empty throughout the first block is text. Arrow's rules for empty fields hold: null in columns of
numbers, times and booleans (as "NA", "NULL" and the like), the empty string in columns of text.

The first block, which is parsed anyway, also gives the notes of the source: a header of one column that has another
delimiter in its name; and a column of text most of whose first rows (NUMBERS_ROWS) are numbers, with the first value in
the block that is none. Of a value that does not fit after the first block Arrow's error tells the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from leptonstore import limits
from leptonstore.dataset.importers.reading import lineages_of, require_regular_file
from leptonstore.dataset.importers.tables import conform, identity_columns, storable_schema
from leptonstore.dataset.places import Place
from leptonstore.dataset.shown import one_line
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABS = (".tsv", ".tsv.gz")
TAB = "\\t"  # as people can type it
OTHER_DELIMITERS = ";\t|"
NUMBERS_ROWS = 1_000  # that are looked at, of each column of text
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def open_source(
    path: Place,
    key: str | Sequence[str] | None = None,
    delimiter: str | None = None,
    types: Mapping[str, pa.DataType] | None = None,
) -> Source:
    """The table of a CSV file, all columns nullable.

    key: the columns that identify a row (default: all). delimiter: one character, or the two of \\t for a tab (default: a
    tab where the name ends with .tsv, else a comma). types: column name -> Arrow type, instead of the inferred one.
    Reads the first block. Raises SourceError (empty, ragged, not UTF-8, a value that does not fit; with the row where
    Arrow knows it) and SchemaError (two columns of one name, a key or a typed column that does not exist).
    """
    require_regular_file(path)
    if delimiter is None:
        delimiter = "\t" if path.name.lower().endswith(TABS) else ","
    elif delimiter == TAB:
        delimiter = "\t"
    if len(delimiter) != 1:
        raise SourceError(f"a delimiter is one character, not {delimiter!r}; for a tab give {TAB}", str(path))
    with _parsing(path), _open(path, delimiter, types or {}) as reader:
        inferred = reader.schema
        names = inferred.names  # decodes the header
        notes = _notes(path, reader, delimiter, types or {})
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
    return Source(schema, identity_columns(schema, key), batches, None, lineage, notes=notes)


def _notes(
    path: Place, reader: pacsv.CSVStreamingReader, delimiter: str, types: Mapping[str, pa.DataType]
) -> list[str]:
    """What the first block shows that was hardly meant (see above)."""
    names = reader.schema.names
    other = next((one for one in OTHER_DELIMITERS if one != delimiter and one in names[0]), None)
    if len(names) == 1 and other is not None:
        told = TAB if other == "\t" else other
        head = one_line(names[0], 80)
        return [
            f"{path} has one column, {head!r}; if its values have a {told} between them, import it with --delimiter '{told}'"
        ]
    try:
        block = reader.read_next_batch()
    except StopIteration:
        return []
    notes = []
    for name, values in zip(names, block.columns, strict=True):
        row = _not_a_number(values) if pa.types.is_string(values.type) and name not in types else None
        if row is not None:
            notes.append(
                f"{path}: column {name!r} is text, though most of its values are numbers: row #{row + 2} (the header is #1) has "
                f"{one_line(values[row].as_py())!r}; if numbers are meant, correct the file and import it again"
            )
    return notes


def _not_a_number(texts: pa.Array) -> int | None:
    """The first value that is no number, in a column where most are (empty ones do not count); None in others."""
    first = texts.slice(0, NUMBERS_ROWS)
    filled = pc.sum(pc.not_equal(pc.utf8_trim_whitespace(first), "")).as_py() or 0
    numbers = pc.sum(pc.match_substring_regex(first, _NUMBER)).as_py() or 0
    if 2 * numbers <= filled:
        return None
    wrong = pc.invert(pc.or_(pc.match_substring_regex(texts, _NUMBER), pc.equal(pc.utf8_trim_whitespace(texts), "")))
    row = pc.index(wrong, True).as_py()
    return None if row < 0 else int(row)


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
        if "Expected 1 columns" in why:  # such as a header with semicolons above numbers with decimal commas
            fix = "name what is between its values (--delimiter ';'), or correct the file"
        raise SourceError(f"cannot read {path} as CSV: {why}; {fix}", str(path)) from error
