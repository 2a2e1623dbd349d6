"""Statistics are kept by pages: a new version costs its new blocks, and what comes out never depends on what was kept, or on threads."""

from __future__ import annotations

import datetime
import decimal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from process_data import encode, encoded_table, noise, tensor, tensor_table, write

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.errors import ChunkCorrupt, ChunkMissing, SchemaError
from leptonstore.process import memo as memos
from leptonstore.process.analyse import Analysis, analyse
from leptonstore.process.memo import Memo
from leptonstore.process.statistics.blocks import blocks_of
from leptonstore.store import Store

ROWS = 3_000
PAIR = pa.struct([("one", pa.int8()), ("more", pa.struct([("deep", pa.string())]))])
SHARED = ("columns", "balance", "splits", "correlation", "rows")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of some 100 rows, two a block: some 15 blocks."""
    monkeypatch.setattr(limits, "ROW_GROUP_ROWS_MIN", 50)
    monkeypatch.setattr(limits, "ROW_GROUP_ROWS_AVG", 100)
    monkeypatch.setattr(limits, "ROW_GROUP_ROWS_MAX", 400)
    monkeypatch.setattr(limits, "STATISTICS_BLOCK_GROUPS_AVG", 2)
    monkeypatch.setattr(limits, "STATISTICS_MERGED_AT_ONCE", 5)
    monkeypatch.setattr(limits, "STATISTICS_EXACT_VALUES", 64)
    monkeypatch.setattr(limits, "STATISTICS_BLOCK_POINTS", 32)


def mixed(rows: int = ROWS, seed: int = 0, first: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=rows)
    values[rng.random(rows) < 0.01] = np.nan
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("x", pa.float64()),
            ("n", pa.int32()),
            ("text", pa.string()),
            ("flag", pa.bool_()),
            ("at", pa.timestamp("ms", "UTC")),
            ("price", pa.decimal128(12, 2)),
            ("list", pa.list_(pa.int16())),
            tensor_field("vector", pa.float32(), (3,)),
            class_label_field("label", ["a", "b", "c"]),
            class_label_field("split", ["train", "test"]),
            ("pair", PAIR),
        ]
    )
    arrays = [
        pa.array(np.arange(first, first + rows)),
        pa.array(values, mask=rng.random(rows) < 0.05),
        pa.array(rng.integers(0, 1000, rows).astype(np.int32)),
        pa.array([None if one < 3 else f"word {one}" for one in rng.integers(0, 50, rows).tolist()]),
        pa.array(rng.random(rows) < 0.3),
        pa.array(rng.integers(0, 2**41, rows), pa.timestamp("ms", "UTC")),
        pa.array(
            [decimal.Decimal(int(one)) / 100 for one in rng.integers(-(10**6), 10**6, rows)], pa.decimal128(12, 2)
        ),
        pa.array([list(range(int(one))) for one in rng.integers(0, 5, rows)], pa.list_(pa.int16())),
        tensor(rng.normal(size=(rows, 3)).astype(np.float32)),
        pa.array(rng.integers(0, 4, rows).astype(np.uint8)),
        pa.array(rng.integers(0, 2, rows).astype(np.uint8)),
        pa.array([{"one": 1, "more": {"deep": "x"}}, None] * (rows // 2), PAIR),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def said(found: Analysis) -> dict[str, object]:
    return {name: getattr(found, name) for name in SHARED}


def test_what_was_kept_and_threads_do_not_show(store: Store) -> None:
    ds = write(store, "d", mixed(), ["id"])
    assert len(list(blocks_of(ds))) >= 8
    alone = analyse(ds, keep=False, threads=1)
    cold, warm = analyse(ds, threads=3), analyse(ds, threads=2)
    assert alone.reused == cold.reused == 0 and warm.reused == warm.blocks == cold.blocks >= 8 * len(cold.columns) - 8
    assert said(alone) == said(cold) == said(warm)


def test_a_view_of_all_rows_says_the_same(store: Store) -> None:
    ds = write(store, "d", mixed(), ["id"])
    whole, view = analyse(ds), analyse(ds.select(np.arange(ROWS)))
    assert view.reused == 0 and view.balance == whole.balance and view.splits == whole.splits
    for one, other in zip(whole.columns, view.columns, strict=True):
        assert (one.nulls, one.least, one.greatest) == (other.nulls, other.least, other.greatest)
        if one.cardinality is not None and one.cardinality.error == 0:
            assert (one.cardinality, one.top) == (other.cardinality, other.top)
        for name in ("numeric", "lengths", "times"):
            first, second = getattr(one, name), getattr(other, name)
            if first is not None:
                assert second.mean == pytest.approx(first.mean, rel=1e-12, abs=1e-12)
                assert (second.min, second.max, second.count) == (first.min, first.max, first.count)


def test_rows_that_are_appended_cost_their_blocks(store: Store) -> None:
    ds = write(store, "d", mixed(), ["id"])
    first = analyse(ds)
    after = analyse(ds.append(mixed(60, seed=9, first=ROWS)))
    assert after.rows == ROWS + 60
    assert after.blocks - after.reused <= 2 * len(after.columns) < first.blocks / 3
    fresh = analyse(Dataset.open(store, "d"), keep=False)
    assert said(after) == said(fresh)


def test_a_new_column_costs_itself(store: Store) -> None:
    ds = write(store, "d", mixed(), ["id"])
    analyse(ds)
    wider = ds.add_column("twice", lambda batch: pa.array(np.asarray(batch.column(0)) * 2), ["id"])
    found = analyse(wider)
    assert found.blocks - found.reused == len(list(blocks_of(wider)))


def test_chosen_columns_alone_are_read_and_told(store: Store) -> None:
    ds = write(store, "d", mixed(), ["id"])
    found, whole = analyse(ds, ["x", "label"]), analyse(ds)
    assert [column.name for column in found.columns] == ["x", "label"]
    assert found.columns == tuple(one for one in whole.columns if one.name in ("x", "label"))
    assert found.correlation is None and found.balance == whole.balance
    with pytest.raises(SchemaError, match="no column 'y'"):
        analyse(ds, ["y"])


def test_damaged_sketches_are_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = write(store, "d", mixed(), ["id"])
    wanted = analyse(ds)
    get = Memo.get_many

    def damaged(self: Memo, keys: list[bytes]) -> list[bytes | None]:
        """As if what is damaged had passed the memo's own check: half a sketch, the sketch of another block, none."""
        found = get(self, keys)
        whole = [one for one in found if one]
        kinds = (
            lambda one: one[: len(one) // 2],
            lambda one: whole[0],
            lambda one: None,
            lambda one: b"",
            lambda one: one,
        )
        return [kinds[at % 5](one) if one else one for at, one in enumerate(found)]

    monkeypatch.setattr(memos.Memo, "get_many", damaged)
    again = analyse(ds)
    assert again.reused < again.blocks and said(again) == said(wanted)


def test_missing_pages_are_told_with_their_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = write(store, "d", mixed(), ["id"])
    block = list(blocks_of(ds))[3]
    gone = block.parts(1)[0].digest
    get = Store.get

    def lost(self: Store, digest: bytes) -> bytes:
        if digest == gone:
            raise ChunkMissing(digest)
        return get(self, digest)

    monkeypatch.setattr(Store, "get", lost)
    monkeypatch.setattr(Store, "get_many", lambda self, digests: (lost(self, one) for one in digests))
    with pytest.raises((ChunkMissing, ChunkCorrupt), match=rf"d@main rows {block.first}-\d+ column 'x'"):
        analyse(ds)


def test_every_type_is_described(store: Store) -> None:
    table = mixed()
    columns = {column.name: column for column in analyse(write(store, "d", table, ["id"])).columns}
    at = table["at"].cast(pa.int64()).to_numpy()
    times = columns["at"].times
    assert times is not None and (times.min, times.max) == (at.min(), at.max()) and columns["at"].unit == "ms"
    assert columns["at"].least == f"{np.datetime64(int(at.min()), 'ms')}Z" and columns["at"].numeric is None
    prices = table["price"].to_pylist()
    assert (columns["price"].least, columns["price"].greatest) == (str(min(prices)), str(max(prices)))
    assert columns["price"].numeric is not None
    assert columns["price"].numeric.mean == pytest.approx(float(sum(prices) / ROWS), rel=1e-12)
    words = [one for one in table["text"].to_pylist() if one is not None]
    assert (columns["text"].least, columns["text"].greatest) == (min(words), max(words))
    assert columns["text"].cardinality is not None and columns["text"].cardinality.count == len(set(words))
    assert [one.value for one in columns["flag"].top.values] == ["false", "true"]  # type: ignore[union-attr]
    assert columns["label"].top.values[0].value in ("a", "b", "c", "3")  # type: ignore[union-attr]
    vector = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    stats = columns["vector"].numeric
    assert stats is not None and stats.count == 3 * ROWS and stats.min == vector.min()
    lengths = columns["list"].lengths
    assert lengths is not None and lengths.max == 4 and lengths.rank_error == 0
    elements = columns["list"].numeric
    flat = table["list"].combine_chunks().flatten().to_numpy()
    assert elements is not None and (elements.count, elements.mean) == (len(flat), flat.mean())
    assert columns["pair"].nulls == ROWS // 2 and columns["pair"].numeric is None
    one, deep = columns["pair.one"], columns["pair.more.deep"]
    assert one.nulls == ROWS // 2 and one.numeric is not None and one.numeric.max == 1
    assert deep.nulls == ROWS // 2 and deep.top is not None and deep.top.values[0].rows == ROWS // 2


@pytest.mark.parametrize(
    ("values", "least", "greatest", "unit"),
    [
        (pa.array([0, 20_000], pa.date32()), "1970-01-01", "2024-10-04", "day"),
        (pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31)], pa.date64()), "0001-01-01", "9999-12-31", "ms"),
        (pa.array([1, 86_399], pa.time32("s")), "00:00:01", "23:59:59", "s"),
        (pa.array([1_500_000, 2], pa.time64("us")), "00:00:00.000002", "00:00:01.500000", "us"),
        (pa.array([5, -5_000], pa.duration("ns")), "-5,000 ns", "5 ns", "ns"),
        (pa.array([2**62, -(2**62)], pa.timestamp("ns")), "1823-11-12T00:06:21.572612096", "2116-02-20T23:53:38.427387904", "ns"),
        (pa.array([2**60], pa.timestamp("s")), None, None, "s"),
    ],
)  # fmt: skip
def test_times_are_told_as_people_write_them(
    store: Store, values: pa.Array, least: str | None, greatest: str | None, unit: str
) -> None:
    table = pa.table({"id": np.arange(len(values)), "at": values})
    column = analyse(write(store, "d", table, ["id"])).columns[1]
    assert column.unit == unit and column.least is not None
    if least is not None:
        assert (column.least, column.greatest) == (least, greatest)


