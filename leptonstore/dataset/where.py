"""Filters: which rows an operation is about. A `pyarrow.compute` expression, or the text of an SQL condition.

    score < 0.5 and label = 'cat'      name in ('a', 'b')      taken between '2024-01-01' and '2024-12-31'      caption is null
    not (width > 100 or height > 100)  path like 'train/%'     "odd column" <> true

The text is parsed by sqlglot and only what stands in `_expression` is understood; nothing is ever evaluated as code. A class label may be
compared with the name of a class. As in SQL, a comparison with null is not true.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow.fs import LocalFileSystem

from leptonstore import limits
from leptonstore.dataset.schema import class_names
from leptonstore.errors import BadInput, MissingExtra, SchemaError, listed
from leptonstore.format.node import Part, RowGroup

_POSITION = "\0row"  # a column name that no schema has


class Filter:
    """A condition on the rows of one schema. Any thread.

    where: text, or an expression. Raises BadInput (text that is not understood), SchemaError (no such column), MissingExtra.
    """

    def __init__(self, schema: pa.Schema, where: str | pc.Expression) -> None:
        self.schema = schema
        self.expression = parse_where(where, schema) if isinstance(where, str) else where
        said = str(self.expression)
        # As words of its text, for Arrow does not tell which columns an expression names; one too many does no harm.
        self.columns = [
            name for name in schema.names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)
        ] or schema.names[:1]
        self._fields = [schema.field(name) for name in self.columns]
        try:
            self.rows(pa.RecordBatch.from_arrays([pa.array([], one.type) for one in self._fields], self.columns))
        except (pa.ArrowException, ValueError) as error:
            raise SchemaError(f"the condition {said} does not fit the columns: {_first_line(error)}") from None

    def rows(self, batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in `batch`, which has `columns`, of the rows that it holds for."""
        table = pa.Table.from_batches([batch]).append_column(_POSITION, pa.array(np.arange(batch.num_rows)))
        found = table.filter(self.expression).column(_POSITION).to_numpy()
        return np.asarray(found, np.int64)

    def may_hold(self, group: RowGroup) -> bool:
        """False when the bounds of its pages show that no row of this row group is meant."""
        known: pc.Expression | None = None
        for field in self._fields:
            bounds = _bounds(field, group.columns[self.schema.get_field_index(field.name)])
            if bounds is not None:
                here = (pc.field(field.name) >= bounds[0]) & (pc.field(field.name) <= bounds[1])
                known = here if known is None else known & here
        if known is None:
            return True
        # Arrow's own simplification of a filter by what is known of a file; no file is opened.
        form, system = pads.ParquetFileFormat(), LocalFileSystem()
        fragment = form.make_fragment("-", system, partition_expression=known)
        return any(pads.FileSystemDataset([fragment], self.schema, form, system).get_fragments(filter=self.expression))


def _bounds(field: pa.Field, parts: Sequence[Part]) -> tuple[pa.Scalar, pa.Scalar] | None:
    """Least and greatest value in a row group; None when a row may have none of these (null, NaN)."""
    kinds = pa.types
    if not (kinds.is_integer(field.type) or kinds.is_temporal(field.type)):
        return None
    if not all(part.bounds and part.nulls == 0 for part in parts):
        return None
    pairs = [struct.unpack("<QQ" if kinds.is_unsigned_integer(field.type) else "<qq", part.bounds) for part in parts]
    ends = pa.array([min(low for low, _ in pairs), max(high for _, high in pairs)])
    if kinds.is_temporal(field.type):
        ends = ends.cast(pa.int32() if field.type.bit_width == 32 else pa.int64()).view(field.type)
    ends = ends.cast(field.type)
    return ends[0], ends[1]


def parse_where(text: str, schema: pa.Schema) -> pc.Expression:
    """An SQL condition as an expression. Raises BadInput, SchemaError or MissingExtra."""
    try:
        import sqlglot
        from sqlglot.errors import SqlglotError
    except ModuleNotFoundError:
        raise MissingExtra("a condition in words", "cli", "sqlglot") from None
    try:
        parsed = sqlglot.parse_one(text, dialect="duckdb")
    except (SqlglotError, RecursionError) as error:
        raise BadInput(f"cannot read the condition {text!r}: {_first_line(error)}; write it as in SQL") from None
    # A long row of `and` is as deep as it is long. What Python's own bound on depth is, other libraries of the process change.
    deepest = limits.CONDITION_DEPTH_MAX
    with contextlib.suppress(RecursionError):
        if _depth(parsed, deepest) <= deepest:
            return _Parser(text, schema).condition(parsed)
    raise BadInput(f"the condition {text[:80]!r}… has too many parts: use IN, BETWEEN, or several conditions")


