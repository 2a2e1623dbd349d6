"""Tables for the tests of diff and merge: plain rows in Python, versions of them in a store, and small trees."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.diff import LargeValue
from leptonstore.dataset.tree import TreeWriter
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import parse_hex
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.format.pack import CONTENT_META
from leptonstore.store import Store


class Row(NamedTuple):
    """What a model keeps of a row. Values of 60 bytes and more stand elsewhere in the store."""

    id: int
    x: int | None = 0
    text: str | None = ""
    tags: tuple[int, ...] | None = ()


SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("x", pa.int32()),
        pa.field("text", pa.string(), metadata={"lepton.inline_bytes": "60", "lepton.part_bytes": "90"}),
        pa.field("tags", pa.list_(pa.int16())),
    ]
)
values = st.builds(
    Row,
    st.integers(0, 60),
    st.none() | st.integers(0, 3),
    st.sampled_from([None, "", "a", "b" * 30, "c" * 70, "d" * 70]),
    st.none() | st.just(()) | st.just((1, 2)),
)


def small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep trees of few rows."""
    for name, value in {
        "ROW_GROUP_ROWS_MIN": 2,
        "ROW_GROUP_ROWS_AVG": 5,
        "ROW_GROUP_ROWS_MAX": 8,
        "NODE_FANOUT_AVG": 3,
        "NODE_FANOUT_MAX": 5,
    }.items():
        monkeypatch.setattr(limits, name, value)


def table_of(rows: list[Row], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Rows -> table; columns that a row has not are null."""
    columns = [
        pa.array(
            [(list(v) if isinstance(v, tuple) else v) for v in (getattr(row, one.name, None) for row in rows)], one.type
        )
        for one in schema
    ]
    return pa.table(columns, schema=schema)


def made_of(
    store: Store,
    rows: list[Row] | pa.Table,
    keyed: bool = False,
    parents: tuple[str, ...] = (),
    schema: pa.Schema = SCHEMA,
    message: str = "",
) -> Commit:
    """A version of these rows, written as a whole."""
    table = rows if isinstance(rows, pa.Table) else table_of(rows, schema)
    writer = TreeWriter(store, table.schema, ("id",), keyed)
    for batch in table.to_batches(max_chunksize=7):
        writer.append(batch)
    root, size = writer.finish()
    above = tuple(parse_hex(one) for one in parents)
    return Commit("dataset", table.schema, ("id",), root, table.num_rows, size, above, message, keyed=keyed)


def version_of(store: Store, rows: list[Row] | pa.Table, keyed: bool = False, schema: pa.Schema = SCHEMA) -> Dataset:
    """A version that no ref leads to: it lives as long as `store` is open."""
    digest = store.put(encode_commit(made_of(store, rows, keyed, schema=schema)), CONTENT_META)
    return Dataset(store, "d", digest.hex()[:12], digest.hex())


def commit_rows(
    store: Store,
    rows: list[Row] | pa.Table,
    branch: str = "main",
    keyed: bool = False,
    schema: pa.Schema = SCHEMA,
    message: str = "",
) -> Dataset:
    """The next version of d@branch, on top of the branch's head."""
    store.refresh()
    record = store.state.refs.get(f"dataset/d/{branch}")
    head = record.commit if record else None
    commit = made_of(store, rows, keyed, (head,) if head else (), schema, message)
    return Dataset(store, "d", branch, publish_commit(store, commit, f"dataset/d/{branch}", head))


def rows_of(version: Dataset) -> list[Row]:
    """All rows of a version with the columns of the model."""
    return [
        Row(*(tuple(v) if isinstance(v, list) else v for v in (row.get(name) for name in Row._fields)))
        for row in version.to_arrow().to_pylist()
    ]


def plain(store: Store, record: dict[str, Any]) -> dict[str, Any]:
    """Values of a change as the model has them: those that stand elsewhere are read."""

    def one(value: Any) -> Any:
        if isinstance(value, LargeValue):
            data = store.get(bytes.fromhex(value.digest))
            assert len(data) == value.size
            return data.decode()
        if isinstance(value, float) and math.isnan(value):
            return "nan"
        return tuple(value) if isinstance(value, list) else value

    return {name: one(value) for name, value in record.items()}
