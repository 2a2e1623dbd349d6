"""Branches, tags, merges, restores and reverts of a real store: what is promised of them, also after gc, forget and every failure."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, delete_ref, list_refs, write_dataset
from leptonstore.dataset.branches import create_ref, remove_ref
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.graph import merge_bases
from leptonstore.dataset.integrate import merge, restore, revert
from leptonstore.dataset.refs import resolve_ref
from leptonstore.dataset.rules import Rule, with_rules
from leptonstore.errors import BadInput, Conflict, MergeConflict, RefMissing, RuleBroken
from leptonstore.format.node import InternalNode, parse_node
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.store.gc import collect
from tests.property.history_data import SCHEMA, Row, commit_rows, rows_of, small_trees, table_of, version_of

BASE = [Row(at, at % 3, f"row {at} " * (at % 9)) for at in range(60)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_trees(monkeypatch)


def changed(rows: list[Row], at: int, **values: object) -> list[Row]:
    return [row._replace(**values) if number == at else row for number, row in enumerate(rows)]  # type: ignore[arg-type]


def heads(store: Store) -> dict[str, str]:
    store.refresh()
    return {name: record.commit for name, record in store.state.refs.items()}


@pytest.fixture
def unmoved(store: Store) -> Iterator[Callable[[], None]]:
    """A function that says that no ref has moved since it was last called; called at the end, too."""
    seen = [heads(store)]

    def check() -> None:
        assert heads(store) == seen[0]

    yield lambda: seen.__setitem__(0, heads(store))
    check()


@pytest.fixture
def parted(store: Store) -> tuple[Dataset, Dataset, Dataset]:
    """(what main and side parted from, main's head, side's head), of a keyed table."""
    base = commit_rows(store, BASE, keyed=True)
    create_ref(store, "dataset", "d", "side", base.commit)
    ours = commit_rows(store, changed(BASE, 5, x=100), keyed=True, message="ours")
    theirs = commit_rows(store, changed(BASE[:40], 30, text="theirs"), "side", keyed=True, message="theirs")
    return base, ours, theirs


# -- names --------------------------------------------------------------------------------------------------------------


def test_a_version_is_named_by_steps_back(store: Store) -> None:
    found = [commit_rows(store, BASE[: at + 3]).commit for at in range(4)]
    for spec, expected in {
        "d": 3, "d@main": 3, "d~": 2, "d~1": 2, "d@main~2": 1, "d^": 2, "d@main^^": 1, "d^~2": 0, "d@main~3": 0, "d~0": 3, "d^0": 3,
        f"d@{found[2][:10]}~1": 1,
    }.items():  # fmt: skip
        assert resolve_ref(store, "dataset", spec)[2] == found[expected], spec
    assert Dataset.open(store, "d@main~2").ref == "main~2"
    for spec, said in {
        "d~4": "is the first", "d^2": "has 1 parent,", "d@nope": "its refs: main", "e": "there is: d", "d@~x": "no version",
        "d@main@": "not a date", "": "dataset name",
    }.items():  # fmt: skip
        with pytest.raises((RefMissing, BadInput), match=said):
            resolve_ref(store, "dataset", spec)


def test_what_another_process_published_meanwhile_is_found(store: Store) -> None:
    first = commit_rows(store, BASE)
    with Store.open(store.url) as other:  # as another process would see it
        assert Dataset.open(store, "d").commit == first.commit
        create_ref(other, "dataset", "d", "v1", first.commit, tag=True)
        newer = commit_rows(other, BASE[:5], "side")
        assert Dataset.open(store, "d@v1").commit == first.commit  # a miss looks again
        assert Dataset.open(store, "d@side").commit == newer.commit
        with pytest.raises(RefMissing, match="its refs: main, side, v1"):
            Dataset.open(store, "d@nope")


def test_the_other_parent_of_a_merge_has_a_name(store: Store, parted: tuple[Dataset, ...]) -> None:
    base, ours, theirs = parted
    merge(store, "d@side", "d")
    assert resolve_ref(store, "dataset", "d^1")[2] == ours.commit
    assert resolve_ref(store, "dataset", "d^2")[2] == theirs.commit
    assert resolve_ref(store, "dataset", "d^2~1")[2] == base.commit


def test_a_date_names_what_a_branch_was_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()

    def at(text: str) -> None:
        stamp = datetime.datetime.fromisoformat(text).timestamp()
        monkeypatch.setattr(time, "time_ns", lambda: int(stamp * 1e9))

    at("2025-03-01T10:00")
    first = commit_rows(store, BASE[:10]).commit
    at("2025-03-02T10:00")
    second = commit_rows(store, BASE[:20]).commit
    create_ref(store, "dataset", "d", "other", first)
    at("2025-03-05T10:00")
    third = commit_rows(store, BASE[:30]).commit
    monkeypatch.undo()
    for spec, expected in {
        "d@2025-03-01": first, "d@2025-03-02T09:59": first, "d@2025-03-02T10:01": second, "d@2025-03-04": second,
        "d@2025-03-05": third, "d@2025-03-05~1": second, "d@main@2025-03-03": second, "d@other@2025-03-05": first,
        f"d@{datetime.datetime.fromtimestamp(now):%Y-%m-%d}": third,
    }.items():  # fmt: skip
        assert resolve_ref(store, "dataset", spec)[2] == expected, spec
    for spec, said in {
        "d@2025-02-28": "did not exist at 2025-02-28; it began at 2025-03-01", "d@other@2025-03-01": "did not exist",
        "d@2999-01-01": "future", "d@2025-13-01": "not a date", "d@nope@2025-03-05": "refs of dataset 'd' now: main, other",
        "d@main@yesterday": "not a date",
    }.items():  # fmt: skip
        with pytest.raises((RefMissing, BadInput), match=said):
            resolve_ref(store, "dataset", spec)


def test_a_version_of_a_date_that_was_forgotten_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = datetime.datetime.fromisoformat("2025-03-01T10:00").timestamp()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", lambda: int(stamp * 1e9))
        first = commit_rows(store, [Row(at + 500) for at in range(30)])
    for count in range(11, 14):
        commit_rows(store, BASE[:count])
    forget_all_but(store, "dataset", "d", 1)
    with pytest.raises(RefMissing, match=rf"what dataset/d/main was at 2025-03-01 \({first.commit}\) was forgotten"):
        resolve_ref(store, "dataset", "d@2025-03-01")
    with pytest.raises(RefMissing, match=r"history before version \w+ was forgotten"):
        resolve_ref(store, "dataset", "d~1")
    create_ref(store, "dataset", "d", "saved", resolve_ref(store, "dataset", f"d@{first.commit}")[2])
    collect(store)
    assert rows_of(Dataset.open(store, "d@2025-03-01")) == rows_of(first)
    remove_ref(store, "dataset", "d", "saved", tag=False, force=True)
    collect(store)
    for spec in ("d@2025-03-01", f"d@{first.commit}"):
        with pytest.raises(RefMissing, match=r"was forgotten|no version"):
            resolve_ref(store, "dataset", spec)


def test_places_in_history_are_not_written_to(store: Store, source_of: Callable[..., object]) -> None:
    commit_rows(store, BASE[:10])
    for branch in ("2025-03-01", "a" * 64):
        with pytest.raises(BadInput, match="reads as a date or a commit"):
            write_dataset(store, "d", source_of(table_of(BASE), ("id",)), branch=branch)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match="reads as a date or a commit"):
            create_ref(store, "dataset", "d", branch, heads(store)["dataset/d/main"])
    with pytest.raises(BadInput, match="place in history"):
        merge(store, "d", "d@main~1")


# -- branches and tags ----------------------------------------------------------------------------------------------------


def test_a_tag_never_moves_and_can_be_removed(store: Store, source_of: Callable[..., object], tmp_path: Path) -> None:
    first = commit_rows(store, BASE[:10])
    create_ref(store, "dataset", "d", "v1", first.commit, tag=True)
    second = commit_rows(store, BASE[:20])
    with pytest.raises(BadInput, match="d@v1 is a tag, which never moves"):
        write_dataset(store, "d", source_of(table_of(BASE), ("id",)), branch="v1")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="is a tag, which never moves"):
        store.publish("x", lambda state: (RefUpdate("dataset/d/v1", first.commit, second.commit),))
    with pytest.raises(BadInput, match="is a tag"):
        merge(store, "d", "d@v1")
    with pytest.raises(BadInput, match="is a tag"):
        Dataset.open(store, "d@v1").append(table_of([Row(99)]))
    with Store.open(store.url) as again:
        assert [info.branch for info in list_refs(again, "dataset", "d") if info.tag] == ["v1"]
        assert Dataset.open(again, "d@v1").commit == first.commit
    delete_ref(store, "dataset", "d", "v1")
    create_ref(store, "dataset", "d", "v1", second.commit)
    assert commit_rows(store, BASE[:30], "v1").commit != second.commit, "the name is free for a branch"


def test_a_tag_is_one_also_when_the_store_is_opened_from_a_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_SNAPSHOT_EVERY", 2)
    first = commit_rows(store, BASE[:10])
    create_ref(store, "dataset", "d", "v1", first.commit, tag=True)
    for count in range(11, 16):
        commit_rows(store, BASE[:count])
    assert store.home.documents("snapshots")
    with Store.open(store.url) as again:
        assert {info.branch: info.tag for info in list_refs(again)} == {"main": False, "v1": True}


def test_names_are_taken_once(store: Store) -> None:
    first, second = commit_rows(store, BASE[:10]), commit_rows(store, BASE[:20])
    create_ref(store, "dataset", "d", "x", first.commit)
    sequence = store.state.sequence
    create_ref(store, "dataset", "d", "x", first.commit)
    assert store.state.sequence == sequence, "asking again changes nothing"
    for commit, tag in ((second.commit, False), (first.commit, True)):
        with pytest.raises(BadInput, match="d@x is a branch already"):
            create_ref(store, "dataset", "d", "x", commit, tag)
    with pytest.raises(RefMissing, match="is not in"):
        create_ref(store, "dataset", "d", "y", "ab" * 32)
    with pytest.raises(BadInput, match="is a dataset, no model"):
        create_ref(store, "model", "d", "y", first.commit)


def test_removing_a_branch_loses_no_version_unawares(store: Store, parted: tuple[Dataset, ...]) -> None:
    _, _, theirs = parted
    with pytest.raises(BadInput, match="1 versions that no other branch or tag leads to"):
        remove_ref(store, "dataset", "d", "side", tag=False)
    with pytest.raises(BadInput, match="is a branch: remove it with `lepton branch -d"):
        remove_ref(store, "dataset", "d", "side", tag=True)
    with pytest.raises(RefMissing, match="no branch 'nope'; there is: main, side"):
        remove_ref(store, "dataset", "d", "nope", tag=False)
    assert remove_ref(store, "dataset", "d", "side", tag=False, force=True) == [theirs.commit]
    merged = commit_rows(store, BASE, "other")
    create_ref(store, "dataset", "d", "again", merged.commit)
    assert remove_ref(store, "dataset", "d", "other", tag=False) == []


def test_a_new_branch_or_tag_writes_no_data(store: Store) -> None:
    found = commit_rows(store, BASE)
    before = store.put_bytes, store.new_bytes
    found.branch("side").tag("v1")
    assert (store.put_bytes, store.new_bytes) == before
    assert {info.branch for info in list_refs(store)} == {"main", "side", "v1"}


# -- merge ----------------------------------------------------------------------------------------------------------------


def test_a_merge_has_two_parents_and_survives_gc(store: Store, parted: tuple[Dataset, ...]) -> None:
    base, ours, theirs = parted
    done = merge(store, "d@side", "d", message="both")
    assert (done.how, done.base, done.changed, done.removed, done.added) == ("merged", base.commit, 1, 20, 0)
    head = Dataset.open(store, "d")
    assert [parent.hex() for parent in head.commit_object.parents] == [ours.commit, theirs.commit]
    expected = changed(changed(BASE, 5, x=100)[:40], 30, text="theirs")
    assert rows_of(head) == expected
    assert head.commit_object.root == version_of(store, expected, keyed=True).commit_object.root
    assert merge(store, "d@side", "d").how == "nothing to do"
    assert head.history()[0].digest == head.commit and len(head.history()) == 4
    remove_ref(store, "dataset", "d", "side", tag=False)
    collect(store)
    with Store.open(store.url) as again:
        assert check_store(again, read_data=True).clean
        assert rows_of(Dataset.open(again, "d")) == expected and rows_of(Dataset.open(again, "d^2")) == rows_of(theirs)


def test_history_is_methods_of_a_dataset(store: Store) -> None:
    base = commit_rows(store, BASE, keyed=True, message="first")
    base.tag("v1")
    side = base.branch("side").upsert(table_of([Row(100, 1, "new")]), message="one more")
    main = base.delete(rows=[3])
    assert [(change.kind, change.key["id"]) for change in base.diff(side).rows()] == [("added", 100)]
    assert base.diff("d@v1").stat().to_json()["schema"] == {} and not base.diff(base)
    merged = main.merge(side, message="both")
    assert (merged.ref, len(merged)) == ("main", len(BASE)) and Dataset.open(store, "d").commit == merged.commit
    found = merged.history()
    assert [one.commit.message for one in found] == ["both", "one more", "delete 1 rows", "first"]
    assert found[-1].refs == ("d@v1 (tag)",) and found[0].published is not None
    with pytest.raises(BadInput, match="place in history"):
        Dataset.open(store, "d~1").merge(side)


def test_a_branch_that_only_has_to_move_moves(store: Store) -> None:
    base = commit_rows(store, BASE[:10])
    base.branch("side")
    later = commit_rows(store, BASE[:20], "side")
    done = merge(store, "d@side", "d")
    assert (done.how, done.commit) == ("fast-forward", later.commit)
    assert heads(store)["dataset/d/main"] == later.commit
    base.branch("third")
    done = merge(store, "d@side", "d@third", fast_forward=False)
    made = Dataset.open(store, "d@third").commit_object
    assert done.how == "merged" and made.root == later.commit_object.root and len(made.parents) == 2


def test_a_conflict_writes_nothing_and_is_told_row_by_row(
    store: Store, parted: tuple[Dataset, ...], unmoved: Callable[[], None]
) -> None:
    commit_rows(store, changed(changed(BASE, 5, x=100), 30, text="ours"), keyed=True)
    unmoved()
    with pytest.raises(MergeConflict, match="1 rows were changed on both sides") as caught:
        merge(store, "d@side", "d")
    (found,) = caught.value.conflicts
    assert (found.key, found.columns) == ({"id": 30}, ("text",))
    assert (found.base, found.ours, found.theirs) == ({"text": BASE[30].text}, {"text": "ours"}, {"text": "theirs"})
    with pytest.raises(BadInput, match="NAME"):
        merge(store, "d@side", "d@main~1")


def test_a_side_can_be_chosen_for_conflicts(store: Store, parted: tuple[Dataset, ...]) -> None:
    ours = commit_rows(store, changed(changed(BASE, 5, x=100), 30, text="ours"), keyed=True)
    ours.branch("copy")
    assert merge(store, "d@side", "d", resolve="theirs").resolved == 1
    assert rows_of(Dataset.open(store, "d"))[30].text == "theirs"
    assert merge(store, "d@side", "d@copy", resolve="ours").resolved == 1
    assert rows_of(Dataset.open(store, "d@copy"))[30].text == "ours"


def test_unrelated_histories_are_refused_by_name(store: Store, unmoved: Callable[[], None]) -> None:
    one = commit_rows(store, BASE[:10])
    commit_rows(store, BASE[5:15], "alien")
    unmoved()
    with pytest.raises(BadInput, match="unrelated histories"):
        merge(store, "d@alien", "d")
    with pytest.raises(RefMissing, match="its refs: alien, main"):
        merge(store, "d@nope", "d")
    with pytest.raises(RefMissing, match="its refs: alien, main"):
        merge(store, "d@alien", "d@nope")
    with pytest.raises(RefMissing, match="is a version, no branch"):
        merge(store, "d@alien", f"d@{one.commit[:10]}")


def test_histories_that_forgot_where_they_parted_say_so(store: Store, parted: tuple[Dataset, ...]) -> None:
    base, _, _ = parted
    base.tag("start")
    forget_all_but(store, "dataset", "d", 1)
    with pytest.raises(BadInput, match="was forgotten, and with it maybe what they share"):
        merge(store, "d@side", "d")
    assert merge(store, "d@side", "d", base="d@start").how == "merged"


def test_lines_that_were_merged_both_ways_ask_for_a_base(store: Store, parted: tuple[Dataset, ...]) -> None:
    base, ours, theirs = parted
    ours.branch("ours"), theirs.branch("theirs")
    merge(store, "d@theirs", "d@main"), merge(store, "d@ours", "d@side")
    commit_rows(store, changed(rows_of(Dataset.open(store, "d")), 1, x=7), keyed=True)
    commit_rows(store, changed(rows_of(Dataset.open(store, "d@side")), 2, x=8), "side", keyed=True)
    main, side = heads(store)["dataset/d/main"], heads(store)["dataset/d/side"]
    assert set(merge_bases(store, main, side)) == {ours.commit, theirs.commit}
    with pytest.raises(BadInput, match="parted from several versions"):
        merge(store, "d@side", "d")
    assert merge(store, "d@side", "d", base=f"d@{base.commit}").how == "merged"


def test_a_branch_that_moved_meanwhile_is_a_conflict(store: Store, parted: tuple[Dataset, ...]) -> None:
    other = Store.open(store.url)
    moved = []

    def meanwhile(rows: int) -> None:
        if not moved:
            moved.append(commit_rows(other, BASE[:3], keyed=True).commit)

    with pytest.raises(Conflict, match="moved by another writer"):
        merge(store, "d@side", "d", progress=meanwhile)
    assert heads(store)["dataset/d/main"] == moved[0]


def test_merging_and_going_on_with_gc_in_between(store: Store) -> None:
    """Two branches that are merged again and again, history forgotten and gc run in between."""
    commit_rows(store, BASE, keyed=True).branch("side")
    ours = theirs = list(BASE)
    for turn in range(6):
        ours = changed(ours, turn, x=turn + 10)
        theirs = changed(theirs, 50 - turn, text=f"turn {turn}")
        commit_rows(store, ours, keyed=True)
        commit_rows(store, theirs, "side", keyed=True)
        ours = changed(ours, 50 - turn, text=f"turn {turn}")
        assert merge(store, "d@side", "d").how == "merged"
        assert rows_of(Dataset.open(store, "d")) == ours
        theirs = list(ours)
        assert merge(store, "d", "d@side").how == "fast-forward"
        if turn % 2:
            forget_all_but(store, "dataset", "d", 2)
            collect(store)
    assert check_store(store, read_data=True).clean


# -- schemas ----------------------------------------------------------------------------------------------------------------

WIDER = pa.schema([*SCHEMA, pa.field("score", pa.float32())])


def wider(rows: list[Row]) -> pa.Table:
    return table_of(rows).append_column(WIDER.field("score"), pa.array([row.id / 2 for row in rows], pa.float32()))


@pytest.mark.parametrize("swap", [False, True])
def test_a_column_of_one_side_and_rows_of_the_other_merge(store: Store, swap: bool) -> None:
    commit_rows(store, BASE, keyed=True).branch("side")
    column, rows = ("side", "main") if swap else ("main", "side")
    commit_rows(store, wider(changed(BASE, 7, x=77)), column, keyed=True)
    edited = [*changed(BASE, 20, text="new")[1:], Row(200, 1, "z" * 80)]
    commit_rows(store, edited, rows, keyed=True)
    done = merge(store, "d@side", "d")
    assert done.how == "merged" and done.resolved == 0
    expected = wider([*changed(changed(BASE, 7, x=77), 20, text="new")[1:], Row(200, 1, "z" * 80)])
    score = pa.chunked_array([pa.array([*expected.column("score").to_pylist()[:-1], None], pa.float32())])
    expected = expected.set_column(4, WIDER.field("score"), score)
    head = Dataset.open(store, "d")
    assert head.to_arrow().equals(expected) and head.schema.equals(expected.schema, check_metadata=True)
    assert head.commit_object.root == version_of(store, expected, keyed=True).commit_object.root


def test_a_renamed_column_is_followed(store: Store) -> None:
    commit_rows(store, BASE, keyed=True).branch("side")
    Dataset.open(store, "d").rename_columns({"x": "kind", "id": "key"})
    Dataset.open(store, "d").update(pa.table({"key": pa.array([3], pa.int64()), "kind": pa.array([33], pa.int32())}))
    commit_rows(store, changed(BASE, 9, x=99), "side", keyed=True)
    schema = Diff(store, heads(store)["dataset/d/side"], heads(store)["dataset/d/main"]).schema
    assert schema.added and schema.dropped, "no line of first parents joins the two"
    merge(store, "d@side", "d")
    found = Dataset.open(store, "d").to_arrow()
    assert found.column_names == ["key", "kind", "text", "tags"]
    assert (found.column("kind")[3].as_py(), found.column("kind")[9].as_py()) == (33, 99)
    diff = Diff(store, resolve_ref(store, "dataset", "d~3")[2], resolve_ref(store, "dataset", "d")[2])
    assert dict(diff.schema.renamed) == {"x": "kind", "id": "key"} and not diff.schema.added
    assert sorted(change.key["key"] for change in diff.rows()) == [3, 9]


def test_schemas_that_do_not_agree_are_conflicts_by_name(store: Store) -> None:
    base = commit_rows(store, BASE, keyed=True)
    for name, table in {
        "x-edited": table_of(changed(BASE, 1, x=5)), "x-dropped": table_of(BASE).drop_columns(["x"]),
        "x-wide": table_of(BASE).set_column(1, "x", pa.array([row.x for row in BASE], pa.int64())),
        "scored": wider(BASE), "marked": table_of(BASE).append_column("mark", pa.array([1] * 60)), "grown": table_of([*BASE, Row(99)]),
        "must": table_of(BASE).append_column(pa.field("must", pa.int8(), False), pa.array([1] * 60, pa.int8())),
        "unkeyed": table_of(BASE),
    }.items():  # fmt: skip
        base.branch(name)
        commit_rows(store, table, name, keyed=name != "unkeyed")
    before = heads(store)
    for theirs, ours, said in (
        (
            "x-edited",
            "x-dropped",
            "column 'x' was dropped or given another type by ours, and changed in 1 rows by theirs",
        ),
        (
            "x-dropped",
            "x-edited",
            "column 'x' was dropped or given another type by theirs, and changed in 1 rows by ours",
        ),
        ("x-wide", "x-dropped", r"both sides changed the schema \(columns x\)"),
        ("scored", "marked", r"both sides changed the schema \(columns mark, score\)"),
        ("must", "grown", "column 'must', which theirs added, may not be null"),
        ("x-wide", "grown", "column 'x' has another type in theirs"),
        ("grown", "unkeyed", "tell rows apart"),
    ):
        with pytest.raises(MergeConflict, match=said):
            merge(store, f"d@{theirs}", f"d@{ours}")
    assert heads(store) == before
    assert merge(store, "d@x-dropped", "d@grown").how == "merged"
    assert Dataset.open(store, "d@grown").schema.names == ["id", "text", "tags"]


def test_rules_hold_for_what_a_merge_makes(store: Store, unmoved: Callable[[], None]) -> None:
    commit_rows(store, BASE, keyed=True).branch("side")
    small = with_rules(SCHEMA.field("x"), [Rule("range", most=50)])
    ruled = pa.schema([small if one.name == "x" else one for one in SCHEMA])
    commit_rows(store, table_of(BASE, ruled), keyed=True)
    commit_rows(store, changed(BASE, 9, x=99), "side", keyed=True)
    unmoved()
    with pytest.raises(RuleBroken, match="the row with id=9 would break the rule 'range max 50' of column 'x'"):
        merge(store, "d@side", "d")


def test_a_value_that_must_be_unique_is_so_after_a_merge(store: Store, unmoved: Callable[[], None]) -> None:
    text = with_rules(SCHEMA.field("text"), [Rule("unique")])
    ruled = pa.schema([text if one.name == "text" else one for one in SCHEMA])
    rows = [Row(at, 0, f"text {at}") for at in range(20)]
    commit_rows(store, table_of(rows, ruled), keyed=True).branch("side")
    commit_rows(store, table_of([*rows, Row(50, 0, "same")], ruled), keyed=True)
    commit_rows(store, table_of([*rows, Row(60, 0, "same")], ruled), "side", keyed=True)
    unmoved()
    with pytest.raises(RuleBroken, match="column 'text' breaks the rule 'unique' in row 20, 21"):
        merge(store, "d@side", "d")


# -- restore and revert -----------------------------------------------------------------------------------------------------


def test_restore_shares_the_tree_and_keeps_history(store: Store) -> None:
    first = commit_rows(store, BASE)
    commit_rows(store, BASE[:10])
    last = commit_rows(store, BASE[:5])
    before = store.put_bytes
    done = restore(store, "d@main~2")
    head = Dataset.open(store, "d")
    assert done.how == "restored" and head.commit_object.root == first.commit_object.root and rows_of(head) == BASE
    assert [parent.hex() for parent in head.commit_object.parents] == [last.commit]
    assert store.put_bytes - before < 2_000, "a commit, and no row"
    assert restore(store, "d").how == "nothing to do" and restore(store, f"d@{first.commit}").how == "nothing to do"
    last.tag("v0"), last.branch("side")
    assert restore(store, "d@v0").branch == "d@main" and restore(store, "d@side~1").branch == "d@side"
    assert restore(store, "d@v0", "d@side").commit == heads(store)["dataset/d/side"]


def test_revert_undoes_one_version_and_keeps_later_ones(store: Store) -> None:
    commit_rows(store, BASE, keyed=True)
    bad = commit_rows(store, changed(BASE, 3, x=1_000)[:-5], keyed=True, message="bad")
    commit_rows(store, changed(changed(BASE, 3, x=1_000)[:-5], 20, x=7), keyed=True)
    done = revert(store, f"d@{bad.commit[:12]}")
    assert done.how == "reverted" and rows_of(Dataset.open(store, "d")) == changed(BASE, 20, x=7)
    assert Dataset.open(store, "d").commit_object.message == f"revert of {bad.commit[:12]}: bad"
    assert revert(store, f"d@{bad.commit[:12]}").how == "nothing to do"


def test_what_cannot_be_reverted_is_told(store: Store, unmoved: Callable[[], None]) -> None:
    commit_rows(store, BASE, keyed=True)
    commit_rows(store, changed(BASE, 3, x=1_000), keyed=True)
    commit_rows(store, changed(BASE, 3, x=2_000), keyed=True)
    with pytest.raises(MergeConflict, match="1 rows"):
        revert(store, "d~1")
    with pytest.raises(BadInput, match="is the first version"):
        revert(store, "d~2")
    forget_all_but(store, "dataset", "d", 1)
    unmoved()
    with pytest.raises(RefMissing, match="was forgotten"):
        revert(store, "d")


def test_a_merge_is_reverted_against_its_first_parent(store: Store, parted: tuple[Dataset, ...]) -> None:
    _, ours, _ = parted
    merge(store, "d@side", "d")
    revert(store, "d")
    assert Dataset.open(store, "d").commit_object.root == ours.commit_object.root


# -- what a diff reads ----------------------------------------------------------------------------------------------------


class Counted:
    """The digests that are read from a store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[bytes] = []
        record = store.record
        monkeypatch.setattr(store, "record", lambda digest: (self.read.append(digest), record(digest))[1])


