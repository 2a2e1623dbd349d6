"""Import of JSON lines (one object a line, UTF-8), plain or .gz, streamed: one file, or a directory of them in the order of names.

Types come from the first block (limits.JSON_BLOCK_BYTES) of the first file and hold for all; `types` overrides them:

    true, false -> bool      integers -> int64 (uint64 where one needs it)      other numbers -> float64      text -> string
    arrays -> list           objects -> struct; a key that is missing somewhere is null there

Within the first block, integers and other numbers of one column make it float64, and null goes with everything; a
column that is null throughout is text. Any other two types in a column, a key that the first block does not have, and
whatever does not fit later are refused, with the line and the column. Bytes, times and decimals are text in JSON: say
with `types` that a column holds them (see leptonstore.dataset.plain for how they are written).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from leptonstore import limits
from leptonstore.dataset.importers.reading import (
    files_of,
    lineages_of,
    open_unpacked,
    require_regular_file,
    unpacking,
)
from leptonstore.dataset.importers.tables import identity_columns, storable_schema
from leptonstore.dataset.places import Place
from leptonstore.dataset.plain import from_plain, plain_schema
from leptonstore.dataset.source import Source
from leptonstore.errors import SchemaError, SourceError

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_INTEGERS, _FLOATS = pa.list_(pa.int64()), pa.list_(pa.float64())
_BOM = b"\xef\xbb\xbf"
_ROW = re.compile(r"^JSON parse error: |\.? in row \d+$")  # Arrow's row is one of the lines that it was given


def open_source(
    path: Place, key: str | Sequence[str] | None = None, types: Mapping[str, pa.DataType] | None = None
) -> Source:
    """The table of files of JSON lines, all columns nullable.

    key: the columns that identify a row (default: all). types: column name -> Arrow type, instead of the inferred one.
    Reads the first block. Raises SourceError (no line, not JSON, types that do not go together; with line and column)
    and SchemaError (a key or a typed column that does not exist, a type that is not kept).
    """
    files = files_of(path, SUFFIXES)
    for file in files:
        require_regular_file(file)
    schema = _infer(files[0], dict(types or {}))
    lineage = {"format": "jsonl", "files": lineages_of([(file, {}) for file in files])}

    def batches() -> Iterator[pa.RecordBatch]:
        return (batch for file in files for batch in _batches(file, schema))

    return Source(schema, identity_columns(schema, key), batches, None, lineage)


def _blocks(path: Place) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines that are not blank) of a few MiB at a time; blank lines end a block's numbers."""
    line, rest = 1, b""
    with unpacking(path), open_unpacked(path) as stream:
        start = True
        while data := stream.read(limits.JSON_BLOCK_BYTES):
            if start:
                data, start = data.removeprefix(_BOM), False
            whole, found, tail = data.rpartition(b"\n")
            if not found:
                rest += data
                if len(rest) > limits.JSON_LINE_BYTES_MAX:
                    raise SourceError(
                        f"{path}: line {line} has more than {limits.JSON_LINE_BYTES_MAX} bytes; is this JSON lines, one "
                        "object a line?",
                        str(path),
                    )
                continue
            lines = (rest + whole).split(b"\n")
            yield line, lines
            line, rest = line + len(lines), tail
    if rest.strip():
        yield line, [rest]


def _batches(path: Place, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    plain = plain_schema(schema)
    for first, lines in _blocks(path):
        for start in range(0, len(lines), limits.IMPORT_BATCH_ROWS_MAX):
            some = lines[start : start + limits.IMPORT_BATCH_ROWS_MAX]
            try:
                yield _parse(some, plain, schema)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise _located(path, first + start, some, plain, schema, error) from None


def _parse(lines: list[bytes], plain: pa.Schema, schema: pa.Schema) -> pa.RecordBatch:
    rows = sum(1 for line in lines if line.strip())
    if not rows:
        return _empty(schema)
    data = b"\n".join(lines) + b"\n"
    table = pajson.read_json(
        pa.BufferReader(data),
        read_options=pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pajson.ParseOptions(explicit_schema=plain, unexpected_field_behavior="error"),
    )
    if table.num_rows != rows:
        raise pa.ArrowInvalid("not one object a line")
    columns = []
    for field in schema:
        array = from_plain(table.column(field.name).combine_chunks(), field.type)
        array.validate(full=True)  # text that is not UTF-8
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


# -- which line, which column --------------------------------------------------------------------------------------


def _located(
    path: Place, first: int, lines: list[bytes], plain: pa.Schema, schema: pa.Schema, error: Exception
) -> SourceError:
    """Halve until one line is left: Arrow does not say which one it was."""
    low, high = 0, len(lines)  # lines[:low] are good, lines[:high] are not
    while high - low > 1:
        middle = (low + high) // 2
        refused = _refusal(lines[low:middle], plain, schema)
        if refused is None:
            low = middle
        else:
            high, error = middle, refused
    line = lines[low]
    error = _refusal([line], plain, schema) or error
    why, where = _ROW.sub("", " ".join(str(error).split())), f"line {first + low}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as broken:
        return SourceError(f"{path}: {where} is not JSON ({broken}); correct it", str(path))
    if not isinstance(value, dict):
        return SourceError(f"{path}: {where} is no object but {_kind(value)}; write one object a line", str(path))
    for name, content in value.items():
        if name not in schema.names:
            return SourceError(
                f"{path}: {where} has a column {name!r} that the first lines do not have "
                f"({', '.join(schema.names)}); name it with a type, or leave it out",
                str(path),
            )
        alone = json.dumps({name: content}).encode()
        field = schema.field(name)
        refused = _refusal([alone], pa.schema([plain.field(name)]), pa.schema([field]))
        if refused is not None:
            return SourceError(
                f"{path}: {where}, column {name!r}: {_short(content)} is no {field.type} ({why}); correct it, or give the "
                "column another type",
                str(path),
            )
    return SourceError(f"{path}: {where}: {why}; correct it", str(path))


def _refusal(lines: list[bytes], plain: pa.Schema, schema: pa.Schema) -> Exception | None:
    try:
        _parse(lines, plain, schema)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        return error
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "an array", dict: "an object"}
    return kinds.get(type(value), "null")


