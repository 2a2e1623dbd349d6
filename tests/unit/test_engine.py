"""The engine on the native runner: the same tree as one writer makes, whatever the step, the ranges and the order of completion."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from engine_steps import Raising, Same, Sieve, Twice, plain, texts
from process_data import write

from leptonstore import limits
from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.tree import Tree
from leptonstore.errors import BadInput, SourceError
from leptonstore.process.engine import Runner, rows_of, write_rows
from leptonstore.store import Store

NATIVE = Runner("native")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as made:
        yield made


def tree_of(store: Store, table: pa.Table, identity: tuple[str, ...] = ("id",), keyed: bool = False) -> Tree:
    source = Source(table.schema, identity, lambda: iter(table.to_batches(999)), keyed=keyed)
    commit = write_dataset(store, "expected", source, branch=f"b{len(store.state.refs)}").commit_object
    return Tree(commit.root, commit.rows, commit.plain_bytes)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ranges in a small dataset."""
    monkeypatch.setattr(limits, "ENGINE_TASK_ROWS", 2_000)


def test_rows_as_they_are_make_the_tree_that_they_came_from(store: Store, small_tasks: None) -> None:
    ds = write(store, "a", texts(20_000, long_every=500), ("id",))
    written = write_rows(ds, Same(ds.schema), ("id",), NATIVE)
    assert written.tree == Tree(ds.commit_object.root, len(ds), ds.commit_object.plain_bytes)
    assert not len(written.findings)


@pytest.mark.parametrize("sieve", [{"by": 3}, {"by": 1}, {"by": 3_000, "stretches": True}, {"by": 20_001}])
def test_rows_that_are_left_out_move_the_cuts_as_for_one_writer(store: Store, small_tasks: None, sieve: dict) -> None:
    table = texts(20_000, long_every=500)
    ds = write(store, "a", table, ("id",))
    step = Sieve(ds.schema, **sieve)
    numbers = np.arange(20_000)
    gone = (numbers // step.by) % 2 == 0 if step.stretches else numbers % step.by == 0
    written = write_rows(ds, step, ("id",), NATIVE)
    assert written.tree == tree_of(store, plain(table, numbers[~gone]))
    assert written.findings["row"].to_pylist() == numbers[gone].tolist()
    assert written.findings["detail"].to_pylist() == [f"row {row}" for row in numbers[gone].tolist()]


def test_large_values_that_a_step_makes_are_stored_like_those_of_one_writer(store: Store, small_tasks: None) -> None:
    table = texts(6_000, long_every=50)
    ds = write(store, "a", table, ("id",))
    schema = ds.schema.append(pa.field("double", pa.string()))
    doubled = table.append_column("double", pa.array([text * 2 for text in table["text"].to_pylist()], pa.string()))
    written = write_rows(ds, Twice(schema), ("id",), NATIVE)
    assert written.tree == tree_of(store, doubled)


def test_rows_of_gives_plain_values_in_row_order_with_the_findings(store: Store, small_tasks: None) -> None:
    table = texts(9_000, long_every=100)
    ds = write(store, "a", table, ("id",))
    seen: list[int] = []
    found, findings = rows_of(ds, Sieve(ds.schema, by=2), NATIVE, seen.append)
    assert found["row"].to_pylist() == list(range(1, 9_000, 2))
    assert found.drop_columns(["row"]).equals(plain(table, np.arange(1, 9_000, 2)))
    assert findings["row"].to_pylist() == list(range(0, 9_000, 2))
    assert seen == sorted(seen) and seen[-1] == 9_000


def test_rows_of_a_view_are_numbered_as_they_stand_in_it(store: Store, small_tasks: None) -> None:
    table = texts(9_000, long_every=100)
    chosen = np.random.default_rng(1).integers(0, 9_000, 7_000)  # in any order, some twice
    view = write(store, "a", table, ("id",)).select(chosen)
    found, _ = rows_of(view, Same(view.schema), NATIVE)
    assert found["row"].to_pylist() == list(range(7_000))
    assert found.drop_columns(["row"]).equals(plain(table, chosen))
    assert write_rows(view, Same(view.schema), ("id",), NATIVE).tree == tree_of(store, plain(table, chosen))


def test_a_version_without_rows(store: Store) -> None:
    ds = write(store, "a", texts(0), ("id",))
    assert write_rows(ds, Same(ds.schema), ("id",), NATIVE).tree == Tree(None, 0, 0)
    assert rows_of(ds, Same(ds.schema), NATIVE)[0].num_rows == 0


def test_what_a_step_raises_arrives_as_itself_and_nothing_is_published(store: Store, small_tasks: None) -> None:
    ds = write(store, "a", texts(20_000), ("id",))
    refs = dict(store.state.refs)
    with pytest.raises(SourceError, match=r"^row 7777 is unreadable$"):
        write_rows(ds, Raising(ds.schema, row=7_777), ("id",), NATIVE)
    with pytest.raises(SourceError, match=r"^row 7777 is unreadable$"):
        rows_of(ds, Raising(ds.schema, row=7_777), NATIVE)
    store.refresh()
    assert store.state.refs == refs


def test_a_keyed_table_is_stitched_or_sorted_as_its_rows_come(store: Store, small_tasks: None) -> None:
    table = texts(12_000, long_every=400)
    ordered = table.sort_by("id")
    source = Source(table.schema, ("id",), lambda: iter(table.to_batches(999)), keyed=True)
    keyed = write_dataset(store, "keyed", source)
    step = Sieve(keyed.schema, by=3)
    kept = plain(ordered, np.flatnonzero(np.arange(12_000) % 3))
    assert write_rows(keyed, step, ("id",), NATIVE, keyed=True).tree == tree_of(store, kept, keyed=True)
    unordered = write(store, "unordered", table, ("id",))
    written = write_rows(unordered, Same(table.schema), ("id",), NATIVE, keyed=True)
    assert written.tree == tree_of(store, table, keyed=True)


def test_a_script_with_the_name_of_a_runner_is_named_instead_of_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`import ray` would run it, which starts a process for Ray, which imports it, and so on."""
    (tmp_path / "ray.py").write_text("raise AssertionError('it was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BadInput, match=r"ray\.py is imported in the place of the package ray: rename it"):
        Runner("ray").require()
