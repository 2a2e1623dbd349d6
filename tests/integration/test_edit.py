"""Edits of rows: what a user is promised of append, upsert, update and delete, keys, races and conditions."""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.keyed import KeyFinder
from leptonstore.dataset.schema import class_label_field
from leptonstore.dataset.splice import Splice, splice
from leptonstore.dataset.where import Filter
from leptonstore.errors import BadInput, Conflict, DuplicateKey, FormatDamaged, RefMissing, SchemaError
from leptonstore.format.node import Part, RowGroup
from leptonstore.store import Store

Make = Callable[..., Source]

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        class_label_field("kind", ["cat", "dog"]),
        pa.field("day", pa.date32()),
        pa.field("score", pa.float64()),
    ]
)
DAY = datetime.date(2024, 1, 1)


def table_of(ids: list[int], text: str = "t") -> pa.Table:
    columns = [
        pa.array(ids, pa.int64()),
        pa.array([None if one % 7 == 0 else f"{text} {one}" for one in ids], pa.string()),
        pa.array([one // 2 % 2 for one in ids], pa.uint8()),
        pa.array([DAY + datetime.timedelta(days=one) for one in ids], pa.date32()),
        pa.array([None if one % 5 == 0 else one / 2 for one in ids], pa.float64()),
    ]
    return pa.table(columns, schema=SCHEMA)


def keyed(store: Store, source_of: Make, table: pa.Table, *key: str) -> Dataset:
    return write_dataset(store, "d", replace(source_of(table, key or ("id",)), keyed=True))


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    """12,000 rows in several row groups, ids even, given in no order."""
    ids = (2 * np.random.default_rng(0).permutation(12_000)).tolist()
    return keyed(store, source_of, table_of(ids))


def ids_of(ds: Dataset) -> list[int]:
    ids: list[int] = ds.to_arrow(["id"]).column(0).to_pylist()
    return ids


def test_a_keyed_table_is_the_set_of_its_rows(store: Store, source_of: Make, ds: Dataset) -> None:
    assert ids_of(ds) == list(range(0, 24_000, 2)) and ds.commit_object.keyed
    other = write_dataset(store, "e", replace(source_of(table_of(list(range(0, 24_000, 2))), ("id",)), keyed=True))
    assert other.commit_object.root == ds.commit_object.root


def test_a_table_is_sorted_by_its_key_in_bounded_memory(
    store: Store, source_of: Make, ds: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on disk, merged block by block, end in the same version; a key that is twice is found across runs."""
    monkeypatch.setattr(limits, "SORT_BYTES", 100_000)
    monkeypatch.setattr(limits, "SORT_BLOCK_BYTES", 5_000)
    ids = (2 * np.random.default_rng(1).permutation(12_000)).tolist()
    source = replace(source_of(table_of(ids), ("id",)), keyed=True)
    assert write_dataset(store, "e", source).commit_object.root == ds.commit_object.root
    twice = replace(source_of(table_of([*ids, ids[5]]), ("id",)), keyed=True)
    with pytest.raises(DuplicateKey, match=rf"row 5 and row 12000 have the same key \(id={ids[5]}\)"):
        write_dataset(store, "e", twice)


def test_an_import_names_file_rows_and_key_of_duplicates(store: Store, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\nx,1\ny,2\nx,3\n")
    with pytest.raises(DuplicateKey, match=r"t\.csv row 0 and t\.csv row 2 have the same key \(a='x'\)"):
        write_dataset(store, "d", open_source(tmp_path / "t.csv", key="a"))
    made = write_dataset(store, "d", open_source(tmp_path / "t.csv", key=("a", "b")))
    assert made.commit_object.keyed and made.to_arrow()["b"].to_pylist() == [1, 3, 2]
    (tmp_path / "n.csv").write_text("a,b\n1,1\n,2\n")
    with pytest.raises(SchemaError, match=r"n\.csv row 1 has no 'a'"):
        write_dataset(store, "n", open_source(tmp_path / "n.csv", key="a"))
    (tmp_path / "f.csv").write_text("a,b\n1.5,1\n")
    with pytest.raises(SchemaError, match="'a' of type double cannot be a key"):
        write_dataset(store, "n", open_source(tmp_path / "f.csv", key="a"))
    assert [one.split("/")[1] for one in store.state.refs] == ["d"]


def test_duplicates_in_several_files_are_told_by_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for name, ids in (("a", [5, 6]), ("b", [7, 8, 6])):
        pq.write_table(pa.table({"id": ids}), tmp_path / "t" / f"{name}.parquet")
    with pytest.raises(DuplicateKey, match=r"a\.parquet row 1 and b\.parquet row 2 have the same key \(id=6\)"):
        write_dataset(store, "d", open_source(tmp_path / "t", key="id"))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, -1, 0, 2**62, -(2**62)], pa.int64()),
        pa.array(["b", "", "a\0b", "a", "é", "z" * 90, "z" * 89 + "y"], pa.string()),
        pa.array([b"\xff", b"", b"\0", b"\0\0", b"\xff\0"], pa.large_binary()),
        pa.array([True, False]),
        pa.array([datetime.datetime(1969, 1, 1), datetime.datetime(2024, 1, 1)], pa.timestamp("us")),
        pa.array([b"ab", b"\0z", b"zz"], pa.binary(2)),
    ],
)
def test_keys_are_in_the_order_of_their_values(store: Store, source_of: Make, values: pa.Array) -> None:
    """Alone, and before another column of the key."""
    plain = values.to_pylist()
    order = sorted(range(len(plain)), key=lambda at: plain[at].encode() if isinstance(plain[at], str) else plain[at])
    one = keyed(store, source_of, pa.table({"k": values}), "k")
    assert one.to_arrow()["k"].to_pylist() == [plain[at] for at in order]
    doubled = pa.table({"k": pa.concat_arrays([values, values]), "n": pa.array([1, 0] * len(values))})
    seen = sorted(zip(doubled["k"].to_pylist(), doubled["n"].to_pylist(), strict=True), key=repr)
    if len(set(map(repr, seen))) == len(seen):
        two = write_dataset(store, "two", replace(source_of(doubled, ("k", "n")), keyed=True))
        assert two.to_arrow()["k"].to_pylist() == [plain[at] for at in order for _ in range(2)]


def test_append_puts_rows_at_the_end_or_where_their_keys_belong(store: Store, source_of: Make, ds: Dataset) -> None:
    more = ds.append(table_of([7, 30_001, 5]), message="three", author="ada")
    assert ids_of(more) == sorted([*range(0, 24_000, 2), 5, 7, 30_001])
    assert [parent.hex() for parent in more.commit_object.parents] == [ds.commit]
    assert more.commit_object.message == "three" and store.state.refs["dataset/d/main"].author == "ada"
    with pytest.raises(DuplicateKey, match=r"has a row with the key id=8 already \(row 6\)"):
        more.append(table_of([3, 8]))
    assert Dataset.open(store, "d").commit == more.commit
    plain = write_dataset(store, "p", source_of(table_of([3, 1]), ("id",)))
    assert ids_of(plain.append(table_of([2]))) == [3, 1, 2]
    assert ids_of(plain.append([{"id": 9, "kind": "dog"}])) == [3, 1, 2, 9]


def test_a_keyed_version_whose_nodes_have_no_keys_is_damaged(store: Store, source_of: Make, ds: Dataset) -> None:
    """Else every key would be taken for a new one."""
    plain = write_dataset(store, "p", source_of(table_of(list(range(12_000))), ("id",)))
    plain._commit_object = replace(plain.commit_object, keyed=True)
    with pytest.raises(FormatDamaged, match="a tree node has none"):
        KeyFinder(store, plain.commit_object, "p").find(b"x")


def test_a_splice_that_breaks_the_order_of_keys_is_refused(ds: Dataset) -> None:
    for rows in (table_of([9]), table_of([4])):
        with pytest.raises(BadInput, match=r"not in the order of their key \(id\)"):
            splice(ds, [Splice(3, 0, rows)])
    assert splice(ds, [Splice(3, 0, table_of([5]))]).rows == 12_001


def test_upsert_replaces_and_inserts(ds: Dataset) -> None:
    new = ds.upsert(table_of([4, 3, 23_998, 50_000, 6], "new"))
    assert ids_of(new) == sorted({*range(0, 24_000, 2), 3, 50_000})
    text = dict(zip(ids_of(new), new.to_arrow(["text"])["text"].to_pylist(), strict=True))
    assert text[4] == "new 4" and text[3] == "new 3" and text[8] == "t 8" and text[50_000] == "new 50000"
    assert new.upsert(table_of([4, 3], "new")).commit == new.commit  # nothing changes, so nothing is made
    with pytest.raises(DuplicateKey, match="same key"):
        new.upsert(table_of([4, 4]))


def test_upsert_and_delete_again_end_in_the_root_of_before(ds: Dataset) -> None:
    new = ds.upsert(table_of([1, 4, 9001], "new"))
    back = new.upsert(table_of([4])).delete(keys=pa.table({"id": [1, 9001, 77]}))
    assert back.commit_object.root == ds.commit_object.root and back.commit != ds.commit


def test_update_sets_some_columns(ds: Dataset) -> None:
    new = ds.update(pa.table({"score": [1.5, 2.5], "id": [40, 2]}))
    rows = new.to_arrow().to_pylist()
    assert rows[1] == {**ds[1], "score": 2.5} and rows[20] == {**ds[20], "score": 1.5} and rows[2] == ds[2]
    with pytest.raises(SchemaError, match="no row with the key id=3"):
        ds.update(pa.table({"id": [3], "score": [0.0]}))
    with pytest.raises(SchemaError, match="no column 'id', which is the key"):
        ds.update(pa.table({"score": [0.0]}))


CONDITIONS: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
    ("id < 100", lambda row: row["id"] < 100),
    ("id between 11000 and 12000", lambda row: 11_000 <= row["id"] <= 12_000),
    ("kind = 'cat'", lambda row: row["kind"] == 0),
    ("not (id >= 100) and score is null", lambda row: row["id"] < 100 and row["score"] is None),
    ("id in (2, 4, 23998) or text like '% 11'", lambda row: row["id"] in (2, 4, 23_998)),
    ("day >= date '2024-06-01' and day < '2024-07-01'", lambda row: row["id"] in range(152, 182)),
    ("score > 11990.5", lambda row: row["score"] is not None and row["score"] > 11_990.5),
    ("not (score < 11990)", lambda row: row["score"] is not None and row["score"] >= 11_990),
    ("-3 < id and id <= 7", lambda row: row["id"] <= 7),
    ("id not in (2, 4)", lambda row: row["id"] not in (2, 4)),
    (pc.field("id") + pc.scalar(1) < 5, lambda row: row["id"] + 1 < 5),
    (pc.field("text").is_null(), lambda row: row["text"] is None),
    ("id <> 4 or id = 4", lambda row: True),
    ("id > 99999", lambda row: False),
]


@pytest.mark.parametrize(("where", "holds"), CONDITIONS, ids=[str(where) for where, _ in CONDITIONS])
def test_delete_takes_out_what_a_condition_holds_for(
    ds: Dataset, where: Any, holds: Callable[[dict[str, Any]], bool]
) -> None:
    rows = ds.to_arrow().to_pylist()
    left = ds.delete(where=where)
    assert ids_of(left) == [row["id"] for row in rows if not holds(row)]
    assert left.commit == ds.commit or len(left) < len(ds)


def test_bounds_spare_row_groups_that_a_condition_cannot_hold_in(ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    from leptonstore.dataset import edit

    real = edit.read_column
    monkeypatch.setattr(edit, "read_column", lambda *args: read.append(args[3]) or real(*args))
    assert sum(len(rows) for rows in edit.matching(ds, "id = 20000 or id = 20002")) == 2
    assert len(read) == 1 and len(ds.leaves.digests) > 2


def test_a_condition_reads_its_columns_only() -> None:
    schema = pa.schema([("i", pa.int64()), ("id", pa.int64()), ("image id", pa.int64()), ("d", pa.int64())])
    assert Filter(schema, "id = 1").columns == ["id"]
    assert Filter(schema, '"image id" in (1, 2) and i < 3').columns[:1] == ["i"]
    assert Filter(schema, pc.field("d") + 1 < 5).columns == ["d"]


@pytest.mark.parametrize(
    "where",
    ["__import__('os').system('x') = 1", "id = (select 1)", "id", "1 = 1; drop table d", "id +", "length(text) > 3", "d.id = 1", ""],
)  # fmt: skip
def test_conditions_that_are_not_understood_are_refused(ds: Dataset, where: str) -> None:
    with pytest.raises(BadInput):
        ds.delete(where=where)


def test_conditions_name_what_does_not_fit(ds: Dataset) -> None:
    with pytest.raises(SchemaError, match="no column 'nope'"):
        ds.delete(where="nope = 1")
    with pytest.raises(BadInput, match="no class 'cow'; it has cat, dog"):
        ds.delete(where="kind = 'cow'")
    with pytest.raises(BadInput, match="'x' is no value of column 'id'"):
        ds.delete(where="id = 'x'")
    with pytest.raises(SchemaError, match="does not fit"):
        ds.delete(where=pc.field("nope") == 1)


def _left(store: Store, source_of: Make, values: pa.Array, where: Any) -> list[Any]:
    """What is left of a column `v` when the rows of a condition are deleted."""
    table = pa.table([pa.array(range(len(values)), pa.int64()), values], names=["id", "v"])
    left: list[Any] = (
        write_dataset(store, "left", source_of(table, ("id",))).delete(where=where).to_arrow(["v"])["v"].to_pylist()
    )
    return left


def test_not_in_is_not_true_for_null(store: Store, source_of: Make) -> None:
    names = pa.array(["a", "b", None])
    for where in ("v not in ('a')", "not (v in ('a'))"):
        assert _left(store, source_of, names, where) == ["a", None]
    assert _left(store, source_of, names, "v not in ('x')") == [None]
    assert _left(store, source_of, names, "v not like 'a%'") == ["a", None]  # sqlglot writes it unlike the other two


def test_in_leaves_out_what_the_column_cannot_hold(store: Store, source_of: Make) -> None:
    few = pa.array([20, 21, None], pa.int8())
    assert _left(store, source_of, few, "v in (20.9, 300)") == [20, 21, None]
    assert _left(store, source_of, few, "v in (20.0, 300)") == [21, None]
    assert _left(store, source_of, few, "v not in (20.9, 300)") == [None]
    assert _left(store, source_of, pa.array([0.0, -0.0, 1.0]), "v in (0)") == [1.0]  # Arrow's sets tell 0 from -0
    for values, where in ((pa.array(["5"]), "v in (5)"), (few, "v in (true)"), (pa.array([True]), "v in (1)")):
        with pytest.raises(BadInput, match="is no value of column 'v'"):
            _left(store, source_of, values, where)


def test_a_number_is_compared_with_decimals_unrounded(store: Store, source_of: Make) -> None:
    small, large, three = Decimal("0.25"), Decimal("0.26"), Decimal("3.00")
    prices = pa.array([small, large, three], pa.decimal128(10, 2))
    assert _left(store, source_of, prices, "v >= 0.254") == [small]
    assert _left(store, source_of, prices, "v = 0.255 or v in (0.254)") == [small, large, three]
    assert _left(store, source_of, prices, "v < 3") == [three]
    assert _left(store, source_of, prices, "v < 1e999999") == []
    assert _left(store, source_of, prices, "v between 0.255 and 3") == [small]


def test_a_column_named_by_its_position_is_the_one_of_the_schema(store: Store, source_of: Make) -> None:
    values = pa.array([10, 20, 30, 40])
    assert _left(store, source_of, values, pc.field(1) > 20) == [10, 20]
    with pytest.raises(SchemaError, match="does not fit"):
        _left(store, source_of, values, pc.field(2) > 2)  # no column; the number of the row was added there


def test_integers_above_all_of_an_int64_are_compared(store: Store, source_of: Make) -> None:
    most = 2**64 - 1
    hashes = pa.array([most, 2**63, 5], pa.uint64())
    assert _left(store, source_of, hashes, "v = 5") == [most, 2**63]
    assert _left(store, source_of, hashes, f"v = {most} or v in ({2**63})") == [5]
    assert _left(store, source_of, hashes, "v > -1 and v > id") == []
    assert _left(store, source_of, hashes, f"v > {2**64}") == [most, 2**63, 5]
    with pytest.raises(BadInput, match="cannot be computed"):
        _left(store, source_of, hashes, pc.field("v") == 5)  # Arrow takes this 5 for an int64


def test_bounds_spare_row_groups_that_a_list_cannot_hold_in() -> None:
    schema = pa.schema([("v", pa.uint64())])

    def may_hold(where: str, low: int, high: int) -> bool:
        part = Part(bytes(32), 2, 0, 0, bounds=struct.pack("<QQ", low, high))
        return Filter(schema, where).may_hold(RowGroup(2, ((part,),)))

    top = 2**63
    assert may_hold(f"v in (1, {top + 5})", top, top + 9) and not may_hold(f"v in (1, {top + 5})", top, top + 4)
    assert may_hold("v not in (1)", 1, 2) and may_hold("v in (1)", 1, 1) and not may_hold("v in (2, 3)", 4, 9)
    assert may_hold("v not in (0.5)", 1, 2) and not may_hold("v in (0.5)", 0, 1)
    assert may_hold("v > 4.5", 1, 5) and not may_hold("v > 5.5", 1, 5)


def test_delete_by_row_numbers(store: Store, ds: Dataset) -> None:
    assert ids_of(ds.delete(rows=[0, 3, 11_999])) == [one for one in range(0, 24_000, 2) if one not in (0, 6, 23_998)]
    with pytest.raises(Conflict, match="open the branch again"):
        ds.delete(rows=[0])  # these numbers mean another version by now
    with pytest.raises(BadInput, match="out of range"):
        Dataset.open(store, "d").delete(rows=[99_999])
    with pytest.raises(BadInput, match="one of these only"):
        ds.delete(where="id = 1", rows=[1])


def test_delete_by_a_list_of_keys(store: Store, source_of: Make, ds: Dataset) -> None:
    for keys in ([2, 7], (2,), np.array([2, 9]), pa.array([2]), pa.chunked_array([[2], [5]]), [{"id": 2}]):
        assert ids_of(ds.delete(keys=keys))[:3] == [0, 4, 6]
        ds = Dataset.open(store, "d").upsert(table_of([2]))
    two = write_dataset(store, "two", replace(source_of(table_of([1, 2]), ("id", "kind")), keyed=True))
    with pytest.raises(BadInput, match="the key of two is id, kind"):
        two.delete(keys=[1])
    with pytest.raises(SchemaError, match="'id' is int64"):
        ds.delete(keys=["x"])


def test_everything_can_be_deleted_and_rows_come_back(ds: Dataset) -> None:
    none = ds.delete(where="id >= 0")
    assert len(none) == 0 and none.commit_object.root is None
    assert ids_of(none.upsert(table_of([2, 1]))) == [1, 2]


def test_an_edit_that_loses_the_race_is_made_again(store: Store, source_of: Make, ds: Dataset) -> None:
    """Both writers' rows are there, in a line of commits."""
    other = Dataset.open(Store.open(store.url), "d")
    plain = table_of([1])

    def batches() -> Any:
        if len(Dataset.open(other.store, "d")) == 12_000:
            other.append(table_of([3]))  # while ours is being read
        return iter(plain.to_batches())

    mine = ds.append(Source(SCHEMA, ("id",), batches))
    assert {1, 3} <= set(ids_of(mine)) and len(mine) == 12_002
    assert ids_of(ds.append(table_of([5])))[:4] == [0, 1, 2, 3]  # from an old version: the newest is edited


def test_two_writers_that_append_equal_rows_both_have_theirs(store: Store, source_of: Make) -> None:
    """Their commits are the same bytes: the loser once took the winner's for its own."""
    plain = write_dataset(store, "p", source_of(table_of([1]), ("id",)))
    other = Dataset.open(Store.open(store.url), "p")
    rows = table_of([2])

    def batches() -> Any:
        if len(Dataset.open(other.store, "p")) == 1:
            other.append(Source(SCHEMA, ("id",), lambda: iter(rows.to_batches())))
        return iter(rows.to_batches())

    assert ids_of(plain.append(Source(SCHEMA, ("id",), batches))) == [1, 2, 2]


def test_rows_that_can_be_read_once_are_never_lost(store: Store, ds: Dataset) -> None:
    """Made again, an append of a reader that was read already would append nothing, and say nothing."""
    other = Dataset.open(Store.open(store.url), "d")

    def batches() -> Any:
        other.append(table_of([3]))  # while ours is being read
        yield from table_of([1]).to_batches()

    with pytest.raises(Conflict, match="moved by another writer"):
        ds.append(pa.RecordBatchReader.from_batches(SCHEMA, batches()))
    head = Dataset.open(store, "d")
    assert 1 not in ids_of(head)
    assert 1 in ids_of(head.append(pa.RecordBatchReader.from_batches(SCHEMA, table_of([1]).to_batches())))


def test_only_the_newest_version_of_a_branch_is_edited(store: Store, ds: Dataset) -> None:
    with pytest.raises(RefMissing, match="is no branch"):
        Dataset.open(store, f"d@{ds.commit[:10]}").append(table_of([1]))
    with pytest.raises(BadInput, match="selection"):
        ds.select([1]).delete(rows=[0])


def test_rows_that_do_not_fit_are_named(store: Store, source_of: Make, ds: Dataset) -> None:
    with pytest.raises(SchemaError, match="'extra' is not in the dataset"):
        ds.append(table_of([1]).append_column("extra", pa.array([1])))
    with pytest.raises(SchemaError, match="row 1 has no 'id'"):
        ds.append(pa.table({"id": [1, None], "kind": ["cat", "dog"]}))
    with pytest.raises(SchemaError, match="'kind' is missing"):
        ds.append([{"id": 1}])
    with pytest.raises(SchemaError, match="row 1: 'cow' is no class of 'kind'; it has cat, dog"):
        ds.append(pa.table({"id": [1, 3], "kind": ["cat", "cow"]}))
    with pytest.raises(SchemaError, match="'id' is int64, and values of type double near row 0 do not fit"):
        ds.append(pa.table({"id": [1.5], "kind": ["cat"]}))
    plain = write_dataset(store, "p", source_of(table_of([1]), ("id",)))
    for edit in (lambda: plain.upsert(table_of([1])), lambda: plain.delete(keys=pa.table({"id": [1]}))):
        with pytest.raises(BadInput, match="has no key"):
            edit()
    assert Dataset.open(store, "d").commit == ds.commit


def test_what_an_edit_reads_is_little(ds: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key of 12,000: its row group and the nodes above, not the table."""
    store.flush()
    read: list[bytes] = []
    fresh = Dataset.open(store, "d")
    get = store.get
    monkeypatch.setattr(store, "get", lambda digest: read.append(digest) or get(digest))
    fresh.upsert(table_of([4_001]))
    assert len(read) < 40