def test_large_values_are_described_without_being_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [bytes([at]) * (limits.VALUE_INLINE_BYTES_MAX + 1 + at) for at in (1, 1, 2)]
    table = pa.table({"id": [0, 1, 2, 3], "data": pa.array([*large, b"small"], pa.large_binary())})
    ds = write(store, "d", table, ["id"])
    monkeypatch.setattr("leptonstore.dataset.values.resolve", None)
    monkeypatch.setattr(Dataset, "ask", None)
    column = analyse(ds).columns[1]
    assert column.lengths is not None and column.lengths.max == len(large[2]) and column.lengths.min == 5
    assert column.cardinality is not None and column.cardinality.count == 3
    assert column.top is not None and column.top.values[0].rows == 2
    assert column.top.values[0].value.startswith(f"{len(large[0]):,} bytes, ")


@pytest.mark.parametrize("rows", [0, 1])
def test_none_and_one_row(store: Store, rows: int) -> None:
    table = mixed(2).slice(0, rows)
    ds = write(store, "d", table, ["id"])
    for one in (ds, ds.select(np.arange(rows))):
        found = analyse(one)
        assert found.rows == rows and len(found.columns) == len(table.schema) + 3  # of structs
        assert all(column.rows == rows for column in found.columns)
        found.to_json()


