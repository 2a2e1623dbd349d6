"""Predicate: a pyarrow expression over a dataset's columns, and which row groups it can be true in.

A node says of each page of numbers, dates and times the least and the greatest value, and of every page how many values are null. From
these Arrow itself derives whether an expression can be true (the same code prunes partitions and Parquet row groups). Strings, bytes,
lists and tensors have no bounds in nodes: of them only nulls prune.

Floats: bounds leave NaN out, and `x != 1` or `~(x > 1)` is true for NaN. So each float column is looked at twice, once within its bounds
and once as NaN, and a row group is skipped when the expression can be true in neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import acero
from pyarrow.fs import LocalFileSystem

from leptonstore import limits
from leptonstore.dataset.where import parse_where
from leptonstore.errors import BadInput
from leptonstore.format.node import Part, RowGroup

Bits = np.ndarray[Any, np.dtype[np.bool_]]
# A dataset of files that nobody opens: asked for those that a filter leaves, Arrow simplifies it by what each guarantees.
_FORMAT, _NOWHERE = pads.ParquetFileFormat(), LocalFileSystem()


class Predicate:
    """`expression`, or a condition as text (see where.py), over tables of `schema`. Any thread.

    Raises BadInput: unknown columns, types that do not fit, not boolean.
    """

    def __init__(self, expression: pc.Expression | str, schema: pa.Schema) -> None:
        if isinstance(expression, str):
            expression = parse_where(expression, schema)
        if not isinstance(expression, pc.Expression):
            raise BadInput(
                f"a filter is a pyarrow.compute expression, such as pc.field('x') > 3, or text, not {expression!r}"
            )
        schema = widened(schema)  # Arrow compares no float16
        self.expression, self._schema = expression, schema
        found = _evaluate(expression, schema.empty_table()).type
        if found != pa.bool_():
            raise BadInput(f"filter {expression}: its values are {found}, not true or false")
        # One column at least: a batch without columns does not say how many rows it has.
        self.columns = columns_of([expression], schema) or schema.names[:1]

    def mask(self, batch: pa.RecordBatch) -> Bits:
        """Which rows it is true for; null counts as false. `batch` has `columns`, in their order. Raises BadInput."""
        table = pa.Table.from_batches([batch])
        values = _evaluate(self.expression, table.cast(widened(table.schema)))
        return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)

    def possible(self, groups: Sequence[RowGroup]) -> list[bool]:
        """Of each row group, whether there may be a row that it is true for. No page is read."""
        schema = pa.schema([self._schema.field(name) for name in self.columns])
        facts = [
            _facts(field, [group.columns[self._schema.get_field_index(field.name)] for group in groups])
            for field in schema
        ]
        fragments = [
            _FORMAT.make_fragment(str(number), _NOWHERE, partition_expression=guarantee)
            for number in range(len(groups))
            for guarantee in _alternatives([column[number] for column in facts])
        ]
        left = pads.FileSystemDataset(fragments, schema, _FORMAT, _NOWHERE).get_fragments(filter=self.expression)
        numbers = {int(fragment.path) for fragment in left}
        return [number in numbers for number in range(len(groups))]


def widened(schema: pa.Schema) -> pa.Schema:
    """`schema` with float32 for each float16 column."""
    halves = [field.name for field in schema if field.type == pa.float16()]
    for name in halves:
        at = schema.get_field_index(name)
        schema = schema.set(at, schema.field(at).with_type(pa.float32()))
    return schema


def columns_of(expressions: Sequence[pc.Expression], schema: pa.Schema) -> list[str]:
    """The columns that expressions look at, in the order of `schema`, over all of which they can be evaluated."""
    text = "\n".join(map(str, expressions))
    if "FieldPath(" in text:  # by position: then every position must stay what it is
        return list(schema.names)
    # An expression names its columns when it is printed, and may print other words too: which are needed, binding tells.
    needed = [name for name in schema.names if name in text]
    if not _binds(expressions, schema, needed):
        return list(schema.names)
    for name in list(needed):
        fewer = [other for other in needed if other != name]
        if _binds(expressions, schema, fewer):
            needed = fewer
    return needed


def _binds(expressions: Sequence[pc.Expression], schema: pa.Schema, names: list[str]) -> bool:
    table = pa.schema([schema.field(name) for name in names]).empty_table()
    try:
        for expression in expressions:
            _evaluate(expression, table)
    except BadInput:
        return False
    return True


def _evaluate(expression: pc.Expression, table: pa.Table) -> pa.ChunkedArray:
    return project({"filter": expression}, table).column(0)


def project(expressions: dict[str, pc.Expression], table: pa.Table) -> pa.Table:
    """The values of expressions for each row, under their names. Raises BadInput."""
    plan = [
        acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
        acero.Declaration("project", acero.ProjectNodeOptions(list(expressions.values()), list(expressions))),
    ]
    try:
        return acero.Declaration.from_sequence(plan).to_table(use_threads=False)
    except (pa.ArrowException, TypeError, KeyError) as error:
        named = ", ".join(f"{name} {expression}" for name, expression in expressions.items())
        raise BadInput(f"{named}: {str(error).splitlines()[0]}; the columns are {table.schema.names}") from None


# -- what nodes guarantee ----------------------------------------------------------------------------------------------


def _alternatives(columns: list[list[pc.Expression]]) -> list[pc.Expression]:
    """What holds for every row of a row group: one of the results. `columns`: of each column, one of which holds; none: nothing known."""
    known = [column for column in columns if column]
    split = 0
    for at, column in enumerate(known):
        split += len(column) > 1
        if split > limits.FILTER_FLOATS_MAX:
            known[at] = []
    chosen = itertools.product(*(column for column in known if column))
    return [reduce(lambda one, other: one & other, choice, pc.scalar(True)) for choice in chosen]


def _facts(field: pa.Field, groups: list[tuple[Part, ...]]) -> list[list[pc.Expression]]:
    """For each row group, what holds for the column's values: one of these expressions (none: nothing is known)."""
    bounds = _bounds(field.type, groups)
    column = pc.field(field.name)
    floats = pa.types.is_floating(field.type)
    out = []
    for parts, bound in zip(groups, bounds, strict=True):
        nulls, rows = sum(part.nulls for part in parts), sum(part.rows for part in parts)
        if nulls == rows:
            out.append([column.is_null()])
            continue
        some = []
        if bound is not None:
            low, high = bound
            inside = column == low if low.equals(high) else (column >= low) & (column <= high)
            some = [inside | column.is_null() if nulls else inside]
        elif nulls == 0 and not floats:
            some = [column.is_valid()]
        if some and floats:
            some.append(column == pa.scalar(float("nan"), field.type))
        out.append(some)
    return out


def _bounds(data_type: pa.DataType, groups: list[tuple[Part, ...]]) -> list[tuple[pa.Scalar, pa.Scalar] | None]:
    """Least and greatest value of each row group, None where nodes have none."""
    kinds = pa.types
    if kinds.is_unsigned_integer(data_type):
        plain: np.dtype[Any] = np.dtype(np.uint64)
    elif kinds.is_integer(data_type) or kinds.is_temporal(data_type):
        plain = np.dtype(np.int64)
    elif kinds.is_floating(data_type):
        plain = np.dtype(np.float64)
    else:
        return [None] * len(groups)
    out: list[tuple[pa.Scalar, pa.Scalar] | None] = []
    for parts in groups:
        held = [part.bounds for part in parts if part.nulls < part.rows]
        if not held or not all(held):
            out.append(None)
            continue
        both = np.frombuffer(b"".join(held), plain).reshape(-1, 2)
        ends = pa.array([both[:, 0].min(), both[:, 1].max()], pa.from_numpy_dtype(plain))
        if kinds.is_temporal(data_type):
            ends = (ends.cast(pa.int32()) if data_type.bit_width == 32 else ends).view(data_type)
        else:
            ends = ends.cast(data_type)
        out.append((ends[0], ends[1]))
    return out
