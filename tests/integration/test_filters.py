"""Filters, columns, and the engines that read a version in place: what is read is counted in pages, not in seconds."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput, ChunkCorrupt, MissingExtra, SchemaError
from leptonstore.store import Store

Make = Callable[..., Source]
ROWS = 40_000


def _table() -> pa.Table:
    rng = np.random.default_rng(0)
    ids = np.arange(ROWS)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "x": pa.array([None if at % 10 == 0 else float(at % 100) for at in range(ROWS)], pa.float64()),
            "half": pa.array((ids // 4_000).astype(np.float16)),
            "label": pa.array(rng.integers(0, 5, ROWS), pa.uint8()),
            "text": pa.array([f"row {at} " * 12 for at in range(ROWS)]),
            "day": pa.array((ids // 1_000).astype(np.int32), pa.int32()).cast(pa.date32()),
        }
    )


TABLE = _table()


@pytest.fixture
def dataset(store: Store, source_of: Make) -> Dataset:
    write_dataset(store, "d", source_of(TABLE, ("id",)))
    return Dataset.open(store, "d")


def _pages(ds: Dataset, columns: list[str]) -> int:
    """Pages of some columns in the whole version."""
    groups = ds.pages.groups(list(ds.leaves.spans()))
    return sum(len(group.columns[ds.schema.get_field_index(name)]) for group in groups for name in columns)


def test_filters_and_columns_give_what_arrow_gives(dataset: Dataset) -> None:
    i, x, label, day = pc.field("id"), pc.field("x"), pc.field("label"), pc.field("day")
    for expression in [
        i < 10,
        (i >= 20_000) & (label == 3),
        x.is_null() & (i > 39_000),
        (x == 55.0) | (i == 7),
        pc.field("text") == "row 77 " * 12,
        day == pa.scalar(12, pa.int32()).cast(pa.date32()),
        i < 0,
        pc.scalar(True),
    ]:
        wanted = TABLE.filter(expression)
        assert dataset.to_arrow(filter=expression).equals(wanted), expression
        assert dataset.to_arrow(["text", "id"], expression).equals(wanted.select(["text", "id"])), expression
        assert dataset.count(expression) == wanted.num_rows
    assert dataset.to_arrow(["id"], pc.field("half") > 8.5).column(0).to_pylist() == list(range(36_000, ROWS))
    with pytest.raises(BadInput, match="No match for FieldRef"):
        dataset.to_arrow(filter=pc.field("nope") == 1)
    with pytest.raises(SchemaError, match="no column 'nope'"):
        dataset.to_arrow(["nope"], i < 10)
    with pytest.raises(BadInput, match=r"d@main rows 0-\d+: filter .*overflow"):
        dataset.to_arrow(["id"], i * (1 << 61) > 0)


def test_a_filter_reads_the_row_groups_that_can_fit_and_no_other(dataset: Dataset) -> None:
    assert len(dataset.leaves.digests) >= 6 and dataset.pages.reads == 0
    found = dataset.to_arrow(["label"], (pc.field("id") >= 100) & (pc.field("id") < 110))
    assert found.num_rows == 10 and dataset.pages.reads == 2, "one page of `id`, one of `label`"
    assert dataset.to_arrow(filter=pc.field("id") > ROWS).num_rows == 0
    assert dataset.pages.reads == 2, "bounds say no everywhere"
    fresh = Dataset.open(dataset.store, "d")
    assert fresh.to_arrow(["id"], pc.field("x") == 12.0).num_rows == ROWS / 100
    assert fresh.pages.reads == _pages(fresh, ["x", "id"]), "every row group can have 12, and has it"
    assert fresh.to_arrow(["text"], pc.field("x") == 12.5).num_rows == 0
    assert fresh.pages.reads == _pages(fresh, ["x", "id"]), "none has 12.5: no text is read"


def test_strings_have_no_bounds_but_their_pages_are_read_by_rows(dataset: Dataset) -> None:
    assert dataset.to_arrow(["id"], pc.field("text") == "no such text").num_rows == 0
    assert dataset.pages.reads == _pages(dataset, ["text"]) > len(dataset.leaves.digests)
    fresh = Dataset.open(dataset.store, "d")
    assert fresh.to_arrow(["text"], pc.field("id") == 123).num_rows == 1
    assert fresh.pages.reads == 2, "one page of `id`, one of the many of `text`"


def test_a_filtered_view_is_a_view(dataset: Dataset) -> None:
    view = dataset.filter(pc.field("label") == 3)
    wanted = TABLE.filter(pc.field("label") == 3)
    assert len(view) == wanted.num_rows and view.to_arrow().equals(wanted)
    assert view[5] == wanted.slice(5, 1).to_pylist()[0]
    again = view.filter(pc.field("id") > 30_000)
    assert again.to_arrow().equals(wanted.filter(pc.field("id") > 30_000))
    assert pickle.loads(pickle.dumps(again)).fingerprint == again.fingerprint  # noqa: S301 - our own object
    backwards = dataset.select(np.arange(ROWS)[::-1])
    assert backwards.to_arrow(["id"], pc.field("id") < 3).column(0).to_pylist() == [2, 1, 0]
    assert len(dataset.filter(pc.field("id") < 0)) == 0


def test_errors_of_a_scan_name_the_rows(dataset: Dataset) -> None:
    store = dataset.store
    place = store.locate(dataset.leaves.group(2).columns[1][0].digest)
    assert place is not None
    path = store.home.path_of(place.pack)  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[place.row.offset + 100] ^= 1
    path.write_bytes(data)
    fresh = Dataset.open(Store.open(store.url), "d")
    first = int(fresh.leaves.starts[2])
    with pytest.raises(ChunkCorrupt, match=rf"d@main rows {first}-\d+ column 'x'"):
        fresh.to_arrow(["id"], pc.field("x") == 1)
    assert fresh.to_arrow(["id"], (pc.field("x") == 1) & (pc.field("id") < first)).num_rows > 0


def test_pyarrow_reads_it_as_a_dataset(dataset: Dataset) -> None:
    arrow = dataset.to_pyarrow_dataset()
    expression = (pc.field("id") >= 4_990) & (pc.field("id") < 5_010)
    wanted = TABLE.filter(expression)
    assert isinstance(arrow, pads.Dataset) and arrow.schema.equals(TABLE.schema)
    assert arrow.to_table(columns=["x", "id"], filter=expression).equals(wanted.select(["x", "id"]))
    doubled = arrow.to_table(columns={"two": pc.field("id") * 2}, filter=expression)
    assert doubled.column("two").to_pylist() == [2 * at for at in range(4_990, 5_010)]
    assert dataset.pages.reads <= 4
    assert arrow.count_rows() == ROWS and arrow.count_rows(filter=expression) == 20
    assert arrow.filter(expression).filter(pc.field("id") > 5_000).count_rows() == 9
    assert arrow.scanner(columns=[]).count_rows() == ROWS
    assert arrow.head(3).equals(TABLE.slice(0, 3)) and arrow.take([7, 3]).equals(TABLE.take([7, 3]))
    assert sum(batch.num_rows for batch in arrow.to_batches(batch_size=777)) == ROWS
    assert max(batch.num_rows for batch in arrow.to_batches(batch_size=777)) <= 777
    assert pickle.loads(pickle.dumps(arrow.filter(expression))).count_rows() == 20  # noqa: S301 - our own object
    assert arrow.filter(expression).sort_by([("id", "descending")]).to_table().column("id")[0].as_py() == 5_009
    other = pads.dataset(pa.table({"id": [4_991], "more": ["m"]}))
    assert arrow.filter(expression).join(other, "id", join_type="inner").to_table().column("more").to_pylist() == ["m"]
    assert arrow.partition_expression.equals(pc.scalar(True))
    for refused in (arrow.get_fragments, lambda: arrow.replace_schema(arrow.schema)):
        with pytest.raises(NotImplementedError):
            refused()
    with pytest.raises(SchemaError, match="no column 'nope'"):
        arrow.to_table(columns=["nope"])
    assert pa.table(dataset.select([1, 2])).equals(TABLE.slice(1, 2))


def test_duckdb_pushes_columns_and_conditions_down(dataset: Dataset) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register("d", dataset.to_pyarrow_dataset(widen=True))
        assert connection.sql("select label from d where id between 20 and 24").fetchall() == [
            (label,) for label in TABLE.column("label")[20:25].to_pylist()
        ]
        assert dataset.pages.reads == 2
        assert connection.sql("select count(*), count(x) from d").fetchall() == [(ROWS, ROWS - ROWS // 10)]
        assert connection.sql("select max(text) from d where day = date '1970-01-02'").fetchall() == [
            ("row 1999 " * 12,)
        ]
        assert connection.sql("select count(*) from d where half > 8.5").fetchall() == [(4_000,)]


def test_polars_and_pandas_read_it(dataset: Dataset) -> None:
    polars = pytest.importorskip("polars")
    lazy = polars.scan_pyarrow_dataset(dataset.to_pyarrow_dataset())
    found = lazy.filter((polars.col("id") >= 20) & (polars.col("id") < 25)).select("id", "label").collect()
    assert found["label"].to_list() == TABLE.column("label")[20:25].to_pylist() and dataset.pages.reads == 2
    frame = dataset.to_polars(["id", "x"], pc.field("id") < 5)
    assert frame["x"].to_list() == [None, 1.0, 2.0, 3.0, 4.0]
    pandas = pytest.importorskip("pandas")
    wanted = TABLE.select(["id", "text"]).slice(0, 5).to_pandas()
    pandas.testing.assert_frame_equal(dataset.to_pandas(["id", "text"], pc.field("id") < 5), wanted)


def test_without_the_library_the_extra_is_named(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("polars", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=rf'pip install "leptonstore\[{name}\]"'):
            getattr(dataset, f"to_{name}")()
