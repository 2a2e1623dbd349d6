"""Any pipeline over any rows gives what its operations say row by row; with the memo, without it, and after any change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import BadInput
from leptonstore.process.memo import Memo
from leptonstore.process.operation import Operation
from leptonstore.process.pipeline import Pipeline, Result
from leptonstore.store import Store
from tests.property.pipeline_operations import OPERATIONS, SCHEMA, Row, Said, calls, expected


@pytest.fixture(autouse=True, scope="module")
def unread_pages() -> Iterator[None]:
    """Pages of short values stay unread, too, where the memo knows these (process/engine/unread.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "UNREAD_VALUE_BYTES_MIN", 0)
        patch.setattr(limits, "UNREAD_ROWS", 3)
        yield


row_of = st.fixed_dictionaries(
    {
        "text": st.one_of(st.none(), st.sampled_from(["", "a", "ab", "abc", "x", "Axe", "long enough", "ABC"])),
        # Some are so large that they are chunks of their own.
        "data": st.sampled_from([b"", b"d", b"data", bytes(17_000), b"1" * 20_000]),
        "number": st.one_of(st.none(), st.sampled_from([0.0, -1.5, 2.0])),
    }
)


def write(store: Store, name: str, rows: list[Row]) -> Dataset:
    table = pa.Table.from_pylist([{"id": at, **row} for at, row in enumerate(rows)], SCHEMA)
    return write_dataset(
        store, name, Source(SCHEMA, ("id",), lambda: iter(table.to_batches(max_chunksize=7)), len(rows))
    )


def said_in(result: Result) -> Said:
    out = []
    for one in result.findings.to_pylist():
        detail = one["detail"].partition(":")[0] if one["check"] == "failed" else one["detail"]
        out.append((one["row"], one["check"], detail if one["other"] is None else f"{detail} {one['other']}"))
    return sorted(out)


def check(store: Store, pipeline: Pipeline, rows: list[Row], **options: Any) -> Result | None:
    """Run it, and hold the result against the model. None: no row is left, which is refused."""
    wanted, said = expected(list(pipeline.operations), [{"id": at, **row} for at, row in enumerate(rows)])
    if not wanted:
        with pytest.raises(BadInput, match="no row"):
            pipeline.run(store, **options)
        return None
    result = pipeline.run(store, **options)
    assert result.dataset.to_arrow().to_pylist() == wanted
    assert said_in(result) == said
    assert result.rows_out == len(wanted) == len(rows) - sum(result.dropped().values())
    table = result.dataset.to_arrow().combine_chunks()
    again = write_dataset(store, "again", Source(result.dataset.schema, ("id",), lambda: iter(table.to_batches())))
    assert again.commit_object.root == result.dataset.commit_object.root
    return result


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=6),
    st.lists(row_of, min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 29), row_of), max_size=4),
)
def test_a_pipeline_gives_what_its_operations_say_of_each_row(
    tmp_path_factory: pytest.TempPathFactory,
    operations: list[Operation],
    rows: list[Row],
    changes: list[tuple[int, Row]],
) -> None:
    with Store.create(tmp_path_factory.mktemp("store") / "store") as store:
        pipeline = Pipeline("rows", operations, "made", "quarantine")
        write(store, "rows", rows)
        first = check(store, pipeline, rows)
        if first is not None:
            calls.clear()
            again = pipeline.run(store)
            assert not again.written and not calls
            assert again.dataset.commit == first.dataset.commit
            assert again.findings.equals(first.findings)
            assert again.counts == first.counts
        # The same without a memo: the very same commit.
        alone = check(store, pipeline.with_changes(into="alone"), rows, memo=False)
        if first is not None and alone is not None:
            assert alone.dataset.commit_object.root == first.dataset.commit_object.root
            assert alone.dataset.commit_object.lineage == first.dataset.commit_object.lineage
            assert alone.findings.equals(first.findings)
        changed = list(rows)
        for at, row in changes:
            changed[at % len(rows)] = row
        changed += [row for _, row in changes[:1]]
        write(store, "rows", changed)
        check(store, pipeline, changed)
        # Outcomes were evicted, digests of values were not.
        memo = Memo.of(store)
        assert memo is not None
        memo.trim(0)
        check(store, pipeline.with_changes(into="evicted"), changed)
