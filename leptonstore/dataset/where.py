"""Filters: which rows an operation is about. A `pyarrow.compute` expression, or the text of an SQL condition.

    score < 0.5 and label = 'cat'      name in ('a', 'b')      taken between '2024-01-01' and '2024-12-31'      caption is null
    not (width > 100 or height > 100)  path like 'train/%'     "odd column" <> true

The text is parsed by sqlglot and only what `_Parser.condition` has is understood; nothing is ever evaluated as code. A class label may
be compared with the name of a class. As in SQL, a comparison with null is null, and so is its opposite: neither is true. A number is
compared exactly with integers and decimals, also one that such a column cannot hold. NaN is neither equal to anything nor less or greater.
"""

from __future__ import annotations

import contextlib
import decimal
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
_EXACT = decimal.Context(decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
_LOOKED_AT = {"this", "expression", "expressions", "low", "high", "negate"}  # what a node of sqlglot's may have
_Ends = tuple[pa.Scalar | None, pa.Scalar | None]


class Filter:
    """A condition on the rows of one schema. Any thread.

    where: text, or an expression. Raises BadInput (text that is not understood), SchemaError (no such column), MissingExtra.
    """

    def __init__(self, schema: pa.Schema, where: str | pc.Expression) -> None:
        self.schema = schema
        self.expression = parse_where(where, schema) if isinstance(where, str) else where
        said = str(self.expression)
        # As words of its text, for Arrow does not tell which columns an expression names; one too many does no harm. Where one is
        # named by its position, every position must stay what it is.
        self.columns = [
            name for name in schema.names if "FieldPath(" in said or re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)
        ] or schema.names[:1]
        self._fields = [schema.field(name) for name in self.columns]
        try:
            # Not by `rows`, which adds a column: no position may mean that one.
            pa.schema(self._fields).empty_table().filter(self.expression)
        except (pa.ArrowException, ValueError) as error:
            raise SchemaError(f"the condition {said} does not fit the columns: {_first_line(error)}") from None

    def rows(self, batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in `batch`, which has `columns`, of the rows that it holds for."""
        table = pa.Table.from_batches([batch]).append_column(_POSITION, pa.array(np.arange(batch.num_rows)))
        try:
            found = table.filter(self.expression).column(_POSITION).to_numpy()
        except pa.ArrowException as error:  # what only values show: an integer that the other type cannot hold
            raise BadInput(f"the condition {self.expression} cannot be computed: {_first_line(error)}") from None
        return np.asarray(found, np.int64)

    def may_hold(self, group: RowGroup) -> bool:
        """False when the bounds of its pages show that no row of this row group is meant."""
        known: pc.Expression | None = None
        for field in self._fields:
            bounds = _bounds(field, group.columns[self.schema.get_field_index(field.name)])
            if bounds is not None:
                within = (pc.field(field.name) >= bounds[0]) & (pc.field(field.name) <= bounds[1])
                known = within if known is None else known & within
        if known is None:
            return True
        # Arrow's own simplification of a filter by what is known of a file; no file is opened.
        form, system = pads.ParquetFileFormat(), LocalFileSystem()
        fragment = form.make_fragment("-", system, partition_expression=known)
        here = pads.FileSystemDataset([fragment], self.schema, form, system)
        try:
            return any(here.get_fragments(filter=self.expression))
        except pa.ArrowException:  # the same of a bound; `rows` says it where a row has it
            return True


def _bounds(field: pa.Field, parts: Sequence[Part]) -> tuple[pa.Scalar, pa.Scalar] | None:
    """Least and greatest value in a row group; None when a row may have none of these (null, NaN)."""
    kinds = pa.types
    if not (kinds.is_integer(field.type) or kinds.is_temporal(field.type)):
        return None
    if not all(part.bounds and part.nulls == 0 for part in parts):
        return None
    unsigned = kinds.is_unsigned_integer(field.type)
    pairs = [struct.unpack("<QQ" if unsigned else "<qq", part.bounds) for part in parts]
    ends = pa.array(
        [min(low for low, _ in pairs), max(high for _, high in pairs)], pa.uint64() if unsigned else pa.int64()
    )
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
        # What is not looked at below would silently mean something else, such as `between symmetric`.
        if any(value for name, value in node.args.items() if name not in _LOOKED_AT):
            raise self._refused(node)
        if node.args.get("negate"):  # so sqlglot 30 writes `not like`, and others of its versions as a Not
            plain = node.copy()
            plain.set("negate", None)
            return ~self.condition(plain)
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
            low, high = self._value(node.args["low"], kind), self._value(node.args["high"], kind)
            return self._compared(exp.GTE, field, low) & self._compared(exp.LTE, field, high)
        if isinstance(node, exp.In) and node.expressions:
            field, kind = self._field(node.this)
            return _if_valid(field, field.isin(self._values(node.expressions, kind)))
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
            other, other_kind = self._field(right)
            return self._compare[how](*_comparable(field, kind.type, other, other_kind.type))
        return self._compared(how, field, self._value(right, kind))

    def _compared(self, how: Any, field: pc.Expression, ends: _Ends) -> pc.Expression:
        """A column beside a literal. ends: from `_value`; when they differ, the literal is between them and equals no row."""
        low, high = ends
        if low is high and low is not None:
            return self._compare[how](field, low)
        exp = self._exp
        if how in (exp.LT, exp.LTE) and low is not None:
            return field <= low
        if how in (exp.GT, exp.GTE) and high is not None:
            return field >= high
        return _if_valid(field, pc.scalar(how is exp.NEQ))

    def _field(self, node: Any) -> tuple[pc.Expression, pa.Field]:
        if isinstance(node, self._exp.Paren):
            return self._field(node.this)
        if not isinstance(node, self._exp.Column) or node.table:
            raise self._refused(node)
        if node.name not in self._schema.names:
            raise SchemaError(f"no column {node.name!r}; there are {listed(self._schema.names)}")
        return pc.field(node.name), self._schema.field(node.name)

    def _values(self, nodes: Sequence[Any], kind: pa.Field) -> pa.Array:
        """The literals of a list, without those that the column cannot hold, for they equal no row."""
        data_type = _plain(kind.type)
        if data_type == pa.float16():
            data_type = pa.float32()  # Arrow compares no float16; whoever looks at such a column widens it
        held = [low for low, high in (self._value(node, kind) for node in nodes) if low is high and low is not None]
        try:
            chosen = [one.cast(data_type) for one in held]
        except pa.ArrowException as error:
            raise BadInput(f"the list for column {kind.name!r} ({kind.type}): {_first_line(error)}") from None
        if pa.types.is_floating(data_type):  # a set of Arrow tells 0 from -0
            chosen += [pa.scalar(-0.0, data_type) for one in chosen if one.as_py() == 0]
        return pa.array(chosen, data_type)

    def _value(self, node: Any, kind: pa.Field) -> _Ends:
        """A literal as a value of the column that it is compared with, twice; else the greatest below and the least above it."""
        exp, negative = self._exp, False
        while isinstance(node, (exp.Paren, exp.Neg, exp.Cast)):  # a cast (DATE '2024-01-01'): the column says the type
            negative ^= isinstance(node, exp.Neg)
            node = node.this
        names = class_names(kind)
        data_type = _plain(kind.type)
        if isinstance(node, exp.Boolean):
            if not pa.types.is_boolean(data_type):
                raise BadInput(f"{node.sql()} is no value of column {kind.name!r} ({kind.type}): it is not boolean")
            value = pa.scalar(bool(node.this))
            return value, value
        if not isinstance(node, exp.Literal):
            raise self._refused(node)
        text = f"-{node.this}" if negative else str(node.this)
        try:
            if names is not None and node.is_string:
                if text not in names:
                    raise BadInput(f"column {kind.name!r} has no class {text!r}; it has {', '.join(names)}")
                value = pa.scalar(names.index(text), kind.type)
            elif node.is_string:
                value = pa.scalar(text).cast(data_type)
            elif pa.types.is_integer(data_type) or pa.types.is_decimal(data_type):
                return _around(decimal.Decimal(text), data_type)
            elif pa.types.is_float32(data_type):  # as it would stand in the column: 0.1 is there where it was put
                with np.errstate(over="ignore"):
                    value = pa.scalar(np.float32(text), data_type)
            elif pa.types.is_floating(data_type) or pa.types.is_null(data_type):
                value = pa.scalar(float(text))
            else:
                raise BadInput(f"{text} is no value of column {kind.name!r} ({kind.type}): write it in quotes")
            return value, value
        except (pa.ArrowException, ValueError, ArithmeticError) as error:
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


def _if_valid(field: pc.Expression, answer: pc.Expression) -> pc.Expression:
    """`answer`, but null where the column is null, so that its opposite is not true there either."""
    return pc.if_else(field.is_valid(), answer, pc.scalar(pa.scalar(None, pa.bool_())))


def _around(number: decimal.Decimal, data_type: pa.DataType) -> _Ends:
    """The greatest value of a type of integers or decimals that is not above a number, and the least that is not below.

    Both are one object when the type holds the number; None when there is no such value.
    """
    if pa.types.is_decimal(data_type):
        scale, most = data_type.scale, 10**data_type.precision - 1
        least = -most
    else:
        signed = pa.types.is_signed_integer(data_type)
        scale, most = 0, 2 ** (data_type.bit_width - signed) - 1
        least = -most - 1 if signed else 0

    def value(steps: int) -> pa.Scalar:
        return pa.scalar(
            decimal.Decimal(steps).scaleb(-scale, _EXACT) if pa.types.is_decimal(data_type) else steps, data_type
        )

    steps = number.scaleb(scale, _EXACT)
    if steps > most:  # before it is made an int, which would write out 1e999999
        return value(most), None
    if steps < least:
        return None, value(least)
    low = int(steps.to_integral_value(decimal.ROUND_FLOOR, _EXACT))
    only = value(low)
    return (only, only) if steps == low else (only, value(low + 1))


def _comparable(left: pc.Expression, left_type: pa.DataType, right: pc.Expression, right_type: pa.DataType) -> Any:
    """Two columns for a comparison, where Arrow's own choice of a common type would not hold every integer of them."""
    kinds, types = pa.types, (left_type, right_type)
    if pa.uint64() in types and any(kinds.is_signed_integer(one) for one in types):
        both = pa.decimal128(20, 0)
        return left.cast(both), right.cast(both)
    if any(kinds.is_floating(one) for one in types) and any(kinds.is_integer(one) for one in types):
        return left.cast(pa.float64(), safe=False), right.cast(pa.float64(), safe=False)
    return left, right
