"""Merging against plain Python: what both sides did, together, or a conflict in exactly the rows where that has no answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.dataset import Dataset
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.merge import Merged, merge_rows
from leptonstore.errors import MergeConflict
from leptonstore.store import Store
from tests.property.history_data import Row, rows_of, small_trees, values, version_of

EXAMPLES = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Table = dict[int, Row]
COLUMNS = Row._fields


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_trees(monkeypatch)


@st.composite
def edited(draw: st.DrawFn, table: Table) -> Table:
    """A few keys put, changed in one column, or removed."""
    out = dict(table)
    for key in draw(st.lists(st.integers(0, 40), max_size=8)):
        what = draw(st.sampled_from(["put", "column", "remove"]))
        if what == "remove":
            out.pop(key, None)
        elif what == "put" or key not in out:
            out[key] = draw(values)._replace(id=key)
        else:
            name = draw(st.sampled_from(COLUMNS[1:]))
            out[key] = out[key]._replace(**{name: getattr(draw(values), name)})
    return out


tables = st.dictionaries(st.integers(0, 40), values, max_size=30).map(
    lambda found: {key: row._replace(id=key) for key, row in found.items()}
)


def model(base: Table, ours: Table, theirs: Table, resolve: str | None) -> tuple[Table, set[int]]:
    """The merged table, and the keys in conflict."""
    out: Table = {}
    conflicts: set[int] = set()
    for key in base.keys() | ours.keys() | theirs.keys():
        old, one, other = base.get(key), ours.get(key), theirs.get(key)
        row: Row | None
        if one == other or other == old:
            row = one
        elif one == old:
            row = other
        elif old is not None and one is not None and other is not None:
            cells: dict[str, Any] = {}
            for name in COLUMNS:
                a, b, c = (getattr(side, name) for side in (old, one, other))
                if b != c and a not in (b, c):
                    conflicts.add(key)
                cells[name] = c if b == a else b if c in (a, b) or resolve != "theirs" else c
            row = Row(**cells)
        else:
            conflicts.add(key)
            row = other if resolve == "theirs" else one
        if row is not None:
            out[key] = row
    return out, conflicts


def keyed(store: Store, table: Table) -> Dataset:
    return version_of(store, [table[key] for key in sorted(table)], keyed=True)


def merged_rows(store: Store, made: Merged) -> Dataset:
    """The version that a merge made, without a commit of its own."""
    found = Dataset(store, "d", "merged", "0" * 64)
    tree = made.tree
    found._commit_object = replace(
        made.like.commit_object, root=tree.root, rows=tree.rows, plain_bytes=tree.plain_bytes
    )
    return found


@EXAMPLES
@given(st.data(), st.sampled_from([None, "ours", "theirs"]))
def test_a_merge_by_key_is_that_of_the_model(store: Store, data: st.DataObject, resolve: Any) -> None:
    base = data.draw(tables)
    ours, theirs = data.draw(edited(base)), data.draw(edited(base))
    expected, conflicts = model(base, ours, theirs, resolve)
    versions = [keyed(store, table) for table in (base, ours, theirs)]
    if conflicts and resolve is None:
        with pytest.raises(MergeConflict) as caught:
            merge_rows(*versions)
        assert {one.key["id"] for one in caught.value.conflicts} == conflicts and caught.value.count == len(conflicts)
        return
    made = merge_rows(*versions, resolve=resolve)
    assert rows_of(merged_rows(store, made)) == [expected[key] for key in sorted(expected)]
    assert made.tree.root == keyed(store, expected).commit_object.root, "the root has no history in it"
    assert made.resolved == len(conflicts)


@EXAMPLES
@given(st.data())
def test_conflicts_tell_the_row_of_each_version(store: Store, data: st.DataObject) -> None:
    base = data.draw(tables)
    ours, theirs = data.draw(edited(base)), data.draw(edited(base))
    try:
        merge_rows(*(keyed(store, table) for table in (base, ours, theirs)))
    except MergeConflict as error:
        for one in error.conflicts:
            for table, told in ((base, one.base), (ours, one.ours), (theirs, one.theirs)):
                assert (told is None) == (one.key["id"] not in table)


@EXAMPLES
@given(st.data())
def test_a_row_that_both_changed_is_a_conflict_when_asked_for(store: Store, data: st.DataObject) -> None:
    base = data.draw(tables.filter(bool))
    key = data.draw(st.sampled_from(sorted(base)))
    x, text = data.draw(values), data.draw(values)
    ours, theirs = dict(base), dict(base)
    ours[key], theirs[key] = base[key]._replace(x=x.x), base[key]._replace(text=text.text)
    versions = [keyed(store, table) for table in (base, ours, theirs)]
    together = {**base, key: base[key]._replace(x=x.x, text=text.text)}
    assert merge_rows(*versions).tree.root == keyed(store, together).commit_object.root
    both = ours != base and theirs != base
    with pytest.raises(MergeConflict) if both else contextlib.nullcontext():
        merge_rows(*versions, whole_rows=True)


# -- without a key: rows are an order of their own ------------------------------------------------------------------


@st.composite
def split_edits(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
    """(base, ours, theirs, together): both sides edit in stretches that a kept row of different identity lies between."""
    base = [row._replace(id=at) for at, row in enumerate(draw(st.lists(values, min_size=1, max_size=40)))]
    ours, theirs, together = [], [], []
    at, fresh = 0, 1_000
    while at < len(base):
        count = draw(st.integers(1, 4))
        piece = base[at : at + count]
        at += count
        side = draw(st.sampled_from(["ours", "theirs", "none"]))
        new = [row for row in piece if draw(st.booleans())]
        new = [draw(values)._replace(id=row.id) if draw(st.booleans()) else row for row in new]
        for _ in range(draw(st.integers(0, 2))):
            new.insert(draw(st.integers(0, len(new))), draw(values)._replace(id=fresh))
            fresh += 1
        ours += new if side == "ours" else piece
        theirs += new if side == "theirs" else piece
        together += piece if side == "none" else new
        border = Row(fresh)
        fresh += 1
        if at < len(base):
            base.insert(at, border)
            at += 1
            for table in (ours, theirs, together):
                table.append(border)
    return base, ours, theirs, together


@EXAMPLES
@given(split_edits())
def test_edits_in_different_places_merge(store: Store, edits: tuple[list[Row], ...]) -> None:
    base, ours, theirs, together = (version_of(store, rows) for rows in edits)
    made = merge_rows(base, ours, theirs)
    assert rows_of(merged_rows(store, made)) == edits[3]
    assert made.tree.root == together.commit_object.root
    assert merge_rows(base, theirs, ours).tree.root == made.tree.root


@EXAMPLES
@given(
    st.lists(values, max_size=20), st.lists(values, min_size=1, max_size=3), st.lists(values, min_size=1, max_size=3)
)
def test_rows_that_both_append_are_a_conflict_unless_they_are_equal(
    store: Store, rows: list[Row], one: list[Row], other: list[Row]
) -> None:
    rows = [row._replace(id=at) for at, row in enumerate(rows)]
    one, other = ([row._replace(id=100 + at) for at, row in enumerate(side)] for side in (one, other))
    base, ours, theirs = (version_of(store, table) for table in (rows, rows + one, rows + other))
    run: Callable[..., Merged] = lambda **options: merge_rows(base, ours, theirs, **options)  # noqa: E731
    if one == other:
        assert run().tree.root == ours.commit_object.root
        return
    with pytest.raises(MergeConflict) as caught:
        run()
    assert caught.value.count == max(len(one), len(other))
    assert rows_of(merged_rows(store, run(resolve="ours"))) == rows + one
    assert rows_of(merged_rows(store, run(resolve="theirs"))) == rows + other
    assert rows_of(merged_rows(store, run(keep_both=True))) == rows + one + other


@EXAMPLES
@given(st.lists(values, max_size=25), st.data())
def test_any_sides_merge_or_conflict_and_a_side_wins_whole(store: Store, rows: list[Row], data: st.DataObject) -> None:
    """Identities that occur many times, any edits: no crash, and a merge with an unchanged side is the other side."""
    ours = data.draw(st.permutations(rows)) if data.draw(st.booleans()) else data.draw(st.lists(values, max_size=25))
    theirs = data.draw(st.lists(values, max_size=25))
    base, one, other = (version_of(store, table) for table in (rows, list(ours), theirs))
    assert merge_rows(base, one, base).tree.root == one.commit_object.root
    assert merge_rows(base, base, other).tree.root == other.commit_object.root
    assert merge_rows(base, one, one).tree.root == one.commit_object.root
    for resolve in (None, "ours", "theirs"):
        try:
            made = merge_rows(base, one, other, resolve=resolve)  # type: ignore[arg-type]
        except MergeConflict:
            assert resolve is None
        else:
            found = rows_of(merged_rows(store, made))
            assert version_of(store, found).commit_object.root == made.tree.root
            assert Diff(store, one.commit, version_of(store, found).commit).stat() or found == list(ours)
