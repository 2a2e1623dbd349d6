"""Tables with a key: rows in the order of the key, each key once, found in a few nodes.

sorted_rows   rows in any order -> rows in the order of the key; memory stays bounded
KeyFinder     keys -> rows of a version
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset.groups import read_column
from leptonstore.dataset.tree import Span, TreeReader
from leptonstore.dataset.values import Column, one_array
from leptonstore.errors import DuplicateKey, FormatDamaged, SchemaError
from leptonstore.format.commit import Commit
from leptonstore.format.keys import check_key, encode_keys
from leptonstore.format.node import InternalNode, RowGroup
from leptonstore.format.page import as_binary, is_variable
from leptonstore.store import Store

Rows = np.ndarray[Any, np.dtype[np.int64]]
_KEY, _ROW = "\0key", "\0row"  # names that no column has
_REFERENCES = "\0references "


def keys_of(columns: Sequence[Column], schema: pa.Schema, key: Sequence[str]) -> pa.Array:
    """The encoded keys of rows as pages keep them. Raises SchemaError (null, too long)."""
    chosen = [columns[schema.get_field_index(name)] for name in key]
    for name, column in zip(key, chosen, strict=True):
        if column.references is not None and column.references.any():
            row = int(column.references.argmax())
            raise SchemaError(
                f"the key column {name!r} of row {row} is too long: it is a chunk of its own; use a shorter key"
            )
    arrays = [
        column.values if column.references is None else column.values.cast(schema.field(name).type)
        for name, column in zip(key, chosen, strict=True)
    ]
    return encode_keys(arrays, key)


def said_key(columns: Sequence[Column], schema: pa.Schema, key: Sequence[str], row: int) -> str:
    """One row's key for people: id=17, name='x'."""
    values = ((name, columns[schema.get_field_index(name)].values[row].as_py()) for name in key)
    return ", ".join(f"{name}={value!r}" for name, value in values)


def sorted_rows(
    store: Store,
    schema: pa.Schema,
    key: Sequence[str],
    batches: Iterable[list[Column]],
    place: Callable[[int], str] = lambda row: f"row {row}",
) -> Iterator[list[Column]]:
    """The rows of `batches` in the order of their keys.

    Up to SORT_BYTES are sorted in memory; more goes to sorted runs in files without a name, of which 1 MiB each is held while they are
    merged. place: what to call a row of the input, counted from 0. Raises DuplicateKey and SchemaError, naming row and key.
    """
    check_key(schema, key)
    form = _Form(schema)
    pending: list[pa.Table] = []
    runs: list[Iterator[pa.Table]] = []
    held = first = 0
    for columns in batches:
        rows = len(columns[0].values)
        try:
            keys = keys_of(columns, schema, key)
        except SchemaError:  # which row of the whole input is it?
            for at in range(rows):
                _key_of_row(columns, schema, key, at, place(first + at))
            raise
        pending.append(form.table(columns, keys, np.arange(first, first + rows)))
        first, held = first + rows, held + pending[-1].nbytes
        if held >= limits.SORT_BYTES:
            runs.append(_spilled(_in_order(pending), store.cache_path("sort")))
            pending, held = [], 0
    last: tuple[bytes, int] | None = None
    merged = _merged([*runs, _blocks(_in_order(pending))]) if runs else _blocks(_in_order(pending))
    for table in merged if first else ():
        last = _require_unique(table, last, form, key, place)
        yield form.columns(table)


def _key_of_row(columns: list[Column], schema: pa.Schema, key: Sequence[str], at: int, place: str) -> None:
    try:
        keys_of([column.slice(at, at + 1) for column in columns], schema, key)
    except SchemaError as error:
        raise SchemaError(str(error).replace("row 0", place, 1)) from None