def nodes_of(store: Store, version: Dataset) -> dict[bytes, range]:
    """The rows below each node of a tree."""
    out: dict[bytes, range] = {}

    def walk(digest: bytes, first: int) -> None:
        node = parse_node(store.get(digest))
        out[digest] = range(first, first + node.rows)
        for child in node.children if isinstance(node, InternalNode) else ():
            walk(child.digest, first)
            first += child.rows

    walk(version.commit_object.root or b"", 0)
    return out


def test_a_diff_reads_only_what_differs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups that changed, their pages of the column that changed, and nodes above them that the other version has not: each once."""
    rows = [Row(at, at % 7, f"row {at}") for at in range(3_000)]
    wanted = {17, 1_200, 1_201, 2_999}
    one, other = version_of(store, rows), version_of(store, [r._replace(x=100) if r.id in wanted else r for r in rows])
    trees = [nodes_of(store, version) for version in (one, other)]
    parsed = {digest: parse_node(store.get(digest)) for tree in trees for digest in tree}
    own = {digest for tree, others in (trees, trees[::-1]) for digest in tree if digest not in others}
    inner = {digest for digest in own if isinstance(parsed[digest], InternalNode)}
    leaves = own - inner
    assert all(wanted & set(tree[leaf]) for tree in trees for leaf in leaves if leaf in tree)
    pages = {part.digest for leaf in leaves for part in parsed[leaf].columns[1]}  # type: ignore[union-attr]
    counted = Counted(store, monkeypatch)
    diff = Diff(store, one.commit, other.commit)
    assert diff.stat().columns == {"x": 4}
    read = [digest for digest in counted.read if digest.hex() not in (one.commit, other.commit)]
    assert set(read) - inner == leaves | pages and len(read) < len(trees[0]) / 5
    roots = {one.commit_object.root, other.commit_object.root}  # of which the level is asked first
    assert len([digest for digest in read if digest not in roots]) == len(set(read) - roots), "each once"
    counted.read.clear()
    assert {change.key["id"] for change in diff.rows()} == wanted


def test_a_diff_of_an_added_column_reads_no_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = version_of(store, BASE)
    other = version_of(store, wider(BASE))
    pages = {
        part.digest
        for version in (one, other)
        for index in range(len(version.leaves.digests))
        for parts in version.leaves.group(index).columns
        for part in parts
    }
    counted = Counted(store, monkeypatch)
    stat = Diff(store, one.commit, other.commit).stat()
    assert [field.name for field in stat.schema.added] == ["score"] and not (stat.changed or stat.added or stat.removed)
    assert not pages & set(counted.read)


def test_large_values_are_compared_by_digest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(at, 0, f"{at + 10}" * 60) for at in range(30)]
    one, other = version_of(store, rows), version_of(store, changed(rows, 4, text="new " * 60))
    counted = Counted(store, monkeypatch)
    (change,) = Diff(store, one.commit, other.commit).rows()
    assert (change.old["text"].size, change.new["text"].size) == (120, 240)
    assert not {bytes.fromhex(change.old["text"].digest), bytes.fromhex(change.new["text"].digest)} & set(counted.read)
