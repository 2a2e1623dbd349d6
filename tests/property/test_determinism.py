"""One version and one recipe give one commit: however the rows are cut, by how many workers, with or without what is kept."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import BadInput
from leptonstore.process.checks.duplicates import Duplicates
from leptonstore.process.checks.near_duplicate_texts import NearDuplicateTexts
from leptonstore.process.checks.nulls import Nulls
from leptonstore.process.checks.outliers import Outliers
from leptonstore.process.checks.text_charset import TextCharset
from leptonstore.process.checks.text_length import TextLength
from leptonstore.process.engine import Runner
from leptonstore.process.memo import Memo
from leptonstore.process.operation import Operation
from leptonstore.process.operations.group_by import GroupBy
from leptonstore.process.operations.mask_pii import MaskPii
from leptonstore.process.operations.normalise import Normalise
from leptonstore.process.operations.rows import Sample, Select, Split
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("number", pa.float64()),
        pa.field("pair", pa.list_(pa.int32(), 2)),
        pa.field("tags_of", pa.list_(pa.int16())),
    ]
)
OPERATIONS: list[Operation] = [
    Select("number > -50 or number is null"),
    Split(names=["a", "b"], fractions=[0.6, 0.4]),
    Sample(fraction=0.8),
    Sample(rows=40),
    MaskPii("text", kinds=["email", "ip"]),
    Normalise("number"),
    Duplicates(columns=["pair"], action="tag"),
    Duplicates(columns=["tags_of", "text"], action="drop"),
    NearDuplicateTexts("tag", "text"),
    Nulls(action="tag"),
    Outliers(columns=["number"], action="drop"),
    TextLength("tag", "text", max=120),
    TextCharset("tag", "text"),
]
ENDS: list[Operation] = [
    GroupBy(["text"], ["count", "min(number)"]),
    GroupBy(["text"], ["count", "sum(number)", "mean(number)"]),
]
texts = st.sampled_from(
    [None, "", "write to ada@example.org, she is in", "from 10.0.0.7 to nowhere", "ünïcödé", "x" * 200, "y" * 20_000]
)
row = st.fixed_dictionaries(
    {
        "text": st.one_of(texts, st.text("ab c", max_size=40)),
        "number": st.sampled_from([None, 0.0, -0.0, 1.5, 1e30, 0.1, -60.0, 3.25]),
        "pair": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 1)), min_size=2, max_size=2)),
        "tags_of": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=3)),
    }
)


def result_of(store: Store, pipeline: Pipeline, into: str, workers: int, memo: bool) -> tuple[Any, ...]:
    try:
        made = pipeline.with_changes(into=into).run(store, Runner("native", workers=workers), memo=memo)
    except BadInput as error:
        assert "no row" in str(error)
        return ("no row",)
    return made.dataset.commit, made.findings, made.counts


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(row, min_size=4, max_size=12),
    st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4, unique_by=id),
    st.one_of(st.none(), st.sampled_from(ENDS)),
    st.data(),
)
def test_the_same_commit_whatever_the_pieces_the_workers_and_the_memo(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[dict[str, Any]],
    operations: list[Operation],
    end: Operation | None,
    data: st.DataObject,
) -> None:
    if end is not None:
        operations = [*operations, end]
    place = tmp_path_factory.mktemp("same")
    with pytest.MonkeyPatch.context() as patch, Store.create(place / "store", cache_dir=place / "cache") as store:
        patch.setattr(limits, "ROW_GROUP_ROWS_MIN", 8)
        patch.setattr(limits, "ROW_GROUP_ROWS_AVG", 16, raising=False)
        patch.setattr(limits, "ROW_GROUP_ROWS_MAX", 64)
        rows = [{"id": at, **some[at * 7 % len(some)]} for at in range(150)]
        table = pa.Table.from_pylist(rows, SCHEMA)
        write_dataset(store, "rows", Source(SCHEMA, ("id",), lambda: iter(table.to_batches(50)), len(rows)))
        pipeline = Pipeline("rows", operations)
        expected = result_of(store, pipeline, "plain", 1, memo=False)
        for number, memo in enumerate((False, True, True, True)):
            patch.setattr(limits, "ENGINE_TASK_ROWS", data.draw(st.sampled_from([8, 40, 1_000])))
            patch.setattr(limits, "CHAIN_BATCH_ROWS", data.draw(st.sampled_from([1, 7, 1_000])))
            patch.setattr(limits, "CHAIN_BATCH_BYTES", data.draw(st.sampled_from([1, 30_000, 1 << 20])))
            patch.setattr(limits, "SCAN_SLICE_BYTES", data.draw(st.sampled_from([1, 50_000, 1 << 20])))
            if number == 2 and (kept := Memo.of(store)) is not None:
                blocks = sorted((kept.path / "blocks").iterdir())
                for block in blocks[:: data.draw(st.integers(1, 3))]:  # somebody removes a part of it
                    block.unlink()
            found = result_of(store, pipeline, f"other{number}", data.draw(st.integers(1, 3)), memo)
            assert found == expected
