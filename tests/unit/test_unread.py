"""Columns that are looked up by digest: the memo's word for a page spares reading it, and whatever it says wrongly is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_data import write

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import PART_BYTES
from leptonstore.process.digests import value_digests
from leptonstore.process.engine.unread import Unread, looked_up
from leptonstore.process.memo import Memo
from leptonstore.process.operations.function import Function
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store

RECIPE = bytes(32)
FIELD = pa.field("text", pa.string(), metadata={PART_BYTES: b"2000"})


@pytest.fixture
def texts(store: Store) -> Dataset:
    values = [None if row % 7 == 0 else f"{row} " * 80 for row in range(500)]
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), FIELD])
    return write(store, "texts", pa.table([pa.array(range(500)), pa.array(values)], schema=schema), ["id"])


def memo_of(store: Store) -> Memo:
    memo = Memo.of(store)
    assert memo is not None
    return memo


def column_of(ds: Dataset, first: int, end: int, memo: Memo | None) -> Unread:
    ((values, there, digests),) = looked_up(ds, {"text": RECIPE}, first, end, memo)
    field = ds.schema.field("text")
    return Unread(values, there, digests, np.arange(first, end), lambda rows: ds.pages.gather(rows, [field], False)[0])


def test_pages_that_the_memo_knows_are_not_read(texts: Dataset) -> None:
    memo, wanted = memo_of(texts.store), texts.to_arrow()["text"].combine_chunks()
    before = column_of(texts, 0, 500, memo)
    assert before.there.all() and before.whole().values.equals(wanted)
    reads = texts.pages.reads
    after = column_of(texts, 0, 500, memo)
    assert not after.there.any() and texts.pages.reads == reads
    for one in (before, after):
        assert one.stored_digests().equals(value_digests(wanted))
    assert after.with_rows(np.array([3, 200])).values.take(pa.array([3, 200])).equals(wanted.take(pa.array([3, 200])))
    assert after.whole().values.equals(wanted)


@given(st.data())
def test_any_rows_of_it_have_their_values_and_digests(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    values = data.draw(
        st.lists(st.one_of(st.none(), st.text(max_size=3), st.just("long" * 200)), min_size=1, max_size=60)
    )
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), FIELD.with_metadata({PART_BYTES: b"64"})])
    with (
        pytest.MonkeyPatch.context() as patch,
        Store.create(tmp_path_factory.mktemp("store") / "store") as store,
    ):
        patch.setattr(limits, "UNREAD_ROWS", data.draw(st.integers(1, 20)))
        patch.setattr(limits, "UNREAD_VALUE_BYTES_MIN", data.draw(st.sampled_from([0, 30, 128])))
        ds = write(
            store,
            "texts",
            pa.table([pa.array(range(len(values))), pa.array(values, pa.string())], schema=schema),
            ["id"],
        )
        for _ in range(3):
            first = data.draw(st.integers(0, len(values) - 1))
            end = data.draw(st.integers(first + 1, len(values)))
            column = column_of(ds, first, end, memo_of(store))
            rows = np.array(data.draw(st.lists(st.integers(0, end - first - 1), unique=True)), np.int64)
            cut = data.draw(st.integers(0, len(rows)))
            column, wanted = (
                column.take(rows).slice(cut, len(rows)),
                pa.array(values[first:end], pa.string()).take(pa.array(rows[cut:])),
            )
            assert len(column) == len(wanted)
            assert column.stored_digests().equals(value_digests(wanted))
            some = np.flatnonzero(np.arange(len(wanted)) % 2 == 0)
            assert column.with_rows(some).values.take(pa.array(some)).equals(wanted.take(pa.array(some)))
            assert column.whole().values.equals(wanted)


def test_what_is_no_page_of_digests_is_read(texts: Dataset) -> None:
    class Wrong(Memo):
        def get_many(self, keys: list[bytes]) -> list[bytes | None]:
            return [b"short"] * len(keys)

    wanted = texts.to_arrow()["text"].combine_chunks()
    column = column_of(texts, 0, 500, Wrong(memo_of(texts.store).path.parent / "other"))
    assert column.there.all() and column.stored_digests().equals(value_digests(wanted))


def test_without_a_memo_everything_is_read(texts: Dataset) -> None:
    column = column_of(texts, 100, 300, None)
    assert column.there.all() and column.stored_digests().null_count == sum(row % 7 == 0 for row in range(100, 300))


def test_a_pipeline_that_runs_again_reads_what_changed(tmp_path: Path) -> None:
    """Not the pages of values that it knows the outcomes of: a column of texts may be most of a dataset."""
    rng = np.random.default_rng(1)
    values = [rng.bytes(200).hex() for _ in range(4_000)]  # do not compress below half
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])

    def table() -> pa.Table:
        return pa.table([pa.array(range(len(values))), pa.array(values)], schema=schema)

    pipeline = Pipeline("texts", [Function("pipeline_functions:upper", ("text",), returns={"text": "string"})], "made")
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        write(store, "texts", table(), ["id"])
        pipeline.run(store)
        values[2_000] = "another"
        write(store, "texts", table(), ["id"])
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        before = sum(store.bytes_read.values())
        result = pipeline.run(store)
        assert (result.computed, result.reused) == (1, 3_999)
        assert sum(store.bytes_read.values()) - before < 300_000  # of 800,000 or more
        assert result.dataset[2_000]["text"] == "ANOTHER"
