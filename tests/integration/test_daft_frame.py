"""Datasets as Daft DataFrames, and back."""

from __future__ import annotations

import datetime
import decimal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("daft")
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import daft
from engine_steps import texts
from process_data import noise, tensor, write

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.errors import SchemaError, SourceError
from leptonstore.process.daft_frame import read_frame, write_frame
from leptonstore.store import Store


@pytest.fixture
def ds(store: Store, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(limits, "ENGINE_TASK_ROWS", 2_000)  # many tasks
    return write(store, "texts", texts(12_000, long_every=100), ("id",))


def test_a_frame_has_the_rows_of_the_version_in_their_order(ds: Dataset) -> None:
    assert read_frame(ds).to_pydict() == ds.to_arrow().to_pydict()
    chosen = np.random.default_rng(0).integers(0, len(ds), 3_000)
    assert read_frame(ds.select(chosen), ["text"]).to_pydict() == ds.take(chosen, ["text"]).to_pydict()


def test_a_query_reads_the_columns_that_it_uses(store: Store, ds: Dataset) -> None:
    frame = read_frame(ds)
    before = store.tier.bytes_read
    table = ds.to_arrow(["id"]).column("id").to_numpy()
    found = frame.where(daft.col("id") > 20_000).select("id").to_pydict()["id"]
    assert found == table[table > 20_000].tolist()
    assert frame.count_rows() == len(ds)
    read = sum(store.tier.bytes_read.values()) - sum(before.values())
    assert read < ds.commit_object.plain_bytes / 10  # not one of the long texts


def test_what_comes_back_is_the_version_that_it_was(store: Store, ds: Dataset) -> None:
    again = write_frame(store, "again", read_frame(ds), ("id",), schema=ds.schema)
    assert again.commit_object.root == ds.commit_object.root
    short = read_frame(ds).where(daft.functions.length(daft.col("text")) < 100)
    kept = write_frame(
        store, "short", short, ("id",), schema=ds.schema, message="short ones", lineage={"from": ds.commit}
    )
    assert kept.to_arrow().equals(
        ds.to_arrow().filter(pa.compute.less(pa.compute.utf8_length(ds.to_arrow()["text"]), 100))
    )
    assert kept.commit_object.lineage == {"from": ds.commit}


def test_types_that_daft_lacks_are_cast_there_and_back(store: Store) -> None:
    day, time = datetime.date(2026, 11, 27), datetime.time(9, 30, 1)
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("date", pa.date64()),
            pa.field("time", pa.time32("s")),
            pa.field("money", pa.decimal128(9, -2)),
            class_label_field("label", ["a", "b"]),
            tensor_field("image", pa.uint8(), (2, 3), "image"),
            pa.field("a.b *", pa.list_(pa.string())),
        ]
    )
    arrays = [
        pa.array([0, 1, 2]),
        pa.array([day, None, day], pa.date64()),
        pa.array([time, None, time], pa.time32("s")),
        pa.array([decimal.Decimal("12E2"), None, decimal.Decimal("-7E2")], pa.decimal128(9, -2)),
        pa.array([0, 1, 1], pa.uint8()),
        tensor(noise(3, 2, 3)),
        pa.array([["x"], None, []], pa.list_(pa.string())),
    ]
    ds = write(store, "types", pa.Table.from_arrays(arrays, schema=schema), ("id",))
    frame = read_frame(ds)
    assert frame.select("money").to_pydict()["money"] == [decimal.Decimal(1200), None, decimal.Decimal(-700)]
    assert write_frame(store, "back", frame, ("id",), schema=schema).commit_object.root == ds.commit_object.root


def test_what_does_not_fit_is_told_by_column(store: Store, ds: Dataset) -> None:
    frame = read_frame(ds, ["text"])
    with pytest.raises(SchemaError, match=r"the frame has no column 'id'; it has: text"):
        write_frame(store, "no", frame, ("id",), schema=ds.schema)
    wrong = pa.schema([pa.field("text", pa.int8())])
    with pytest.raises(SourceError, match=r"column 'text' of the frame, near row 0, is no int8"):
        write_frame(store, "no", frame, ("text",), schema=wrong)
    with pytest.raises(SchemaError, match=r"has no column 'label'"):
        read_frame(ds, ["label"])
