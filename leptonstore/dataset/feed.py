"""Where the values of a new column come from: in row order, from a function of other columns, or one for all rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.groups import read_column
from leptonstore.dataset.source import Source
from leptonstore.dataset.tree import Span, TreeReader
from leptonstore.dataset.values import resolve
from leptonstore.errors import BadInput, SchemaError, listed

Function = Callable[[pa.RecordBatch], Any]


def column_index(head: Dataset, name: str) -> int:
    """Where a column stands. Raises SchemaError, naming what there is."""
    at = head.schema.get_field_index(name)
    if at < 0:
        raise SchemaError(f"{head.name}@{head.ref} has no column {name!r}; it has {listed(head.schema.names)}")
    return int(at)


def tree_reader(head: Dataset) -> TreeReader:
    """The tree of a version that has rows."""
    commit = head.commit_object
    assert commit.root is not None
    return TreeReader(head.store, commit.root, commit.rows, f"{head.name}@{head.ref}")


def load_function(name: str) -> Function:
    """The function "package.module:function", for the command line. Raises BadInput."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"cannot load {name!r} ({error}); write package.module:function") from None
    if not callable(found):
        raise BadInput(f"{name!r} is no function")
    return found


class Constant:
    """The same value for every row of a column."""

    def __init__(self, value: Any) -> None:
        self.scalar = value if isinstance(value, pa.Scalar) else pa.scalar(value)


def is_rebasable(values: Any) -> bool:
    """Whether an edit with these can be made again from another version: values in row order belong to one."""
    return callable(values) or isinstance(values, Constant) or _is_constant(values)


def _is_constant(values: Any) -> bool:
    return values is None or isinstance(values, (str, bytes, int, float, bool, pa.Scalar))


class Feed:
    """Hands out the values of a column, row group by row group."""

    def __init__(self, head: Dataset, values: Any, columns: Sequence[str] | None) -> None:
        self._head = head
        self._function: Function | None = values if callable(values) else None
        names = head.column_names if columns is None else list(columns)
        self._inputs = [head.schema.field(column_index(head, name)) for name in names]
        self._constant = Constant(values) if _is_constant(values) else values if isinstance(values, Constant) else None
        self._stream = iter(()) if self._function or self._constant else _arrays(values)
        self._ready: pa.Array | None = None
        self._given = 0

    @property
    def type(self) -> pa.DataType:
        """Of the values, when nobody said one. Raises BadInput when there are none to tell."""
        if self._constant is not None:
            return self._constant.scalar.type
        if self._function is not None and self._head.commit_object.root is not None:
            reader = tree_reader(self._head)
            return self._called(*reader.node(0, 0)).type
        self._ready = self._ready if self._ready is not None else next(self._stream, None)
        if self._ready is None:
            raise BadInput("there are no values that would tell the type of the column; give a field with a type")
        return self._ready.type

    def take(self, span: Span, group: Any) -> pa.Array:
        """The values of one row group."""
        rows = span.child.rows
        if self._constant is not None:
            return pa.repeat(self._constant.scalar, rows)
        if self._function is not None:
            return self._called(span, group)
        pieces, missing = [], rows
        while missing:
            piece = self._ready if self._ready is not None else next(self._stream, None)
            if piece is None:
                raise self._wrong_length(self._given)
            pieces.append(piece.slice(0, missing))
            self._ready = piece.slice(missing) if len(piece) > missing else None
            missing -= len(pieces[-1])
            self._given += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)

    def finish(self) -> None:
        """Raise BadInput when there are values left."""
        rest = sum(len(piece) for piece in ([] if self._ready is None else [self._ready])) + sum(map(len, self._stream))
        if rest:
            raise self._wrong_length(self._given + rest)

    def _wrong_length(self, given: int) -> BadInput:
        return BadInput(f"there are {given} values for the {self._head.commit_object.rows} rows of {self._head.name}")

    def _called(self, span: Span, group: Any) -> pa.Array:
        assert self._function is not None
        head, arrays = self._head, []
        for field in self._inputs:
            parts = group.columns[head.schema.get_field_index(field.name)]
            stored = read_column(head.store, parts, field, span.start, f"{head.name}@{head.ref}")
            arrays.append(resolve(head.store, stored, field.type))
        made = _as_array(self._function(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(self._inputs))))
        if len(made) != span.child.rows:
            raise BadInput(f"the function returned {len(made)} values for {span.child.rows} rows")
        return made


def _as_array(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    try:
        return values if isinstance(values, pa.Array) else pa.array(values)
    except (pa.ArrowException, TypeError) as error:
        raise BadInput(f"these values are no column: {error}") from None


def _arrays(values: Any) -> Iterator[pa.Array]:
    if isinstance(values, Source):
        values = values.batches()
    if isinstance(values, pa.ChunkedArray):
        yield from values.chunks
    elif isinstance(values, (pa.Table, pa.RecordBatch)):
        yield from _arrays(_only(values))
    elif isinstance(values, (pa.Array, np.ndarray, list, tuple)):
        yield _as_array(values)
    elif hasattr(values, "__iter__"):
        for batch in values:
            yield from _arrays(_only(batch) if isinstance(batch, pa.RecordBatch) else batch)
    else:
        raise BadInput(f"values of type {type(values).__name__} are no column")


def _only(table: Any) -> Any:
    if table.num_columns != 1:
        raise BadInput(f"a table with one column is needed, this one has {', '.join(table.schema.names)}; select one")
    return table.column(0)
