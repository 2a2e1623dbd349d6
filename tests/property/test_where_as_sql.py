"""Conditions mean what they mean in SQL: the rows are those that DuckDB finds, and no row group that has one is passed over.

DuckDB is asked on tables of its own, with both sides of each comparison cast to a type that holds them exactly. NaN is the one
difference: to DuckDB it is greater than all numbers, so there it is left out.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_strategies import INTEGERS

from leptonstore.dataset.groups import bounds_of
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.where import Filter
from leptonstore.format.node import Part, RowGroup

duckdb = pytest.importorskip("duckdb")
ROWS = 6
OPERATORS = ["=", "<>", "<", "<=", ">", ">="]
DECIMALS = [pa.decimal128(4, 2), pa.decimal128(9, 0), pa.decimal128(18, 3), pa.decimal128(24, 4)]
EDGES = sorted(
    {edge + by for bits in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64) for edge in (2**bits, -(2**bits)) for by in (-1, 0, 1)}
)
TEXTS = ["", "a", "b", "ab", "A", "é", "it's", "a_c", "%"]
FLOATS = [0.0, -0.0, 0.25, -1.5, 3.0, float("inf"), float("-inf"), float("nan"), 2.0**63]

Both = tuple[str, str]  # the condition for LeptonStore, and for DuckDB


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    whole, other = draw(st.sampled_from(INTEGERS)), draw(st.sampled_from([pa.int64(), pa.uint64()]))
    scaled = draw(st.sampled_from(DECIMALS))
    columns = {
        "i": (whole, _integers(whole)),
        "j": (other, _integers(other)),
        "f": (draw(st.sampled_from([pa.float32(), pa.float64()])), st.sampled_from(FLOATS)),
        "p": (scaled, _decimals(scaled)),
        "s": (pa.string(), st.sampled_from(TEXTS)),
        "b": (pa.bool_(), st.booleans()),
    }
    arrays = {}
    for name, (kind, values) in columns.items():
        if draw(st.booleans()):  # bounds say something of columns without nulls only
            values = values | st.none()
        arrays[name] = pa.array(draw(st.lists(values, min_size=ROWS, max_size=ROWS)), kind)
    return pa.table(arrays)


def _integers(kind: pa.DataType) -> st.SearchStrategy[int]:
    ends = np.iinfo(kind.to_pandas_dtype())
    least, most = int(ends.min), int(ends.max)
    return st.integers(max(least, -3), 3) | st.sampled_from([edge for edge in EDGES if least <= edge <= most])


def _decimals(kind: pa.DataType) -> st.SearchStrategy[Decimal]:
    most = 10**kind.precision - 1
    steps = st.integers(-most, most) | st.integers(-5, 5) | st.sampled_from([most, -most])
    return steps.map(lambda one: Decimal(one).scaleb(-kind.scale))


def _exact(value: str) -> str:
    """For DuckDB: a column or literal of integers or decimals, as a type that holds all of them."""
    return f"{value if value.isalpha() else repr(value)}::decimal(38,8)"


def _number(left: str, how: str, right: str) -> Both:
    return f"{left} {how} {right}", f"{_exact(left)} {how} {_exact(right)}"


def _between(name: str, no: str, low: str, high: str) -> Both:
    return f"{name} {no}between {low} and {high}", f"{_exact(name)} {no}between {_exact(low)} and {_exact(high)}"


def _in(name: str, no: str, values: list[str]) -> Both:
    ours = f"{name} {no}in ({', '.join(values)})"
    if name in "ijp":
        return ours, f"{_exact(name)} {no}in ({', '.join(map(_exact, values))})"
    return ours, ours


def _float(how: str, right: str) -> Both:
    theirs = f"f::double {how} {right}::double"
    return f"f {how} {right}", f"if(({theirs}) is null, null, {theirs} and not isnan(f))" if how in (
        ">",
        ">=",
    ) else theirs


def _same(text: str) -> Both:
    return text, text


def _atoms() -> st.SearchStrategy[Both]:
    how, no = st.sampled_from(OPERATORS), st.sampled_from(["", "not "])
    numbers = (
        st.integers(-4, 4).map(str)
        | st.sampled_from(EDGES).map(str)
        | st.builds("{}.{}".format, st.integers(-4, 4), st.sampled_from(["0", "5", "254", "00001", "999"]))
    )
    quarters = st.integers(-8, 8).map(lambda one: str(one / 4))  # what a float32 holds
    whole, exact = st.sampled_from("ij"), st.sampled_from("ijp")
    texts = st.sampled_from([f"""'{text.replace("'", "''")}'""" for text in TEXTS])

    def few(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
        return st.lists(values, min_size=1, max_size=3)

    return st.one_of(
        st.builds(_number, exact, how, numbers),
        st.builds(_number, numbers, how, exact),
        st.builds(_number, whole, how, exact),
        st.builds(_in, exact, no, few(numbers)),
        st.builds(_between, exact, no, numbers, numbers),
        st.builds(_float, how, quarters | whole),
        st.builds(_in, st.just("f"), no, few(quarters)),
        st.builds("s {} {}".format, how, texts).map(_same),
        st.builds(_in, st.just("s"), no, few(texts)),
        st.builds("s {}like {}".format, no, texts).map(_same),
        st.sampled_from(["b", "not b", "b = true", "b <> true", "b in (false)", "b not in (true, false)"]).map(_same),
        st.builds("{} is {}null".format, st.sampled_from("ijfpsb"), no).map(_same),
    )


def _joined(inner: st.SearchStrategy[Both]) -> st.SearchStrategy[Both]:
    def joined(left: Both, word: str, right: Both) -> Both:
        return f"({left[0]}) {word} ({right[0]})", f"({left[1]}) {word} ({right[1]})"

    return st.builds(joined, inner, st.sampled_from(["and", "or"]), inner) | inner.map(
        lambda one: (f"not ({one[0]})", f"not ({one[1]})")
    )


CONDITIONS = st.recursive(_atoms(), _joined, max_leaves=4)


@pytest.fixture(scope="module")
def database() -> Any:
    with duckdb.connect() as made:
        made.execute("set threads = 1")
        yield made


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=tables(), conditions=st.lists(CONDITIONS, min_size=4, max_size=8))
def test_a_condition_finds_the_rows_that_duckdb_finds(database: Any, table: pa.Table, conditions: list[Both]) -> None:
    # A table of DuckDB's own: of one of Arrow's it would leave conditions to Arrow.
    database.register("given", table.append_column("row", pa.array(range(ROWS))))
    database.execute("create or replace temp table t as select * from given")
    columns = [table.column(name).combine_chunks() for name in table.schema.names]
    group = RowGroup(ROWS, tuple((Part(bytes(32), ROWS, one.null_count, 0, bounds=bounds_of(one)),) for one in columns))
    for ours, theirs in conditions:
        wanted = [row for (row,) in database.execute(f'select "row" from t where {theirs} order by 1').fetchall()]
        found, predicate = Filter(table.schema, ours), Predicate(ours, table.schema)
        assert found.rows(table.select(found.columns).combine_chunks().to_batches()[0]).tolist() == wanted, ours
        batch = table.select(predicate.columns).combine_chunks().to_batches()[0]
        assert np.flatnonzero(predicate.mask(batch)).tolist() == wanted, ours
        if wanted:
            assert found.may_hold(group) and predicate.possible([group]) == [True], ours


def test_a_number_is_what_a_float32_would_hold_of_it() -> None:
    """0.1 was compared as a double, and equalled no float32; in a list it did."""
    table = pa.table({"g": pa.array([0.1, 0.5, None, 3e38], pa.float32())})
    (batch,) = table.to_batches()
    told = {
        "g = 0.1": [0],
        "g in (0.1)": [0],
        "g <= 0.1": [0],
        "g <> 0.1": [1, 3],
        "g < 1e300": [0, 1, 3],
        "g > 1e300": [],
    }
    assert {where: Filter(table.schema, where).rows(batch).tolist() for where in told} == told
