"""Edits of columns, and validation rules: what is written and read, what is refused, and that the rows decide the root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.feed import load_function
from leptonstore.dataset.rules import Rule
from leptonstore.dataset.schema import CODEC, NAMES, PART_BYTES, SEMANTIC
from leptonstore.errors import BadInput, Conflict, RuleBroken, SchemaError
from leptonstore.store import Store

Make = Callable[..., Source]
ROWS = 9_000


def columns_of(rows: int) -> dict[str, pa.Array]:
    rng = np.random.default_rng(0)
    return {
        "id": pa.array(np.arange(rows), pa.int64()),
        "text": pa.array([f"{row} " * 9 for row in range(rows)]),
        "blob": pa.array([rng.bytes(20_000) if row % 500 == 0 else b"x" for row in range(rows)], pa.binary()),
        "score": pa.array(rng.normal(size=rows)),
    }


@pytest.fixture
def ds(store: Store, source_of: Make) -> Dataset:
    made = write_dataset(store, "d", source_of(pa.table(columns_of(ROWS)), ("id",)))
    store.flush()
    return made


def root_of(store: Store, source_of: Make, table: pa.Table, identity: str = "id") -> bytes | None:
    return write_dataset(store, "other", source_of(table, (identity,))).commit_object.root


def pages(ds: Dataset, but: str = "") -> set[bytes]:
    return {
        part.digest
        for index in range(len(ds.leaves.digests))
        for field, parts in zip(ds.schema, ds.leaves.group(index).columns, strict=True)
        for part in parts
        if field.name != but
    }


def test_a_column_is_added_beside_the_others(store: Store, source_of: Make, ds: Dataset) -> None:
    """The root is that of an import with the column; nothing of other columns is read or written."""
    label = pa.array([f"label {row % 10} " * 20 for row in range(ROWS)])
    read: list[bytes] = []
    get = store.get
    store.get = lambda digest: read.append(digest) or get(digest)  # type: ignore[method-assign]
    new = Dataset.open(store, "d").add_column("label", label)
    store.get = get  # type: ignore[method-assign]
    assert not pages(ds) & set(read)
    table = pa.table({**columns_of(ROWS), "label": label})
    assert new.to_arrow().equals(table)
    assert new.commit_object.root == root_of(store, source_of, table)
    assert pages(ds) == pages(new, but="label") and new.commit_object.message == "add column label"


@pytest.mark.parametrize("how", ["numpy", "list", "chunks", "batches", "function", "constant", "table"])
def test_values_of_a_column_may_come_in_many_forms(ds: Dataset, how: str) -> None:
    values: Any = np.arange(ROWS)
    given: dict[str, Any] = {
        "numpy": values,
        "list": values.tolist(),
        "chunks": pa.chunked_array([pa.array(values[:7]), pa.array(values[7:])]),
        "batches": (pa.record_batch({"v": values[at : at + 1_000]}) for at in range(0, ROWS, 1_000)),
        "function": lambda batch: pc.multiply(batch["id"], 1),
        "constant": 7,
        "table": pa.table({"v": values}),
    }
    new = ds.add_column("v", given[how], columns=["id"])
    assert new.to_arrow(["v"])["v"].to_pylist() == ([7] * ROWS if how == "constant" else values.tolist())


def test_a_column_may_stand_anywhere_and_have_a_type(store: Store, ds: Dataset) -> None:
    from leptonstore.dataset.columns import add_column

    field = pa.field("v", pa.int8(), nullable=False, metadata={SEMANTIC: b"class_label", NAMES: b'["a", "b"]'})
    new = add_column(ds, field, ["a", "b"] * (ROWS // 2), at=1)
    assert new.column_names == ["id", "v", "text", "blob", "score"] and new.schema.field("v").equals(field, True)
    assert new.to_arrow(["v"])["v"].to_pylist() == [0, 1] * (ROWS // 2)


def test_values_that_do_not_fit_are_refused(store: Store, ds: Dataset) -> None:
    with pytest.raises(BadInput, match="there are 3 values for the 9000 rows"):
        ds.add_column("v", [1, 2, 3])
    with pytest.raises(BadInput, match="there are 9001 values for the 9000 rows"):
        ds.add_column("v", list(range(ROWS + 1)))
    with pytest.raises(BadInput, match="returned 1 values"):
        ds.add_column("v", lambda batch: [1], ["id"])
    with pytest.raises(SchemaError, match="'text' already"):
        ds.add_column("text", [1] * ROWS)
    with pytest.raises(SchemaError, match="'score' is double, and values of type string"):
        ds.rewrite_column("score", ["x"] * ROWS)
    with pytest.raises(BadInput, match="no column"):
        ds.add_column("v", [1, "x"])
    assert Dataset.open(store, "d").commit == ds.commit


def test_rewrite_drop_and_rename(store: Store, source_of: Make, ds: Dataset) -> None:
    columns = columns_of(ROWS)
    new = ds.rewrite_column("score", lambda batch: pc.add(batch["id"], 0.5), ["id"])
    columns["score"] = pc.add(columns["id"], 0.5)
    assert new.commit_object.root == root_of(store, source_of, pa.table(columns))
    del columns["text"]
    new = new.drop_columns(["text"])
    assert new.commit_object.root == root_of(store, source_of, pa.table(columns))
    before = store.new_bytes
    new = new.rename_columns({"score": "points", "id": "number"})
    store.flush()
    assert store.new_bytes - before < 2_000 and new.identity == ("number",)
    renamed = pa.table({{"score": "points", "id": "number"}.get(name, name): one for name, one in columns.items()})
    assert new.commit_object.root == root_of(store, source_of, renamed, "number")
    with pytest.raises(SchemaError, match="unique"):
        new.rename_columns({"points": "blob"})


def test_columns_that_identify_rows_stay(ds: Dataset) -> None:
    for edit in (
        lambda: ds.drop_columns(["id"]),
        lambda: ds.rewrite_column("id", list(range(ROWS))),
        lambda: ds.cast_column("id", pa.int32()),
    ):
        with pytest.raises(SchemaError, match="identifies the rows of d"):
            edit()
    with pytest.raises(SchemaError, match="no column 'nope'"):
        ds.drop_columns(["nope"])


def test_casts(store: Store, source_of: Make, ds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = columns_of(ROWS)
    read: list[bytes] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda digest: read.append(digest) or get(digest))
    new = Dataset.open(store, "d").cast_column("blob", pa.large_binary())
    assert all(len(get(one)) < 2_000_000 and get(one)[:4] in (b"LND1", b"LPG1", b'{"fo') for one in read)  # no value
    monkeypatch.undo()
    columns["blob"] = columns["blob"].cast(pa.large_binary())
    assert new.commit_object.root == root_of(store, source_of, pa.table(columns))
    new = new.cast_column("text", metadata={PART_BYTES.decode(): "5000"}).cast_column("score", pa.float32())
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("text", pa.string(), metadata={PART_BYTES: b"5000"}),
            pa.field("blob", pa.large_binary()),
            pa.field("score", pa.float32()),
        ]
    )
    columns["score"] = columns["score"].cast(pa.float32())
    assert new.commit_object.root == root_of(store, source_of, pa.table(list(columns.values()), schema=schema))
    with pytest.raises(SchemaError, match="'score' is int32"):
        new.cast_column("score", pa.int32())
    with pytest.raises(SchemaError, match="'blob' is string"):
        new.cast_column("blob", pa.string())


def test_metadata_cost_nothing(store: Store, ds: Dataset) -> None:
    before = store.new_bytes
    new = ds.cast_column("blob", metadata={SEMANTIC.decode(): "image", CODEC.decode(): "jpeg"}, nullable=False)
    store.flush()
    assert store.new_bytes - before < 2_000 and new.commit_object.root == ds.commit_object.root
    assert new.schema.field("blob").metadata == {SEMANTIC: b"image", CODEC: b"jpeg"}
    with_null = new.add_column("n", [None, *range(ROWS - 1)])
    with pytest.raises(SchemaError, match="'n' has nulls in rows 0-"):
        with_null.cast_column("n", nullable=False)


def test_a_column_edit_that_loses_the_race(store: Store, ds: Dataset) -> None:
    """Made from the rows it is made again; given in their order it is a conflict."""
    other = Dataset.open(Store.open(store.url), "d")
    other.delete(rows=[0])
    with pytest.raises(Conflict):
        ds.add_column("v", list(range(ROWS)))
    new = ds.add_column("v", lambda batch: batch["id"], ["id"])
    assert new.to_arrow(["v"])["v"].to_pylist() == list(range(1, ROWS))


def test_functions_are_named_by_module() -> None:
    assert load_function("math:floor") is __import__("math").floor
    for wrong in ("math", "math:nope", "nope.nope:x", "os:sep", ""):
        with pytest.raises(BadInput, match=r"package\.module:function|no function"):
            load_function(wrong)


RULES = [
    (Rule("not_null"), {"n": [1, None]}, 1),
    (Rule("range", least=0, most=9), {"n": [0, 9, 10]}, 2),
    (Rule("range", least=0), {"n": [5, -1]}, 1),
    (Rule("one_of", values=(1, 2)), {"n": [1, 2, None, 3]}, 3),
    (Rule("pattern", pattern="[a-z]+"), {"s": ["abc", None, "ab1"]}, 2),
    (Rule("one_of", values=("x",)), {"s": ["x", "y"]}, 1),
    (Rule("range", least="2024-01-01"), {"s": ["2024-05-05", "2023-12-31"]}, 1),
    (Rule("unique"), {"n": [77, 78, 77]}, None),
]


@pytest.mark.parametrize(("rule", "rows", "at"), RULES, ids=[str(rule) for rule, _, _ in RULES])
def test_rules_are_held_against_rows_that_come_in(
    store: Store, source_of: Make, rule: Rule, rows: dict[str, list[Any]], at: int | None
) -> None:
    table = pa.table({"id": [0, 1], "n": [1, 2], "s": ["x", "x"]})
    if rule.kind == "range" and "s" in rows:
        table = table.set_column(2, "s", pa.array(["2024-02-02"] * 2))
    (name,) = rows
    ds = write_dataset(store, "d", source_of(table, ("id",))).change_rules(name, [rule])
    count = len(rows[name])
    more = pa.table({"id": range(2, 2 + count), **rows})
    with pytest.raises(RuleBroken, match=rf"column '{name}' breaks the rule '.*' in row") as broken:
        ds.append(more)
    assert broken.value.column == name and broken.value.rule == str(rule)
    assert broken.value.rows == ([at] if at is not None else [2, 4])
    assert Dataset.open(store, "d").commit == ds.commit
    assert len(ds.append(more.slice(0, 1))) == 3
    assert len(Dataset.open(store, "d").change_rules(name, remove=[rule.kind]).append(more.slice(1))) == 2 + count


def test_a_rule_that_rows_break_or_that_does_not_fit_is_refused(store: Store, source_of: Make) -> None:
    table = pa.table({"id": [0, 1, 2], "n": [1, None, 1], "s": ["x", "y", "z"]})
    ds = write_dataset(store, "d", source_of(table, ("id",)))
    with pytest.raises(RuleBroken, match=r"column 'n' breaks the rule 'not null' in row 1"):
        ds.change_rules("n", [Rule("not_null")])
    with pytest.raises(RuleBroken, match=r"in row 0, 2 \(both have the same value\)"):
        ds.change_rules("n", [Rule("unique")])
    for name, rule in (
        ("n", Rule("range", least="x")),
        ("n", Rule("pattern", pattern="x")),
        ("s", Rule("pattern", pattern="(")),
        ("n", Rule("range")),
    ):
        with pytest.raises(BadInput, match=r"cannot have the rule|range needs"):
            ds.change_rules(name, [rule])
    with pytest.raises(BadInput, match="no rule 'unique'"):
        ds.change_rules("s", remove=["unique"])
    assert Dataset.open(store, "d").commit == ds.commit


def test_rules_are_held_against_upserts_updates_and_new_columns(store: Store, source_of: Make) -> None:
    table = pa.table({"id": [0, 1], "n": [1, 2]})
    ds = write_dataset(store, "d", replace(source_of(table, ("id",)), keyed=True)).change_rules("n", [Rule("unique")])
    with pytest.raises(RuleBroken):
        ds.upsert(pa.table({"id": [0], "n": [2]}))
    with pytest.raises(RuleBroken):
        ds.update(pa.table({"id": [0], "n": [2]}))
    with pytest.raises(RuleBroken):
        ds.rewrite_column("n", [3, 3])
    assert (
        ds.change_rules("id", [Rule("unique")]).upsert(pa.table({"id": [0], "n": [5]})).to_arrow()["n"][0].as_py() == 5
    )


def test_an_import_keeps_the_rules_and_is_held_against_them(store: Store, source_of: Make) -> None:
    """Rules would be worth little if the next import dropped them."""
    table = pa.table({"id": [0, 1], "n": [1, 2]})
    ds = write_dataset(store, "d", source_of(table, ("id",))).change_rules("n", [Rule("range", most=9), Rule("unique")])
    with pytest.raises(RuleBroken, match="'range max 9' in row 1"):
        write_dataset(store, "d", source_of(pa.table({"id": [0, 1], "n": [3, 10]}), ("id",)))
    with pytest.raises(RuleBroken, match="'unique' in row 0, 1"):
        write_dataset(store, "d", source_of(pa.table({"id": [0, 1], "n": [3, 3]}), ("id",)))
    new = write_dataset(store, "d", source_of(pa.table({"id": [7], "n": [3]}), ("id",)))
    assert new.schema.equals(ds.schema, check_metadata=True) and len(new) == 1


def test_a_cast_to_a_type_that_a_rule_does_not_fit_is_refused(store: Store, source_of: Make) -> None:
    """Such a rule would end every later write."""
    table = pa.table({"id": [0, 1], "s": ["1", "2"], "n": [1, 2], "x": [0.1, 0.9], "u": [0.1, 0.1 + 1e-12]})
    ds = write_dataset(store, "d", source_of(table, ("id",)))
    ds = ds.change_rules("s", [Rule("pattern", pattern="[0-9]+")]).change_rules("n", [Rule("range", least=-5)])
    ds = ds.change_rules("x", [Rule("range", most=0.9)]).change_rules("u", [Rule("unique")])
    for name, to, kind in (("s", pa.int64(), "pattern"), ("n", pa.uint8(), "range")):
        with pytest.raises(BadInput, match=rf"cannot have the rule .*: lepton rules rm d@main {name} {kind}$"):
            ds.cast_column(name, to)
    with pytest.raises(RuleBroken, match="'unique'"):
        ds.cast_column("u", pa.float32())  # both are one float32
    with pytest.raises(RuleBroken, match="'range min 5'"):
        ds.cast_column("n", metadata={"lepton.rules": '[{"rule": "range", "min": 5}]'})
    with pytest.raises(RuleBroken, match=r"'range max 0\.5'"):
        ds.cast_column("x", pa.float32(), {"lepton.rules": '[{"rule": "range", "max": 0.5}]'})
    new = ds.cast_column("s", pa.large_string()).cast_column("n", pa.int32())
    assert len(new.append(pa.table({"id": [2], "s": ["3"], "n": [3], "x": [0.5], "u": [0.5]}))) == 3
    assert (
        Dataset.open(store, "d")
        .change_rules("s", remove=["pattern"])
        .cast_column("s", pa.int64())
        .schema.field("s")
        .type
        == pa.int64()
    )


def test_an_import_of_a_type_that_a_rule_does_not_fit_is_refused(store: Store, source_of: Make) -> None:
    ds = write_dataset(store, "d", source_of(pa.table({"id": [0], "n": [1]}), ("id",)))
    ds = ds.change_rules("n", [Rule("range", least=-5)])
    with pytest.raises(BadInput, match=r"range min -5: .*first remove it: lepton rules rm d@main n range"):
        write_dataset(store, "d", source_of(pa.table({"id": [0], "n": pa.array([1], pa.uint8())}), ("id",)))
    assert Dataset.open(store, "d").commit == ds.commit


def test_rules_hold_for_integers_above_all_of_an_int64(store: Store, source_of: Make) -> None:
    table = pa.table({"id": [0, 1], "n": pa.array([2**63 + 1, 2], pa.uint64())})
    ds = write_dataset(store, "d", source_of(table, ("id",))).change_rules("n", [Rule("range", most=2**63 + 1)])
    with pytest.raises(RuleBroken, match=f"max {2**63 + 1}' in row 0"):
        ds.append(pa.table({"id": [2], "n": pa.array([2**63 + 2], pa.uint64())}))
    with pytest.raises(BadInput, match="cannot have the rule"):
        ds.change_rules("n", [Rule("one_of", values=(2**64,))])