def _depth(tree: Any, enough: int) -> int:
    """Of sqlglot's tree; looks no further than one below `enough`."""
    level, depth = [tree], 0
    while level and depth <= enough:
        level, depth = [child for node in level for child in node.iter_expressions()], depth + 1
    return depth


def _first_line(error: BaseException) -> str:
    """What sqlglot says, without the names of its own classes."""
    line = (str(error).splitlines() or ["it is nested too deeply"])[0].strip().rstrip(".")
    return re.sub(r"Required keyword: .*?<class .*?>\.?", "something is missing", line)


class _Parser:
    """Turns sqlglot's tree into an expression; whatever it does not know it refuses."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        from sqlglot import exp

        self._text, self._schema, self._exp = text, schema, exp
        self._compare: dict[Any, Any] = {
            exp.EQ: pc.equal, exp.NEQ: pc.not_equal, exp.LT: pc.less, exp.LTE: pc.less_equal, exp.GT: pc.greater,
            exp.GTE: pc.greater_equal,
        }  # fmt: skip
        self._flipped: dict[Any, Any] = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE}

    def condition(self, node: Any) -> pc.Expression:
        exp = self._exp
        if isinstance(node, exp.Paren):
            return self.condition(node.this)
        if isinstance(node, exp.And):
            return self.condition(node.this) & self.condition(node.expression)
        if isinstance(node, exp.Or):
            return self.condition(node.this) | self.condition(node.expression)
        if isinstance(node, exp.Not):
            return ~self.condition(node.this)
        if type(node) in self._compare:
            return self._comparison(node)
        if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
            return self._field(node.this)[0].is_null()
        if isinstance(node, exp.Between):
            field, kind = self._field(node.this)
            return (field >= self._value(node.args["low"], kind)) & (field <= self._value(node.args["high"], kind))
        if isinstance(node, exp.In) and node.expressions:
            field, kind = self._field(node.this)
            chosen = pa.array([self._value(one, kind).as_py() for one in node.expressions], _plain(kind.type))
            return field.isin(chosen) & field.is_valid()
        if isinstance(node, exp.Like) and isinstance(node.expression, exp.Literal):
            return pc.match_like(self._field(node.this)[0], node.expression.this)
        if isinstance(node, exp.Column):
            field, kind = self._field(node)
            if pa.types.is_boolean(kind.type):
                return field
        if isinstance(node, exp.Boolean):
            return pc.scalar(bool(node.this))
        raise self._refused(node)

    def _comparison(self, node: Any) -> pc.Expression:
        left, right, how = node.this, node.expression, type(node)
        if not isinstance(left, self._exp.Column):
            left, right, how = right, left, self._flipped.get(how, how)
        field, kind = self._field(left)
        if isinstance(right, self._exp.Column):
            return self._compare[how](field, self._field(right)[0])
        return self._compare[how](field, self._value(right, kind))

    def _field(self, node: Any) -> tuple[pc.Expression, pa.Field]:
        if isinstance(node, self._exp.Paren):
            return self._field(node.this)
        if not isinstance(node, self._exp.Column) or node.table:
            raise self._refused(node)
        if node.name not in self._schema.names:
            raise SchemaError(f"no column {node.name!r}; there are {listed(self._schema.names)}")
        return pc.field(node.name), self._schema.field(node.name)

    def _value(self, node: Any, kind: pa.Field) -> pa.Scalar:
        """A literal as a value of the column that it is compared with."""
        exp, negative = self._exp, False
        while isinstance(node, (exp.Paren, exp.Neg, exp.Cast)):  # a cast (DATE '2024-01-01'): the column says the type
            negative ^= isinstance(node, exp.Neg)
            node = node.this
        names = class_names(kind)
        if isinstance(node, exp.Boolean):
            return pa.scalar(bool(node.this))
        if not isinstance(node, exp.Literal):
            raise self._refused(node)
        text = f"-{node.this}" if negative else str(node.this)
        try:
            if names is not None and node.is_string:
                if text not in names:
                    raise BadInput(f"column {kind.name!r} has no class {text!r}; it has {', '.join(names)}")
                return pa.scalar(names.index(text), kind.type)
            if not node.is_string:
                number = pa.scalar(float(text) if set(text) & set(".eE") else int(text))
                return number.cast(kind.type) if pa.types.is_decimal(kind.type) else number
            return pa.scalar(text).cast(_plain(kind.type))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise BadInput(
                f"{text!r} is no value of column {kind.name!r} ({kind.type}): {_first_line(error)}"
            ) from None

    def _refused(self, node: Any) -> BadInput:
        return BadInput(
            f"the condition {self._text!r} has {node.sql(dialect='duckdb')!r}, which is not understood; use columns, values, "
            "=, <>, <, <=, >, >=, between, in, like, is null, and, or, not"
        )


def _plain(data_type: pa.DataType) -> pa.DataType:
    return data_type.storage_type if isinstance(data_type, pa.BaseExtensionType) else data_type
