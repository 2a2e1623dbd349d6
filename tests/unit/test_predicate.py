"""A row group is skipped only when no row of it can fit: against Arrow's own evaluation of the same rows."""

from __future__ import annotations

import datetime
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.dataset.groups import bounds_of
from leptonstore.dataset.predicate import Predicate, columns_of
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput
from leptonstore.format.node import Part, RowGroup

_DAY = datetime.date(2026, 1, 1)
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int8(), st.integers(-3, 3)),
    "u": (pa.uint64(), st.sampled_from([0, 1, 2, 2**64 - 1])),
    "f": (pa.float32(), st.sampled_from([-1.5, -0.0, 0.0, 1.5, float("nan"), float("inf")])),
    "g": (pa.float64(), st.sampled_from([0.0, 1.0, 2.0, float("nan")])),
    "s": (pa.string(), st.sampled_from(["", "a", "b"])),
    "b": (pa.bool_(), st.booleans()),
    "d": (pa.date32(), st.integers(0, 3).map(lambda days: _DAY + datetime.timedelta(days))),
    "t": (pa.timestamp("ms", "UTC"), st.integers(0, 3)),
}


def _group(table: pa.Table) -> RowGroup:
    parts = []
    for column in table.columns:
        array = column.combine_chunks()
        parts.append((Part(digest_of(b""), len(array), array.null_count, 8, bounds=bounds_of(array)),))
    return RowGroup(table.num_rows, tuple(parts))


@st.composite
def _tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 4))
    arrays = []
    for data_type, values in COLUMNS.values():
        nulls = draw(st.sampled_from([0, 1, 2]))  # none, some, all
        one = st.none() if nulls == 2 else st.one_of(st.none(), values) if nulls else values
        arrays.append(pa.array(draw(st.lists(one, min_size=rows, max_size=rows)), data_type))
    return pa.table(arrays, names=list(COLUMNS))


@st.composite
def _comparisons(draw: st.DrawFn) -> pc.Expression:
    name = draw(st.sampled_from(list(COLUMNS)))
    data_type, values = COLUMNS[name]
    field = pc.field(name)
    what = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "null", "valid", "in", "nan"]))
    if what == "nan" and name in "fg":
        return pc.is_nan(field)
    if what == "null":
        return field.is_null(nan_is_null=name in "fg" and draw(st.booleans()))
    if what == "in":
        return field.isin(pa.array(draw(st.lists(values, max_size=3)), data_type))
    value = pa.scalar(draw(values), data_type)
    compared = {
        "==": field == value,
        "!=": field != value,
        "<": field < value,
        "<=": field <= value,
        ">": field > value,
    }
    return compared.get(what, field.is_valid() if what == "valid" else field >= value)


EXPRESSIONS = st.recursive(
    _comparisons(),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None)
@given(st.lists(_tables(), min_size=1, max_size=3), EXPRESSIONS)
def test_no_row_that_fits_is_skipped(tables: list[pa.Table], expression: pc.Expression) -> None:
    predicate = Predicate(expression, tables[0].schema)
    possible = predicate.possible([_group(table) for table in tables])
    for table, may in zip(tables, possible, strict=True):
        batch = table.select(predicate.columns).combine_chunks().to_batches()[0] if predicate.columns else None
        wanted = table.filter(expression).num_rows
        if batch is not None:
            assert int(predicate.mask(batch).sum()) == wanted
        assert may or wanted == 0, (expression, table.to_pylist())


def test_bounds_do_skip() -> None:
    """The property above holds for a predicate that never skips; this one must."""
    tables = [
        pa.table({"i": range(at, at + 10), "f": np.arange(at, at + 10) / 2, "s": ["x"] * 10}) for at in (0, 10, 20)
    ]
    tables.append(
        pa.table({"i": pa.nulls(3, pa.int64()), "f": pa.nulls(3, pa.float64()), "s": pa.nulls(3, pa.string())})
    )
    groups = [_group(table) for table in tables]
    i, f, s = pc.field("i"), pc.field("f"), pc.field("s")
    for expression, wanted in [
        (i == 12, [0, 1, 0, 0]),
        ((i > 25) | (i < 2), [1, 0, 1, 0]),
        (~(i < 20), [0, 0, 1, 0]),
        (i.isin([3, 29]), [1, 0, 1, 0]),
        (f > 9.5, [0, 0, 1, 0]),
        ((f > 9.5) & (i < 20), [0, 0, 0, 0]),
        (i.is_null(), [0, 0, 0, 1]),
        (s.is_null(), [0, 0, 0, 1]),
        (s == "y", [1, 1, 1, 0]),  # strings have no bounds
        (i > pa.scalar(19.5), [0, 0, 1, 0]),
    ]:
        assert Predicate(expression, tables[0].schema).possible(groups) == [bool(one) for one in wanted], expression


def test_the_columns_of_an_expression() -> None:
    struct = pa.struct([("x", pa.int8())])
    schema = pa.schema([("a", pa.int8()), ("ab", pa.int8()), ("s", struct), ("t", pa.string()), ("and", pa.bool_())])
    for expression, wanted in [
        (pc.field("ab") > 1, ["ab"]),
        (pc.field("s", "x") > 1, ["s"]),
        (pc.field("t") == "ab and s", ["t"]),
        ((pc.field("t") == "x") & pc.field("and"), ["t", "and"]),
        (pc.field(0) > 1, list(schema.names)),
        (pc.scalar(True), []),
    ]:
        assert columns_of([expression], schema) == wanted, expression


def test_what_is_no_filter_is_refused_by_name() -> None:
    schema = pa.schema([("a", pa.int8()), ("t", pa.string())])
    for expression, message in [
        (("a", 1), "pyarrow.compute expression"),
        (pc.field("b") > 1, r"No match for FieldRef.Name\(b\).*the columns are \['a', 't'\]"),
        (pc.field("a") + 1, "its values are int8"),
        (pc.field("t") > 1, "no kernel matching"),
    ]:
        with pytest.raises(BadInput, match=message):
            Predicate(expression, schema)


@pytest.mark.parametrize("python_allows", [1_000, 10_000])
def test_a_condition_of_very_many_parts_is_refused_and_no_bug(python_allows: int) -> None:
    """Its tree is as deep as it has parts: turning it into an expression ended in a RecursionError, or, where a library had raised
    Python's bound, in an expression of any depth."""
    pytest.importorskip("sqlglot")
    schema, before = pa.schema([("a", pa.int8())]), sys.getrecursionlimit()
    sys.setrecursionlimit(python_allows)
    try:
        with pytest.raises(BadInput, match="too many parts"):
            Predicate("a > 1 and " * 1_500 + "a > 1", schema)
        Predicate("a > 1 and " * 500 + "a > 1", schema)
    finally:
        sys.setrecursionlimit(before)