class _Form:
    """Columns as pages keep them <-> Arrow tables, with keys and row numbers."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def table(self, columns: list[Column], keys: pa.Array, rows: Rows) -> pa.Table:
        out = {_KEY: keys, _ROW: pa.array(rows, pa.int64())}
        for field, column in zip(self.schema, columns, strict=True):
            values = column.values
            if isinstance(values, pa.ExtensionArray):
                values = values.storage
            if is_variable(field.type):
                values = values.cast(as_binary(field.type))
                bits = np.zeros(len(values), np.bool_) if column.references is None else column.references
                out[_REFERENCES + field.name] = pa.array(bits)
            out[field.name] = values
        return pa.table(out)

    def columns(self, table: pa.Table) -> list[Column]:
        return [self._column(table, field) for field in self.schema]

    def _column(self, table: pa.Table, field: pa.Field) -> Column:
        values = one_array(table.column(field.name))
        if isinstance(field.type, pa.BaseExtensionType):
            return Column(pa.ExtensionArray.from_storage(field.type, values))
        if not is_variable(field.type):
            return Column(values)
        bits = one_array(table.column(_REFERENCES + field.name)).to_numpy(zero_copy_only=False)
        return Column(values, bits) if bits.any() else Column(values.cast(field.type))


def _in_order(tables: list[pa.Table]) -> pa.Table:
    if not tables:
        return pa.table({})
    table = pa.concat_tables(tables)
    return table.take(pc.sort_indices(table, [(_KEY, "ascending"), (_ROW, "ascending")]))


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    rows = max(1, min(limits.ROW_GROUP_ROWS_AVG, table.num_rows * limits.SORT_BLOCK_BYTES // max(1, table.nbytes)))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _spilled(table: pa.Table, folder: Path) -> Iterator[pa.Table]:
    """The table again, block by block, from a file that goes when nobody reads it any more."""
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by _read_back
    with pa.ipc.new_stream(file, table.schema) as writer:
        for block in _blocks(table):
            writer.write_table(block)
    file.seek(0)
    return _read_back(file)


def _read_back(file: IO[bytes]) -> Iterator[pa.Table]:
    with file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pa.Table.from_batches([batch])


def _merged(runs: list[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """In each step, all rows up to the smallest last key of the blocks at hand."""
    blocks = {number: block for number, run in enumerate(runs) if (block := next(run, None)) is not None}
    while blocks:
        bound = min(block.column(_KEY)[-1].as_py() for block in blocks.values())
        pieces = []
        for number, block in list(blocks.items()):
            count = pc.sum(pc.less_equal(block.column(_KEY), pa.scalar(bound, pa.large_binary()))).as_py()
            pieces.append(block.slice(0, count))
            rest = block.slice(count) if count < block.num_rows else next(runs[number], None)
            if rest is None:
                del blocks[number]
            else:
                blocks[number] = rest
        yield _in_order(pieces)


def _require_unique(
    table: pa.Table, last: tuple[bytes, int] | None, form: _Form, key: Sequence[str], place: Callable[[int], str]
) -> tuple[bytes, int]:
    """Raise DuplicateKey for two equal keys, the last of the table before among them; returns the last (key, row) of this one."""
    keys, rows = one_array(table.column(_KEY)), one_array(table.column(_ROW))
    if last is not None and keys[0].as_py() == last[0]:
        twice, first = 0, last[1]
    else:
        equal = np.flatnonzero(pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False))
        if not len(equal):
            return keys[-1].as_py(), rows[-1].as_py()
        twice = int(equal[0]) + 1
        first = rows[twice - 1].as_py()
    said = said_key(form.columns(table.slice(twice, 1)), form.schema, key, 0)
    raise DuplicateKey(
        f"{place(first)} and {place(rows[twice].as_py())} have the same key ({said}); a key names one row: drop one of them, "
        "or choose a key of more columns"
    )


class KeyFinder:
    """Where keys stand in a version of a keyed table. Reads one way down the tree and the key columns of one row group for each key.

    Asked for keys in ascending order, it reads nothing twice. One thread. Raises ChunkMissing, ChunkCorrupt or FormatDamaged.
    """

    def __init__(self, store: Store, commit: Commit, name: str) -> None:
        self._store, self._commit, self._name = store, commit, name
        self._reader = TreeReader(store, commit.root, commit.rows, name) if commit.root is not None else None
        self._leaf: tuple[Span, list[bytes]] | None = None

    def find(self, key: bytes) -> tuple[int, bool]:
        """(row, True) of this encoded key; (row before which it would stand, False) when it is not there."""
        if self._reader is None:
            return 0, False
        if self._leaf is not None and self._leaf[1][0] <= key <= self._leaf[1][-1]:
            span, keys = self._leaf
        else:
            row = self._leaf_row(key)
            if row == self._commit.rows:
                return row, False
            span, keys = self._keys_at(row)
            # Nodes have the beginnings of keys only: where these are equal, it may be in a later row group.
            while key > keys[-1] and span.end < self._commit.rows:
                span, keys = self._keys_at(span.end)
        at = bisect_left(keys, key)
        return span.start + at, at < len(keys) and keys[at] == key

    def _leaf_row(self, key: bytes) -> int:
        """The first row of the first row group whose greatest key, as far as nodes have it, is not below `key`."""
        assert self._reader is not None
        short = key[: limits.NODE_KEY_BYTES_MAX]
        row = 0
        for level in range(self._reader.height, 0, -1):
            _, node = self._reader.node(level, row)
            assert isinstance(node, InternalNode)
            if not node.keyed:
                raise FormatDamaged(f"{self._name} is said to have a key, and a tree node has none")
            for child in node.children:
                if child.key >= short:
                    break
                row += child.rows
            else:
                return self._commit.rows
        return row

    def _keys_at(self, row: int) -> tuple[Span, list[bytes]]:
        assert self._reader is not None
        if self._leaf is None or not self._leaf[0].start <= row < self._leaf[0].end:
            span, group = self._reader.node(0, row)
            assert isinstance(group, RowGroup)
            schema, columns = self._commit.schema, {}
            for name in self._commit.identity:
                at = schema.get_field_index(name)
                columns[name] = read_column(self._store, group.columns[at], schema.field(at), span.start, self._name)
            keys = keys_of(list(columns.values()), pa.schema([schema.field(name) for name in columns]), list(columns))
            self._leaf = span, keys.to_pylist()
        return self._leaf