# -- types -------------------------------------------------------------------------------------------------------


class _Mixed(Exception):
    """Two types that do not go together. args: column, one, other."""


def _infer(path: Place, types: dict[str, pa.DataType]) -> pa.Schema:
    found: dict[str, pa.DataType] = {}
    lines = 0
    for first, block in _blocks(path):
        for number, line in enumerate(block, first):
            if line.strip():
                _infer_line(path, number, line, found, types)
                lines += 1
        if lines:
            break
    if not lines:
        raise SourceError(f"{path} holds no line; check the path", str(path))
    unknown = sorted(set(types) - set(found))
    if unknown:
        raise SchemaError(f"{path} has no column {unknown[0]!r} to give a type; it has {', '.join(found)}")
    try:
        return storable_schema(
            pa.schema([pa.field(name, types.get(name, _settled(kind))) for name, kind in found.items()])
        )
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from None


def _infer_line(
    path: Place, number: int, line: bytes, found: dict[str, pa.DataType], types: Mapping[str, pa.DataType]
) -> None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: line {number} is not JSON ({error}); correct it", str(path)) from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: line {number} is no object but {_kind(value)}; write one object a line", str(path))
    for name, content in value.items():
        if name in types:
            found[name] = types[name]
            continue
        try:
            found[name] = _merged(name, found.get(name, pa.null()), _type_of(name, content, 0))
        except _Mixed as mixed:
            column, one, other = mixed.args
            raise SourceError(
                f"{path}: line {number}, column {column!r} is {other}, the lines before have {one}; make it one type, or "
                "give the column a type",
                str(path),
            ) from None


def _type_of(column: str, value: Any, depth: int) -> pa.DataType:
    if depth > limits.JSON_DEPTH_MAX:
        raise _Mixed(column, f"at most {limits.JSON_DEPTH_MAX} levels", "nested too deeply")
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return pa.int64()
        if 0 <= value < 1 << 64:
            return pa.uint64()
        raise _Mixed(column, "integers of 64 bits", "a longer one")
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list):
        kinds = set(map(type, value))
        if kinds == {int} and min(value) >= -(1 << 63) and max(value) < 1 << 63:  # the long ones, quickly
            return _INTEGERS
        if kinds == {float}:
            return _FLOATS
        inner = pa.null()
        for item in value:
            inner = _merged(f"{column}[]", inner, _type_of(f"{column}[]", item, depth + 1))
        return pa.list_(inner)
    return pa.struct([pa.field(name, _type_of(f"{column}.{name}", item, depth + 1)) for name, item in value.items()])


def _merged(column: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both. Raises _Mixed."""
    kinds = pa.types
    if one == other or kinds.is_null(other):
        return one
    if kinds.is_null(one):
        return other
    numbers = [kinds.is_integer(kind) or kinds.is_floating(kind) for kind in (one, other)]
    if all(numbers):
        return pa.float64() if kinds.is_floating(one) or kinds.is_floating(other) else pa.uint64()
    if kinds.is_list(one) and kinds.is_list(other):
        return pa.list_(_merged(f"{column}[]", one.value_type, other.value_type))
    if kinds.is_struct(one) and kinds.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _merged(f"{column}.{field.name}", fields.get(field.name, pa.null()), field.type)
        return pa.struct([pa.field(name, kind) for name, kind in fields.items()])
    raise _Mixed(column, str(one), str(other))


def _settled(kind: pa.DataType) -> pa.DataType:
    """A type of which nothing was seen becomes text."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _settled(field.type)) for field in kind])
    return kind