def test_all_nulls(store: Store) -> None:
    table = pa.table(
        {
            "id": np.arange(100),
            "x": pa.nulls(100, pa.float64()),
            "t": pa.nulls(100, pa.string()),
            "d": pa.nulls(100, pa.date32()),
        }
    )
    for column in analyse(write(store, "d", table, ["id"])).columns[1:]:
        assert column.nulls == 100 and column.cardinality is not None and column.cardinality.count == 0
        assert column.top is not None and column.top.values == ()


def test_images_of_a_version_with_one_more_cost_its_page(store: Store) -> None:
    files = [encode(one) for one in noise(300, 8, 8)]
    ds = write(store, "d", encoded_table(files, [0] * 300, ["a"]), ["path"])
    first = analyse(ds)
    more = encoded_table([encode(noise(1, 4, 4, seed=7)[0])], [0], ["a"])
    more = more.set_column(0, more.schema.field(0), pa.array(["z/last.png"]))
    found = analyse(ds.append(more))
    image = next(column.image for column in found.columns if column.image is not None)
    assert image is not None and image.sizes[0].rows == 300 and image.sizes[1].rows == 1
    assert found.reused > 0 and replace(first, blocks=0, reused=0) == replace(analyse(ds), blocks=0, reused=0)


def test_leakage_counts_samples_of_several_splits(store: Store) -> None:
    images = noise(40, 4, 4)
    images[30], images[31], images[32] = images[0], images[0], images[1]
    splits = ["train"] * 30 + ["test"] * 10
    found = analyse(write(store, "d", tensor_table(images, [0] * 40, ["a"], splits), ["id"])).leakage
    assert found is not None and found.columns == ("image",)
    assert [(leak.first, leak.second, leak.rows, leak.others) for leak in found.leaks] == [("train", "test", 2, 3)]


def test_there_is_no_leakage_without_splits_or_samples(store: Store) -> None:
    assert analyse(write(store, "d", tensor_table(noise(20, 4, 4), [0] * 20, ["a"]), ["id"])).leakage is None
    assert analyse(write(store, "e", mixed(500), ["id"])).leakage is None
