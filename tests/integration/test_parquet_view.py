"""A version as Parquet that is nowhere stored: other people's readers find the values, and read only what they ask for."""

from __future__ import annotations

import io
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.parquet_view import ParquetTemplate, ParquetView
from leptonstore.store import Store

Make = Callable[..., Source]
ROWS = 3_000


def _nulls(values: list[object], every: int) -> list[object]:
    return [None if at % every == 0 else value for at, value in enumerate(values)]


def _every_type() -> pa.Table:
    rng = np.random.default_rng(3)
    numbers = rng.integers(-100, 100, ROWS).tolist()
    large = [bytes([at % 256]) * (20_000 if at % 500 == 3 else at % 30) for at in range(ROWS)]
    columns: dict[str, pa.Array] = {"key": pa.array(range(ROWS), pa.int64())}
    for data_type in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float16(), pa.float32(), pa.float64()):
        values = np.array(numbers).astype(data_type.to_pandas_dtype())
        columns[str(data_type)] = pa.array(values, data_type)
        columns[f"{data_type} null"] = pa.array(values, data_type, mask=np.arange(ROWS) % 3 == 0)
    for data_type in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        top = np.iinfo(data_type.to_pandas_dtype()).max
        columns[str(data_type)] = pa.array([top - at % 5 for at in range(ROWS)], data_type)
    times = [pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
    times += [pa.timestamp(unit, "UTC") for unit in ("s", "ms", "us", "ns")] + [pa.duration("ms"), pa.timestamp("us")]
    for data_type in times:
        plain = pa.int32() if data_type.bit_width == 32 else pa.int64()
        step = 86_400_000 if data_type == pa.date64() else 1
        columns[str(data_type)] = pa.array(_nulls([at * step for at in range(ROWS)], 4), plain).cast(data_type)
    columns |= {
        "bool": pa.array(_nulls([at % 3 == 1 for at in range(ROWS)], 5)),
        "string": pa.array(_nulls([f"text {at} ü" * (at % 7) for at in range(ROWS)], 7)),
        "large_string": pa.array(["x" * 17_000 if at == 1_234 else str(at) for at in range(ROWS)], pa.large_string()),
        "binary": pa.array(_nulls(large, 6), pa.binary()),
        "large_binary": pa.array(large, pa.large_binary()),
        "fixed": pa.array(_nulls([b"%04d" % at for at in range(ROWS)], 9), pa.binary(4)),
        "decimal": pa.array([Decimal(at) / 100 for at in numbers], pa.decimal128(20, 2)),
        "list": pa.array([None if at % 11 == 0 else list(range(at % 4)) for at in range(ROWS)], pa.list_(pa.int16())),
        "struct": pa.array([{"a": at, "b.c": None if at % 2 else "s"} for at in range(ROWS)]),
        "all null": pa.nulls(ROWS, pa.int32()),
        "pair": pa.array([[at, -at] for at in range(ROWS)], pa.list_(pa.int32(), 2)),
        "pair null": pa.array([[at, None if at % 2 else 1] for at in range(ROWS)], pa.list_(pa.float32(), 2)),
    }
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 256, ROWS * 12, np.uint8)), 12)
    columns["image"] = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), [3, 4]), pixels)
    fields = [
        pa.field(name, array.type, nullable=name not in ("key", "int8", "image")) for name, array in columns.items()
    ]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _view(dataset: Dataset) -> ParquetView:
    return ParquetView(dataset, list(dataset.leaves.spans()), ParquetTemplate(dataset.schema))


def test_every_type_reads_back(store: Store, source_of: Make) -> None:
    table = _every_type()
    dataset = write_dataset(store, "d", source_of(table, ("key",)))
    view = _view(dataset)
    data = view.read(0, view.size)
    assert len(data) == view.size
    found = pq.read_table(io.BytesIO(data))
    usual = io.BytesIO()
    pq.write_table(table, usual)
    wanted = pq.read_table(usual)
    assert found.schema.equals(wanted.schema)
    for name in table.schema.names:
        assert found.column(name).combine_chunks().equals(wanted.column(name).combine_chunks()), name
    for start, end in [(0, 1), (3, 50), (view.size - 10, view.size), (1_000, 100_000), (view.size, view.size + 5)]:
        assert view.read(start, end) == data[start:end]
    assert _view(Dataset.open(store, "d")).read(0, view.size) == data, "the same bytes each time"


def test_other_readers_agree(store: Store, source_of: Make) -> None:
    duckdb = pytest.importorskip("duckdb")
    polars = pytest.importorskip("polars")
    table = _every_type().drop_columns(["halffloat", "halffloat null", "duration[ms]", "pair null"])
    dataset = write_dataset(store, "d", source_of(table, ("key",)))
    view = _view(dataset)
    frame = polars.read_parquet(io.BytesIO(view.read(0, view.size)))
    path = store.cache_path("t.parquet")
    path.write_bytes(view.read(0, view.size))
    for name in (
        "key",
        "int16 null",
        "uint64",
        "string",
        "large_binary",
        "list",
        "pair",
        "bool",
        "all null",
        "date32[day]",
    ):
        wanted = table.column(name).to_pylist()
        assert frame[name].to_list() == wanted, name
        rows = duckdb.sql(f"select \"{name}\" from read_parquet('{path}')").fetchall()
        assert [list(row[0]) if isinstance(row[0], tuple) else row[0] for row in rows] == wanted, name


class _Counted(io.RawIOBase):
    """A file over a view that remembers what was read of it."""

    def __init__(self, view: ParquetView) -> None:
        self.view, self.at, self.bytes = view, 0, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.view.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        data = self.view.read(self.at, self.view.size if size < 0 else self.at + size)
        self.at += len(data)
        self.bytes += len(data)
        return data


def test_a_reader_of_one_column_reads_its_pages(store: Store, source_of: Make) -> None:
    rows = 20_000
    table = pa.table({"id": np.arange(rows), "label": np.arange(rows) % 7, "text": ["word " * 60] * rows})
    write_dataset(store, "d", source_of(table, ("id",)))
    dataset = Dataset.open(store, "d")
    groups = len(dataset.leaves.digests)
    file = pq.ParquetFile(_Counted(_view(dataset)))
    assert dataset.pages.reads == 0, "the footer comes from nodes"
    assert file.metadata.num_row_groups == groups and file.metadata.num_rows == rows
    statistics = file.metadata.row_group(1).column(0).statistics
    assert (statistics.min, statistics.max + 1) == tuple(dataset.leaves.starts[1:3].tolist())
    assert file.read(["label"]).column(0).to_pylist() == table.column("label").to_pylist()
    assert dataset.pages.reads == groups
    fresh = Dataset.open(store, "d")
    expression = (pc.field("id") > 100) & (pc.field("id") < 105)
    assert pq.read_table(_Counted(_view(fresh)), columns=["label"], filters=expression).num_rows == 4
    assert fresh.pages.reads == 2, "row groups are pruned by their bounds"


def test_an_empty_version_is_a_file(store: Store, source_of: Make) -> None:
    dataset = write_dataset(store, "d", source_of(pa.table({"a": pa.array([], pa.int8())}), ("a",)))
    view = ParquetView(dataset, [], ParquetTemplate(dataset.schema))
    assert pq.read_table(io.BytesIO(view.read(0, view.size))).equals(dataset.to_arrow())
