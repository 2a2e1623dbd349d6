"""Random edits against a plain model: a dict for a keyed table, a list for a keyless one; with gc, reopening and columns among them.

After each step the version has the rows of the model, and its root is that of an import of these rows: nothing of its history shows.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.tree import Tree
from leptonstore.dataset.write import write_table
from leptonstore.store import Store
from leptonstore.store.gc import collect

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int32(), nullable=False),
        pa.field("text", pa.string(), metadata={"lepton.inline_bytes": "40", "lepton.part_bytes": "90"}),
        pa.field("n", pa.int64()),
    ]
)
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROW_GROUP_ROWS_MIN": 2,
        "ROW_GROUP_ROWS_AVG": 5,
        "ROW_GROUP_ROWS_MAX": 8,
        "NODE_FANOUT_AVG": 3,
        "NODE_FANOUT_MAX": 5,
        "NODE_KEY_BYTES_MAX": 3,  # of 4: neighbours look alike to the nodes
        "SORT_BYTES": 2_000,
        "SORT_BLOCK_BYTES": 300,
    }.items():
        monkeypatch.setattr(limits, name, value)


class Model:
    """What the rows and the schema should be."""

    def __init__(self, keyed: bool, rng: random.Random) -> None:
        self.keyed, self.rng = keyed, rng
        self.schema, self.rows = SCHEMA, list[Row]()

    def table(self, rows: list[Row]) -> pa.Table:
        return pa.Table.from_pylist(rows, self.schema)

    def new_rows(self, count: int) -> list[Row]:
        ids = self.rng.sample(range(300), count)
        return [{name: self.value(name, one) for name in self.schema.names} for one in ids]

    def value(self, name: str, one: int) -> Any:
        if name == "id":
            return one
        if name == "text":
            return self.rng.choice([None, "", "x" * self.rng.randrange(90), str(one)])
        return self.rng.choice([None, self.rng.randrange(100)])

    def put(self, rows: list[Row]) -> None:
        if self.keyed:
            found = {row["id"]: row for row in self.rows} | {row["id"]: row for row in rows}
            self.rows = [found[key] for key in sorted(found)]
        else:
            self.rows = [*self.rows, *rows]


def step(ds: Dataset, model: Model) -> Dataset:
    """One edit of both."""
    rng = model.rng
    names = model.schema.names
    options = ["append", "where", "rows", "add", "rewrite", "rename", "drop", "cast"]
    what = rng.choice([*options, *(["upsert", "upsert", "keys", "update"] if model.keyed else ["append", "rows"])])
    if what == "append":
        there = {row["id"] for row in model.rows} if model.keyed else set()
        rows = [row for row in model.new_rows(rng.randrange(60)) if row["id"] not in there]
        model.put(rows)
        return ds.append(model.table(rows))
    if what == "upsert":
        rows = model.new_rows(rng.choice([1, 5, 60]))
        model.put(rows)
        return ds.upsert(model.table(rows))
    if what == "update":
        chosen = rng.sample(model.rows, min(len(model.rows), rng.randrange(9)))
        changed = [{**row, "text": "changed"} for row in chosen] if "text" in names else []
        model.put(changed)
        return ds.update(model.table(changed).select(["text", "id"])) if changed else ds
    if what == "where":
        low = rng.randrange(300)
        model.rows = [row for row in model.rows if not low <= row["id"] < low + 20]
        return ds.delete(where=f"id >= {low} and id < {low + 20}")
    if what == "keys":
        keys = rng.sample(range(300), rng.randrange(12))
        model.rows = [row for row in model.rows if row["id"] not in keys]
        return ds.delete(keys=[{"id": key} for key in keys])
    if what == "rows":
        gone = set(rng.sample(range(len(model.rows)), min(len(model.rows), rng.randrange(12))))
        model.rows = [row for at, row in enumerate(model.rows) if at not in gone]
        return ds.delete(rows=sorted(gone))
    return column_step(ds, model, what)


def column_step(ds: Dataset, model: Model, what: str) -> Dataset:
    rng, names = model.rng, model.schema.names
    name = rng.choice(names)
    fresh = f"c{rng.randrange(10**6)}"
    if what == "add":
        values = [rng.randrange(100) for _ in model.rows]
        model.rows = [{**row, fresh: value} for row, value in zip(model.rows, values, strict=True)]
        field = pa.field(fresh, pa.int64())
        model.schema = model.schema.append(field)
        if rng.random() < 0.5:
            return ds.add_column(field, pa.array(values, pa.int64()))
        given_values = iter(values)
        return ds.add_column(field, lambda batch: [next(given_values) for _ in range(batch.num_rows)], ["id"])
    if what == "rewrite" and name not in ("id", "text"):
        model.rows = [{**row, name: row["id"] * 2} for row in model.rows]
        return ds.rewrite_column(name, lambda batch: [one * 2 for one in batch["id"].to_pylist()], ["id"])
    if what == "drop" and name not in ("id", "text"):
        model.rows = [{key: value for key, value in row.items() if key != name} for row in model.rows]
        model.schema = model.schema.remove(names.index(name))
        return ds.drop_columns([name])
    if what == "rename" and name not in ("id", "text"):
        model.rows = [{fresh if key == name else key: value for key, value in row.items()} for row in model.rows]
        at = names.index(name)
        model.schema = model.schema.set(at, model.schema.field(at).with_name(fresh))
        return ds.rename_columns({name: fresh})
    if what == "cast" and name not in ("id", "text"):
        at = names.index(name)
        to = rng.choice([pa.int64(), pa.int32(), pa.float64()])
        model.schema = model.schema.set(at, pa.field(name, to))
        return ds.cast_column(name, to)
    return ds


def imported(store: Store, model: Model) -> Tree:
    table = model.table(model.rows)
    source = Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=9)), keyed=model.keyed)
    return Tree(*write_table(store, source))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), keyed=st.booleans())
def test_edits_equal_a_model(seed: int, keyed: bool) -> None:
    model = Model(keyed, random.Random(seed))
    rng = model.rng
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        model.put(model.new_rows(rng.choice([0, 3, 120])))
        first = model.table(model.rows)
        source = replace(Source(SCHEMA, ("id",), lambda: iter(first.to_batches())), keyed=keyed)
        ds = write_dataset(store, "d", source)
        for _ in range(8):
            ds = step(ds, model)
            assert ds.to_arrow().to_pylist() == model.rows
            assert ds.schema.equals(model.schema, check_metadata=True)
            if rng.random() < 0.3:
                collect(store)
            if rng.random() < 0.3:
                store.close()
                store = Store.open(Path(folder) / "store")
                ds = Dataset.open(store, "d")
            commit = ds.commit_object
            assert Tree(commit.root, commit.rows, commit.plain_bytes) == imported(store, model)
        store.close()
