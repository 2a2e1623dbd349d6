"""No sample of AsOf sees what came after its moment: against the simplest thing that says the same, and across appended corrections."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store
from loaders import AsOf, Known, NumpyLoader
from loaders.asof import split_in_time

LATEST = 12  # of times
COLUMNS = {"group": pa.string(), "id": pa.int64(), "t": pa.int64(), "known": pa.int64(), "gone": pa.bool_()}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()])
MOMENTS = pa.schema([pa.field("group", pa.string()), pa.field("t", pa.int64())])


class Row(NamedTuple):
    group: str
    id: int
    t: int
    known: int
    gone: bool


GROUPS, TIMES = st.sampled_from("ab"), st.integers(0, LATEST)
ROWS = st.builds(
    lambda group, number, t, delay, gone: Row(group, number, t, t + delay, gone),
    GROUPS,
    st.integers(0, 4),
    TIMES,
    st.integers(-2, 6),  # what is known before it happens does not count before either
    st.booleans() | st.just(False),
)
ASKED = st.lists(st.tuples(GROUPS, st.integers(0, LATEST + 8)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.create(tmp_path_factory.mktemp("shelf") / "store") as made:
        yield made


def written(store: Store, rows: list[Any], schema: pa.Schema, identity: tuple[str, ...]) -> Dataset:
    table = table_of(rows, schema)
    return write_dataset(store, f"d{secrets.token_hex(6)}", Source(schema, identity, lambda: iter(table.to_batches())))


def table_of(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def counting(rows: list[Row], group: str, t: int, reach: int | None) -> list[int]:
    """Row numbers, the oldest first: of each record the row that was known last, if it had happened and was not taken back."""
    newest: dict[int, int] = {}
    for number, row in enumerate(rows):
        before = newest.get(row.id)
        if row.group == group and row.known <= t and (before is None or rows[before].known <= row.known):
            newest[row.id] = number
    chosen = [number for number in newest.values() if rows[number].t <= t and not rows[number].gone]
    return sorted((n for n in chosen if reach is None or rows[n].t >= t - reach), key=lambda n: (rows[n].t, n))


def windows(moments: Dataset, ticks: Dataset, last: int, reach: int | None = None) -> AsOf:
    return AsOf(moments, "t", {"tick": Known(ticks, "t", "known", last, ("id",), reach, "gone")}, group="group")


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.lists(ROWS, max_size=14), ASKED, st.integers(1, 4), st.none() | st.integers(0, 8))
def test_a_window_has_what_was_known_and_nothing_else(
    shelf: Store, rows: list[Row], asked: list[tuple[str, int]], last: int, reach: int | None
) -> None:
    ticks = written(shelf, rows, SCHEMA, ("group", "id"))
    found = windows(written(shelf, asked, MOMENTS, ("group", "t")), ticks, last, reach)
    stored = [Row(*row.values()) for row in ticks.to_arrow().to_pylist()]
    wanted = [counting(stored, group, t, reach)[-last:] for group, t in asked]
    whole = [at for at, numbers in enumerate(wanted) if len(numbers) == last]
    assert len(found) == len(whole) and found.dropped == len(asked) - len(whole)
    for sample, at in enumerate(whole):
        assert found.rows_of("tick", np.array([sample]))[0].tolist() == wanted[at]
        one = found[sample]
        assert (one["group"], one["t"]) == asked[at]
        assert all(known <= one["t"] for known in one["tick.known"]) and all(t <= one["t"] for t in one["tick.t"])
        assert one["tick.id"].tolist() == [stored[number].id for number in wanted[at]]


@quick
@given(
    st.lists(ROWS, min_size=1, max_size=10),
    st.lists(ROWS, max_size=8),
    ASKED,
    st.integers(0, LATEST),
    st.integers(1, 3),
)
def test_what_is_appended_later_changes_no_earlier_window(
    shelf: Store, rows: list[Row], more: list[Row], asked: list[tuple[str, int]], close: int, last: int
) -> None:
    """Corrections of what happened before, too: they are known after the close, and every moment is at or before it."""
    later = [row._replace(known=close + 1 + abs(row.known)) for row in more]
    ticks = written(shelf, [row._replace(known=min(row.known, close)) for row in rows], SCHEMA, ("group", "id"))
    moments = written(shelf, [(group, min(t, close)) for group, t in asked], MOMENTS, ("group", "t"))
    pinned = ticks.tag("close")
    before = rows_in(windows(moments, ticks, last))
    corrected = ticks.append(table_of(later, SCHEMA)) if later else ticks
    assert rows_in(windows(moments, corrected, last)) == before
    assert rows_in(windows(moments, Dataset.open(shelf, f"{ticks.name}@close"), last)) == before
    assert pinned.commit == ticks.commit
    for row in before:
        assert max(row["tick.known"]) <= row["t"]


def rows_in(some: AsOf) -> list[dict[str, Any]]:
    out = []
    for batch in NumpyLoader(some, 3):
        columns = {name: values if isinstance(values, list) else values.tolist() for name, values in batch.items()}
        out += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return out


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 9)), max_size=30),
    st.integers(-5, 60),
    st.integers(0, 20),
)
def test_no_label_of_one_side_of_a_split_looks_at_what_the_other_looks_at(
    samples: list[tuple[int, int, int]], boundary: int, embargo: int
) -> None:
    times = np.array([t for t, _, _ in samples], np.int64)
    ends = times + np.array([horizon for _, horizon, _ in samples], np.int64)
    starts = times - np.array([reach for _, _, reach in samples], np.int64)
    train, val = split_in_time(times, ends, boundary, embargo, starts)
    assert not set(train) & set(val)
    assert all(ends[one] < boundary <= times[other] and starts[other] >= boundary for one in train for other in val)
    assert all(starts[one] - boundary >= embargo for one in val)
    left_out = set(range(len(times))) - set(train) - set(val)
    assert all(ends[one] >= boundary and starts[one] < boundary + embargo for one in left_out)
