"""DuckDB as the oracle: what is exact is equal, what is a sketch is within its stated error of DuckDB's exact answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.process.analyse import Analysis, analyse
from leptonstore.process.statistics.results import QUANTILES, ColumnAnalysis
from leptonstore.store import Store

duckdb = pytest.importorskip("duckdb")
ROWS = 60_000


def table(rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(0)

    def some(values: np.ndarray, share: float) -> pa.Array:
        return pa.array(values, mask=rng.random(rows) < share)

    price = rng.lognormal(3, 1, rows)
    price[rng.random(rows) < 0.01] = np.nan
    price[rng.random(rows) < 0.001] = np.inf
    return pa.table(
        {
            "id": np.arange(rows),
            "tiny": rng.integers(-128, 128, rows).astype(np.int8),
            "small": rng.integers(0, 100, rows).astype(np.int32),
            "wide": some(rng.integers(-(2**62), 2**62, rows), 0.05),
            "unsigned": rng.integers(0, 2**63, rows).astype(np.uint64) * 2,
            "price": some(price, 0.02),
            "score": rng.normal(100, 15, rows).astype(np.float32),
            "zipf": rng.zipf(1.4, rows).clip(0, 2**50),
            "label": [f"label {one}" for one in rng.geometric(0.1, rows).tolist()],
            "user": [f"user {one}" for one in rng.integers(0, 2**50, rows).tolist()],
            "name": [None if one % 7 == 0 else f"name {one}" for one in rng.zipf(1.3, rows).clip(0, 10**6).tolist()],
            "flag": some(rng.random(rows) < 0.3, 0.01),
            "moment": pa.array(rng.integers(0, 2**50, rows), pa.timestamp("us")),
            "day": pa.array(rng.integers(0, 20_000, rows).astype(np.int32), pa.date32()),
            "none": pa.nulls(rows, pa.float64()),
        }
    )


@pytest.fixture(scope="module")
def data() -> pa.Table:
    return table()


@pytest.fixture
def found(store: Store, source_of: Callable[..., Source], data: pa.Table) -> Analysis:
    return analyse(write_dataset(store, "d", source_of(data, ("id",))))


def asked(data: pa.Table, query: str) -> list[tuple]:
    connection = duckdb.connect()
    connection.register("d", data)
    return connection.execute(query).fetchall()  # type: ignore[no-any-return]


def test_columns_are_duckdbs(found: Analysis, data: pa.Table) -> None:
    for column in found.columns:
        name, numbers = column.name, column.numeric
        ((rows, nulls, different),) = asked(
            data, f"select count(*), count(*) - count({name}), count(distinct {name}) from d"
        )
        assert (column.rows, column.nulls) == (rows, nulls), name
        assert column.cardinality is not None
        assert abs(column.cardinality.count - different) <= 4 * column.cardinality.error * different, name
        if numbers is not None:
            check_numbers(column, data)
        if pa.types.is_string(data.schema.field(name).type):
            check_texts(column, data)
        check_top(column, data)


def check_numbers(column: ColumnAnalysis, data: pa.Table) -> None:
    name, stats = column.name, column.numeric
    assert stats is not None
    kind = data.schema.field(name).type
    if pa.types.is_boolean(kind):
        name = f"{name}::int"
    only = f"where isfinite({name})" if pa.types.is_floating(kind) else ""
    ((count, least, greatest, mean, std),) = asked(
        data,
        f"select count({name}), min({name}), max({name}), avg({name}::double), stddev_pop({name}::double) from d {only}",
    )
    assert (stats.count, stats.min, stats.max) == (count, least, greatest), name
    if not count:
        assert stats.mean is None and stats.quantiles == ()
        return
    assert stats.mean == pytest.approx(mean, rel=1e-12), name
    assert stats.std == pytest.approx(std, rel=1e-9), name
    for share, quantile in zip(QUANTILES, stats.quantiles, strict=True):
        value = f"{quantile.value!r}::{'double' if pa.types.is_floating(kind) else 'hugeint'}"
        where = only or f"where {name} is not null"
        ((below, not_above),) = asked(
            data, f"select avg(({name} < {value})::int), avg(({name} <= {value})::int) from d {where}"
        )
        assert below - stats.rank_error - 1e-12 <= share <= not_above + stats.rank_error + 1e-12, (name, share)
        assert below < not_above, (name, share)


def check_texts(column: ColumnAnalysis, data: pa.Table) -> None:
    name, lengths = column.name, column.lengths
    assert lengths is not None
    ((least, greatest, shortest, longest, mean, std),) = asked(
        data,
        f"select min({name}), max({name}), min(strlen({name})), max(strlen({name})), avg(strlen({name})), "
        f"stddev_pop(strlen({name})) from d",
    )
    assert (column.least, column.greatest, lengths.min, lengths.max) == (least, greatest, shortest, longest)
    assert lengths.mean == pytest.approx(mean, rel=1e-12) and lengths.std == pytest.approx(std, rel=1e-9)


def check_top(column: ColumnAnalysis, data: pa.Table) -> None:
    name, top = column.name, column.top
    assert top is not None
    shown = f"{name}::varchar"
    if pa.types.is_timestamp(data.schema.field(name).type):
        shown = f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%f')"
    where = f"{name} is not null" + (
        f" and isfinite({name})" if pa.types.is_floating(data.schema.field(name).type) else ""
    )
    counts = asked(data, f"select {shown}, count(*) from d where {where} group by {name}")
    known = dict(counts) if not pa.types.is_floating(data.schema.field(name).type) else None
    ordered = sorted((rows for _, rows in counts), reverse=True)
    if top.error == 0:
        assert [one.rows for one in top.values] == ordered[: len(top.values)], name
    for one in top.values if known is not None else ():
        assert known[one.value] - top.error <= one.rows <= known[one.value], (name, one)
    # Nothing that is clearly more frequent than all that is told has been left out.
    told = {one.value for one in top.values}
    bound = max(top.values[-1].rows if top.values else 0, top.error) + top.error
    if known is not None:
        assert all(rows <= bound for value, rows in counts if value not in told), name


def test_correlations_are_duckdbs(found: Analysis, data: pa.Table) -> None:
    assert found.correlation is not None
    names = found.correlation.columns
    assert "flag" in names and "label" not in names
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            finite = " and ".join(f"isfinite({name}::double)" for name in (one, other))
            ((r, rows),) = asked(
                data,
                f"select corr({one}::int::double, {other}::double), count(*) from d where {finite}"
                if one == "flag"
                else f"select corr({one}::double, {other}::double), count(*) from d where {finite}",
            )
            mine = found.correlation.values[i][j]
            assert found.correlation.rows[i][j] == rows
            if "none" in (one, other):
                assert mine is None
            else:
                assert mine == pytest.approx(r, abs=1e-9), (one, other)
