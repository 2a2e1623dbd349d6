"""Diff against plain Python: it turns the one table into the other, and says neither more nor less than what differs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.dataset.diff import ADDED, CHANGED, REMOVED, Diff, RowChange
from leptonstore.store import Store
from tests.property.history_data import Row, plain, rows_of, small_trees, values, version_of

EXAMPLES = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
tables = st.lists(values, max_size=60)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_trees(monkeypatch)


@st.composite
def edited(draw: st.DrawFn, rows: list[Row]) -> list[Row]:
    """Some rows changed, removed, moved and added."""
    out = list(rows)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(out)))
        what = draw(st.sampled_from(["add", "remove", "change", "move", "many"]))
        if what == "add":
            out.insert(at, draw(values))
        elif what == "many":
            out[at:at] = draw(st.lists(values, max_size=20))
        elif at < len(out):
            row = out.pop(at)
            if what == "change":
                out.insert(at, draw(values)._replace(id=row.id))
            elif what == "move":
                out.insert(draw(st.integers(0, len(out))), row)
    return out


def applied(store: Store, before: list[Row], changes: list[RowChange], count: int) -> list[Row]:
    """`before` with a diff applied, by its row numbers."""
    left = dict(enumerate(before))
    out: list[Row | None] = [None] * count
    for change in changes:
        old, new = plain(store, change.old), plain(store, change.new)
        if change.kind == ADDED:
            assert change.after is not None and change.before is None
            out[change.after] = Row(**new)
        elif change.kind == REMOVED:
            assert change.before is not None and change.after is None
            assert left.pop(change.before) == Row(**old)
        else:
            assert change.before is not None and change.after is not None and change.columns
            row = left[change.before]
            assert {name: getattr(row, name) for name in change.columns} == old and old != new
            left[change.before] = row._replace(**new)
            out[change.after] = left.pop(change.before)
    kept = iter(left.values())
    return [next(kept) if row is None else row for row in out]


@EXAMPLES
@given(st.data())
def test_a_diff_applied_to_the_one_gives_the_other(store: Store, data: st.DataObject) -> None:
    rows = data.draw(tables)
    others = data.draw(edited(rows) | tables)
    one, other = version_of(store, rows), version_of(store, others)
    diff = Diff(store, one.commit, other.commit)
    changes = list(diff.rows())
    assert applied(store, rows, changes, len(others)) == others
    same = one.commit_object.root == other.commit_object.root
    assert bool(diff) != same and (not changes) == same == (rows == others)
    stat = diff.stat()
    for kind, count in ((ADDED, stat.added), (REMOVED, stat.removed), (CHANGED, stat.changed)):
        assert count == sum(change.kind == kind for change in changes)
    assert stat.columns == {
        name: count
        for name in Row._fields
        if (count := sum(name in change.columns for change in changes if change.kind == CHANGED))
    }
    assert [change.kind for change in diff.rows(limit=2)] == [change.kind for change in changes[:2]]


@EXAMPLES
@given(st.data())
def test_with_a_key_exactly_the_rows_that_differ_are_told(store: Store, data: st.DataObject) -> None:
    by_key = st.dictionaries(st.integers(0, 80), values, max_size=50)
    ours = {key: row._replace(id=key) for key, row in data.draw(by_key).items()}
    theirs = dict(ours)
    for key in data.draw(st.sets(st.integers(0, 80), max_size=10)):
        if data.draw(st.booleans()):
            theirs[key] = data.draw(values)._replace(id=key)
        else:
            theirs.pop(key, None)
    one = version_of(store, [ours[key] for key in sorted(ours)], keyed=True)
    other = version_of(store, [theirs[key] for key in sorted(theirs)], keyed=True)
    told = {change.key["id"]: change for change in Diff(store, one.commit, other.commit).rows()}
    assert sorted(told) == sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    for key, change in told.items():
        kind = ADDED if key not in ours else REMOVED if key not in theirs else CHANGED
        assert change.kind == kind
        if kind == CHANGED:
            pairs = zip(Row._fields, ours[key], theirs[key], strict=True)
            assert change.columns == tuple(name for name, old, new in pairs if old != new)
    for kind in (ADDED, REMOVED, CHANGED):  # what was replaced is told as a stretch of removed rows, then added ones
        keys = [key for key, change in told.items() if change.kind == kind]
        assert keys == sorted(keys)


@EXAMPLES
@given(st.lists(values, min_size=1, max_size=60), st.data())
def test_unchanged_rows_around_an_insert_are_not_told(store: Store, rows: list[Row], data: st.DataObject) -> None:
    rows = [row._replace(id=number) for number, row in enumerate(rows)]
    at = data.draw(st.integers(0, len(rows)))
    new = data.draw(values)._replace(id=1_000)
    one, other = version_of(store, rows), version_of(store, [*rows[:at], new, *rows[at:]])
    (change,) = Diff(store, one.commit, other.commit).rows()
    assert (change.kind, change.after, change.key) == (ADDED, at, {"id": 1_000})
    (change,) = Diff(store, other.commit, one.commit).rows()
    assert (change.kind, change.before) == (REMOVED, at)
    assert rows_of(one) == rows
